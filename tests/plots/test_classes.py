"""What the pictures of a classifier draw is what the numbers say, computed here in NumPy."""

from itertools import pairwise

import numpy as np
import pytest
from plot_cases import CONFIDENCE, LABELS, LOSSES, NETWORKS, PROBS

from illia_fn import class_summary, plots


def line(ax, start="illia_fn-"):
    (found,) = [line for line in ax.lines if str(line.get_gid()).startswith(start)]
    return found.get_xydata()


def test_reliability():
    ax = plots.reliability(PROBS, LABELS, num_bins=4)
    bins = np.ceil(4 * CONFIDENCE.astype(np.float64)).astype(int) - 1
    occupied = [b for b in range(4) if (bins == b).any()]
    right = PROBS.argmax(axis=1) == LABELS
    expected = [(CONFIDENCE[bins == b].mean(), right[bins == b].mean()) for b in occupied]
    np.testing.assert_allclose(line(ax), expected, rtol=1e-5)
    gap = sum(np.mean(bins == b) * abs(p - a) for b, (p, a) in zip(occupied, expected, strict=True))
    assert ax.get_legend().get_texts()[0].get_text() == f"ECE {gap:.2f}"
    (marks,) = ax.collections
    np.testing.assert_allclose(marks.get_sizes(), [10 + 190 * np.mean(bins == b) for b in occupied], rtol=1e-5)


def test_reliability_of_those_that_count():
    weights = (np.arange(len(LABELS)) < 20).astype(np.float32)
    ax, same = plots.reliability(PROBS, LABELS, weights=weights), plots.reliability(PROBS[:20], LABELS[:20])
    np.testing.assert_allclose(line(ax), line(same), rtol=1e-5)
    ax = plots.reliability(PROBS, LABELS, num_bins=4, binning="equal_mass")
    assert len(line(ax)) == 4


def entropy(p):
    return -np.sum(p * np.log(p), axis=-1)


def test_entropy_histogram():
    ax = plots.entropy_histogram(PROBS, num_bins=6)
    edges = np.linspace(0.0, np.log(3.0), 7)
    found = entropy(PROBS)
    expected = [np.mean((found >= low) & (found < high)) for low, high in pairwise(edges)]
    (outline,) = [patch for patch in ax.patches if patch.get_gid()]
    np.testing.assert_allclose(outline.get_data().values, expected, rtol=1e-6)
    np.testing.assert_allclose(outline.get_data().edges, edges, rtol=1e-6)


def test_entropies_at_both_ends_are_counted():
    ax = plots.entropy_histogram(np.array([[1.0, 0.0], [0.5, 0.5]], np.float32), num_bins=4)
    (outline,) = [patch for patch in ax.patches if patch.get_gid()]
    np.testing.assert_array_equal(outline.get_data().values, [0.5, 0.0, 0.0, 0.5])


def test_entropy_split():
    ax = plots.entropy_split(class_summary(NETWORKS))
    aleatoric = entropy(NETWORKS.astype(np.float64)).mean(axis=0)
    epistemic = entropy(NETWORKS.mean(axis=0, dtype=np.float64)) - aleatoric
    cloud, middle = ax.collections
    np.testing.assert_allclose(cloud.get_offsets(), np.stack([aleatoric, epistemic], axis=1), atol=1e-5)
    np.testing.assert_allclose(middle.get_offsets(), [[aleatoric.mean(), epistemic.mean()]], atol=1e-5)
    assert ax.get_ylim()[1] > epistemic.max()


def test_entropy_split_makes_room_for_every_set():
    agree, differ = np.full((2, 5, 2), 0.5, np.float32), np.eye(2, dtype=np.float32)[:, None].repeat(5, axis=1)
    for sets in ([agree, differ], [differ, agree]):
        ax = None
        for probs in sets:
            ax = plots.entropy_split(class_summary(probs), ax=ax)
        assert ax.get_ylim()[1] > np.log(2.0)


def test_risk_coverage():
    ax = plots.risk_coverage(CONFIDENCE, LOSSES)
    order = np.argsort(-CONFIDENCE)
    count = np.arange(1, len(order) + 1)
    risk = np.cumsum(LOSSES[order]) / count
    np.testing.assert_allclose(line(ax), np.stack([count / len(order), risk], axis=1), rtol=1e-5)
    assert ax.get_legend().get_texts()[0].get_text() == f"AURC {risk.mean():.3g}"


REFUSED = {
    "logits": (lambda: plots.reliability(3.0 * PROBS, LABELS), "reliability: probs must be probabilities"),
    "no class": (lambda: plots.reliability(PROBS, LABELS + 1), "reliability: labels must be classes from 0 to 2"),
    "networks": (lambda: plots.reliability(NETWORKS, LABELS), r"reliability: probs must have shape \(B, C\)"),
    "bins": (lambda: plots.reliability(PROBS, LABELS, num_bins=0), "reliability: num_bins must be an int"),
    "logits too": (lambda: plots.entropy_histogram(3.0 * PROBS), "entropy_histogram: probs must be probabilities"),
    "networks too": (lambda: plots.entropy_histogram(NETWORKS), r"entropy_histogram: probs must have shape \(B, C\)"),
    "probs": (lambda: plots.entropy_split(NETWORKS), "entropy_split: summary must be the ClassSummary of illia_fn.cl"),
    "shapes": (lambda: plots.risk_coverage(CONFIDENCE, LOSSES[1:]), "risk_coverage: confidence and losses must have"),
    "nan": (lambda: plots.risk_coverage(np.nan * CONFIDENCE, LOSSES), "risk_coverage: confidence must be no NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    draw, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=rf"^plots\.{message}"):
        draw()
