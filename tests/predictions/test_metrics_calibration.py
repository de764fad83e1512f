from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from illia_fn.predictions.metrics import calibration_error, reliability

RNG = np.random.default_rng(0)
N, C = 24, 3
PROBS = RNG.dirichlet(np.ones(C), size=N).astype(np.float32)
LABELS = RNG.integers(C, size=N)
EIGHTHS = RNG.multinomial(8, np.ones(C) / C, size=N).astype(np.float32) / 8  # many are tied, and lie on edges


def by_hand(probs, labels, bins, num_bins, weights=None):
    """(confidence, accuracy, fraction, examples) of each bin, in float64."""
    weights = np.ones(len(labels)) if weights is None else weights
    confidence, correct = probs.max(axis=1).astype(float), probs.argmax(axis=1) == labels
    rows = []
    for b in range(num_bins):
        w = weights * (bins == b)
        c, a = (np.sum(w * x) / np.sum(w) if w.any() else np.nan for x in (confidence, correct))
        rows.append((c, a, np.sum(w) / np.sum(weights), np.sum(w) ** 2 / np.sum(w**2) if w.any() else 0))
    return np.transpose(rows)


def equal_width(probs, num_bins):
    """(b / n, (b + 1) / n], and 0 in the first."""
    edges = np.linspace(0, 1, num_bins + 1)[1:-1].astype(probs.dtype)
    return np.sum(probs.max(axis=1)[:, None] > edges, axis=1)


def equal_mass(probs, num_bins, weights):
    """Between the weighted quantiles, the smallest values with at least the share k / num_bins at or below them."""
    confidence = probs.max(axis=1)
    share = {c: Fraction(int(np.sum(weights[confidence <= c])), int(np.sum(weights))) for c in confidence}
    edges = [min(c for c in share if share[c] >= Fraction(k, num_bins)) for k in range(1, num_bins)]
    return np.array([sum(c > edge for edge in edges) for c in confidence])


@pytest.mark.parametrize("probs", [PROBS, EIGHTHS], ids=["untied", "on edges"])
@pytest.mark.parametrize("num_bins", [1, 4, 8])
def test_equal_width_as_scikit_learn(probs, num_bins):
    right = probs.argmax(axis=1) == LABELS
    accuracy, confidence = calibration_curve(right, probs.max(axis=1), n_bins=num_bins)
    diagram = reliability(probs, LABELS, num_bins=num_bins)
    occupied = np.asarray(diagram.fraction > 0)
    np.testing.assert_allclose(diagram.confidence[occupied], confidence, rtol=1e-6)
    np.testing.assert_allclose(diagram.accuracy[occupied], accuracy, rtol=1e-6)
    assert np.isnan(diagram.confidence[~occupied]).all()
    assert np.isnan(diagram.accuracy[~occupied]).all()
    np.testing.assert_allclose(diagram.fraction, by_hand(probs, LABELS, equal_width(probs, num_bins), num_bins)[2])


@pytest.mark.parametrize("num_bins", [1, 4, 8])
def test_equal_mass_as_scikit_learn(num_bins):
    right = PROBS.argmax(axis=1) == LABELS
    accuracy, confidence = calibration_curve(right, PROBS.max(axis=1), n_bins=num_bins, strategy="quantile")
    diagram = reliability(PROBS, LABELS, num_bins=num_bins, binning="equal_mass")
    np.testing.assert_allclose(diagram.confidence, confidence, rtol=1e-6)
    np.testing.assert_allclose(diagram.accuracy, accuracy, rtol=1e-6)
    np.testing.assert_allclose(diagram.fraction, np.full(num_bins, 1 / num_bins), rtol=1e-6)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(4, 12), st.integers(1, 4)), min_size=N, max_size=N),
    st.sampled_from([4, 15]),
)
def test_equal_mass_with_ties_and_weights(rows, num_bins):
    """Against quantiles in exact arithmetic; where mass and num_bins do not divide each other, and bins are empty."""
    confidence, weights = np.array(rows, np.float32).T
    probs = np.stack([confidence, 12 - confidence], axis=1) / 12
    labels = LABELS % 2
    expected = by_hand(probs, labels, equal_mass(probs, num_bins, weights), num_bins, weights)
    diagram = reliability(probs, labels, num_bins=num_bins, binning="equal_mass", weights=weights)
    np.testing.assert_allclose(np.array(diagram), expected[:3], rtol=1e-5)


