import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn.predictions.metrics import coverage, expected_calibration_error, predictive_entropy, reliability

RNG = np.random.default_rng(0)


def by_hand(probs, labels, num_bins):
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    error = 0.0
    for b in range(num_bins):
        inside = (confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error(num_bins):
    probs = RNG.dirichlet(np.ones(4), size=500).astype(np.float32)
    labels = RNG.integers(4, size=500)
    error = expected_calibration_error(probs, labels, num_bins=num_bins)
    np.testing.assert_allclose(error, by_hand(probs, labels, num_bins), rtol=1e-4)


def test_a_calibrated_and_an_overconfident_classifier():
    confidence = RNG.uniform(0.5, 1.0, size=200_000)
    labels = (RNG.uniform(size=confidence.size) > confidence).astype(int)
    calibrated = np.stack([confidence, 1 - confidence], axis=1)
    assert expected_calibration_error(calibrated, labels) < 0.01
    certain = np.tile([[1.0, 0.0]], (confidence.size, 1))
    np.testing.assert_allclose(expected_calibration_error(certain, labels), labels.mean(), rtol=1e-4)


def test_empty_bins_are_nan_and_count_for_nothing():
    diagram = reliability(jnp.array([[1.0, 0.0]]), jnp.array([0]), num_bins=3)
    np.testing.assert_array_equal(diagram.fraction, [0, 0, 1])
    assert np.isnan(diagram.accuracy[0])


def test_entropy():
    np.testing.assert_allclose(predictive_entropy(jnp.full((2, 4), 0.25)), np.log(4), rtol=1e-6)
    np.testing.assert_array_equal(predictive_entropy(jnp.eye(3)), 0.0)


def test_the_default_number_of_bins():
    probs, labels = RNG.dirichlet(np.ones(3), size=50), RNG.integers(3, size=50)
    assert len(reliability(probs, labels).fraction) == 15
    error = expected_calibration_error(probs, labels)
    np.testing.assert_allclose(error, by_hand(probs, labels, 15), rtol=1e-4)


def test_logits_are_refused():
    for logits in ([[0.5, -0.5]], [[0.5, 1.1]]):
        with pytest.raises(ValueError, match="Apply jax"):
            reliability(jnp.array(logits), jnp.array([0]))
    with pytest.raises(ValueError, match="Apply jax"):
        expected_calibration_error(jnp.array([[4.0, -1.0]]), jnp.array([0]))


@pytest.mark.parametrize("shapes", [((5, 2, 3), (5,)), ((5, 3), (5, 1)), ((5, 3), (4,))])
def test_shapes(shapes):
    with pytest.raises(ValueError, match="reliability: probs must have shape"):
        reliability(jnp.ones(shapes[0]), jnp.ones(shapes[1], int))
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        reliability(jnp.ones((1, 2)), jnp.ones(1, int), num_bins=0)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_the_true_distribution_is_the_level(level):
    draws, targets = RNG.normal(size=(2001, 2000)).astype(np.float32), RNG.normal(size=2000).astype(np.float32)
    standard_error = np.sqrt(level * (1 - level) / len(targets))
    assert abs(coverage(draws, targets, level) - level) < 5 * standard_error
    low, high = np.quantile(draws[:, :50], (0.5 - level / 2, 0.5 + level / 2), axis=0)
    inside = (low <= targets[:50]) & (targets[:50] <= high)
    np.testing.assert_allclose(coverage(draws[:, :50], targets[:50], level), inside.mean(), rtol=1e-6)


def test_coverage_refuses_what_it_would_have_to_broadcast():
    with pytest.raises(ValueError, match=r"coverage: draws must have shape \(S, B\) and targets \(B,\)"):
        coverage(jnp.zeros((3, 1)), jnp.zeros(4), 0.9)
    with pytest.raises(ValueError, match=r"coverage: level must be a number in \(0, 1\)"):
        coverage(jnp.zeros((3, 4)), jnp.zeros(4), 90)
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="coverage: level must be a number"):
            coverage(jnp.zeros((3, 4)), jnp.zeros(4), level)
    assert coverage(jnp.zeros((3, 4)), jnp.zeros(4), 0.01) == 1.0  # the ends of the interval count


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
