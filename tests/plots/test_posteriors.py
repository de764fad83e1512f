"""What the pictures of a posterior and of its training draw is what the numbers say."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from plot_cases import CALIBRATION, CURVE, RANKS, STEPS, TABLE, TERMS, WEIGHTS, Q

from illia_fn import Gaussian, mean_field, plots
from illia_fn.diagnostics import SBC
from illia_fn.objectives import ELBOTerms


def test_posterior_by_layer():
    ax = plots.posterior_by_layer(Q)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["hidden/bias", "hidden/kernel"]
    sizes = [np.abs(WEIGHTS["hidden"][name]).ravel() for name in ("bias", "kernel")]
    means, scales = ax.lines
    np.testing.assert_allclose(means.get_xdata(), [np.median(size) for size in sizes], rtol=1e-6)
    np.testing.assert_allclose(scales.get_xdata(), [0.2, 0.2], rtol=1e-5)
    reach = [segment[:, 0] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(reach, [np.quantile(size, (0.05, 0.95)) for size in sizes], rtol=1e-6)
    rows = np.array([line.get_ydata() for line in ax.lines])
    np.testing.assert_array_equal(rows.round(), [[0, 1], [0, 1]])
    assert ax.get_xscale() == "log"
    assert ax.yaxis_inverted()


def test_kl_by_leaf():
    for per_weight in (False, True):
        ax = plots.kl_by_leaf(TABLE, per_weight=per_weight)
        for bar, name in zip(ax.patches, ("bias", "kernel"), strict=True):
            w = WEIGHTS["hidden"][name].astype(np.float64)
            each = 0.5 * (0.2**2 + w**2 - 1.0) - np.log(0.2)  # against N(0, 1)
            np.testing.assert_allclose(bar.get_width(), each.mean() if per_weight else each.sum(), rtol=1e-5)
        assert ax.get_xlabel() == f"KL(q || prior) ({'nats per weight' if per_weight else 'nats'})"


def test_a_high_tree_has_a_high_figure():
    q = {f"layer {i}": mean_field(jnp.ones(2)) for i in range(60)}
    ax = plots.posterior_by_layer(q)
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.get_yticklabels()]
    assert all(not a.overlaps(b) for a, b in pairwise(boxes))


def test_long_paths_are_shown_by_their_end():
    ax = plots.posterior_by_layer({"a" * 40: {"kernel": mean_field(jnp.ones(2))}})
    assert [text.get_text() for text in ax.get_yticklabels()] == ["\N{HORIZONTAL ELLIPSIS}" + "a" * 20 + "/kernel"]
    ax = plots.posterior_by_layer(mean_field(jnp.ones(2)))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["params"]


def test_means_of_zero_leave_the_others_where_they_are():
    ax = plots.posterior_by_layer({"bias": mean_field(jnp.zeros(3)), "kernel": mean_field(jnp.ones(3))})
    ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    assert 0.02 < low < 0.05
    assert 1.0 < high < 2.0


def test_pruning():
    bound, nll = plots.pruning(CURVE).lines
    np.testing.assert_allclose(bound.get_xydata(), [[0, 1.1], [50, 0.6], [100, 0.9]])
    np.testing.assert_allclose(nll.get_xydata(), [[0, 0.1], [50, 0.2], [100, 0.9]])


def test_training_curves():
    expected = {"loss": TERMS.nll + 0.01 * TERMS.kl, "nll": TERMS.nll, "weight * kl": 0.01 * TERMS.kl}
    as_list = [ELBOTerms(*(jnp.asarray(field[i]) for field in TERMS[:3])) for i in range(STEPS)]
    fitted = [terms._replace(hyperprior=terms.kl / 2) for terms in as_list]
    of_fitted = {"loss": TERMS.nll + 0.015 * TERMS.kl, "nll": TERMS.nll, "weight * kl": 0.01 * TERMS.kl}
    of_fitted["weight * hyperprior"] = 0.005 * TERMS.kl
    for history, curves in ((TERMS, expected), (as_list, expected), (fitted, of_fitted)):
        for line, (name, values) in zip(plots.training_curves(history).lines, curves.items(), strict=True):
            assert line.get_label() == name
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, STEPS + 1))
            np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-5, atol=1e-6)


def test_training_curves_of_means():
    losses = np.arange(10.0) ** 2
    ax = plots.training_curves(losses, window=4)
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), [losses[i - 3 : i + 1].mean() for i in range(3, 10)])
    np.testing.assert_array_equal(line.get_xdata(), np.arange(4, 11))
    assert ax.get_ylabel() == "loss (nats per example)"


def test_sbc_ranks():
    ax = plots.sbc_ranks(CALIBRATION, num_bins=8)
    band, *lines = ax.patches
    for line, ranks in zip(lines, RANKS.T, strict=True):
        counts = [np.sum((ranks >= 8 * b) & (ranks < 8 * b + 8)) for b in range(8)]
        np.testing.assert_array_equal(line.get_data().values, counts)
        np.testing.assert_allclose(line.get_data().edges, np.arange(9) * 8 - 0.5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["99 % of uniform counts", "w[0]", "w[1]"]
    low, high = band.get_y(), band.get_y() + band.get_height()
    draws = np.random.default_rng(0).binomial(320, 1 / 8, 200_000)
    for edge, below in ((low, 0.005), (high, 0.995)):  # the quantiles of the counts
        assert np.mean(draws < edge) - 3e-4 < below < np.mean(draws <= edge) + 3e-4


def test_many_ranks_are_not_named():
    ranks = np.arange(320 * 9, dtype=np.int32).reshape(320, 3, 3) % 64
    ax = plots.sbc_ranks(SBC(ranks, 63, np.ones((3, 3))))
    assert len(ax.patches) == 1 + 9
    assert len(ax.get_legend().get_texts()) == 1


def test_ranks_of_long_paths_that_end_alike_are_all_drawn():
    names = [f"{name}/the_same_name_of_a_layer/kernel" for name in ("first", "second")]
    sbc = SBC(dict.fromkeys(names, RANKS), 63, dict.fromkeys(names, np.ones(2)))
    assert len(plots.sbc_ranks(sbc).patches) == 1 + 4


REFUSED = {
    "params": (lambda: plots.posterior_by_layer(WEIGHTS), "posterior_by_layer: params has no posterior node"),
    "nan": (
        lambda: plots.posterior_by_layer({"w": Gaussian(jnp.array([jnp.nan]), jnp.zeros(1))}),
        r"posterior_by_layer: params\['w'\] must be finite, got nan",
    ),
    "q": (lambda: plots.kl_by_leaf(Q), "kl_by_leaf: summary must be the Summary of illia_fn.summary"),
    "no node": (lambda: plots.kl_by_leaf(TABLE._replace(leaves=TABLE.leaves[-1:])), "kl_by_leaf: summary has no post"),
    "a tuple": (lambda: plots.pruning(tuple(CURVE)), "pruning: curve must be the PruningCurve of"),
    "one step": (lambda: plots.training_curves(1.0), "training_curves: history must be ELBOTerms whose fields"),
    "scalar kl": (lambda: plots.training_curves(TERMS._replace(kl=1.0)), "training_curves: history must be ELBOTerms"),
    "words": (lambda: plots.training_curves(["loss"]), "training_curves: history must be ELBOTerms"),
    "window": (lambda: plots.training_curves(TERMS, window=51), "training_curves: window must be at most the 50 steps"),
    "no window": (lambda: plots.training_curves(TERMS, window=0), "training_curves: window must be an int"),
    "ranks": (lambda: plots.sbc_ranks(RANKS), "sbc_ranks: sbc must be the SBC of illia_fn.simulation_based_cal"),
    "bins": (lambda: plots.sbc_ranks(CALIBRATION, num_bins=7), "sbc_ranks: num_draws . 1 = 64 must be a multiple"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    draw, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=rf"^plots\.{message}"):
        draw()