@pytest.mark.parametrize("num_bins", [10, 15])
def test_a_confidence_on_an_edge_is_in_the_bin_below(num_bins):
    """Of 0.6 in float32, which is a little more than 0.6, as well."""
    confidence, labels = np.arange(1, num_bins + 1) / num_bins, np.zeros(num_bins, int)
    probs = np.full((num_bins, 20), ((1 - confidence) / 19)[:, None], np.float32)
    probs[:, 0] = confidence
    diagram = reliability(probs, labels, num_bins=num_bins)
    np.testing.assert_allclose(diagram.confidence, confidence, rtol=1e-6)
    diagram = reliability(np.nextafter(probs, 2, dtype=np.float32), labels, num_bins=num_bins)
    assert diagram.fraction[0] == 0
    np.testing.assert_allclose(diagram.confidence[1:-1], confidence[:-2], rtol=1e-6)


@pytest.mark.parametrize("weights", [None, RNG.uniform(size=N).astype(np.float32)], ids=["plain", "weighted"])
@pytest.mark.parametrize("num_bins", [1, 8, 15])
def test_calibration_errors_by_hand(num_bins, weights):
    confidence, accuracy, fraction, count = by_hand(PROBS, LABELS, equal_width(PROBS, num_bins), num_bins, weights)
    used = fraction > 0
    gap = np.abs(accuracy - confidence)[used]
    error = partial(calibration_error, PROBS, LABELS, num_bins=num_bins, weights=weights)
    np.testing.assert_allclose(error(), np.sum(fraction[used] * gap), rtol=1e-5)
    np.testing.assert_allclose(error(norm=2), np.sqrt(np.sum(fraction[used] * gap**2)), rtol=1e-5)
    several = count[used] > 1.000001
    variance = np.where(several, (accuracy * (1 - accuracy))[used] / np.where(several, count[used] - 1, 1), 0)
    squared = np.sum((fraction[used] * (gap**2 - variance))[several]) / np.sum(fraction[used][several])
    assert squared > 0
    np.testing.assert_allclose(error(norm=2, debiased=True), np.sqrt(squared), rtol=1e-4)


def test_the_default_is_the_ece_in_15_bins_of_equal_width():
    assert len(reliability(PROBS, LABELS).fraction) == 15
    assert calibration_error(PROBS, LABELS) == calibration_error(
        PROBS, LABELS, num_bins=15, binning="equal_width", norm=1, debiased=False
    )
    equal_mass = calibration_error(PROBS, LABELS, binning="equal_mass")
    diagram = reliability(PROBS, LABELS, binning="equal_mass")
    np.testing.assert_allclose(
        equal_mass, np.nansum(diagram.fraction * np.abs(diagram.accuracy - diagram.confidence)), rtol=1e-5
    )


def test_the_debiased_squared_error_is_without_bias():
    """The plug-in estimate exceeds the truth by the variance of the accuracy."""
    replications, half = 4000, 50
    chance = np.repeat([0.9, 0.7], half)  # two bins, in which confidence does not vary
    truth = np.repeat([0.6, 0.3], half)
    probs = np.stack([chance, 1 - chance], axis=1).astype(np.float32)
    labels = (RNG.uniform(size=(replications, 2 * half)) > truth).astype(int)
    errors = {
        debiased: np.asarray(
            jax.jit(jax.vmap(partial(calibration_error, probs, norm=2, num_bins=5, debiased=debiased)))(labels), float
        )
        ** 2
        for debiased in (True, False)
    }
    squared = 0.5 * (0.3**2 + 0.4**2)
    standard_error = errors[True].std() / np.sqrt(replications)
    assert abs(errors[True].mean() - squared) < 4 * standard_error
    bias = 0.5 * (0.6 * 0.4 + 0.3 * 0.7) / half
    assert bias > 8 * standard_error  # so that the two are told apart
    assert abs(errors[False].mean() - squared - bias) < 4 * standard_error


