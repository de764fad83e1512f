from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from illia_fn import gaussian_nll

RNG = np.random.default_rng(0)
LOC = RNG.normal(size=5).astype(np.float32)
Y = RNG.normal(size=5).astype(np.float32)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("scale", [None, 1e-3, 0.5, 20.0])
def test_fixed_scale(scale, wrap):
    expected = -stats.norm.logpdf(Y, LOC, 1.0 if scale is None else scale)
    np.testing.assert_allclose(wrap(partial(gaussian_nll, scale=scale))(LOC, Y), expected, rtol=1e-5)


def test_an_array_of_fixed_scales():
    scale = np.linspace(0.1, 2, 5).astype(np.float32)
    np.testing.assert_allclose(gaussian_nll(LOC, Y, scale=scale), -stats.norm.logpdf(Y, LOC, scale), rtol=1e-5)


def test_learned_scale():
    expected = -stats.norm.logpdf(Y, LOC, np.log1p(np.exp(0.3)))
    np.testing.assert_allclose(gaussian_nll((LOC, jnp.float32(0.3)), Y), expected, rtol=1e-5)


def test_predicted_scale():
    rho = np.linspace(-5, 5, 5).astype(np.float32)
    expected = -stats.norm.logpdf(Y, LOC, np.log1p(np.exp(rho.astype(float))))
    np.testing.assert_allclose(gaussian_nll((LOC, rho), Y), expected, rtol=1e-5)


def test_trailing_axes_are_summed_per_example():
    loc, y = RNG.normal(size=(2, 4, 3, 2)).astype(np.float32)
    expected = -stats.norm.logpdf(y, loc, 0.3).sum(axis=(1, 2))
    np.testing.assert_allclose(gaussian_nll(loc, y, scale=0.3), expected, rtol=1e-5)


def test_an_empty_batch_and_an_empty_axis():
    assert gaussian_nll(jnp.zeros((0, 3)), jnp.zeros((0, 3))).shape == (0,)
    np.testing.assert_array_equal(gaussian_nll(jnp.zeros((2, 0)), jnp.zeros((2, 0))), [0.0, 0.0])


def test_half_precision_is_computed_in_float32():
    value = gaussian_nll(jnp.zeros(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 0.5 + 0.5 * np.log(2 * np.pi), rtol=1e-6)
