"""Large draws on a CPU take one pass, and are those of jax.random."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import illia_fn
from illia_fn._base import noise

SHAPE = (130, 127)


def ours(key):
    data = jax.random.key_data(key)
    return noise.normal(key, SHAPE, jnp.float32), noise.once(lambda first: noise.uniform(data, SHAPE, first), data)


def of_jax(key):
    return jax.random.normal(key, SHAPE, jnp.float32), jax.random.uniform(key, SHAPE, jnp.float32, -1.0)


KEYS = {"a key": lambda: jax.random.key(3), "its data": lambda: jax.random.PRNGKey(2**31 + 5)}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_they_are_the_same_numbers(key):
    assert noise.takes_one_pass(key(), SHAPE, jnp.float32)
    for found, expected in zip(jax.jit(ours)(key()), jax.jit(of_jax)(key()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours(key())[0], jax.jit(ours)(key())[0], rtol=1e-6, atol=1e-7)


def test_of_float32_where_floats_are_float64(x64):
    found, expected = jax.jit(ours)(jax.random.key(3)), jax.jit(of_jax)(jax.random.key(3))
    for ours_of_it, of_it in zip(found, expected, strict=True):
        assert ours_of_it.dtype == jnp.float32
        np.testing.assert_allclose(ours_of_it, of_it, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("is_traced", [False, True])
def test_a_key_that_is_used_again_is_reported(is_traced):
    q = illia_fn.mean_field(jnp.ones(SHAPE))

    def twice(key):
        return q.sample(key) + q.sample(key)

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        (jax.jit(twice) if is_traced else twice)(jax.random.key(0))


@pytest.mark.parametrize("coupling", ["shared", "decorrelated", "flipout"])
def test_losses_in_a_shard_map(coupling):
    """With keys of each device's own, of which all draws are large."""
    q, x, y = illia_fn.mean_field(jnp.ones((200, 200))), jnp.ones((200, 200)), jnp.ones(200)

    def loss(q, x, y, keys):
        nll = illia_fn.elbo_loss(lambda w, x: (x @ w)[:, 0], q, x, y, keys[0], 2, num_data=200, coupling=coupling)
        return jax.lax.pmean(nll, "data")

    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    specs = P(), P("data"), P("data"), P("data")
    f = jax.value_and_grad(loss) if coupling == "shared" else lambda *args: (loss(*args), None)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P())
    keys = jax.random.split(jax.random.key(0), 1)
    value, grads = jax.jit(mapped)(q, x, y, keys)
    alone = jax.jit(
        lambda q: illia_fn.elbo_loss(lambda w, x: (x @ w)[:, 0], q, x, y, keys[0], 2, num_data=200, coupling=coupling)
    )
    np.testing.assert_allclose(value, alone(q), rtol=1e-5)
    assert grads is None or jnp.all(jnp.isfinite(grads.rho))


def test_of_several_keys_and_in_a_shard_map():
    keys = jax.random.split(jax.random.key(0), 2)
    expected = jax.jit(jax.vmap(of_jax))(keys)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(jax.vmap(ours), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    for draw in (jax.jit(jax.vmap(ours)), jax.jit(mapped)):
        for found, of in zip(draw(keys), expected, strict=True):
            np.testing.assert_allclose(found, of, rtol=1e-6, atol=1e-7)


OTHERS = {
    "another generator": (lambda: jax.random.key(0, impl="rbg"), SHAPE, jnp.float32),
    "another dtype": (lambda: jax.random.key(0), SHAPE, jnp.bfloat16),
    "few": (lambda: jax.random.key(0), (130,), jnp.float32),
}


@pytest.mark.parametrize(("key", "shape", "dtype"), OTHERS.values(), ids=OTHERS)
def test_all_others_are_left_to_jax(key, shape, dtype):
    np.testing.assert_array_equal(noise.normal(key(), shape, dtype), jax.random.normal(key(), shape, dtype))
    assert not noise.takes_one_pass(key(), shape, dtype)


@pytest.mark.optimised
@pytest.mark.parametrize("coupling", ["shared", "decorrelated"])
def test_a_step_computes_them_once(coupling):
    """And not for each of those who read them: the draw, and the gradient by the scale."""
    q = illia_fn.mean_field(jnp.ones((200, 200)), scale=0.1)

    def loss(q, x, y, key):
        return illia_fn.elbo_loss(lambda w, x: (x @ w)[:, 0], q, x, y, key, num_data=200, coupling=coupling)

    args = q, jnp.ones((200, 200)), jnp.ones(200), jax.random.key(0)
    program = jax.jit(jax.value_and_grad(loss)).lower(*args).compile().as_text()
    bodies = re.findall(r"^%?[\w.\-]+ \(.*?^}", program, re.M | re.S)
    assert sum(body.count(" xor(") > 20 for body in bodies) == 1


@pytest.mark.parametrize("count", [3, 9])
def test_pieces_are_cut_and_equal_ones_by_one_kernel(count):
    """Of a place that XLA knows it would compile a kernel of its own."""
    shapes = [(2, 3), (4,)] * count
    flat = np.arange(5 * 10 * count, dtype=np.float32).reshape(5, -1)
    sines = lambda flat: [jnp.sin(piece) for piece in noise.cut(flat, shapes)]  # noqa: E731
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    run = jax.jit(jax.shard_map(sines, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    pieces = np.split(np.sin(flat), np.cumsum([6, 4] * count)[:-1], axis=1)
    for found, piece, shape in zip(run(flat), pieces, shapes, strict=True):
        np.testing.assert_allclose(found, piece.reshape(5, *shape), atol=1e-6)
    assert ("dynamic-slice(" in run.lower(flat).compile().as_text()) == (count == 9)