def test_a_negative_debiased_square_is_zero_with_a_zero_gradient():
    """Half of the predictions with confidence 1/2 are right: the estimate of the square is -1 / 12."""
    labels = jnp.array([0, 0, 1, 1])

    def error(p):
        return calibration_error(jnp.stack([p, 1 - p], axis=1), labels, norm=2, debiased=True)

    value, slope = jax.jit(jax.value_and_grad(error))(jnp.full(4, 0.5))
    assert value == 0.0
    np.testing.assert_array_equal(slope, 0.0)


def test_a_nan_that_is_alone_in_its_bin_is_not_left_out():
    probs = np.tile(np.float32([0.4, 0.3, 0.3]), (N, 1))
    probs[0, 0] = np.nan
    for debiased in (False, True):
        error = partial(calibration_error, num_bins=15, norm=2, debiased=debiased)
        assert np.isnan(jax.jit(error)(probs, LABELS))


def test_a_calibrated_and_an_overconfident_classifier():
    confidence = RNG.uniform(0.5, 1.0, size=200_000).astype(np.float32)
    labels = (RNG.uniform(size=confidence.size) > confidence).astype(int)
    calibrated = np.stack([confidence, 1 - confidence], axis=1)
    assert calibration_error(calibrated, labels) < 0.01
    certain = np.tile(np.array([[1.0, 0.0]], np.float32), (confidence.size, 1))
    np.testing.assert_allclose(calibration_error(certain, labels), labels.mean(), rtol=1e-4)


def test_empty_bins_are_nan_and_count_for_nothing():
    diagram = reliability(jnp.array([[1.0, 0.0]]), jnp.array([0]), num_bins=3)
    np.testing.assert_array_equal(diagram.fraction, [0, 0, 1])
    np.testing.assert_array_equal(diagram.accuracy, [np.nan, np.nan, 1])
    np.testing.assert_array_equal(diagram.confidence, [np.nan, np.nan, 1])


def test_empty_bins_do_not_poison_the_gradient():
    """d ECE / d confidence is the sign of confidence less accuracy over the number of examples, times 1/B."""
    labels = jnp.array([0, 1])

    def error(p):
        return calibration_error(jnp.stack([p, 1 - p], axis=1), labels)

    np.testing.assert_allclose(jax.jit(jax.grad(error))(jnp.array([0.9, 0.7])), [-0.5, 0.5])


def test_sums_of_a_million_examples_keep_their_digits():
    """A running sum of a constant drifts by 6e-4."""
    probs, labels = np.tile(np.array([[0.9, 0.1]], np.float32), (1_000_000, 1)), RNG.integers(2, size=1_000_000)
    diagram = reliability(probs, labels)
    assert diagram.fraction[13] == 1.0
    np.testing.assert_allclose(diagram.confidence[13], 0.9, rtol=1e-6)
    np.testing.assert_allclose(diagram.accuracy[13], np.mean(labels == 0), rtol=1e-6)


def test_equal_mass_of_a_million_examples():
    """Their confidence is uniform: so are the means of the bins."""
    confidence = (0.5 + RNG.permutation(1_000_000) / 2e6).astype(np.float32)
    probs = np.stack([confidence, 1 - confidence], axis=1)
    diagram = reliability(probs, np.zeros(1_000_000, int), num_bins=10, binning="equal_mass")
    np.testing.assert_allclose(diagram.fraction, np.full(10, 0.1), atol=2e-6)
    np.testing.assert_allclose(diagram.confidence, 0.525 + 0.05 * np.arange(10), rtol=2e-6)
