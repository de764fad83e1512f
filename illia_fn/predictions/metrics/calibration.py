"""Is confidence honest? Of what a classifier promises with 80 %, are 80 % right?"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_count, describe
from illia_fn.predictions.metrics._shared import as_predicted_classes
from illia_fn.predictions.metrics.classes import is_right


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


def reliability(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    num_bins: int = 15,
    binning: str = "equal_width",
    weights: ArrayLike | None = None,
) -> Reliability:
    """Accuracy against confidence, the largest probability, in bins (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Bins of equal width are (b / num_bins, (b + 1) / num_bins], and the first holds 0. Bins of equal mass are divided at
    the quantiles of confidence: bin b holds those c for which the share of examples with less confidence than c is in
    [b / num_bins, (b + 1) / num_bins). Equal confidences are in one bin, so that bins may be empty.

    Args:
        probs: predicted probabilities, (B, C), averaged over networks.
        labels: class labels, (B,), integers.
        num_bins: the number of bins.
        binning: "equal_width" or "equal_mass".
        weights: how much each example counts, (B,); a 0/1 mask, say. What has weight 0 may hold anything.

    Returns:
        A `Reliability`.

    Raises:
        ValueError: as in `accuracy`; if `num_bins` is less than 1, or `binning` is unknown.
        TypeError: as in `accuracy`.

    >>> diagram = reliability(jnp.array([[0.9, 0.1], [0.8, 0.2]]), jnp.array([0, 1]), num_bins=2)
    >>> print(diagram.confidence, diagram.accuracy, diagram.fraction)
    [ nan 0.85] [nan 0.5] [0. 1.]
    """
    bins = _bins("reliability", probs, labels, num_bins, binning, weights)
    occupied = bins.fraction > 0
    return Reliability(
        jnp.where(occupied, bins.confidence, jnp.nan), jnp.where(occupied, bins.accuracy, jnp.nan), bins.fraction
    )


def calibration_error(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    num_bins: int = 15,
    binning: str = "equal_width",
    norm: int = 1,
    debiased: bool = False,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """How far confidence is from accuracy: the expected calibration error (ECE), or its root mean square.

    Over the bins of `reliability`, with f_b the fraction of examples, a_b the accuracy and c_b the mean confidence,

        norm 1:            sum_b f_b |a_b - c_b|                                           (the ECE)
        norm 2:            sqrt(sum_b f_b (a_b - c_b)^2)
        norm 2, debiased:  sqrt(max(0, sum_b f_b [(a_b - c_b)^2 - a_b (1 - a_b) / (n_b - 1)] / sum_b f_b)), n_b > 1

    By chance alone a_b differs from c_b, so that a calibrated classifier has an error above 0, the more so the fewer
    examples a bin has. The debiased estimate takes off the variance of a_b, where n_b is the number of examples in the
    bin, (sum w)^2 / sum w^2 under weights. Under the root it is without bias where confidence does not vary within a
    bin. It leaves out bins of one example, whose variance is unknown, and is NaN if there are no others. Kumar, Liang &
    Ma 2019, https://arxiv.org/abs/1909.10155.

    Args:
        norm: 1 or 2.
        debiased: whether to take off the variance; with `norm=2`.
        probs, labels, num_bins, binning, weights: as in `reliability`.

    Returns:
        A scalar in [0, 1]; 0 is calibrated.

    Raises:
        ValueError: as in `reliability`; if `norm` is neither 1 nor 2, or `debiased` is asked of norm 1.
        TypeError: as in `reliability`; if `debiased` is not True or False.

    >>> print(calibration_error(jnp.array([[0.75, 0.25]] * 4), jnp.array([0, 0, 0, 1])))
    0.0
    >>> print(calibration_error(jnp.array([[0.75, 0.25]] * 4), jnp.array([0, 0, 0, 0]), norm=2))
    0.25
    """
    _check_norm(norm, debiased=debiased)
    bins = _bins("calibration_error", probs, labels, num_bins, binning, weights)
    return _error(bins, norm=norm, debiased=debiased)


class _Bins(NamedTuple):
    """A `Reliability` with 0 in the place of NaN, and one over the number of examples in the bin."""

    confidence: jax.Array
    accuracy: jax.Array
    fraction: jax.Array
    inverse_count: jax.Array


def _bins(
    caller: str, probs: ArrayLike, labels: ArrayLike, num_bins: int, binning: str, weights: ArrayLike | None
) -> _Bins:
    probs, labels, weights = as_predicted_classes(caller, probs, labels, weights)
    check_count(caller, "num_bins", num_bins)
    if binning not in BINNINGS:
        raise ValueError(f"{caller}: binning must be one of {', '.join(BINNINGS)}, got {describe(binning)}.")
    return _into_bins(probs, labels, weights, num_bins=int(num_bins), binning=binning)


@partial(jax.jit, static_argnames=("num_bins", "binning"))
def _into_bins(probs: jax.Array, labels: jax.Array, weights: jax.Array | None, *, num_bins: int, binning: str) -> _Bins:
    confidence, right = probs.max(axis=1), is_right(probs, labels)
    weights = jnp.ones_like(confidence) if weights is None else weights
    bins = BINNINGS[binning](confidence, weights, num_bins)
    columns = jnp.stack([jnp.ones_like(weights), weights, confidence, right], axis=1) * weights[:, None]
    mass, squares, confidence, right = _sum_by_bin(columns, bins, num_bins).T
    occupied = jnp.where(mass == 0, 1.0, mass)  # an empty bin must not poison the gradient of the others
    return _Bins(confidence / occupied, right / occupied, mass / jnp.sum(mass), squares / jnp.square(occupied))


@partial(jax.jit, static_argnames=("norm", "debiased"))
def _error(bins: _Bins, *, norm: int, debiased: bool) -> jax.Array:
    gap = bins.accuracy - bins.confidence
    if norm == 1:
        return jnp.sum(bins.fraction * jnp.abs(gap))
    squared = jnp.square(gap)
    if debiased:
        several = bins.inverse_count < 1
        variance_of_one = bins.accuracy * (1.0 - bins.accuracy) / jnp.where(several, 1.0 - bins.inverse_count, 1.0)
        squared = jnp.where(several, squared - bins.inverse_count * variance_of_one, 0.0 * squared)  # NaN stays
        squared = squared / jnp.sum(jnp.where(several, bins.fraction, 0.0))  # of none NaN
    total = jnp.sum(bins.fraction * squared)
    # of what is not positive 0, without a slope
    return jnp.where(total <= 0, 0.0, jnp.sqrt(jnp.where(total <= 0, 1.0, total)))


def _equal_width(confidence: jax.Array, _: jax.Array, num_bins: int) -> jax.Array:
    edges = np.linspace(0.0, 1.0, num_bins + 1)[1:-1]  # rounded as the confidence that is meant to lie on one
    return jnp.searchsorted(jnp.asarray(edges, confidence.dtype), confidence)


def _equal_mass(confidence: jax.Array, weights: jax.Array, num_bins: int) -> jax.Array:
    order = jnp.argsort(confidence)
    mass = jnp.concatenate([jnp.zeros(1, weights.dtype), jnp.cumsum(weights[order])])
    below = mass[jnp.searchsorted(confidence[order], confidence)]
    # share >= b / num_bins by products, which are exact for whole weights; XLA's quotients are not
    edges = mass[-1] * jnp.arange(1, num_bins, dtype=mass.dtype)
    return jnp.searchsorted(edges, num_bins * below, side="right")


BINNINGS: dict[str, Any] = {"equal_width": _equal_width, "equal_mass": _equal_mass}


def _sum_by_bin(columns: jax.Array, bins: jax.Array, num_bins: int) -> jax.Array:
    """The sums of the rows (B, K) of each bin, (num_bins, K)."""
    # A running float32 sum of a million terms is off in its fourth digit, a sum of the sums of blocks in its seventh.
    # No matrix product with one-hot rows either: accelerators round its factors to fewer digits.
    size = max(32, num_bins)
    num_blocks = -(-len(bins) // size)
    block = jnp.arange(len(bins)) // size
    sums = jax.ops.segment_sum(columns, bins + num_bins * block.astype(bins.dtype), num_bins * num_blocks)
    return jnp.sum(sums.reshape(num_blocks, num_bins, -1), axis=0)


def _check_norm(norm: Any, *, debiased: Any) -> None:
    if isinstance(norm, bool) or norm not in (1, 2):
        raise ValueError(f"calibration_error: norm must be 1 or 2, got {describe(norm)}.")
    if not isinstance(debiased, bool):
        raise TypeError(f"calibration_error: debiased must be True or False, got {describe(debiased)}.")
    if debiased and norm == 1:
        raise ValueError("calibration_error: the debiased estimate is that of the squared error: pass norm=2.")
