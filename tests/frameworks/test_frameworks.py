"""The same calls on flax linen, flax nnx, equinox and haiku models, and round trips through their checkpoints."""

import dataclasses
from functools import partial

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import illia_fn
from illia_fn import frameworks

pytestmark = pytest.mark.promotes

X, Y = jnp.ones((8, 4)), jnp.arange(8) % 3


def linen_model():
    model = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])
    return model.apply, jax.jit(model.init)(jax.random.key(0), X)


def nnx_model():
    model = nnx.Sequential(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(5, 3, rngs=nnx.Rngs(1)))
    graphdef, params = nnx.split(model)
    return lambda params, x: nnx.merge(graphdef, params)(x), params


def equinox_model():
    params, static = eqx.partition(eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    return lambda params, x: jax.vmap(eqx.combine(params, static))(x), params


def haiku_model():
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([5, 3])(x)))
    return model.apply, jax.jit(model.init)(jax.random.key(0), X)


MODELS = [linen_model, nnx_model, equinox_model, haiku_model]


@pytest.mark.parametrize("model", MODELS)
def test_training_steps(model):
    apply_fn, params = model()
    q = illia_fn.mean_field(params, scale=0.05)
    assert illia_fn.num_params(q) == 4 * 5 + 5 + 5 * 3 + 3
    optimizer = optax.sgd(0.05)
    loss = partial(illia_fn.elbo_loss, apply_fn, num_samples=2, num_data=8, chunk_size=None)

    @jax.jit
    def step(q, state, key):
        value, grads = jax.value_and_grad(loss)(q, X, Y, key)
        updates, state = optimizer.update(grads, state, q)
        return optax.apply_updates(q, updates), state, value

    state, key = optimizer.init(q), jax.random.key(0)
    q, state, first = step(q, state, key)
    for _ in range(10):
        q, state, last = step(q, state, key)
    assert last < first
    predict = jax.jit(partial(illia_fn.predict, apply_fn, num_samples=3, chunk_size=None))
    assert predict(q, X, key).shape == (3, 8, 3)


@pytest.mark.parametrize("model", MODELS)
def test_yesterdays_posterior_is_todays_prior(model):
    """The containers of a framework may look like what they hold: a flax.nnx.Param of a Gaussian has its log_prob."""
    q = illia_fn.mean_field(model()[1], scale=0.1)
    assert illia_fn.kl_loss(q, q) == 0.0
    assert illia_fn.kl_loss(q, illia_fn.mean_field(model()[1], scale=0.2)) > 0.0


@pytest.mark.parametrize("model", MODELS)
def test_kernels_only(model):
    _, params = model()
    mask = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    q = illia_fn.mean_field(params, scale=0.05, mask=mask)
    assert illia_fn.num_params(q) == 4 * 5 + 5 * 3
    assert len(illia_fn.kl_tree(q)) == 2


def test_the_whole_equinox_module_can_be_the_tree():
    model = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))  # holds functions as leaves
    q = illia_fn.mean_field(model, scale=0.05)
    loss = partial(illia_fn.elbo_loss, lambda model, x: jax.vmap(model)(x))
    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(loss))(q, X, Y, jax.random.key(0))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grads.layers[0].weight.rho))


@pytest.mark.parametrize("model", MODELS)
def test_orbax_round_trip(model, tmp_path):
    q = illia_fn.mean_field(model()[1], scale=0.05)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "q", q)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "q", q)
    chex.assert_trees_all_equal(restored, q)


@pytest.mark.parametrize("model", [linen_model, haiku_model])
def test_flax_serialization_round_trip(model):
    from flax import serialization

    frameworks.register_flax_serialization()
    frameworks.register_flax_serialization()  # a second call does no harm
    q = illia_fn.mean_field(model()[1], scale=0.05)
    blank = jax.tree.map(jnp.zeros_like, q)
    chex.assert_trees_all_equal(serialization.from_bytes(blank, serialization.to_bytes(q)), q)


def test_flax_serialization_of_a_family_of_your_own():
    from flax import serialization

    @illia_fn.frozen_pytree
    class Block:
        parts: dict
        rank: int = dataclasses.field(metadata={"static": True})

    frameworks.register_flax_serialization()
    q = {"a": Block({"u": jnp.arange(2.0), "inner": illia_fn.Normal(jnp.ones(2), 2.0)}, rank=3)}
    blank = jax.tree.map(jnp.zeros_like, q)
    chex.assert_trees_all_equal(serialization.from_bytes(blank, serialization.to_bytes(q)), q)
