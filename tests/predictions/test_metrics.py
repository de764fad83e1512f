"""What holds for every score: weights, masks, jit, vmap, precision and memory."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import metrics

RNG = np.random.default_rng(0)
B, C, S = 24, 3, 5
LABELS = RNG.integers(C, size=B)
PROBS = RNG.dirichlet(np.full(C, 0.5), size=B).astype(np.float32)  # too confident, so that errors are not 0
DRAWS, TARGETS = RNG.normal(size=(S, B)).astype(np.float32), RNG.normal(size=B).astype(np.float32)
SCALES = RNG.gamma(2.0, size=(S, B)).astype(np.float32)
LOW, HIGH = np.sort(RNG.normal(size=(2, B)).astype(np.float32), axis=0)
CONFIDENCE, LOSSES = RNG.integers(8, size=B).astype(np.float32), RNG.gamma(1.0, size=B).astype(np.float32)
CLASSES, ENSEMBLE, INTERVALS = (PROBS, LABELS), (DRAWS, TARGETS), (LOW, HIGH, TARGETS)
WEIGHTS = RNG.permutation(np.repeat(np.arange(3), B // 3))  # 0 to 2, and B in all
MASK = WEIGHTS > 0


def area(confidence, losses, *, weights=None):
    return metrics.risk_coverage(confidence, losses, weights=weights).area


SCORES = {
    "accuracy": (metrics.accuracy, CLASSES),
    "negative_log_likelihood": (metrics.negative_log_likelihood, CLASSES),
    "brier_score": (metrics.brier_score, CLASSES),
    "calibration_error": (metrics.calibration_error, CLASSES),
    "calibration_error, equal mass": (partial(metrics.calibration_error, num_bins=4, binning="equal_mass"), CLASSES),
    "calibration_error, debiased": (partial(metrics.calibration_error, num_bins=2, norm=2, debiased=True), CLASSES),
    "crps": (metrics.crps, ENSEMBLE),
    "crps, fair": (partial(metrics.crps, fair=True), ENSEMBLE),
    "crps_gaussian_mixture": (metrics.crps_gaussian_mixture, (DRAWS, SCALES, TARGETS)),
    "coverage": (partial(metrics.coverage, level=0.4), ENSEMBLE),
    "interval_coverage": (metrics.interval_coverage, INTERVALS),
    "interval_width": (metrics.interval_width, (LOW, HIGH)),
    "interval_score": (partial(metrics.interval_score, level=0.8), INTERVALS),
    "risk_coverage": (area, (CONFIDENCE, LOSSES)),
}
each_score = pytest.mark.parametrize(("score", "args"), SCORES.values(), ids=SCORES)
STEPS = (metrics.accuracy, SCORES["coverage"][0], metrics.interval_coverage)  # without a slope


def examples(x, index):
    """Those of an array (B,), (B, C) or (S, B)."""
    return x[index] if x.shape[0] == B else x[:, index]


def floats(args):
    return [i for i, x in enumerate(args) if x.dtype == np.float32]


@each_score
def test_weights_are_repeated_rows_and_have_no_unit(score, args):
    weighted = score(*args, weights=WEIGHTS)
    assert np.isfinite(weighted)
    assert abs(weighted - score(*args)) > 1e-4
    np.testing.assert_allclose(score(*args, weights=0.37 * WEIGHTS), weighted, rtol=1e-5)
    np.testing.assert_allclose(score(*args, weights=jnp.asarray(WEIGHTS, jnp.bfloat16)), weighted, rtol=1e-6)
    if getattr(score, "keywords", {}).get("debiased"):
        return  # a repeated row is no new evidence
    repeated = np.repeat(np.arange(B), WEIGHTS)
    np.testing.assert_allclose(score(*(examples(x, repeated) for x in args)), weighted, rtol=1e-5)


@each_score
def test_a_mask_drops_rows_whatever_they_hold(score, args):
    """NaN, labels that are no class: neither the value nor the gradient sees them."""
    hidden = [x.copy() for x in args]
    for x in hidden:
        x[tuple([slice(None)] * (x.shape[0] != B) + [~MASK])] = np.nan if x.dtype == np.float32 else -1
    value = score(*hidden, weights=MASK)
    np.testing.assert_allclose(value, jax.jit(score)(*(examples(x, MASK) for x in args)), rtol=1e-5)
    slopes_of = jax.jit(jax.grad(partial(score, weights=MASK), argnums=tuple(floats(args))))
    slopes = slopes_of(*args)
    assert any(np.any(slope != 0) for slope in slopes) == (score not in STEPS)
    for slope, masked in zip(slopes, slopes_of(*hidden), strict=True):
        np.testing.assert_array_equal(masked, slope)
        np.testing.assert_array_equal(examples(masked, ~MASK), 0.0)


@each_score
def test_jit_vmap_and_the_order_of_examples(score, args):
    value, weighted = score(*args), score(*args, weights=WEIGHTS)
    order = RNG.permutation(B)
    shuffled = [examples(x, order) for x in args]
    np.testing.assert_allclose(score(*shuffled, weights=WEIGHTS[order]), weighted, rtol=1e-5)

    def both(weights, *args):
        return score(*args, weights=weights), score(*args)

    stacked = [np.stack(pair) for pair in zip(args, shuffled, strict=True)]
    weights = np.stack([WEIGHTS, np.ones(B, int)])
    with_weights, without = jax.jit(jax.vmap(both))(weights, *stacked)
    np.testing.assert_allclose(with_weights, [weighted, value], rtol=1e-5)
    np.testing.assert_allclose(without, [value, value], rtol=1e-5)


@each_score
def test_what_jit_cannot_refuse_is_nan(score, args):
    jitted = jax.jit(score)
    for i, x in enumerate(args):
        for bad in (np.nan,) if x.dtype == np.float32 else (-1, C):
            broken = x.copy()
            broken.flat[0 if x.dtype != np.float32 else np.argmax(x)] = bad
            assert np.isnan(jitted(*args[:i], broken, *args[i + 1 :])), (i, bad)


@each_score
def test_half_precision_is_for_storage(score, args):
    """It is widened before anything is done."""
    half = [jnp.asarray(x, jnp.bfloat16 if x.dtype == np.float32 else None) for x in args]
    value = score(*half)
    assert value.dtype == jnp.float32
    assert score(*half, weights=jnp.ones(B, jnp.float16)).dtype == jnp.float32
    expected = jax.jit(score)(*(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in half))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def all_scores(args, **weights):
    """In one program."""
    return jax.jit(lambda args: {name: score(*args[name], **weights) for name, (score, _) in SCORES.items()})(args)


def test_float64_stays(x64):
    wide = {name: [x.astype(float) if x.dtype == np.float32 else x for x in args] for name, (_, args) in SCORES.items()}
    narrow = all_scores({name: args for name, (_, args) in SCORES.items()}, weights=WEIGHTS)
    for name, value in all_scores(wide, weights=WEIGHTS).items():
        assert value.dtype == jnp.float64, name
        np.testing.assert_allclose(value, narrow[name], rtol=1e-5, err_msg=name)


@each_score
def test_no_matrix_product(score, args):
    """Accelerators would round its factors to ten bits or seven."""
    assert "dot_general" not in str(jax.make_jaxpr(score)(*args))


@pytest.mark.parametrize("score", ["crps", "crps, fair", "crps_gaussian_mixture", "coverage", "calibration_error"])
def test_a_million_examples_take_the_memory_of_a_few_copies(score):
    score, args = SCORES[score]
    shapes = [jax.ShapeDtypeStruct([10**6 if n == B else n for n in x.shape], jnp.result_type(x)) for x in args]
    program = jax.jit(score).lower(*shapes).compile()
    size = sum(np.prod(shape.shape) * 4 for shape in shapes)
    assert program.memory_analysis().temp_size_in_bytes < 4 * size


def test_one_example():
    one = all_scores({name: [examples(x, slice(1)) for x in args] for name, (_, args) in SCORES.items()})
    loss = np.abs(DRAWS[:, 0] - TARGETS[0]).mean() - 0.5 * np.abs(DRAWS[:, :1] - DRAWS[:, 0]).mean()
    np.testing.assert_allclose(one["crps"], loss, rtol=1e-5)
    np.testing.assert_allclose(one["negative_log_likelihood"], -np.log(PROBS[0, LABELS[0]]), rtol=1e-6)
    right = PROBS[0].argmax() == LABELS[0]
    np.testing.assert_allclose(one["calibration_error"], abs(right - PROBS[0].max()), rtol=1e-6)
    assert one["accuracy"] == float(right)
    assert np.isnan(one["calibration_error, debiased"])  # of one example nothing is known
    assert one["risk_coverage"] == LOSSES[0]


def test_the_score_of_each_example_is_that_of_a_batch_of_one():
    each = jax.vmap(metrics.crps)(DRAWS.T[..., None], TARGETS[:, None])
    assert each.shape == (B,)
    np.testing.assert_allclose(each.mean(), metrics.crps(DRAWS, TARGETS), rtol=1e-5)


BAD_WEIGHTS = {
    "all zero": (np.zeros(B), "weights must be finite, not negative and not all zero, got .* from 0.0 to 0.0"),
    "negative": (np.where(MASK, 1.0, -1.0), "weights must be finite, not negative"),
    "NaN": (np.where(MASK, 1.0, np.nan), "weights must be finite"),
    "infinite": (np.where(MASK, 1.0, np.inf), "weights must be finite"),
    "of another shape": (np.ones(1), r"weights must have shape \(24,\), one per example, got \(1,\)"),
    "a column": (np.ones((B, 1)), r"weights must have shape \(24,\)"),
    "a number": (1.0, r"weights must have shape \(24,\)"),
}


@each_score
def test_refused_weights(score, args):
    name = getattr(score, "func", score).__name__.replace("area", "risk_coverage")
    for weights, message in BAD_WEIGHTS.values():
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            score(*args, weights=weights)
    with pytest.raises(TypeError, match=f"{name}: weights must be an array of real numbers"):
        score(*args, weights="balanced")


def test_plots_come_with_the_first_use():
    """matplotlib is imported by `illia_fn.plots` alone, and its absence is named."""
    script = """
import sys, illia_fn
assert "matplotlib" not in sys.modules
sys.modules["matplotlib.axes"] = None  # as if it were not installed
try:
    illia_fn.plots
except ModuleNotFoundError as error:
    assert "pip install 'illia_fn[plots]'" in str(error), error
del sys.modules["matplotlib.axes"]
assert illia_fn.plots.__name__ == "illia_fn.plots"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="module 'illia_fn' has no attribute 'pots'"):
        _ = illia_fn.pots
