import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from illia_fn.predictions.metrics import (
    accuracy,
    brier_score,
    calibration_error,
    negative_log_likelihood,
    predictive_entropy,
)

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.ones(3), size=24)
LABELS = RNG.integers(3, size=24)
WEIGHTS = RNG.uniform(size=24)
CLASSES = range(3)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_as_scikit_learn(weights):
    probs = PROBS.astype(np.float32)
    right = accuracy_score(LABELS, PROBS.argmax(axis=1), sample_weight=weights)
    np.testing.assert_allclose(accuracy(probs, LABELS, weights=weights), right, rtol=1e-6)
    nll = log_loss(LABELS, PROBS, sample_weight=weights, labels=CLASSES)
    np.testing.assert_allclose(negative_log_likelihood(probs, LABELS, weights=weights), nll, rtol=1e-6)
    brier = brier_score_loss(LABELS, PROBS, sample_weight=weights, labels=CLASSES, scale_by_half=False)
    np.testing.assert_allclose(brier_score(probs, LABELS, weights=weights), brier, rtol=1e-6)


def test_certain_predictions():
    """Probabilities of 0 and 1, right and wrong, and one example."""
    certain = jnp.array([[0.0, 1.0]])
    assert (accuracy(certain, jnp.array([1])), accuracy(certain, jnp.array([0]))) == (1.0, 0.0)
    assert negative_log_likelihood(certain, jnp.array([1])) == 0.0
    assert negative_log_likelihood(certain, jnp.array([0])) == jnp.inf  # scikit-learn clips it to 36
    assert (brier_score(certain, jnp.array([1])), brier_score(certain, jnp.array([0]))) == (0.0, 2.0)


def test_lists_are_arrays():
    assert accuracy([[0.25, 0.75]], [1], weights=[2]) == 1.0


def test_of_equal_probabilities_the_first_class_counts():
    tied = jnp.array([[0.25, 0.375, 0.375]] * 3)
    assert [float(accuracy(tied, jnp.full(3, label))) for label in range(3)] == [0.0, 1.0, 0.0]


def test_one_hot_integers_are_probabilities_and_narrow_labels_are_labels():
    one_hot, labels = np.eye(300, dtype=int)[:200], np.arange(200, dtype=np.uint8)
    assert accuracy(one_hot, labels) == 1.0
    assert brier_score(one_hot, labels) == 0.0


def test_entropy():
    np.testing.assert_allclose(predictive_entropy(jnp.full((2, 3, 4), 0.25)), np.full((2, 3), np.log(4)), rtol=1e-6)
    np.testing.assert_array_equal(predictive_entropy(jnp.eye(3)), 0.0)
    expected = -np.sum(PROBS * np.log(PROBS), axis=1)
    np.testing.assert_allclose(predictive_entropy(PROBS.astype(np.float32)), expected, rtol=1e-5)


def test_probabilities_need_to_sum_to_one_as_well_as_their_dtype_can():
    rounded = jnp.asarray(PROBS, jnp.bfloat16)
    assert np.abs(np.asarray(rounded, float).sum(axis=1) - 1).max() > 1e-3
    predictive_entropy(rounded)
    with pytest.raises(ValueError, match=r"predictive_entropy: probs must be .* within 0.0003, got a row"):
        predictive_entropy(rounded.astype(jnp.float32))
    predictive_entropy(PROBS.astype(np.float32) * np.float32(1.0003))
    with pytest.raises(ValueError, match=r"a row of sum 1\.[01]"):
        predictive_entropy(jnp.asarray(1.1 * PROBS, jnp.bfloat16))


@pytest.mark.parametrize("f", [accuracy, negative_log_likelihood, brier_score, calibration_error])
def test_logits_under_jit_are_nan(f):
    """Where they cannot be refused; one such row is enough."""
    probs = jnp.array([[0.5, 0.5], [0.2, 0.8]])
    labels = jnp.array([0, 1])
    assert np.isfinite(jax.jit(f)(probs, labels))
    for row in ([3.0, -2.0], [2.0, 2.0]):
        assert np.isnan(jax.jit(f)(probs.at[0].set(jnp.array(row)), labels))
