"""What the pictures share: where they are drawn, how one line differs from the next, and what they say."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from illia_fn._base.checks import describe

REFERENCE: dict[str, Any] = {"color": "0.6", "linewidth": 1.0, "linestyle": (0, (1, 1)), "zorder": 0.5}
_DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v")
_SERIES = "illia_fn-series-"


class Style(NamedTuple):
    """How the lines of one series are drawn; `name` marks the first of its artists, so that the next one differs."""

    name: str
    color: Any
    linestyle: Any
    marker: str

    def line(self, marksize: float = 0.0) -> dict[str, Any]:
        """Keywords of a line, with marks if they have a size."""
        marks = {"marker": self.marker, "markersize": marksize} if marksize else {}
        return {"color": self.color, "linestyle": self.linestyle, "gid": self.name, **marks}

    @property
    def filled(self) -> bool:
        """Whether its marks are: of every other series they are hollow."""
        return _MARKERS.index(self.marker) % 2 == 0


def axes_of(caller: str, ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure, which pyplot does not know of."""
    if ax is None:
        return Figure(layout="constrained").subplots()
    if not isinstance(ax, Axes):
        hint = " Of several pass one, such as axes[0]." if isinstance(ax, np.ndarray) else ""
        raise TypeError(f"{caller}: ax must be matplotlib axes or None, got {describe(ax)}.{hint}")
    return ax


def next_style(ax: Axes, color: Any = None) -> Style:
    """A style that no series on the axes has yet, told apart by dashes and markers where colours cannot be seen."""
    count = sum(str(artist.get_gid()).startswith(_SERIES) for artist in ax.get_children())
    dashes, marker = _DASHES[count % len(_DASHES)], _MARKERS[count % len(_MARKERS)]
    return Style(f"{_SERIES}{count}", f"C{count}" if color is None else color, dashes, marker)


def name_axes(ax: Axes, x: str, y: str) -> None:
    """Name the axes, unless the caller has."""
    if not ax.get_xlabel():
        ax.set_xlabel(x)
    if not ax.get_ylabel():
        ax.set_ylabel(y)


def legend(ax: Axes, **place: Any) -> None:
    """A legend of all that has a label so far."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="small", handlelength=2.4, borderaxespad=0.3, columnspacing=1.2, **place)


def named_once(ax: Axes, name: str) -> str | None:
    """The name, unless the legend has it already."""
    return None if name in ax.get_legend_handles_labels()[1] else name


def short_path(path: str) -> str:
    """A path, of a long one the end."""
    return (path or "params") if len(path) <= 28 else f"\N{HORIZONTAL ELLIPSIS}{path[-27:]}"


def some_marks(length: int) -> int:
    """Of a long line every how many points have a mark."""
    return max(1, length // 8)


@contextmanager
def in_the_name_of(caller: str) -> Generator[None]:
    """Errors of a metric, "metric: what is wrong", in the name of the picture that calls it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):  # of JAX, made from something else than a message
            raise
        raise type(error)(f"{caller}: {re.sub(r'^[a-z_]+: ', '', str(error))}") from error


def check_record(caller: str, name: str, record: Any, kind: type, made_by: str) -> None:
    """A record of the library, and not what it is made of."""
    if not isinstance(record, kind):
        raise TypeError(f"{caller}: {name} must be the {kind.__name__} of {made_by}, got {describe(record)}.")
