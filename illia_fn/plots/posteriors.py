"""Pictures of a posterior: where its means, its scales and its information are, and what can be left out."""

from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from illia_fn._base.trees import PyTree, leaves_by_path, leaves_with_path
from illia_fn.diagnostics import PruningCurve, Summary
from illia_fn.plots._axes import axes_of, check_record, legend, name_axes, next_style, short_path
from illia_fn.posteriors.posterior import check_nodes, is_posterior

QUANTILES = (0.05, 0.5, 0.95)


def posterior_by_layer(params: PyTree, *, ax: Axes | None = None, label: str | None = None, color: Any = None) -> Axes:
    """The sizes of the means and the standard deviations of each posterior node, on a logarithmic axis.

    Marks are medians and bars reach from the 5 % to the 95 % quantile. Where the bar of the means lies to the right of
    that of the scales, weights are known; where it lies to the left, they are noise. Means of 0, as of biases before
    training, lie beyond the left edge.

    Args:
        params: a posterior tree; its deterministic leaves are not drawn.
        ax, label, color: as in `reliability`. A new figure is as high as the tree has nodes.

    Returns:
        The axes.

    Raises:
        ValueError: for a tree without posterior nodes, or values that are not finite.
        TypeError: for an `ax` that is no axes.

    >>> from illia_fn import mean_field
    >>> ax = posterior_by_layer({"w": mean_field(np.array([1.0, -2.0]), scale=0.1)})
    >>> [text.get_text() for text in ax.get_yticklabels()], ax.get_xlabel()
    (['w'], 'units of the weights')
    """
    caller = "plots.posterior_by_layer"
    check_nodes(caller, params)
    paths = [path for path, node in leaves_by_path(params, is_posterior) if is_posterior(node)]
    nodes = {path: node for path, node in leaves_with_path(params, is_posterior) if is_posterior(node)}
    if not nodes:
        raise ValueError(f"{caller}: params has no posterior node. Pass the posterior tree itself, not its mean.")
    means, scales = ([_flat(getattr(node, field)) for node in nodes.values()] for field in ("mean", "stddev"))
    for path, values in zip([*nodes, *nodes], [*means, *scales], strict=True):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{caller}: params{path} must be finite, got {values[~np.isfinite(values)][0]}.")
    ax = _rows(caller, ax, paths)
    for name, values, shift in (("|mean|", np.abs, -0.14), ("scale", np.asarray, 0.14)):
        style = next_style(ax, color)
        numbers = means if name == "|mean|" else scales
        low, middle, high = np.array([np.quantile(values(each), QUANTILES) for each in numbers]).T
        rows = np.arange(len(nodes)) + shift
        ax.hlines(rows, low, high, color=style.color, linestyle=style.linestyle, linewidth=2, gid=style.name)
        face: dict[str, Any] = {"color": style.color, "markerfacecolor": style.color if shift < 0 else "white"}
        text = f"{label}, {name}" if label else name
        ax.plot(middle, rows, style.marker, markersize=6, label=text, **face)
    ax.set(xscale="log", ylim=(len(nodes) - 0.4, -0.6 - max(0.6, 0.16 * len(nodes))))  # with room for the legend
    name_axes(ax, "units of the weights", "")
    legend(ax, loc="upper right", ncols=2)
    return ax


def kl_by_leaf(
    summary: Summary,
    *,
    per_weight: bool = False,
    ax: Axes | None = None,
    label: str | None = None,
    color: Any = None,
) -> Axes:
    """KL(q || prior) of each posterior node in nats: the information it has beyond the prior.

    Args:
        summary: of `illia_fn.summary(params, prior)`; its deterministic leaves have none.
        per_weight: whether to divide it by the number of weights.
        ax, label, color: as in `posterior_by_layer`.

    Returns:
        The axes.

    Raises:
        ValueError: for a summary without posterior nodes.
        TypeError: for what is no `Summary`, or an `ax` that is no axes.

    >>> from illia_fn import mean_field, summary
    >>> ax = kl_by_leaf(summary({"w": mean_field(np.array([0.0, 2.0]), scale=1.0)}))
    >>> print([float(round(bar.get_width(), 2)) for bar in ax.patches], ax.get_xlabel())
    [2.0] KL(q || prior) (nats)
    """
    caller = "plots.kl_by_leaf"
    check_record(caller, "summary", summary, Summary, "illia_fn.summary(params, prior)")
    leaves = [leaf for leaf in summary.leaves if leaf.family != "deterministic"]
    if not leaves:
        raise ValueError(f"{caller}: summary has no posterior node. Pass that of the posterior tree itself.")
    values = [leaf.kl_per_weight if per_weight else leaf.kl for leaf in leaves]
    ax = _rows(caller, ax, [leaf.path for leaf in leaves])
    style = next_style(ax, color)
    bars = ax.barh(range(len(values)), values, height=0.6, color=style.color, edgecolor="black", label=label)
    bars[0].set_gid(style.name)
    ax.bar_label(
        bars, [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values], padding=2, fontsize="small"
    )
    ax.margins(x=0.3)
    name_axes(ax, "KL(q || prior) (nats per weight)" if per_weight else "KL(q || prior) (nats)", "")
    legend(ax)
    return ax


def pruning(curve: PruningCurve, *, ax: Axes | None = None, label: str | None = None, color: Any = None) -> Axes:
    """Negative ELBO and data term in nats per example, against the share of the weights that are set to zero.

    Args:
        curve: of `illia_fn.pruning_curve`.
        ax, label, color: as in `reliability`.

    Returns:
        The axes.

    Raises:
        TypeError: for what is no `PruningCurve`, or an `ax` that is no axes.

    >>> ax = pruning(PruningCurve(np.array([0.0, 0.5]), np.array([1.0, 1.1]), np.array([0.4, 0.1])))
    >>> print(ax.lines[0].get_ydata(), ax.get_ylabel())
    [1.4 1.2] nats per example
    """
    caller = "plots.pruning"
    check_record(caller, "curve", curve, PruningCurve, "illia_fn.pruning_curve")
    ax = axes_of(caller, ax)
    for name, values in (("negative ELBO", curve.negative_elbo), ("nll", curve.nll)):
        style = next_style(ax, color)
        text = f"{label}, {name}" if label else name
        ax.plot(100.0 * np.asarray(curve.shares), values, label=text, **style.line(5))
    name_axes(ax, "weights set to zero (%)", "nats per example")
    legend(ax)
    return ax


def _rows(caller: str, ax: Axes | None, paths: list[str]) -> Axes:
    """Axes with one row for each path, the first on top."""
    if ax is None:
        ax = Figure(figsize=(6.4, 1.6 + 0.32 * len(paths)), layout="constrained").subplots()
    ax = axes_of(caller, ax)
    ax.set_yticks(range(len(paths)), [short_path(path) for path in paths], fontsize="small")
    ax.set_ylim(len(paths) - 0.4, -0.6)
    return ax


def _flat(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
