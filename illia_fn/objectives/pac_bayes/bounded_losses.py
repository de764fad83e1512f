"""Losses of classifiers that lie in [0, 1], as PAC-Bayes needs them."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn.likelihoods import categorical_nll
from illia_fn.likelihoods.classes import check_labels
from illia_fn.objectives._data import DataTerm
from illia_fn.objectives.pac_bayes.bounds import probability


def zero_one_loss(outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """0 where the logit of the label is the largest, else 1: it has no gradient. A tie or a NaN is an error.

    Args:
        outputs: logits, (B, K).
        targets: class labels, integers (B,).

    >>> print(zero_one_loss(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])))
    [0. 1.]
    """
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        raise ValueError(
            f"zero_one_loss: outputs must be logits (B, K) and targets (B,), got {describe(outputs)} and "
            f"{describe(targets)}."
        )
    check_labels("zero_one_loss", targets, outputs.shape[1])
    at_label = jnp.take_along_axis(outputs, targets[:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]
    others = jnp.where(jax.nn.one_hot(targets, outputs.shape[1], dtype=bool), -jnp.inf, outputs)
    return 1.0 - (at_label > jnp.max(others, axis=1)).astype(jnp.float32)


def bounded_cross_entropy(outputs: ArrayLike, targets: ArrayLike, *, min_prob: float = 1e-5) -> jax.Array:
    """min(-log softmax(f)[y], log(1 / min_prob)) / log(1 / min_prob), in [0, 1]: a loss in [0, 1] with a gradient.

    Perez-Ortiz et al. 2021, Tighter risk certificates for neural networks, https://arxiv.org/abs/2007.12911.

    Args:
        outputs: logits f, (B, K).
        targets: class labels y, integers (B,).
        min_prob: what smaller probabilities count as.

    >>> print(bounded_cross_entropy(jnp.array([[0.0, 0.0], [0.0, 99.0]]), jnp.array([0, 0])).round(4))
    [0.0602 1.    ]
    """
    most = -math.log(probability("bounded_cross_entropy", "min_prob", min_prob))
    return jnp.minimum(categorical_nll(outputs, targets), most) / most


def risk_and_range(data: DataTerm, losses: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The mean loss of one network, and the range of its losses."""
    losses = data.require_examples(losses)
    return data.mean(losses), (jnp.min(losses), jnp.max(losses))


def one_if_inside(caller: str, low: jax.Array, high: jax.Array) -> jax.Array:
    """1, or NaN if some losses lie outside of [0, 1] and that is not known yet."""
    low, high = jax.lax.stop_gradient((jnp.min(low), jnp.max(high)))
    inside = (low >= 0.0) & (high <= 1.0 + 1e-6)
    if concrete(inside) is not None and not inside:
        raise ValueError(
            f"{caller}: the losses must lie in [0, 1], got {low} to {high}. Bound them, as bounded_cross_entropy does."
        )
    return jnp.where(inside, 1.0, jnp.nan)
