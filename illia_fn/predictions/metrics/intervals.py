"""Predictive intervals: do they hold the truth as often as they say, and how wide must they be for it?

Each score is a mean over the examples, sum_i weights_i score_i / sum_i weights_i. Under jit, where values cannot be
refused, a NaN makes it NaN. The score of each example is that of a batch of one, by `jax.vmap`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn.predictions.metrics._shared import (
    ONE_VALUE,
    as_draws,
    as_floats,
    as_weights,
    check_level,
    check_values,
    counted,
    fill_masked,
    indicator,
    mean_over_examples,
)


def coverage(draws: ArrayLike, targets: ArrayLike, level: float, *, weights: ArrayLike | None = None) -> jax.Array:
    """The fraction of targets inside the central interval that holds `level` of the predictive draws; ideally `level`.

    The ends of the interval, which it includes, are the quantiles (1 - level) / 2 and (1 + level) / 2, interpolated
    linearly between draws.

    Args:
        draws: S draws from the predictive distribution of each example, noise of the likelihood included, (S, B).
        targets: true values, (B,).
        level: a number in (0, 1), such as 0.9 for the interval from the 5 % to the 95 % quantile.
        weights: how much each example counts, (B,); a 0/1 mask, say. What has weight 0 may hold anything.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: as in `crps`; if `level` is not in (0, 1).
        TypeError: if the arguments are not real numbers.

    >>> draws = jnp.tile(jnp.arange(101.0)[:, None], (1, 4))  # quantiles 5 and 95
    >>> print(coverage(draws, jnp.array([1.0, 20.0, 50.0, 90.0]), 0.9))
    0.75
    """
    return coverages(draws, targets, (level,), weights)[0]


def coverages(
    draws: ArrayLike, targets: ArrayLike, levels: Sequence[float], weights: ArrayLike | None
) -> list[jax.Array]:
    """`coverage` at several levels: the draws are sorted once."""
    draws, targets, weights = as_draws("coverage", draws, targets, weights)
    for level in levels:
        check_level("coverage", level)
    halves = np.array(levels) / 2
    low, high = jnp.split(between_draws(draws, np.concatenate([0.5 - halves, 0.5 + halves])), 2)
    return [mean_over_examples(_is_inside(*ends, targets), weights) for ends in zip(low, high, strict=True)]


def interval_coverage(
    low: ArrayLike, high: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> jax.Array:
    """The fraction of targets with low <= y <= high; ideally the level of the intervals.

    Args:
        low, high: the ends of the interval of each example, (B,); of a one-sided one infinite.
        targets: true values, (B,).
        weights: how much each example counts, (B,); a 0/1 mask, say. What has weight 0 may hold anything.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: if the shapes are not (B,), an interval has low > high, values are NaN, or `weights` are negative,
            not finite or all zero.
        TypeError: if the arguments are not real numbers.

    >>> print(interval_coverage(jnp.array([0.0, 0.0]), jnp.array([1.0, 1.0]), jnp.array([1.0, 1.5])))
    0.5
    """
    low, high, targets, weights = _as_intervals("interval_coverage", low, high, targets, weights)
    return mean_over_examples(_is_inside(low, high, targets), weights)


def interval_width(low: ArrayLike, high: ArrayLike, *, weights: ArrayLike | None = None) -> jax.Array:
    """The mean of high - low: of two kinds of intervals of equal coverage, the narrower are the sharper.

    Args, errors as in `interval_coverage`.

    Returns:
        A scalar, in the units of the targets.

    >>> print(interval_width(jnp.array([0.0, 0.0]), jnp.array([1.0, 2.0])))
    1.5
    """
    low, high, _, weights = _as_intervals("interval_width", low, high, None, weights)
    return mean_over_examples(high - low, weights)


def interval_score(
    low: ArrayLike, high: ArrayLike, targets: ArrayLike, level: float, *, weights: ArrayLike | None = None
) -> jax.Array:
    """The mean width of central intervals, and 2 / (1 - level) times the distance of what lies outside.

        score_i = (high - low) + 2 / (1 - level) [max(low - y, 0) + max(y - high, 0)]

    It is least in expectation for the quantiles (1 - level) / 2 and (1 + level) / 2 of the truth, so that width and
    coverage are one number (Winkler 1972; Gneiting & Raftery 2007, https://doi.org/10.1198/016214506000001437).

    Args:
        low, high, targets, weights: as in `interval_coverage`.
        level: the coverage that the intervals promise, a number in (0, 1).

    Returns:
        A scalar, in the units of the targets.

    Raises:
        ValueError: as in `interval_coverage`; if `level` is not in (0, 1).
        TypeError: as in `interval_coverage`.

    >>> print(interval_score(jnp.array([0.0, 0.0]), jnp.array([1.0, 1.0]), jnp.array([0.5, 3.0]), level=0.5))
    5.0
    """
    low, high, targets, weights = _as_intervals("interval_score", low, high, targets, weights)
    check_level("interval_score", level)
    outside = jnp.maximum(low - targets, 0.0) + jnp.maximum(targets - high, 0.0)
    return mean_over_examples(high - low + 2.0 / (1.0 - float(level)) * outside, weights)


def _as_intervals(
    caller: str, low: ArrayLike, high: ArrayLike, targets: ArrayLike | None, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Ends, targets (the low ends, if there are none) and weights, checked; 0 in examples of weight zero."""
    given = {"low": low, "high": high} | ({} if targets is None else {"targets": targets})
    arrays = as_floats(caller, **given)
    shapes = [x.shape for x in arrays]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1 or shapes[0] == (0,):
        names = " and ".join(given)
        raise ValueError(f"{caller}: {names} must have one shape (B,), got {', '.join(map(str, shapes))}. {ONE_VALUE}")
    checked = as_weights(caller, weights, len(arrays[0]), arrays[0].dtype)
    known = [counted(x, checked) for x in arrays]
    for name, value in zip(given, known, strict=True):
        check_values(caller, name, value, lambda x: ~np.isnan(x), "no NaN")
    if known[0] is not None and known[1] is not None and np.any(known[0] > known[1]):
        first = np.argmax(known[0] > known[1])
        raise ValueError(f"{caller}: low must not be above high, got {known[0][first]} and {known[1][first]}.")
    low, high, *rest = [fill_masked(x, checked, 0.0) for x in arrays]
    return low, high, rest[0] if rest else low, checked


def _is_inside(low: jax.Array, high: jax.Array, targets: jax.Array) -> jax.Array:
    return indicator((low <= targets) & (targets <= high), low, high, targets)


def between_draws(draws: jax.Array, levels: np.ndarray | jax.Array) -> jax.Array:
    """The quantiles of draws (S, B), linear between order statistics, (L, B); of levels known now by exact ranks."""
    xp = np if isinstance(levels, np.ndarray) else jnp
    position = (len(draws) - 1) * (levels.astype(np.float64) if xp is np else levels.astype(draws.dtype))
    below = xp.floor(position).astype(int)
    share = (position - below.astype(position.dtype))[:, None]
    return _interpolate(
        draws,
        below,
        xp.minimum(below + 1, len(draws) - 1),
        *(xp.asarray(part, draws.dtype) for part in (share, 1.0 - share)),
    )


@jax.jit
def _interpolate(draws: jax.Array, below: jax.Array, above: jax.Array, share: jax.Array, rest: jax.Array) -> jax.Array:
    """Between the draws of ranks `below` and `above`, a `share` of the way."""
    x = jnp.sort(draws, axis=0)
    x = jnp.where(jnp.isnan(x[-1:]), jnp.nan, x)  # it is sorted to the end, where the quantiles may not see it
    # from the nearer end, so that the ranks of draws and equal draws are exact
    step = x[above] - x[below]
    between = jnp.where(share < 0.5, x[below] + share * step, x[above] - rest * step)
    return jnp.where((share == 0) | (x[below] == x[above]), x[below], between)  # of infinite ones the step is NaN
