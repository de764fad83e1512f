"""Saving and resuming a training run: the next step is the same to the last bit; nodes come back without a target."""

import chex
import framework_scripts as scripts
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from framework_scripts import IMAGES, KEY, LABELS
from points import Point

import illia_fn
from illia_fn.frameworks import restore_nodes

pytestmark = pytest.mark.promotes


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def restore(path, *target):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, *target)


def raw(run):
    """Of keys their data, which orbax saves."""
    return run | {"key": jax.random.key_data(run["key"])}


def test_the_next_step_is_the_same(tmp_path):
    model, q, loss, _, _ = scripts.nnx_cnn()
    optimizer = optax.adam(0.01)

    @jax.jit
    def step(run):
        key, step_key = jax.random.split(run["key"])
        (_, state), grads = jax.value_and_grad(loss, has_aux=True)(run["q"], run["state"], IMAGES, LABELS, step_key)
        updates, opt_state = optimizer.update(grads, run["opt_state"], run["q"])
        q = optax.apply_updates(run["q"], updates)
        return {"q": q, "state": state, "opt_state": opt_state, "step": run["step"] + 1, "key": key}

    blank = {"q": q, "state": model.state, "opt_state": optimizer.init(q), "step": jnp.array(0), "key": KEY}
    blank = jax.device_put(blank, jax.devices()[0])  # as what is restored is
    run = step(blank)
    save(tmp_path / "run", run)
    restored = restore(tmp_path / "run", jax.eval_shape(lambda: blank))
    chex.assert_trees_all_equal(raw(step(restored)), raw(step(run)))
    assert restored["step"] == 1


def test_without_a_target(tmp_path):
    q = illia_fn.mean_field(scripts.haiku_mlp()[0].params, scale=0.1)
    save(tmp_path / "q", q)
    restored = restore_nodes(restore(tmp_path / "q"))
    chex.assert_trees_all_equal(restored, q)
    assert illia_fn.kl_loss(restored, q) == 0.0


def test_families_of_your_own():
    tree = {"a": {"loc": jnp.ones(2)}, "b": {"loc": jnp.ones(2), "rho": jnp.ones(2)}, "c": {"rho": jnp.ones(2)}}
    restored = restore_nodes(tree, (illia_fn.Gaussian, Point))
    assert [type(restored[name]).__name__ for name in "abc"] == ["Point", "Gaussian", "dict"]


def test_nodes_in_the_state_of_an_optimizer():
    """Where each group of parameters sees the others masked, a node has an empty field."""
    q = illia_fn.mean_field({"w": jnp.ones(3)})
    rates = {"loc": optax.adam(1e-2), "rho": optax.adam(2e-3), "deterministic": optax.set_to_zero()}
    state = optax.multi_transform(rates, illia_fn.labels).init(q).inner_states["loc"].inner_state[0].mu
    restored = restore_nodes({"q": {"w": {"loc": q["w"].loc, "rho": q["w"].rho}}, "mu": {"w": vars(state["w"])}})
    assert jax.tree.structure(restored["mu"]) == jax.tree.structure(state)
    assert jax.tree.structure(restored["q"]) == jax.tree.structure(q)
