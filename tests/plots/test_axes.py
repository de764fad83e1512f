"""What all pictures promise: axes in, axes out, nothing else touched; series that differ without colours; names."""

import matplotlib
import numpy as np
import pytest
from matplotlib import _pylab_helpers
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plot_cases import PICTURES

from illia_fn import plots

each_picture = pytest.mark.parametrize("name", PICTURES)

NAMES = {
    "reliability": ("confidence", "accuracy"),
    "entropy_histogram": ("predictive entropy (nats)", "share of the inputs"),
    "entropy_split": ("aleatoric entropy (nats)", "epistemic entropy (nats)"),
    "risk_coverage": ("coverage (share answered)", "risk (their mean loss)"),
    "predictive_intervals": ("x", "y"),
    "coverage": ("promised coverage", "coverage of the targets"),
    "posterior_by_layer": ("units of the weights", ""),
    "kl_by_leaf": ("KL(q || prior) (nats)", ""),
    "pruning": ("weights set to zero (%)", "nats per example"),
    "training_curves": ("step", "nats per example"),
    "sbc_ranks": ("rank of the truth among 63 draws", "simulations"),
}


def test_every_picture_is_here():
    own = {name for name, f in vars(plots).items() if getattr(f, "__module__", "").startswith("illia_fn.plots.")}
    assert own == PICTURES.keys() == NAMES.keys()


def series(ax):
    """The artists that carry a series each."""
    return [artist for artist in ax.get_children() if str(artist.get_gid()).startswith("illia_fn-")]


@each_picture
def test_axes_in_axes_out_and_nothing_else_is_touched(name):
    figure = Figure()
    ax, other = figure.subplots(1, 2)
    before = [id(artist) for artist in other.get_children()], other.viewLim.bounds, len(figure.get_children())
    style = dict(matplotlib.rcParams)
    assert PICTURES[name](ax=ax, label="q") is ax
    assert ([id(artist) for artist in other.get_children()], other.viewLim.bounds, len(figure.get_children())) == before
    assert dict(matplotlib.rcParams) == style
    assert not ax.get_title()
    assert series(ax)


@each_picture
def test_without_axes_there_is_a_figure_that_pyplot_does_not_know(name):
    ax, other = PICTURES[name](), PICTURES[name]()
    assert ax.figure.axes == [ax]
    assert ax.figure is not other.figure
    assert not _pylab_helpers.Gcf.get_all_fig_managers()


@each_picture
def test_names_and_units(name):
    ax = PICTURES[name]()
    assert (ax.get_xlabel(), ax.get_ylabel()) == NAMES[name]
    ax = Figure().subplots()
    ax.set(xlabel="mine", ylabel="my own")
    PICTURES[name](ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mine", "my own")


def looks(artist):
    """What is left of a series without colours."""
    style = artist.get_linestyle() if hasattr(artist, "get_linestyle") else None
    marks = artist.get_paths()[0].vertices.tolist() if hasattr(artist, "get_offsets") else None
    return str(style), str(getattr(artist, "get_marker", lambda: None)()), str(marks)


@each_picture
def test_series_differ_with_and_without_colours(name):
    ax = Figure().subplots()
    PICTURES[name](ax=ax, label="first")
    PICTURES[name](ax=ax, label="second")
    artists = series(ax)
    assert len({artist.get_gid() for artist in artists}) == len(artists) >= 2
    if name != "kl_by_leaf":  # bars: one series
        assert len({looks(artist) for artist in artists}) == len(artists)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert any("first" in text for text in texts)
    assert any("second" in text for text in texts)
    assert len(set(texts)) == len(texts)


@each_picture
def test_a_colour_of_ones_own(name):
    ax = PICTURES[name](color="#123456")
    drawn = set()
    for artist in series(ax):
        for get in ("get_color", "get_edgecolor", "get_facecolor"):
            if hasattr(artist, get):
                drawn |= {tuple(row[:3]) for row in matplotlib.colors.to_rgba_array(getattr(artist, get)())}
    assert tuple(matplotlib.colors.to_rgb("#123456")) in drawn


def shown_ticks(axis):
    low, high = sorted(axis.get_view_interval())
    return [text for at, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True) if low <= at <= high]


@each_picture
@pytest.mark.parametrize("size", [(3.5, 2.6), (7.0, 5.0)])
def test_no_text_leaves_the_figure_or_covers_another(name, size):
    figure = Figure(figsize=size, layout="constrained", dpi=60)
    ax = PICTURES[name](ax=figure.subplots(), label="Bayesian")
    figure.draw_without_rendering()
    texts = [ax.xaxis.label, ax.yaxis.label, *shown_ticks(ax.xaxis), *shown_ticks(ax.yaxis)]
    boxes = [ax.get_legend().get_window_extent()]
    low, high = figure.bbox.min - 1.0, figure.bbox.max + 1.0
    boxes += [text.get_window_extent() for text in texts if text.get_visible() and text.get_text()]
    for box in boxes:
        assert np.all(box.min >= low), name
        assert np.all(box.max <= high), name
    for one, other in ((a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
        shared = np.minimum(one.max, other.max) - np.maximum(one.min, other.min)
        assert not np.all(shared > 2.0), name


BAD_AXES = {"a figure": Figure(), "axes in an array": Figure().subplots(1, 2), "a name": "ax"}


@each_picture
@pytest.mark.parametrize("bad", BAD_AXES)
def test_what_is_no_axes_is_refused(name, bad):
    hint = r".* Of several pass one, such as axes\[0\]\.$" if bad == "axes in an array" else ""
    with pytest.raises(TypeError, match=rf"plots\.{name}: ax must be matplotlib axes or None, got{hint}"):
        PICTURES[name](ax=BAD_AXES[bad])


def test_axes_of_a_subclass_are_axes():
    class Mine(Axes):
        pass

    figure = Figure()
    ax = Mine(figure, (0.1, 0.1, 0.8, 0.8))
    assert PICTURES["pruning"](ax=ax) is ax
