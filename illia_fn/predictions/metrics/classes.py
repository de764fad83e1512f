"""Scores of predicted classes, from probabilities: are they right, and how much did they promise?

Each is a mean over the examples, sum_i weights_i score_i / sum_i weights_i. Under jit, where values cannot be refused,
a label that is no class makes it NaN. The score of each example is that of a batch of one, by `jax.vmap`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn.predictions.metrics._shared import (
    as_floats,
    as_predicted_classes,
    check_probabilities,
    counted,
    indicator,
    mean_over_examples,
)


def accuracy(probs: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> jax.Array:
    """The fraction of examples whose most probable class is the label; of equal probabilities the first class counts.

    Args:
        probs: predicted probabilities, (B, C), averaged over networks.
        labels: class labels, (B,), integers.
        weights: how much each example counts, (B,); a 0/1 mask, say. What has weight 0 may hold anything.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: if the shapes are not (B, C) and (B,), a row of `probs` is not of probabilities that sum to one, a
            label is none of 0, ..., C - 1, or `weights` are negative, not finite or all zero.
        TypeError: if the labels are not integers, or the others not real numbers.

    >>> print(accuracy(jnp.array([[0.9, 0.1], [0.8, 0.2]]), jnp.array([0, 1])))
    0.5
    """
    probs, labels, weights = as_predicted_classes("accuracy", probs, labels, weights)
    return mean_over_examples(is_right(probs, labels), weights)


@jax.jit
def is_right(probs: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the most probable class is the label, 0 where not, (B,)."""
    return indicator(probs.argmax(axis=1) == labels, probs.max(axis=1))


def negative_log_likelihood(probs: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> jax.Array:
    """The mean of -log p_i[label_i], in nats: the logarithmic score, strictly proper. Good 1952.

    Args, errors as in `accuracy`.

    Returns:
        A scalar; infinite if a label had probability 0, which is not clipped.

    >>> print(f"{negative_log_likelihood(jnp.array([[0.9, 0.1], [0.5, 0.5]]), jnp.array([0, 1])):.4f}")
    0.3993
    """
    probs, labels, weights = as_predicted_classes("negative_log_likelihood", probs, labels, weights)
    return mean_over_examples(_surprise(probs, labels), weights)


@jax.jit
def _surprise(probs: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.log(jnp.take_along_axis(probs, labels[:, None], axis=1)[:, 0])


def brier_score(probs: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> jax.Array:
    """The mean of sum_c (p_ic - [c = label_i])^2 over all classes, as Brier 1950 has it: strictly proper.

    For two classes it is twice the squared error of one probability.

    Args, errors as in `accuracy`.

    Returns:
        A scalar in [0, 2].

    >>> print(brier_score(jnp.array([[0.75, 0.25], [0.5, 0.5]]), jnp.array([0, 1])))
    0.3125
    """
    probs, labels, weights = as_predicted_classes("brier_score", probs, labels, weights)
    return mean_over_examples(_squared_distance(probs, labels), weights)


@jax.jit
def _squared_distance(probs: jax.Array, labels: jax.Array) -> jax.Array:
    is_label = jnp.arange(probs.shape[1], dtype=labels.dtype)[None] == labels[:, None]
    return jnp.sum(jnp.square(probs - is_label.astype(probs.dtype)), axis=1)


def predictive_entropy(probs: ArrayLike) -> jax.Array:
    """Entropy of the predicted class, H = -sum_c p_c log p_c, in nats: 0 when sure, log C when lost.

    Args:
        probs: predicted probabilities, (..., C).

    Returns:
        An array of shape (...).

    Raises:
        ValueError: if `probs` has no class axis, or a row is not of probabilities that sum to one.
        TypeError: if they are not real numbers.

    >>> print(predictive_entropy(jnp.array([[1.0, 0.0], [0.5, 0.5]])))
    [0.        0.6931472]
    """
    (floats,) = as_floats("predictive_entropy", probs=probs)
    if floats.ndim == 0 or floats.shape[-1] == 0:
        raise ValueError(f"predictive_entropy: probs must have shape (..., C), got {floats.shape}.")
    check_probabilities("predictive_entropy", counted(floats, None), jnp.asarray(probs).dtype)
    return _entropy(floats)


@jax.jit
def _entropy(probs: jax.Array) -> jax.Array:
    return jnp.sum(jax.scipy.special.entr(probs), axis=-1)
