"""What the pictures of a regression draw is what the numbers say, computed here in NumPy."""

import numpy as np
import pytest
from plot_cases import DRAWS, TARGETS, X

from illia_fn import plots

ORDER = np.argsort(X)
LOW, MIDDLE, HIGH = np.quantile(DRAWS.astype(np.float64), (0.05, 0.5, 0.95), axis=0)


def check_intervals(ax, low, middle, high):
    (median,) = ax.lines
    np.testing.assert_allclose(median.get_xdata(), X[ORDER])
    np.testing.assert_allclose(median.get_ydata(), middle[ORDER], atol=1e-5)
    corners = ax.collections[0].get_paths()[0].vertices
    for end in (low, high):
        distance = np.abs(corners[None] - np.stack([X, end], axis=1)[:, None]).max(axis=-1).min(axis=1)
        assert distance.max() < 1e-5


def test_predictive_intervals():
    ax = plots.predictive_intervals(X, DRAWS, TARGETS)
    check_intervals(ax, LOW, MIDDLE, HIGH)
    inside = (LOW <= TARGETS) & (TARGETS <= HIGH)
    assert 0 < inside.sum() < len(X)
    for marks, chosen in zip(ax.collections[1:], (inside, ~inside), strict=True):
        np.testing.assert_allclose(marks.get_offsets(), np.stack([X, TARGETS], axis=1)[chosen])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"90 % (holds {100 * inside.mean():.0f} %)", "median", "inside", "outside"]


def test_intervals_of_ones_own():
    check_intervals(plots.predictive_intervals(X, (LOW - 1.0, MIDDLE, HIGH + 2.0)), LOW - 1.0, MIDDLE, HIGH + 2.0)
    low, high = np.quantile(DRAWS.astype(np.float64), (0.25, 0.75), axis=0)
    ax = plots.predictive_intervals(X, DRAWS, level=0.5)
    check_intervals(ax, low, MIDDLE, high)
    assert ax.get_legend().get_texts()[0].get_text() == "50 % interval"


def test_the_legend_does_not_cover_what_is_drawn():
    ax = plots.predictive_intervals(X, DRAWS, TARGETS)
    ax.figure.draw_without_rendering()
    top = ax.transData.transform((0.0, max(HIGH.max(), TARGETS.max())))[1]
    assert ax.get_legend().get_window_extent().y0 > top


def test_one_value_everywhere():
    ax = plots.predictive_intervals(np.zeros(2), np.full((3, 2), 7.0), np.full(2, 7.0))
    low, high = ax.get_ylim()
    assert low < 7.0 < high


def test_coverage():
    levels = (0.2, 0.5, 0.8)
    ax = plots.coverage(DRAWS, TARGETS, levels=levels)
    expected = []
    for level in levels:
        low, high = np.quantile(DRAWS.astype(np.float64), (0.5 - level / 2, 0.5 + level / 2), axis=0)
        expected.append(np.mean((low <= TARGETS) & (high >= TARGETS)))
    assert len(set(expected)) == 3
    diagonal, kept = ax.lines
    np.testing.assert_allclose(kept.get_xydata(), np.stack([levels, expected], axis=1), atol=1e-6)
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])


REFUSED = {
    "x": (lambda: plots.predictive_intervals(X[1:], DRAWS), "predictive_intervals: x, the targets and what is drawn"),
    "a matrix": (lambda: plots.predictive_intervals(X[:, None], DRAWS), r"predictive_intervals: x, .* got x \(40, 1\)"),
    "targets": (lambda: plots.predictive_intervals(X, DRAWS, TARGETS[1:]), r"predictive_intervals: .*targets \(39,\)"),
    "one draw": (lambda: plots.predictive_intervals(X, DRAWS[0]), r"predictive_intervals: draws must have shape"),
    "a pair": (lambda: plots.predictive_intervals(X, (LOW, HIGH)), "predictive_intervals: a tuple .* got 2"),
    "crossed": (lambda: plots.predictive_intervals(X, (HIGH, MIDDLE, LOW), TARGETS), "predictive_intervals: low must"),
    "nan": (lambda: plots.predictive_intervals(np.nan * X, DRAWS), "predictive_intervals: x must be finite, got nan"),
    "per cent": (lambda: plots.predictive_intervals(X, DRAWS, level=90), "predictive_intervals: level must be"),
    "one draw too": (lambda: plots.coverage(DRAWS[0], TARGETS), r"coverage: draws must have shape \(S, B\)"),
    "per cent too": (lambda: plots.coverage(DRAWS, TARGETS, levels=(90.0,)), "coverage: level must be"),
    "none": (lambda: plots.coverage(DRAWS, TARGETS, levels=()), "coverage: levels must be numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    draw, message = REFUSED[case]
    with pytest.raises(ValueError, match=rf"^plots\.{message}"):
        draw()
