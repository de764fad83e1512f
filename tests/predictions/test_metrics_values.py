import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from scipy import integrate, stats

from illia_fn.predictions.metrics import crps, crps_gaussian_mixture

RNG = np.random.default_rng(0)
B = 24
DRAWS = {s: RNG.normal(size=(s, B)).astype(np.float32) for s in (1, 2, 5)}
TARGETS = RNG.normal(size=B).astype(np.float32)
LOCS, SCALES = RNG.normal(size=(5, B)).astype(np.float32), RNG.gamma(2.0, size=(5, B)).astype(np.float32)
WEIGHTS = RNG.uniform(size=B)


def ensemble(draws, targets, estimator="nrg"):
    """The mean score by another library, in float64."""
    draws, targets = np.asarray(draws, float), np.asarray(targets, float)
    return scoringrules.crps_ensemble(targets, draws, m_axis=0, estimator=estimator).mean()


@pytest.mark.parametrize("num_draws", [1, 2, 5])
def test_crps_as_scoringrules(num_draws):
    draws = DRAWS[num_draws]
    np.testing.assert_allclose(crps(draws, TARGETS), ensemble(draws, TARGETS), rtol=1e-6)
    if num_draws > 1:
        np.testing.assert_allclose(crps(draws, TARGETS, fair=True), ensemble(draws, TARGETS, "fair"), rtol=1e-6)


def test_the_score_of_one_draw_is_its_absolute_error():
    np.testing.assert_allclose(crps(DRAWS[1], TARGETS), np.abs(DRAWS[1][0] - TARGETS).mean(), rtol=1e-6)


@pytest.mark.parametrize("fair", [False, True])
def test_crps_of_ties(fair):
    """Draws that are equal, targets that are draws, and both: whole numbers, as counts are."""
    draws, targets = RNG.poisson(2.0, size=(5, B)), RNG.poisson(2.0, size=B)
    expected = ensemble(draws, targets, "fair" if fair else "nrg")
    np.testing.assert_allclose(crps(draws, targets, fair=fair), expected, rtol=1e-6)
    equal = np.tile(np.float32([0.1, 0.7]).repeat(B // 2), (5, 1))
    np.testing.assert_allclose(crps(equal, TARGETS, fair=fair), np.abs(equal[0] - TARGETS).mean(), rtol=1e-6)
    assert crps(equal, equal[0], fair=fair) == 0.0


def test_crps_does_not_cancel():
    """Small spreads far from zero: the mean distances are differences of large sums, the lengths between draws not."""
    draws, targets = 1000.0 + 0.01 * DRAWS[5], 1000.0 + 0.01 * TARGETS
    np.testing.assert_allclose(crps(draws, targets), ensemble(draws, targets), rtol=1e-6)


def test_the_fair_score_is_that_of_what_the_draws_come_from():
    """The mean over many pairs of draws of N(0, 1) is the closed form, from which the plain score is far."""
    draws, targets = RNG.normal(size=(2, 200_000)).astype(np.float32), np.full(200_000, 0.5, np.float32)
    exact = scoringrules.crps_normal(0.5, 0.0, 1.0)
    distances = np.abs(draws - 0.5).mean(axis=0) - 0.5 * np.abs(draws[0] - draws[1])
    standard_error = distances.std() / np.sqrt(len(distances))
    assert abs(crps(draws, targets, fair=True) - exact) < 5 * standard_error
    assert crps(draws, targets) - exact > 50 * standard_error


@pytest.mark.parametrize("fair", [False, True])
def test_the_gradient_of_crps(fair):
    """It is that of the mean distances, which has a closed form."""
    draws = DRAWS[5].astype(float)
    signs = np.sign(draws[:, None] - draws[None]).sum(axis=1)
    expected = (np.sign(draws - TARGETS) / 5 - signs / (5 * (4 if fair else 5))) / B
    slope, slope_of_target = jax.grad(lambda x, y: crps(x, y, fair=fair), argnums=(0, 1))(DRAWS[5], TARGETS)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(slope_of_target, np.sign(TARGETS - draws).mean(axis=0) / B, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_mixtures_as_scoringrules(weights):
    locs, scales, targets = (x.astype(float) for x in (LOCS, SCALES, TARGETS))
    expected = np.average(scoringrules.crps_mixnorm(targets, locs, scales, m_axis=0), weights=weights)
    np.testing.assert_allclose(crps_gaussian_mixture(LOCS, SCALES, TARGETS, weights=weights), expected, rtol=2e-6)


def test_one_gaussian():
    expected = scoringrules.crps_normal(TARGETS.astype(float), LOCS[0], SCALES[0]).mean()
    np.testing.assert_allclose(crps_gaussian_mixture(LOCS[:1], SCALES[:1], TARGETS), expected, rtol=1e-6)


def test_a_mixture_by_quadrature():
    """The integral of (F - 1[z >= y])^2."""
    locs, scales, y = np.array([-1.0, 0.5, 2.0]), np.array([0.3, 1.0, 0.7]), 0.8

    def cdf(z):
        return stats.norm.cdf(z, locs, scales).mean()

    below, _ = integrate.quad(lambda z: cdf(z) ** 2, -12, y)
    above, _ = integrate.quad(lambda z: (1 - cdf(z)) ** 2, y, 12)
    value = crps_gaussian_mixture(*(np.float32(x)[:, None] for x in (locs, scales)), np.float32([y]))
    np.testing.assert_allclose(value, below + above, rtol=1e-6)


def test_one_scale_for_all():
    expected = crps_gaussian_mixture(LOCS, np.full_like(LOCS, 0.7), TARGETS)
    np.testing.assert_allclose(crps_gaussian_mixture(LOCS, 0.7, TARGETS), expected, rtol=1e-6)


def test_narrow_components_are_draws():
    """And their squares leave the range of float32."""
    np.testing.assert_allclose(crps_gaussian_mixture(DRAWS[5], 1e-30, TARGETS), crps(DRAWS[5], TARGETS), rtol=1e-6)
    huge = np.float32(1e30)
    value = crps_gaussian_mixture(huge * LOCS, huge * SCALES, huge * TARGETS)
    np.testing.assert_allclose(value / huge, crps_gaussian_mixture(LOCS, SCALES, TARGETS), rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1e-25, 1e25])
def test_the_gradient_of_mixtures(factor):
    """By central differences of the other library; the score of c x is c times that of x, and its slopes are equal."""
    arrays = [np.float64(x[..., :2]) for x in (LOCS, SCALES, TARGETS)]
    factor = np.float32(factor)

    def score(locs, scales, targets):
        return scoringrules.crps_mixnorm(targets, locs, scales, m_axis=0).mean()

    two = np.arange(B) < 2
    slopes = jax.grad(lambda *x: crps_gaussian_mixture(*x, weights=two), argnums=(0, 1, 2))(
        *(factor * x for x in (LOCS, SCALES, TARGETS))
    )
    for i, slope in enumerate(slopes):
        expected = np.zeros_like(arrays[i])
        for at in np.ndindex(expected.shape):
            step = np.zeros_like(expected)
            step[at] = 1e-5
            ends = [score(*(x + sign * step if j == i else x for j, x in enumerate(arrays))) for sign in (1, -1)]
            expected[at] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(slope[..., :2], expected, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_mixtures_keeps_no_pairs():
    """Of 64 components it takes the memory of a few arrays like locs, not of 64."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 1000), (64, 1000), (1000,))]
    program = jax.jit(jax.grad(crps_gaussian_mixture, argnums=(0, 1))).lower(*shapes).compile()
    assert program.memory_analysis().temp_size_in_bytes < 20 * 64 * 1000 * 4
