"""KL(q || p) of one node: a table of closed forms, and the Monte Carlo estimate where there is none."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from illia_fn._base.checks import check_key, check_num_samples, describe
from illia_fn._base.numerics import gradient_after_value
from illia_fn._base.trees import PyTree
from illia_fn.engine.monte_carlo import expectation
from illia_fn.kl._priors import (
    check_broadcast,
    check_fits,
    check_prior,
    check_support,
    fitted,
    is_prior,
    log_prior_of_node,
    names_of,
)
from illia_fn.posteriors._kernels import Kernel
from illia_fn.posteriors.posterior import is_posterior
from illia_fn.priors._known import in_known_form

ClosedForm = Callable[[Any, Any], jax.Array]

_CLOSED_FORMS: dict[tuple[type, type], ClosedForm] = {}
_TO_TREES: dict[type, tuple[tuple[type, ...], ClosedForm]] = {}
_UPPER_BOUNDS: dict[type, Callable[[Any, PyTree], ClosedForm | None]] = {}


def register_kl(q_type: type, p_type: type) -> Callable[[ClosedForm], ClosedForm]:
    """Decorate a closed form, f(q, p) -> KL(q || p) in nats, a scalar, to add it to the table of `kl_divergence`.

    The table goes by the exact types of q and p; either may stand for one array or for a subtree.

    >>> import jax.numpy as jnp
    >>> from illia_fn import Gaussian
    >>> class Flat:
    ...     '''The improper prior p(w) = 1.'''
    >>> @register_kl(Gaussian, Flat)
    ... def _(q, p):
    ...     return -q.entropy()
    >>> print(kl_divergence(Gaussian(jnp.zeros(1), jnp.zeros(1)), Flat()).round(3))
    -1.052
    """

    def register(f: ClosedForm) -> ClosedForm:
        _CLOSED_FORMS[q_type, p_type] = f
        return f

    return register


def register_kl_to_trees(q_type: type, p_types: Sequence[type]) -> Callable[[ClosedForm], ClosedForm]:
    """Decorate a closed form f(q, p) of a node over a subtree and a tree of priors, all of these types."""

    def register(f: ClosedForm) -> ClosedForm:
        _TO_TREES[q_type] = tuple(p_types), f
        return f

    return register


def closed_form(q: Any, p: PyTree) -> ClosedForm | None:
    """The entry of the table for this pair."""
    f = _CLOSED_FORMS.get((type(q), type(p)))
    if isinstance(q, Kernel) and isinstance(p, Kernel) and q.matrix_shape != p.matrix_shape:
        return None  # of one array, split into rows and columns at different axes
    if f is not None or is_prior(p) or type(q) not in _TO_TREES:
        return f
    kinds, f = _TO_TREES[type(q)]
    leaves = jax.tree.leaves(p, is_leaf=is_prior)
    return f if leaves and all(type(leaf) in kinds for leaf in leaves) else None


def register_upper_bound(q_type: type) -> Callable[..., Any]:
    """Decorate a function of q and p that returns an upper bound of KL(q || p), in the form of a closed one, or None.

    It is taken where there is no closed form, in the place of samples.
    """

    def register(bound_of: Callable[[Any, PyTree], ClosedForm | None]) -> Callable[[Any, PyTree], ClosedForm | None]:
        _UPPER_BOUNDS[q_type] = bound_of
        return bound_of

    return register


def upper_bound(q: Any, p: PyTree) -> ClosedForm | None:
    """The upper bound of this pair, which takes no samples."""
    bound_of = _UPPER_BOUNDS.get(type(q))
    return None if bound_of is None else bound_of(q, p)


def kl_divergence(q: Any, p: PyTree, *, key: jax.Array | None = None, num_samples: int = 1) -> jax.Array:
    """KL(q || p) = E_q[log q(w) - log p(w)] of one posterior node, in nats.

    Exact where the pair has a closed form (`Gaussian` or `Normal` against either, and what `register_kl` adds), and an
    upper bound for a `Mixture` whose components have one. Otherwise the expectation is that of reparameterised draws
    w_s ~ q, and unbiased:

        -H(q) - mean_s log p(w_s)               for a prior, with the exact entropy of q;
        mean_s [log q(w_s) - log p(w_s)]        for another posterior, which is exactly 0 where p is q, and for a q
                                                whose entropy is not known, such as a `Mixture` or a flow.

    Args:
        q: a posterior node, or a `Normal`.
        p: a prior; its parameters are numbers or have the rank of q, with axes that equal q's or are 1. Its log_prob is
            element-wise, or a scalar, the joint density. If q stands for a subtree, p may be one prior for each of its
            arrays, a tree of them, or a posterior node over the same subtree.
        key: a PRNG key, required where there is no closed form.
        num_samples: draws for the Monte Carlo estimate; not used by a closed form.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: without a `key` where one is needed, or if the shapes of q and p do not go together.
        TypeError: if `p` has no `log_prob`.

    >>> from illia_fn import Normal
    >>> q, p = Normal(1.0, 1.0), Normal(0.0, 1.0)
    >>> print(kl_divergence(q, p))  # (1 - 0)^2 / 2
    0.5
    """
    return kl_of_node("kl_divergence", q, p, key, num_samples)


def kl_of_node(caller: str, q: Any, p: PyTree, key: jax.Array | None, num_samples: int) -> jax.Array:
    """`kl_divergence`, with errors in the name of its caller."""
    return gradient_after_value(_kl_of_node(caller, q, p, key, num_samples), q)


def _kl_of_node(caller: str, q: Any, p: PyTree, key: jax.Array | None, num_samples: int) -> jax.Array:
    p, _ = fitted(q, jax.tree.map(in_known_form, p, is_leaf=is_prior))
    f = closed_form(q, p) or upper_bound(q, p)
    if f is not None:
        if is_posterior(q) and (is_prior(p) or f is not _CLOSED_FORMS.get((type(q), type(p)))):
            check_fits(caller, p, q.like)
        elif getattr(q, "elementwise", False) and getattr(p, "elementwise", False):
            check_broadcast(caller, np.broadcast_shapes(*map(np.shape, jax.tree.leaves(q))), p)
        return _scalar(caller, q, p, f)
    check_prior(caller, p)
    if not is_posterior(q):
        raise TypeError(
            f"{caller}: q must be a posterior node, such as illia_fn.Gaussian, or a Normal, got {describe(q)}."
        )
    if key is None:
        raise ValueError(
            f"{caller}: KL({type(q).__name__} || {names_of(p)}) has no closed form here and is estimated from samples: "
            "pass key=jax.random.key(...) and num_samples, or use illia_fn.Normal."
        )
    check_num_samples(caller, num_samples)
    check_key(caller, key)
    check_support(caller, p)
    q = q.widened()
    if is_posterior(p) or not q.has_entropy:
        return expectation(lambda w: q.log_prob(w) - log_prior_of_node(caller, p, w), q, key, num_samples)
    return -q.entropy() - expectation(lambda w: log_prior_of_node(caller, p, w), q, key, num_samples)


def _scalar(caller: str, q: Any, p: Any, f: ClosedForm) -> jax.Array:
    kl = f(q, p)
    if np.shape(kl) != ():
        raise ValueError(
            f"{caller}: the closed form of KL({type(q).__name__} || {type(p).__name__}) must return a scalar, the KL "
            f"of the whole node, got shape {np.shape(kl)}. Sum it."
        )
    return kl
