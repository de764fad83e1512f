"""Scalar functions against long double, from one end of the range to the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from illia_fn._base.numerics import at_least_float32, log_softplus, normal_log_prob, softplus_inverse, spread, total

RHO = np.array([-1e4, -1000.0, -90.0, -41.0, -40.0, -39.0, -17.0, -1.0, 0.0, 1.0, 17.0, 89.0, 1e4])


def exact_log_softplus(rho):
    rho = rho.astype(np.longdouble)
    return np.where(rho < -100, rho, np.log(np.logaddexp(np.maximum(rho, -100), 0)))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap])
def test_log_softplus_value_and_gradient_at_both_ends(transform):
    rho = jnp.asarray(RHO, jnp.float32)
    np.testing.assert_allclose(transform(log_softplus)(rho), exact_log_softplus(RHO).astype(float), rtol=3e-7)
    exact_gradient = np.where(
        RHO < -100, 1.0, 1 / (1 + np.exp(np.clip(-RHO, -700, 700))) / np.exp(exact_log_softplus(RHO))
    )
    np.testing.assert_allclose(jax.vmap(jax.grad(log_softplus))(rho), exact_gradient.astype(float), rtol=1e-6)


def test_log_softplus_does_not_amplify_a_large_cotangent():
    np.testing.assert_allclose(jax.grad(lambda rho: 1e30 * log_softplus(rho))(-20.0), 1e30, rtol=1e-6)


def test_log_softplus_in_float64(x64):
    np.testing.assert_allclose(log_softplus(jnp.asarray(RHO)), exact_log_softplus(RHO).astype(float), rtol=1e-15)


@pytest.mark.parametrize("scale", [1e-30, 1e-7, 0.05, 1.0, 30.0, 1e30])
def test_softplus_inverse(scale):
    # rho is rounded to float32, which moves a small scale by |rho| half-ulps
    np.testing.assert_allclose(jax.nn.softplus(softplus_inverse(jnp.float32(scale))), scale, rtol=5e-6)


def test_normal_log_prob_is_finite_where_the_scale_underflows():
    value, grads = jax.value_and_grad(normal_log_prob, (0, 1, 2))(jnp.float32(1.0), jnp.float32(1.0), jnp.float32(-1e4))
    np.testing.assert_allclose(value, 1e4 - 0.5 * np.log(2 * np.pi), rtol=1e-6)
    np.testing.assert_array_equal(grads, (0.0, 0.0, -1.0))


def test_normal_log_prob():
    args = np.float32([3.0, -1.0, 0.5]), np.float32([0.5, 2.0, 0.5]), np.float32([-2.0, 0.0, 3.0])
    exact = stats.norm.logpdf(*args[:2], np.exp(args[2]))
    np.testing.assert_allclose(normal_log_prob(*map(jnp.asarray, args)), exact, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_copies_and_their_derivatives(count):
    x, factors = np.arange(3, dtype=np.float32), np.arange(1, count + 1, dtype=np.float32)[:, None]

    @jax.jit
    def both(x):
        gradient = jax.grad(lambda x: jnp.sum(spread(x, count) * factors))(x)
        return jax.jvp(lambda x: spread(x, count), (x,), (-x,)), gradient

    (copies, tangents), gradient = both(x)
    np.testing.assert_array_equal(copies, np.tile(x, (count, 1)))
    np.testing.assert_array_equal(tangents, -copies)
    np.testing.assert_array_equal(gradient, factors.sum())


def test_total_sums_in_float32_or_wider():
    halves = jnp.full(70_000, 0.1, jnp.bfloat16)  # a bfloat16 sum would stop at 32
    np.testing.assert_allclose(total([halves, halves]), 140_000 * float(halves[0]), rtol=1e-6)
    assert total([]) == 0.0
    assert total([halves]).dtype == jnp.float32


def test_total_takes_the_widest_dtype(x64):
    assert total([jnp.ones(2, jnp.float32), jnp.ones(2, jnp.float64), jnp.ones(2, jnp.bfloat16)]).dtype == jnp.float64


def test_integers_do_not_promote():
    assert at_least_float32(1).weak_type
    assert at_least_float32(jnp.float16(1)).dtype == jnp.float32
