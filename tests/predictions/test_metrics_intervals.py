import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules

from illia_fn.predictions.metrics import coverage, interval_coverage, interval_score, interval_width

RNG = np.random.default_rng(0)
B = 24
LOW = RNG.normal(size=B).astype(np.float32)
HIGH = LOW + RNG.gamma(2.0, size=B).astype(np.float32)
TARGETS = RNG.normal(scale=2.0, size=B).astype(np.float32)
WEIGHTS = RNG.uniform(size=B)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_the_true_distribution_is_the_level(level):
    draws, targets = RNG.normal(size=(401, 1000)).astype(np.float32), RNG.normal(size=1000).astype(np.float32)
    standard_error = np.sqrt(level * (1 - level) / len(targets))
    assert abs(coverage(draws, targets, level) - level) < 5 * standard_error


@pytest.mark.parametrize("num_draws", [1, 2, 5, 32])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.9])
def test_coverage_by_quantiles_of_numpy(num_draws, level):
    """Targets just inside and just outside of each end."""
    draws = RNG.normal(size=(num_draws, B)).astype(np.float32)
    low, high = np.quantile(draws.astype(float), (0.5 - level / 2, 0.5 + level / 2), axis=0)
    for targets, inside in ((low - 1e-5, 0), (low + 1e-5, 1), (high - 1e-5, 1), (high + 1e-5, 0)):
        if num_draws == 1 and inside:
            targets = low
        assert coverage(draws, targets, level) == inside, (targets, inside)


@pytest.mark.parametrize("level", [0.02, 0.1, 0.3, 0.58, 0.7, 0.9, 0.94, 0.98])
def test_quantiles_that_are_draws_are_exact(level):
    """Or a target that is a draw is outside of an interval that ends with it. In float32 the ranks would be inexact."""
    draws = np.sinh(8 * RNG.normal(size=(101, B))).astype(np.float32)  # far from their neighbours
    ranked, end = np.sort(draws, axis=0), round(50 * level)
    for targets, outward in ((ranked[50 - end], -np.inf), (ranked[50 + end], np.inf)):
        assert coverage(draws, targets, level) == 1.0
        assert coverage(draws, np.nextafter(targets, np.float32(outward)), level) == 0.0


def test_equal_draws_cover_themselves():
    equal = np.tile(RNG.normal(size=B).astype(np.float32), (5, 1))
    assert coverage(equal, equal[0], 0.9) == 1.0
    assert coverage(equal, np.nextafter(equal[0], np.float32(9)), 0.9) == 0.0


def test_coverage_refuses_what_it_would_have_to_broadcast():
    with pytest.raises(ValueError, match=r"coverage: draws must have shape \(S, B\) and targets \(B,\)"):
        coverage(jnp.zeros((3, 1)), jnp.zeros(4), 0.9)
    for level in (0.0, 1.0, 90, "0.9"):
        with pytest.raises(ValueError, match=r"coverage: level must be a number in \(0, 1\)"):
            coverage(jnp.zeros((5, B)), jnp.zeros(B), level)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_score_as_scoringrules(level, weights):
    expected = np.average(
        scoringrules.interval_score(*map(np.float64, (TARGETS, LOW, HIGH)), 1 - level), weights=weights
    )
    np.testing.assert_allclose(interval_score(LOW, HIGH, TARGETS, level, weights=weights), expected, rtol=1e-6)


def test_interval_score_is_least_for_the_true_quantiles():
    """Of N(0, 1): moving either end of its 80 % interval makes the mean larger."""
    targets = RNG.normal(size=50_000).astype(np.float32)
    ends = np.quantile(targets, (0.1, 0.9))

    def score(low, high):
        return interval_score(np.full_like(targets, low), np.full_like(targets, high), targets, 0.8)

    best = score(*ends)
    for shift in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)):
        assert score(*(ends + shift)) > best + 1e-3


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_interval_coverage_and_width(weights):
    inside = (LOW <= TARGETS) & (TARGETS <= HIGH)
    assert 0 < inside.sum() < B
    covered = interval_coverage(LOW, HIGH, TARGETS, weights=weights)
    np.testing.assert_allclose(covered, np.average(inside, weights=weights), rtol=1e-6)
    width = interval_width(LOW, HIGH, weights=weights)
    np.testing.assert_allclose(width, np.average(HIGH - LOW, weights=weights), rtol=1e-6)


def test_ends_belong_to_the_interval_and_may_be_infinite():
    assert interval_coverage(LOW, LOW, LOW) == 1.0
    assert interval_score(LOW, LOW, LOW, 0.9) == 0.0
    infinite = np.full(B, np.inf, np.float32)
    assert interval_coverage(-infinite, infinite, TARGETS) == 1.0
    assert interval_coverage(-infinite, TARGETS, TARGETS) == 1.0
    assert interval_width(-infinite, infinite) == np.inf
