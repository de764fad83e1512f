"""Is the uncertainty honest? Calibration and entropy of predicted classes, coverage of predictive intervals."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32


class Reliability(NamedTuple):
    """A reliability diagram: for each bin of confidence, what was promised and what was kept.

    Attributes:
        confidence: mean predicted probability of the predicted class, (num_bins,); NaN in an empty bin.
        accuracy: fraction of predictions that were right, (num_bins,); NaN in an empty bin.
        fraction: fraction of all examples that fall in the bin, (num_bins,).
    """

    confidence: jax.Array
    accuracy: jax.Array
    fraction: jax.Array


def reliability(probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15) -> Reliability:
    """Accuracy against confidence in bins of equal width (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        probs: predicted probabilities, (B, C).
        labels: class labels, (B,), integers.
        num_bins: the number of bins that divide [0, 1].

    Returns:
        A `Reliability`.

    Raises:
        ValueError: if the shapes are not (B, C) and (B,), the probabilities not in [0, 1], or `num_bins` less than 1.

    >>> diagram = reliability(jnp.array([[0.9, 0.1], [0.8, 0.2]]), jnp.array([0, 1]), num_bins=2)
    >>> print(diagram.confidence, diagram.accuracy, diagram.fraction)
    [ nan 0.85] [nan 0.5] [0. 1.]
    """
    probs, labels = at_least_float32(probs), jnp.asarray(labels)
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or probs.size == 0:
        raise ValueError(
            f"reliability: probs must have shape (B, C) and labels (B,), got {probs.shape} and {labels.shape}. "
            "Average the probabilities over Monte Carlo samples first."
        )
    values = concrete(probs)
    if values is not None and not np.all((values >= 0) & (values <= 1 + 1e-5)):
        raise ValueError("reliability: probs must lie in [0, 1]. Apply jax.nn.softmax to logits first.")
    if num_bins < 1:
        raise ValueError(f"reliability: num_bins must be at least 1, got {num_bins}.")
    confidence = probs.max(axis=1)
    correct = (probs.argmax(axis=1) == labels).astype(probs.dtype)
    bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    in_bin = jax.nn.one_hot(bins, num_bins, dtype=probs.dtype)
    count = in_bin.sum(axis=0)
    return Reliability(confidence @ in_bin / count, correct @ in_bin / count, count / len(labels))


def expected_calibration_error(probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15) -> jax.Array:
    """Expected calibration error, ECE = sum_b (n_b / n) |accuracy_b - confidence_b| over the bins of `reliability`.

    Args and errors are those of `reliability`.

    Returns:
        A scalar in [0, 1]; 0 is calibrated.

    >>> print(expected_calibration_error(jnp.array([[0.75, 0.25]] * 4), jnp.array([0, 0, 0, 1])))
    0.0
    """
    diagram = reliability(probs, labels, num_bins=num_bins)
    gap = jnp.abs(diagram.accuracy - diagram.confidence)
    return jnp.sum(jnp.where(diagram.fraction > 0, diagram.fraction * gap, 0.0))


def predictive_entropy(probs: ArrayLike) -> jax.Array:
    """Entropy of the predicted class, H = -sum_c p_c log p_c, in nats: 0 when sure, log C when lost.

    Args:
        probs: predicted probabilities, (..., C).

    Returns:
        An array of shape (...).

    >>> print(predictive_entropy(jnp.array([[1.0, 0.0], [0.5, 0.5]])))
    [0.        0.6931472]
    """
    return jnp.sum(jax.scipy.special.entr(at_least_float32(probs)), axis=-1)


def coverage(draws: ArrayLike, targets: ArrayLike, level: float) -> jax.Array:
    """The fraction of targets inside the central interval that holds `level` of the predictive draws; ideally `level`.

    Args:
        draws: S draws from the predictive distribution of each example, noise of the likelihood included, (S, B).
        targets: true values, (B,).
        level: a number in (0, 1), such as 0.9 for the interval from the 5 % to the 95 % quantile.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: if the shapes are not (S, B) and (B,), or `level` is not in (0, 1).

    >>> draws = jnp.tile(jnp.arange(101.0)[:, None], (1, 4))  # quantiles 5 and 95
    >>> print(coverage(draws, jnp.array([1.0, 20.0, 50.0, 90.0]), 0.9))
    0.75
    """
    draws = at_least_float32(draws)
    targets = at_least_float32(targets).astype(draws.dtype)
    if draws.ndim != 2 or targets.shape != draws.shape[1:] or draws.size == 0:
        raise ValueError(
            f"coverage: draws must have shape (S, B) and targets (B,), got {draws.shape} and {targets.shape}."
        )
    if not (isinstance(level, (int, float, np.floating)) and 0.0 < level < 1.0):
        raise ValueError(f"coverage: level must be a number in (0, 1), got {describe(level)}.")
    low, high = jnp.quantile(draws, jnp.asarray([0.5 - level / 2, 0.5 + level / 2], draws.dtype), axis=0)
    return jnp.mean(((low <= targets) & (targets <= high)).astype(draws.dtype))
