"""Likelihoods of classes, ordered or not, and of yes or no."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32, one_program, softplus
from illia_fn.likelihoods._shared import as_numbers, check_shapes, check_support, per_example, surprise


def bernoulli_nll(outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Bernoulli negative log-likelihood, -sum_d [y_d log sigmoid(f_d) + (1 - y_d) log sigmoid(-f_d)].

    Args:
        outputs: logits f, (B, ...).
        targets: y, of the same shape, 0 or 1 or probabilities between them.

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes differ, or targets lie outside of [0, 1].

    >>> print(bernoulli_nll(jnp.array([0.0, 100.0]), jnp.array([1, 0])))
    [  0.6931472 100.       ]
    """
    check_support("bernoulli_nll", targets, lambda y: (y >= 0) & (y <= 1), "in [0, 1]")
    logits = at_least_float32(outputs)
    targets = as_numbers(targets, logits)
    check_shapes("bernoulli_nll", "logits", logits.shape, targets.shape)
    # -log sigmoid(-s) - p s of the less likely outcome: of a certain one nothing is left that could cancel
    flip = targets > 0.5
    s, p = jnp.where(flip, -logits, logits), jnp.where(flip, 1.0 - targets, targets)
    return per_example(softplus(s) - p * s)


def categorical_nll(outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Categorical negative log-likelihood, -log softmax(f)[y], summed over trailing axes of the targets.

    Under jit, where targets cannot be refused, a label that is no class makes its example NaN.

    Args:
        outputs: logits f, (B, ..., K).
        targets: class labels, integers (B, ...).

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes do not match, or a label is none of 0, ..., K - 1.
        TypeError: if the labels are not integers.

    >>> print(categorical_nll(jnp.zeros((2, 10)), jnp.array([3, 7])))
    [2.3025851 2.3025851]
    """
    logits, labels = at_least_float32(outputs), jnp.asarray(targets)
    if not logits.ndim:
        raise ValueError(f"categorical_nll: logits must have shape (B, ..., K), got {describe(outputs)}.")
    check_labels("categorical_nll", labels, logits.shape[-1])
    check_shapes("categorical_nll", "logits without their last axis", logits.shape[:-1], labels.shape)
    return _categorical(logits, labels)


def ordinal_nll(outputs: tuple[ArrayLike, ArrayLike], targets: ArrayLike) -> jax.Array:
    """Ordinal (cumulative logit) negative log-likelihood, -log[sigmoid(c_y - f) - sigmoid(c_{y-1} - f)].

    Ordered classes 0, ..., K - 1 are the intervals between cutpoints c_0 < ... < c_{K-2}, with c_{-1} = -inf and
    c_{K-1} = inf. McCullagh 1980, Regression models for ordinal data, https://doi.org/10.1111/j.2517-6161.1980.tb01109.x.

    Args:
        outputs: (f, gaps): f (B, ...), and gaps (B, ..., K - 1), unconstrained, with c_0 = gaps_0 and
            c_k = c_{k-1} + softplus(gaps_k). Cutpoints that all examples share are a parameter (K - 1,) that apply_fn
            broadcasts.
        targets: classes, integers in the shape of f.

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes do not match, or a class is none of 0, ..., K - 1.
        TypeError: if the classes are not integers.

    >>> gaps = jnp.broadcast_to(jnp.array([-1.0, 2.0]), (3, 2))
    >>> [f"{nll:.4f}" for nll in ordinal_nll((jnp.zeros(3), gaps), jnp.array([0, 1, 2]))]
    ['1.3133', '0.7209', '1.4076']
    """
    log_prob = ordinal_log_probs(outputs)
    labels = jnp.asarray(targets)
    check_labels("ordinal_nll", labels, log_prob.shape[-1])
    check_shapes("ordinal_nll", "f", log_prob.shape[:-1], labels.shape)
    return _ordinal(log_prob, labels)


def ordinal_log_probs(outputs: tuple[ArrayLike, ArrayLike]) -> jax.Array:
    """The log probabilities of the K classes of `ordinal_nll`, (B, ..., K)."""
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        raise ValueError(f"ordinal_nll: outputs must be a pair (f, gaps), got {describe(outputs)}.")
    f, gaps = map(at_least_float32, outputs)
    if gaps.shape[:-1] != f.shape or gaps.ndim != f.ndim + 1:
        raise ValueError(
            f"ordinal_nll: gaps must have the shape of f, {f.shape}, and one more axis, K - 1, got {gaps.shape}. "
            "Broadcast cutpoints that all examples share with jnp.broadcast_to."
        )
    return _ordinal_log_probs(f, gaps)


@one_program
def _categorical(logits: jax.Array, labels: jax.Array) -> jax.Array:
    inside = (labels >= 0) & (labels < logits.shape[-1])
    nll = surprise(logits, jnp.where(inside, labels, 0))
    return per_example(nll * nan_unless(inside, nll.dtype))


@one_program
def _ordinal(log_prob: jax.Array, labels: jax.Array) -> jax.Array:
    inside = (labels >= 0) & (labels < log_prob.shape[-1])
    nll = -jnp.take_along_axis(log_prob, jnp.where(inside, labels, 0)[..., None], axis=-1)[..., 0]
    return per_example(nll * nan_unless(inside, nll.dtype))


@one_program
def _ordinal_log_probs(f: jax.Array, gaps: jax.Array) -> jax.Array:
    widths = softplus(gaps[..., 1:])
    cutpoints = jnp.cumsum(jnp.concatenate([gaps[..., :1], widths], axis=-1), axis=-1)
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)) does not cancel in the tails.
    open_end = jnp.zeros((*f.shape, 1), f.dtype)
    log_below = jnp.concatenate([-softplus(f[..., None] - cutpoints), open_end], axis=-1)
    log_above = jnp.concatenate([open_end, -softplus(cutpoints - f[..., None])], axis=-1)
    # 1 - exp(-softplus(gap)) = sigmoid(gap), so that a narrow width loses nothing
    log_width = -softplus(-gaps[..., 1:])
    return log_below + log_above + jnp.concatenate([open_end, log_width, open_end], axis=-1)


def nan_unless(inside: jax.Array, dtype: Any) -> jax.Array:
    """A factor: a sum would leave the gradient finite, and wrong."""
    return jnp.where(inside, 1.0, jnp.nan).astype(dtype)


def check_labels(caller: str, labels: jax.Array, num_classes: int) -> None:
    """Labels are integers, and classes as far as that can be known before tracing."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{caller}: targets must be integers, the classes, got {describe(labels)}.")
    value = concrete(labels)
    if value is not None and ((value < 0) | (value >= num_classes)).any():
        raise ValueError(
            f"{caller}: targets must be classes from 0 to {num_classes - 1}, got {value.min()} to {value.max()}."
        )
