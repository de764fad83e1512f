"""The law of total variance, draws by network, and intervals of draws, against closed forms and by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import illia_fn as fn

RNG = np.random.default_rng(0)
LOC, RHO = RNG.normal(size=(2, 4, 3)).astype(np.float32)
SCALE = np.log1p(np.exp(RHO.astype(float)))


def test_a_mixture_of_gaussians_by_quadrature():
    y = np.linspace(-20, 20, 40001)
    density = stats.norm.pdf(y[:, None, None], LOC, SCALE).mean(axis=1) * (y[1] - y[0])
    mean = (density * y[:, None]).sum(axis=0)
    variance = (density * (y[:, None] - mean) ** 2).sum(axis=0)
    moments = jax.jit(partial(fn.predictive_moments, fn.gaussian_nll))((LOC, RHO))
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(moments.aleatoric, (SCALE**2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.epistemic, LOC.var(axis=0), rtol=1e-5)


def test_moments_of_one_rho_per_network_of_trailing_axes_and_of_half_precision():
    one = fn.predictive_moments(fn.gaussian_nll, (LOC, RHO[:, 0]))
    np.testing.assert_allclose(one.aleatoric, np.full(3, (SCALE[:, 0] ** 2).mean()), rtol=1e-5)
    deep = fn.predictive_moments(fn.gaussian_nll, (LOC.reshape(4, 3, 1), RHO.reshape(4, 3, 1)))
    assert deep.variance.shape == (3, 1)
    half = fn.predictive_moments(fn.gaussian_nll, jnp.asarray(LOC, jnp.bfloat16))
    assert half.mean.dtype == half.variance.dtype == jnp.float32
    np.testing.assert_allclose(half.epistemic, np.asarray(jnp.asarray(LOC, jnp.bfloat16), float).var(axis=0), rtol=1e-5)


def test_means_far_from_zero_do_not_cancel():
    loc = np.float32(1e4) + np.arange(4, dtype=np.float32)[:, None]
    np.testing.assert_allclose(fn.predictive_moments(fn.gaussian_nll, loc).epistemic, 1.25, rtol=1e-6)


def test_the_circular_split():
    loc, kappa = RNG.normal(size=(5, 3)) + np.array([0.0, 3.0, 9.0]), RNG.uniform(0.5, 9.0, size=(5, 3))
    rho = np.log(np.expm1(kappa))
    y = np.linspace(-np.pi, np.pi, 2001)[:-1]
    density = stats.vonmises.pdf(y[:, None, None], kappa, loc).mean(axis=1) * (y[1] - y[0])
    resultant = (density * np.exp(1j * y)[:, None]).sum(axis=0)
    moments = fn.predictive_moments(fn.von_mises_nll, (jnp.asarray(loc, jnp.float32), jnp.asarray(rho, jnp.float32)))
    np.testing.assert_allclose(moments.mean, np.angle(resultant), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, 1 - np.abs(resultant), rtol=1e-4)
    exact = 1 - special.ive(1, kappa) / special.ive(0, kappa)
    np.testing.assert_allclose(moments.aleatoric, exact.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, moments.aleatoric + moments.epistemic, rtol=1e-6)
    near = jnp.array([[1.0], [1.0 + 1e-3]])
    tight = fn.predictive_moments(partial(fn.von_mises_nll, concentration=1e6), near)
    np.testing.assert_allclose(tight.aleatoric, 0.5e-6, rtol=1e-5)
    half_step = np.diff(np.asarray(near, float), axis=0)[0] / 2
    np.testing.assert_allclose(tight.epistemic, half_step**2 / 2, rtol=1e-3)


def test_draws_of_one_network_lie_together_and_are_independent():
    loc = jnp.array([[0.0, 0.0], [100.0, 100.0]])
    draws = fn.predictive_draws(fn.gaussian_nll, loc, jax.random.key(0), 500)
    assert draws.shape == (1000, 2)
    np.testing.assert_array_equal(np.asarray(draws) > 50, np.arange(1000)[:, None] >= [[500, 500]])
    noise = np.asarray(draws) - np.repeat(np.asarray(loc), 500, axis=0)
    columns = np.concatenate([noise[:500], noise[500:]], axis=1)
    correlation = np.corrcoef(columns.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(500)
    one = fn.predictive_draws(fn.gaussian_nll, loc, jax.random.key(0))
    assert one.shape == (2, 2)
    legacy = fn.predictive_draws(fn.gaussian_nll, loc, jax.random.PRNGKey(0))
    np.testing.assert_array_equal(legacy, one)


def test_moments_and_draws_under_vmap_and_in_float64(x64):
    stacked = jnp.stack([jnp.asarray(LOC, float), jnp.asarray(LOC, float) + 1.0])
    moments = jax.jit(jax.vmap(partial(fn.predictive_moments, fn.laplace_nll)))(stacked)
    np.testing.assert_allclose(moments.mean[1], LOC.astype(float).mean(axis=0) + 1.0, rtol=1e-12)
    keys = jax.random.split(jax.random.key(0), 2)
    draws = jax.eval_shape(jax.vmap(partial(fn.predictive_draws, fn.poisson_nll)), stacked, keys)
    assert draws.shape == (2, 4, 3)
    assert draws.dtype == jnp.float64


def test_errors():
    loc, key = jnp.zeros((2, 3)), jax.random.key(0)
    for num_draws in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="predictive_draws: num_draws must be an int of at least 1"):
            fn.predictive_draws(fn.gaussian_nll, loc, key, num_draws)
    with pytest.raises(TypeError, match="predictive_draws: key must be a single PRNG key"):
        fn.predictive_draws(fn.gaussian_nll, loc, 0)
    for outputs in (jnp.zeros(3), (loc, jnp.zeros((2, 4))), (loc, jnp.zeros(())), (), jnp.zeros((2, 0))):
        with pytest.raises(ValueError, match="predictive_moments: outputs must be those of S networks"):
            fn.predictive_moments(fn.gaussian_nll, outputs)
        with pytest.raises(ValueError, match="predictive_draws: outputs must be those of S networks"):
            fn.predictive_draws(fn.gaussian_nll, outputs, key)


@pytest.mark.parametrize("f", [fn.predictive_moments, fn.class_probs, lambda *args: fn.predictive_log_prob(*args, 0.0)])
def test_a_law_is_no_outputs_of_networks(f):
    law = fn.predictions.OutputLaw(jnp.zeros((4, 3)), jnp.zeros((4, 3, 3)))
    with pytest.raises(ValueError, match="outputs must be those of S networks, got an OutputLaw"):
        f(fn.categorical_nll, law)


DRAWS = RNG.gamma(1.5, size=(37, 3)).astype(np.float32)


def shortest(draws, level):
    """Over all pairs of draws."""
    draws = np.sort(draws)
    few = level * len(draws)
    pairs = [(b - a, a, b) for i, a in enumerate(draws) for j, b in enumerate(draws[i:]) if j + 1 >= few]
    return min(pairs)[1:]


@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.999])
def test_intervals(level):
    low, high = jax.jit(partial(fn.central_interval, level=level))(DRAWS)
    np.testing.assert_allclose(
        [low, high], np.quantile(DRAWS.astype(float), [(1 - level) / 2, (1 + level) / 2], axis=0), rtol=1e-5
    )
    interval = jax.jit(partial(fn.highest_density_interval, level=level))(DRAWS)
    np.testing.assert_array_equal(np.transpose(interval), [shortest(column, level) for column in DRAWS.T])


def test_quantiles():
    levels = np.array([0.0, 0.3, 1.0])
    np.testing.assert_allclose(fn.quantiles(DRAWS, levels), np.quantile(DRAWS.astype(float), levels, axis=0), rtol=1e-6)
    for wrong in (np.array([1.5]), np.array([-0.1, 0.5]), 0.5):
        with pytest.raises(ValueError, match=r"quantiles: levels must be numbers in \[0, 1\]"):
            fn.quantiles(DRAWS, wrong)


def test_the_exact_interval_of_a_skewed_distribution():
    """Of exp(-y) the shortest begins at 0."""
    y = -np.log1p(-(np.arange(4000) + 0.5) / 4000)[:, None].astype(np.float32)
    low, high = fn.highest_density_interval(y, 0.9)
    np.testing.assert_allclose([low[0], high[0]], [0.0, np.log(10)], atol=2e-3)
    low, high = fn.central_interval(y, 0.9)
    np.testing.assert_allclose([low[0], high[0]], [-np.log(0.95), -np.log(0.05)], rtol=1e-2)


def test_one_draw_ties_counts_and_what_is_not_finite():
    missing = np.where(np.arange(37)[:, None] == [[3, -1, -1]], np.nan, DRAWS)
    draws = [DRAWS[:1], np.full((9, 2), 7), missing, DRAWS.reshape(37, 3, 1).astype(jnp.bfloat16)]
    for interval in (fn.central_interval, fn.highest_density_interval):
        at = [partial(interval, level=level) for level in (0.5, 0.9, 0.5, 0.5)]
        one, same, gap, deep = jax.jit(lambda draws, at=at: [f(x) for f, x in zip(at, draws, strict=True)])(draws)
        np.testing.assert_array_equal(one, [DRAWS[0], DRAWS[0]])
        np.testing.assert_array_equal(same, np.full((2, 2), 7.0))
        np.testing.assert_array_equal(np.isnan(gap), [[True, False, False]] * 2)
        assert deep.low.shape == (3, 1)
    ties, hundred = np.arange(6), np.arange(100.0)  # 0.55 * 100 rounds to more than 55
    ends = np.array([-np.inf, 0.0, 1.0, np.inf, np.inf])
    levels = 0.5, 0.55, 0.4, 0.4

    @jax.jit
    def densest(*columns):
        return [fn.highest_density_interval(x[:, None], level) for x, level in zip(columns, levels, strict=True)]

    expected = [0.0, 2.0], [0.0, 54.0], [np.inf, np.inf], [0.0, 1.0]
    np.testing.assert_array_equal(np.squeeze(densest(ties, hundred, ends, ends[:4])), expected)


@pytest.mark.parametrize("interval", [fn.central_interval, fn.highest_density_interval])
def test_interval_errors(interval):
    for level in (0.0, 1.0, 90, "0.9", jnp.float32(0.5)):
        with pytest.raises(ValueError, match=rf"{interval.__name__}: level must be a number in \(0, 1\)"):
            interval(DRAWS, level)
    for draws in (DRAWS[:, 0], DRAWS[:0]):
        with pytest.raises(ValueError, match=rf"{interval.__name__}: draws must have shape \(N, B, ...\)"):
            interval(draws, 0.5)
