"""Pictures of a regression: what does it expect, and do its intervals keep their promise?"""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from illia_fn.plots._axes import REFERENCE, axes_of, in_the_name_of, legend, name_axes, named_once, next_style
from illia_fn.predictions import metrics
from illia_fn.predictions.intervals import check_level, quantiles
from illia_fn.predictions.metrics.intervals import coverages

LEVELS = tuple(float(level) for level in np.round(np.linspace(0.05, 0.95, 19), 2))


def predictive_intervals(
    x: ArrayLike,
    draws: ArrayLike | tuple[ArrayLike, ArrayLike, ArrayLike],
    targets: ArrayLike | None = None,
    *,
    level: float = 0.9,
    ax: Axes | None = None,
    label: str | None = None,
    color: Any = None,
) -> Axes:
    """Median, a line, and central interval, a band, over one input; and the targets, those outside as crosses.

    Args:
        x: where to draw each example, (B,), in any order: an input, or a rank by predicted value.
        draws: draws from the predictive distribution, noise of the likelihood included, (S, B), such as those of
            `illia_fn.predictive_draws`; or a tuple (low, middle, high) of three arrays (B,).
        targets: true values, (B,). The legend then says what share of them the intervals hold. Of several series on
            the same axes pass them with one, as what is outside differs.
        level: of the intervals, in (0, 1). Of a tuple it is the name alone.
        ax, label, color: as in `reliability`.

    Returns:
        The axes.

    Raises:
        ValueError: if the shapes do not agree, `x` is not finite, or as `quantiles` and
            `metrics.interval_coverage`.
        TypeError: for an `ax` that is no axes, or arrays that are not of numbers.

    >>> draws = np.random.default_rng(0).normal(size=(100, 3))
    >>> ax = predictive_intervals(np.arange(3.0), draws, np.zeros(3))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['90 % (holds 100 %)', 'median', 'inside']
    """
    caller = "plots.predictive_intervals"
    low, middle, high = _ends(caller, draws, level)
    x = np.asarray(x)
    arrays = {"x": x, "low": low, "middle": middle, "high": high}
    arrays |= {} if targets is None else {"targets": np.asarray(targets)}
    if x.ndim != 1 or not x.size or {array.shape for array in arrays.values()} != {x.shape}:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{caller}: x, the targets and what is drawn at x must have one shape (B,), got {shapes}.")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{caller}: x must be finite, got {x[~np.isfinite(x)][0]}.")
    name = f"{100 * level:.3g} % interval"
    if targets is not None:
        with in_the_name_of(caller):
            name = f"{100 * level:.3g} % (holds {100 * float(metrics.interval_coverage(low, high, targets)):.0f} %)"
    ax = axes_of(caller, ax)
    style, order = next_style(ax, color), np.argsort(x, kind="stable")
    band: dict[str, Any] = {"facecolor": (style.color, 0.2), "edgecolor": style.color, "linestyle": style.linestyle}
    ax.fill_between(
        x[order], low[order], high[order], label=f"{label}, {name}" if label else name, linewidth=0.8, **band
    )
    ax.plot(x[order], middle[order], label=None if label else "median", **style.line())
    if targets is not None:
        _draw_targets(ax, x, arrays["targets"], (low <= arrays["targets"]) & (arrays["targets"] <= high))
    entries = ax.get_legend_handles_labels()[1]
    columns = 1 if label else 2
    _make_room(ax, rows=-(-len(entries) // columns))
    name_axes(ax, "x", "y")
    legend(ax, loc="upper left", ncols=columns)
    return ax


def _ends(caller: str, draws: Any, level: float) -> list[np.ndarray]:
    check_level(caller, level)
    if isinstance(draws, tuple):
        if len(draws) != 3:
            raise ValueError(f"{caller}: a tuple in the place of draws must be (low, middle, high), got {len(draws)}.")
        return [np.asarray(end) for end in draws]
    with in_the_name_of(caller):
        return list(np.asarray(quantiles(draws, np.array([0.5 - level / 2, 0.5, 0.5 + level / 2]))))


def _make_room(ax: Axes, rows: int) -> None:
    """Room for a legend of so many rows above all that is drawn."""
    bottom, top = ax.dataLim.intervaly
    height = (top - bottom) or 1.0
    ax.set_ylim(bottom - 0.05 * height, top + (0.04 + 0.13 * rows) * height)


def _draw_targets(ax: Axes, x: np.ndarray, targets: np.ndarray, inside: np.ndarray) -> None:
    size = 14.0 if len(x) <= 200 else 6.0
    looks: dict[str, dict[str, Any]] = {
        "inside": {"s": size, "color": "0.3", "marker": "o", "linewidth": 0},
        "outside": {"s": 2 * size, "color": "black", "marker": "x", "linewidth": 1.2},
    }
    for (name, look), chosen in zip(looks.items(), (inside, ~inside), strict=True):
        if chosen.any():
            ax.scatter(x[chosen], targets[chosen], label=named_once(ax, name), zorder=3, **look)


def coverage(
    draws: ArrayLike,
    targets: ArrayLike,
    *,
    levels: tuple[float, ...] = LEVELS,
    weights: ArrayLike | None = None,
    ax: Axes | None = None,
    label: str | None = None,
    color: Any = None,
) -> Axes:
    """The share of targets inside of central intervals against the share that these promise.

    On the diagonal promises are kept; below it the intervals are too narrow. All levels are measured on the same
    targets, so that neighbouring points go together.

    Args:
        draws, targets, weights: as in `metrics.coverage`.
        levels: numbers in (0, 1).
        ax, label, color: as in `reliability`.

    Returns:
        The axes.

    Raises:
        ValueError, TypeError: as `metrics.coverage`; for no levels or an `ax` that is no axes.

    >>> ax = coverage(np.random.default_rng(0).normal(size=(100, 3)), np.zeros(3))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('promised coverage', 'coverage of the targets')
    """
    caller = "plots.coverage"
    if not len(levels):
        raise ValueError(f"{caller}: levels must be numbers in (0, 1), got none.")
    with in_the_name_of(caller):
        kept = list(map(float, coverages(draws, targets, levels, weights)))
    ax = axes_of(caller, ax)
    style = next_style(ax, color)
    ax.plot([0, 1], [0, 1], **REFERENCE)
    ax.plot(levels, kept, label=label, **style.line(4))
    ax.set(xlim=(0, 1), ylim=(-0.03, 1.03))
    name_axes(ax, "promised coverage", "coverage of the targets")
    legend(ax)
    return ax
