import jax.numpy as jnp
import numpy as np
import pytest

from illia_fn.predictions.metrics import expected_calibration_error, predictive_entropy, reliability

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


def test_logits_are_refused():
    with pytest.raises(ValueError, match="Apply jax"):
        expected_calibration_error(jnp.array([[4.0, -1.0]]), jnp.array([0]))


@pytest.mark.parametrize("shapes", [((5, 2, 3), (5,)), ((5, 3), (5, 1)), ((5, 3), (4,))])
def test_shapes(shapes):
    with pytest.raises(ValueError, match="reliability: probs must have shape"):
        reliability(jnp.ones(shapes[0]), jnp.ones(shapes[1], int))
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        reliability(jnp.ones((1, 2)), jnp.ones(1, int), num_bins=0)
