"""Pictures of training and of what was trained: the terms of the loss, and simulation-based calibration."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from scipy.special import bdtr  # of the library that JAX is built on

from illia_fn._base.checks import check_count, describe
from illia_fn._base.trees import leaves_by_path
from illia_fn.diagnostics import SBC
from illia_fn.objectives.elbo import ELBOTerms
from illia_fn.plots._axes import (
    REFERENCE,
    axes_of,
    check_record,
    legend,
    name_axes,
    named_once,
    next_style,
    short_path,
    some_marks,
)

BAND = 0.99


def training_curves(
    history: ELBOTerms | Sequence[ELBOTerms] | ArrayLike,
    *,
    window: int = 1,
    ax: Axes | None = None,
    label: str | None = None,
    color: Any = None,
) -> Axes:
    """The loss over the steps, and what it is made of: loss = nll + weight * kl, in nats per example with `num_data`.

    Args:
        history: terms as `elbo_loss(..., return_terms=True)` returns them, of T steps: one record whose fields are
            arrays (T,), as `jax.lax.scan` stacks them, or a list of T records; or losses alone, (T,).
        window: how many steps each point is the mean of; a point stands at the last of them.
        ax, label, color: as in `reliability`.

    Returns:
        The axes.

    Raises:
        ValueError: for fields of another shape than (T,), or a window that is not from 1 to T.
        TypeError: for an `ax` that is no axes.

    >>> terms = ELBOTerms(nll=np.array([2.0, 1.0]), kl=np.array([10.0, 20.0]), weight=np.array([0.01, 0.01]))
    >>> ax = training_curves(terms)
    >>> print({line.get_label(): line.get_ydata().round(1).tolist() for line in ax.lines})
    {'loss': [2.1, 1.2], 'nll': [2.0, 1.0], 'weight * kl': [0.1, 0.2]}
    """
    caller = "plots.training_curves"
    curves = _curves(caller, history)
    check_count(caller, "window", window)
    size = min(map(len, curves.values()))
    if window > size:
        raise ValueError(f"{caller}: window must be at most the {size} steps of the history, got {window}.")
    ax = axes_of(caller, ax)
    for name, values in curves.items():
        style = next_style(ax, color)
        text = name if label is None else label if len(curves) == 1 else f"{label}, {name}"
        smooth = np.convolve(values, np.full(window, 1.0 / window), mode="valid")
        every = some_marks(len(smooth))
        ax.plot(np.arange(window, size + 1), smooth, label=text, linewidth=1.2, markevery=every, **style.line(4))
    name_axes(ax, "step", "nats per example" if len(curves) > 1 else "loss (nats per example)")
    legend(ax)
    return ax


def _curves(caller: str, history: Any) -> dict[str, np.ndarray]:
    if isinstance(history, ELBOTerms):
        fields = [field for field in history if field is not None]
    elif isinstance(history, (list, tuple)) and len(history) and all(isinstance(one, ELBOTerms) for one in history):
        fields = [field for field in zip(*history, strict=True) if field[0] is not None]
    else:
        fields = [history]
    arrays = [np.asarray(field) for field in fields]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1 or arrays[0].dtype.kind not in "fiuV":
        shapes = ", ".join(f"{describe(array)}" for array in arrays)
        raise ValueError(
            f"{caller}: history must be ELBOTerms whose fields are arrays (T,), a list of ELBOTerms, or losses (T,), "
            f"got {shapes}."
        )
    if len(arrays) == 1:
        curves = {"loss": arrays[0]}
    else:
        terms = ELBOTerms(*map(jnp.asarray, arrays))
        curves = {"loss": terms.loss, "nll": terms.nll, "weight * kl": terms.weight * terms.kl}
        if terms.hyperprior is not None:
            curves["weight * hyperprior"] = terms.weight * terms.hyperprior
    return {name: np.asarray(values, np.float64) for name, values in curves.items()}


def sbc_ranks(
    sbc: SBC, *, num_bins: int = 16, ax: Axes | None = None, label: str | None = None, color: Any = None
) -> Axes:
    """How often each rank of the truth came, one line for each number of the parameters, and what chance explains.

    The band holds the count of a bin in 99 % of the times if ranks are uniform: it is that of a binomial variable of
    num_simulations trials and 1 / num_bins. So of a hundred bins one is outside by chance. Counts that are high at both
    ends are of posteriors too narrow, high in the middle too wide, and a slope is an offset.

    Args:
        sbc: of `illia_fn.simulation_based_calibration`. Of many parameters look at some: sbc._replace(ranks=...).
        num_bins: of the histogram; num_draws + 1 is a multiple of it.
        ax, label, color: as in `reliability`. Without a label the lines are named by path, if they are six at most.

    Returns:
        The axes.

    Raises:
        ValueError: if num_draws + 1 is no multiple of num_bins.
        TypeError: for what is no `SBC`, or an `ax` that is no axes.

    >>> sbc = SBC({"w": np.arange(400) % 64}, 63, {"w": 1.0})
    >>> ax = sbc_ranks(sbc)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('rank of the truth among 63 draws', 'simulations')
    """
    caller = "plots.sbc_ranks"
    check_record(caller, "sbc", sbc, SBC, "illia_fn.simulation_based_calibration")
    check_count(caller, "num_bins", num_bins)
    if (sbc.num_draws + 1) % num_bins:
        raise ValueError(
            f"{caller}: num_draws + 1 = {sbc.num_draws + 1} must be a multiple of num_bins, so that all bins hold as "
            f"many ranks, got {num_bins}."
        )
    ax = axes_of(caller, ax)
    columns = _columns(sbc)
    trials = len(next(iter(columns.values())))
    edges = np.linspace(-0.5, sbc.num_draws + 0.5, num_bins + 1)
    low, high = _binomial_interval(trials, 1.0 / num_bins)
    ax.axhspan(low, high, color="0.9", zorder=0.3, label=named_once(ax, f"{100 * BAND:.0f} % of uniform counts"))
    ax.axhline(trials / num_bins, **REFERENCE)
    for place, ranks in columns.items():
        style = next_style(ax, color)
        counts = np.bincount(ranks * num_bins // (sbc.num_draws + 1), minlength=num_bins)
        name = (label or short_path(place[0]) + place[1]) if len(columns) <= 6 or label else None
        shown = name if place == next(iter(columns)) or label is None else None
        width = 1.5 if len(columns) <= 6 else 0.6
        ax.stairs(counts, edges, label=shown, baseline=None, linewidth=width, **style.line())
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(bottom=0)
    name_axes(ax, f"rank of the truth among {sbc.num_draws} draws", "simulations")
    legend(ax)
    return ax


def _columns(sbc: SBC) -> dict[tuple[str, str], np.ndarray]:
    """The ranks of each number, by its path and index."""
    columns = {}
    for path, leaf in leaves_by_path(jax.tree.map(np.asarray, sbc.ranks)):
        for index in np.ndindex(leaf.shape[1:]):
            columns[path, "".join(f"[{i}]" for i in index)] = leaf[(slice(None), *index)]
    return columns


def _binomial_interval(trials: int, chance: float) -> tuple[int, int]:
    """The smallest and the largest count: less than half of what lies outside of the band is below and above them."""
    cdf = bdtr(np.arange(trials + 1), trials, chance)
    return tuple(int(np.searchsorted(cdf, level)) for level in (0.5 - BAND / 2, 0.5 + BAND / 2))  # ty: ignore
