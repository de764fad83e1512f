"""Local reparameterisation squares scales and inputs: it is right wherever its result has a place in the dtype."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coupling_cases import KEY, array, conv

from illia_fn import Gaussian
from illia_fn._base.numerics import softplus_inverse
from illia_fn.coupling._moments import root
from illia_fn.coupling._transform import Coupled
from illia_fn.engine._latin_hypercube import Strata

pytestmark = pytest.mark.promotes

# Linear in the weights, and in the inputs: with squares for both they give the variance.
LINEAR = {
    "dense": (lambda w, x: x @ w["a"], {"a": (4, 5)}, (3, 4)),
    "dense with a bias": (lambda w, x: x @ w["a"] + w["b"], {"a": (4, 5), "b": (5,)}, (3, 4)),
    "two sources": (lambda w, x: x @ w["a"] + x[:, ::-1] @ w["b"], {"a": (4, 5), "b": (4, 5)}, (3, 4)),
    "laid out": (lambda w, x: (x @ w["a"]).reshape(-1, 2, 3).swapaxes(1, 2), {"a": (4, 6)}, (3, 4)),
    "weights on the left": (lambda w, x: jax.vmap(lambda x: w["a"].T @ x)(x), {"a": (4, 5)}, (3, 4)),
    "heads": (lambda w, x: jnp.einsum("bhf,hfg->bhg", x, w["a"]), {"a": (2, 4, 5)}, (3, 2, 4)),
    "heads on the left": (lambda w, x: jnp.einsum("hfg,bhf->bhg", w["a"], x), {"a": (2, 4, 5)}, (3, 2, 4)),
    "conv": (lambda w, x: conv(x, w["a"], padding="VALID"), {"a": (3, 3, 4, 5)}, (3, 3, 3, 4)),
    "grouped conv": (
        lambda w, x: conv(x, w["a"], padding="VALID", feature_group_count=2),
        {"a": (3, 3, 2, 6)},
        (3, 3, 3, 4),
    ),
}


def cotangent_of(value):
    return jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)


@cache
def linear(name):
    """Outputs with their gradients to means, scales and inputs, and noise; and the first two in float64, from squares.

    Compiled once for all scales and inputs.
    """
    apply_fn, _, _ = LINEAR[name]

    def outputs(loc, rho, x):
        q = {name: Gaussian(loc[name], rho[name]) for name in loc}
        it = Coupled.of("test", apply_fn, q, x, None, "decorrelated")
        assert {leaf.strategy for leaf in it.plan.leaves} == {"local_reparam"}
        noise = it.noise(KEY, Strata(jnp.arange(1), count=1))
        (site,) = noise.sites.values()
        return it.outputs(noise, 1, x)[0], site[0]

    def reference(loc, rho, x, noise):
        variance = apply_fn(jax.tree.map(lambda rho: jnp.square(jax.nn.softplus(rho)), rho), jnp.square(x))
        stddev = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
        return apply_fn(loc, x) + stddev * noise.reshape(stddev.shape)

    @jax.jit
    def with_gradients(loc, rho, x):
        value, pullback, noise = jax.vjp(outputs, loc, rho, x, has_aux=True)
        return (value, pullback(cotangent_of(value))), noise

    @jax.jit
    def expected(loc, rho, x, noise, cotangent):
        value, pullback = jax.vjp(lambda *args: reference(*args, noise), loc, rho, x)
        return value, pullback(cotangent)

    return with_gradients, expected


def check(name, scale, x):
    with_gradients, reference = linear(name)
    rho = jax.tree.map(softplus_inverse, scale)
    loc = {leaf: scale[leaf] * array(*scale[leaf].shape, seed=3) for leaf in scale}
    found, noise = with_gradients(loc, rho, x)
    with jax.enable_x64(True):
        arguments = loc, rho, x, noise, cotangent_of(found[0])
        expected = reference(*jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), arguments))
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-36)
        assert np.any(leaf != 0)


def of_scale(name, scale):
    return {leaf: scale * jnp.exp(array(*shape, seed=1)) for leaf, shape in LINEAR[name][1].items()}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_any_scale(name, scale):
    check(name, of_scale(name, scale), array(*LINEAR[name][2]))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(("scale", "size"), [(1e-20, 1e20), (1e-30, 1e30), (1.0, 1e20), (1e10, 1e-20), (1e30, 1e-30)])
def test_any_input(name, scale, size):
    scales = of_scale(name, scale)
    if name == "dense with a bias":  # of the size of what it is added to
        scales["b"] *= size
    check(name, scales, size * array(*LINEAR[name][2]))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("padding", [0.0, 1e-30, 1e30])
def test_rows_of_padding(name, padding):
    check(name, of_scale(name, 1.0), array(*LINEAR[name][2]).at[1].set(padding))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_look_ups(scale):
    q = Gaussian(jnp.zeros((9, 4)), softplus_inverse(scale * jnp.exp(array(9, 4))))
    it = Coupled.of("test", lambda w, tokens: w[tokens], q, jnp.array([3, 0, 3]), None, "decorrelated")
    assert it.plan.leaves[0].strategy == "local_reparam"
    noise = it.noise(KEY, Strata(jnp.arange(1), count=1))
    (site,) = noise.sites.values()

    def outputs(q, x):
        return it._replace(model=it.model._replace(nodes=[q])).outputs(noise, 1, x)[0]

    value, pullback = jax.vjp(lambda q: outputs(q, jnp.array([3, 0, 3])), q)
    expected, pullback_expected = jax.vjp(lambda q: q.scale[jnp.array([3, 0, 3])] * site[0].reshape(3, 4), q)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    grads, expected_grads = pullback(jnp.ones_like(value))[0], pullback_expected(jnp.ones_like(value))[0]
    np.testing.assert_allclose(grads.rho, expected_grads.rho, rtol=1e-5)
    assert np.all(np.isfinite(grads.loc))


def test_positions_beside_padding():
    """Local reparameterisation that is forced on a sequence: each position has a unit of its own."""
    q = Gaussian(jnp.zeros((4, 2)), softplus_inverse(jnp.ones((4, 2))))
    x = jnp.ones((512, 3, 4)).at[:, 1].set(1e30)
    it = Coupled.of("test", lambda w, x: x @ w, q, x, None, "local_reparam")
    outputs = it.outputs(it.noise(KEY, Strata(jnp.arange(1), count=1)), 1, x)[0]
    outputs = outputs / jnp.array([1.0, 1e30, 1.0])[:, None]
    np.testing.assert_allclose(outputs.std(axis=(0, 2)), 2.0, rtol=0.1)


def test_what_is_too_small_is_zero_not_nan():
    """Units whose product has no place in the dtype are not divided by."""
    with_gradients, _ = linear("two sources")
    rho = jax.tree.map(softplus_inverse, of_scale("two sources", 1e-30))
    x = 1e-30 * array(*LINEAR["two sources"][2])
    (value, (_, *grads)), _ = with_gradients(jax.tree.map(jnp.zeros_like, rho), rho, x)
    for leaf in jax.tree.leaves((value, grads)):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-30)


def test_the_root_at_zero_has_derivatives():
    for order, derivative in enumerate([root, jax.grad(root), jax.grad(jax.grad(root))]):
        assert derivative(0.0) == 0.0
        np.testing.assert_allclose(derivative(4.0), [2.0, 0.25, -1.0 / 32.0][order], rtol=1e-6)
