"""Powers of posteriors: T times the covariance, to the last digits of the fields."""

from functools import partial

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import array, flat, nodes, wide

from illia_fn import Gaussian, KTied, full_covariance, mean_field, tempered

FAMILIES = sorted(nodes())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_covariance_is_multiplied(x64, name):
    q = wide(nodes()[name])

    @jax.jit
    def told(q, temperature):
        made = tempered(q, temperature)
        return made, made.entropy() - q.entropy()

    for temperature in (0.01, 1.0, 3.7):
        made, gained = told(q, temperature)
        assert jax.tree.structure(made) == jax.tree.structure(q)
        np.testing.assert_array_equal(made.mean, q.mean)
        expected = temperature * families.covariance(q)
        np.testing.assert_allclose(families.covariance(made), expected, rtol=1e-12, atol=1e-13 * np.max(expected))
        np.testing.assert_allclose(gained, 6.0 * np.log(temperature), atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-12, 0.5, 1.0, 2.0, 1e12])
def test_both_ends_of_softplus(x64, dtype, temperature):
    """Where rho is the logarithm of a scale that underflows, where it is the scale, and in between."""
    rho = np.concatenate([np.linspace(-200.0, 30.0, 400), np.geomspace(30.0, 1e20, 100)]).astype(dtype)
    q = Gaussian(np.zeros_like(rho), rho)
    made = np.asarray(jax.jit(tempered)(q, dtype(temperature)).rho, np.float64)
    before, shift = np.asarray(rho, np.float64), 0.5 * np.log(np.float64(dtype(temperature)))

    def log_scale(rho):
        return np.where(rho < -40, rho, np.log(np.logaddexp(0.0, np.maximum(rho, -40.0))))

    eps = np.finfo(dtype).eps
    expected = log_scale(before) + shift
    # rho resolves its logarithm below 0, and the scale above
    np.testing.assert_allclose(log_scale(made), expected, atol=4 * eps, rtol=4 * eps)


def test_dtypes_leaves_and_transformations():
    params = {"w": array(np.ones((4, 3)), jnp.bfloat16), "n": array(2, np.int32), "head": array(np.ones(3))}
    q = mean_field(params, mask={"w": True, "n": False, "head": False}) | {"head": full_covariance(params["head"])}
    made = jax.jit(partial(tempered, temperature=4.0))(q)
    assert [leaf.dtype for leaf in jax.tree.leaves(made)] == [leaf.dtype for leaf in jax.tree.leaves(q)]
    assert made["n"] == 2
    np.testing.assert_allclose(made["head"].stddev, 0.1, rtol=1e-6)
    np.testing.assert_allclose(flat(made["w"].stddev), 0.1, rtol=0.02)
    slope = jax.jit(jax.grad(lambda t: tempered(q, t)["head"].entropy()))(4.0)
    np.testing.assert_allclose(slope, 1.5 / 4.0, rtol=1e-5)


def test_an_untied_node_has_the_scales_of_the_tied_one(x64):
    """Down to where the scale underflows: rho is not its logarithm before that is all of it."""
    q = KTied(*(np.array(x) for x in ([[0.0], [0.0], [0.0]], [[-9.0], [-15.0], [-500.0]], [[-8.0]])))
    both = jax.jit(lambda q: (q.untied().log_scale, q.log_scale))(q)
    np.testing.assert_allclose(*both, rtol=1e-15)
