"""Pictures of a classifier: is its confidence honest, what does it doubt, and what should it leave unanswered?"""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from illia_fn.plots._axes import (
    REFERENCE,
    axes_of,
    check_record,
    in_the_name_of,
    legend,
    name_axes,
    next_style,
    some_marks,
)
from illia_fn.predictions import metrics
from illia_fn.predictions.classes import ClassSummary


def reliability(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    num_bins: int = 15,
    binning: str = "equal_width",
    weights: ArrayLike | None = None,
    ax: Axes | None = None,
    label: str | None = None,
    color: Any = None,
) -> Axes:
    """Accuracy against confidence in bins, with the expected calibration error (ECE) of the same bins in the legend.

    On the diagonal promises are kept; below it the classifier is too sure. Marks are the larger the more examples a bin
    has, and empty bins have none.

    Args:
        probs, labels, num_bins, binning, weights: as in `metrics.reliability`.
        ax: where to draw; None for a new figure.
        label: a name in the legend.
        color: of matplotlib; None for the next one of the axes.

    Returns:
        The axes.

    Raises:
        ValueError, TypeError: as `metrics.reliability`; for an `ax` that is no axes.

    >>> ax = reliability(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 1]), label="Bayesian")
    >>> ax.get_legend().get_texts()[0].get_text()
    'Bayesian (ECE 0.25)'
    """
    caller = "plots.reliability"
    with in_the_name_of(caller):
        bins = metrics.reliability(probs, labels, num_bins=num_bins, binning=binning, weights=weights)
        error = metrics.calibration_error(probs, labels, num_bins=num_bins, binning=binning, weights=weights)
    ax = axes_of(caller, ax)
    style = next_style(ax, color)
    confidence, accuracy, fraction = (np.asarray(field)[np.asarray(bins.fraction) > 0] for field in bins)
    name = f"{label} (ECE {float(error):.2f})" if label else f"ECE {float(error):.2f}"
    ax.plot([0, 1], [0, 1], **REFERENCE)
    ax.plot(confidence, accuracy, label=name, **style.line(3))
    ax.scatter(
        confidence, accuracy, 10 + 190 * fraction, color=style.color, marker=style.marker, alpha=0.7, linewidth=0
    )
    ax.set(xlim=(0, 1.03), ylim=(-0.03, 1.03))
    name_axes(ax, "confidence", "accuracy")
    legend(ax)
    return ax


def entropy_histogram(
    probs: ArrayLike, *, num_bins: int = 24, ax: Axes | None = None, label: str | None = None, color: Any = None
) -> Axes:
    """How many inputs have which entropy of the predicted class, from 0, when sure, to log C, when lost (dotted).

    One call for each set of inputs, on the same axes, shows what the classifier is lost on.

    Args:
        probs: predicted probabilities, averaged over networks, (B, C).
        num_bins: from 0 to log C.
        ax, label, color: as in `reliability`.

    Returns, errors: as `reliability`; the errors of `metrics.predictive_entropy`.

    >>> ax = entropy_histogram(np.array([[0.9, 0.1], [0.4, 0.6]]), label="held out")
    >>> ax.get_xlabel()
    'predictive entropy (nats)'
    """
    caller = "plots.entropy_histogram"
    if np.ndim(probs) != 2 or not np.size(probs):
        raise ValueError(
            f"{caller}: probs must have shape (B, C), got {np.shape(probs)}. Average over the networks first."
        )
    with in_the_name_of(caller):
        entropy = np.asarray(metrics.predictive_entropy(probs))
    ax = axes_of(caller, ax)
    style, most = next_style(ax, color), float(np.log(np.shape(probs)[1]))
    share, edges = np.histogram(np.clip(entropy, 0.0, most), num_bins, (0.0, most or 1.0))
    share = share / len(entropy)
    ax.stairs(share, edges, fill=True, color=style.color, alpha=0.15)
    ax.stairs(share, edges, color=style.color, linestyle=style.linestyle, linewidth=1.5, label=label, gid=style.name)
    ax.axvline(most, **REFERENCE)
    name_axes(ax, "predictive entropy (nats)", "share of the inputs")
    legend(ax)
    return ax


