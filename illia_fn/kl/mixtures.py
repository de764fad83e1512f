"""An upper bound of the KL from a mixture, by the closed forms of its components and the distances between them."""

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import total
from illia_fn._base.trees import PyTree
from illia_fn.kl._priors import is_joint
from illia_fn.kl.loss import Pair, kl_pairs
from illia_fn.kl.table import ClosedForm, register_upper_bound
from illia_fn.posteriors.mixtures import Mixture


def kl_of_mixture(q: Mixture, p: PyTree) -> jax.Array:
    """KL(q || p) <= mean_k KL(q_k || p) - I, from the lower bound mean_k H(q_k) + I of the entropy of q.

    Kolchinsky & Tracey 2017, https://arxiv.org/abs/1706.02419: see `Mixture`.
    """
    each = q.of_each(lambda component: total([pair.kl(1) for pair in _pairs(component, p)]))
    return jnp.mean(each) - q.component_information()


@register_upper_bound(Mixture)
def _bound(q: Mixture, p: PyTree) -> ClosedForm | None:
    return kl_of_mixture if all(map(_has_closed_form, _pairs(q.component(0), p))) else None


def _pairs(component: PyTree, p: PyTree) -> list[Pair]:
    return kl_pairs("kl_divergence", component, p, None)


def _has_closed_form(pair: Pair) -> bool:
    """Its prior is one of this node alone, and no joint one of several."""
    spans_more = is_joint(pair.p) and jax.tree.structure(pair.p.like) != jax.tree.structure(pair.q.like)
    return pair.is_exact and not spans_more