def entropy_split(
    summary: ClassSummary, *, ax: Axes | None = None, label: str | None = None, color: Any = None
) -> Axes:
    """Epistemic against aleatoric entropy of each input, in nats, and their means as a large mark.

    To the right is what every network doubts, as classes overlap; upwards what the networks differ in, as the data did
    not say. The dotted line is a total of log C. One call for each set of inputs, on the same axes.

    Args:
        summary: of `illia_fn.class_summary`.
        ax, label, color: as in `reliability`.

    Returns, errors: as `reliability`; TypeError for what is no `ClassSummary`.

    >>> from illia_fn import class_summary
    >>> ax = entropy_split(class_summary(np.array([[[0.9, 0.1]], [[0.2, 0.8]]])), label="held out")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('aleatoric entropy (nats)', 'epistemic entropy (nats)')
    """
    caller = "plots.entropy_split"
    check_record(caller, "summary", summary, ClassSummary, "illia_fn.class_summary(probs)")
    ax = axes_of(caller, ax)
    style, x, y = next_style(ax, color), np.ravel(summary.aleatoric), np.ravel(summary.epistemic)
    most = float(np.log(summary.probs.shape[-1])) or 1.0
    top = max(0.1 * most, 1.1 * float(np.max(y)), ax.get_ylim()[1] if ax.collections else 0.0)
    look: dict[str, Any] = {
        "marker": style.marker,
        "edgecolor": style.color,
        "facecolor": style.color if style.filled else "none",
    }
    ax.plot([0, most], [most, 0], **REFERENCE)
    ax.scatter(x, y, 12, alpha=min(0.7, max(0.1, 100.0 / len(x))), linewidth=0.7, gid=style.name, **look)
    middle: dict[str, Any] = {"marker": style.marker, "color": style.color, "edgecolor": "black", "linewidth": 1.2}
    ax.scatter([x.mean()], [y.mean()], 80, label=label, zorder=3, **middle)
    ax.set(xlim=(-0.02 * most, 1.03 * most), ylim=(-0.03 * top, top))
    name_axes(ax, "aleatoric entropy (nats)", "epistemic entropy (nats)")
    legend(ax)
    return ax


def risk_coverage(
    confidence: ArrayLike,
    losses: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    ax: Axes | None = None,
    label: str | None = None,
    color: Any = None,
) -> Axes:
    """The mean loss of the examples that are answered against their share, with the area (AURC) in the legend.

    A confidence that knows its errors rises from near 0 to the loss of all; one that does not is flat.

    Args:
        confidence, losses, weights: as in `metrics.risk_coverage`.
        ax, label, color: as in `reliability`.

    Returns, errors: as `reliability`; the errors of `metrics.risk_coverage`.

    >>> ax = risk_coverage(np.array([0.9, 0.6, 0.5]), np.array([0.0, 0.0, 1.0]))
    >>> ax.get_legend().get_texts()[0].get_text()
    'AURC 0.111'
    """
    caller = "plots.risk_coverage"
    with in_the_name_of(caller):
        curve = metrics.risk_coverage(confidence, losses, weights=weights)
    ax = axes_of(caller, ax)
    style, area = next_style(ax, color), f"AURC {float(curve.area):.3g}"
    name, every = f"{label} ({area})" if label else area, some_marks(len(curve.risk))
    ax.plot(np.asarray(curve.coverage), np.asarray(curve.risk), label=name, markevery=every, **style.line(4))
    ax.set_xlim(0, 1.03)
    name_axes(ax, "coverage (share answered)", "risk (their mean loss)")
    legend(ax)
    return ax
