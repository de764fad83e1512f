"""Nodes: static fields, and what `jax.export` serialises."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn


@illia_fn.frozen_pytree
class Block:
    """A node with one child, and two fields that are part of its structure."""

    name: str = dataclasses.field(metadata={"static": True})
    factor: jax.Array
    power: object = dataclasses.field(default=2, metadata={"static": True})

    def __call__(self, x):
        return self.factor * x**self.power


def test_static_fields_are_part_of_the_structure():
    block = Block("a", jnp.array(3.0))
    assert jax.tree.leaves(block) == [3.0]
    assert [path[0].name for path, _ in jax.tree_util.tree_leaves_with_path(block)] == ["factor"]
    traces = []

    @jax.jit
    def call(block, x):
        traces.append(block.power)
        return block(x)

    values = [call(Block("a", jnp.array(3.0), power), 2.0) for power in (2, 2, 3)]
    np.testing.assert_allclose(values, [12.0, 12.0, 24.0])
    assert traces == [2, 3]
    grads = jax.grad(lambda block: block(2.0))(block)
    assert (grads.name, grads.power, grads.factor) == ("a", 2, 4.0)


def exported(f, *args):
    return jax.export.deserialize(jax.export.export(jax.jit(f))(*args).serialize())


def test_a_posterior_tree_is_an_argument_of_what_is_exported():
    q = {"w": illia_fn.mean_field(jnp.ones((3, 2)), scale=0.1), "b": jnp.ones(2)}
    args = q, jnp.ones((4, 3)), jnp.array([0, 1, 1, 0]), jax.random.PRNGKey(0)

    def step(q, x, y, key):
        def loss(q):
            return illia_fn.elbo_loss(lambda w, x: x @ w["w"] + w["b"][None], q, x, y, key, 2, num_data=9)

        return jax.value_and_grad(loss)(q)

    value, grads = exported(step, *args).call(*args)
    expected = jax.jit(step)(*args)
    assert jax.tree.structure(grads) == jax.tree.structure(q)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (value, grads), expected)
    prior = illia_fn.Normal(0.0, jnp.ones(()))
    assert exported(lambda prior: prior.log_prob(1.0), prior).call(prior) == prior.log_prob(1.0)


def test_static_fields_are_exported_with_the_structure():
    block = Block("a", jnp.array(3.0), (1.5, None)[0])
    assert exported(lambda block, x: block(x), block, 4.0).call(block, 4.0) == 24.0
    with pytest.raises(ValueError, match="Block: to export it, its static fields must be numbers"):
        exported(lambda block: block.factor, Block("a", jnp.array(3.0), object()))


def test_a_class_may_be_defined_again():
    def define():
        @illia_fn.frozen_pytree
        class Again:
            x: jax.Array

        return Again(jnp.ones(()))

    first, second = define(), define()
    for node in (first, second):
        assert exported(lambda node: node.x, node).call(node) == 1.0


def test_a_symbolic_batch_size():
    q = illia_fn.mean_field({"w": jnp.ones((3, 2))}, scale=0.1)
    (size,) = jax.export.symbolic_shape("batch")
    x, y = jax.ShapeDtypeStruct((size, 3), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.int32)

    def loss(q, x, y, key):
        return illia_fn.elbo_loss(lambda w, x: x @ w["w"], q, x, y, key, 2, num_data=9)

    key, xs = jax.random.PRNGKey(0), np.arange(15, dtype=np.float32).reshape(5, 3) / 15
    call = exported(loss, q, x, y, key).call

    @jax.jit
    def expected(q):
        return [loss(q, xs[:batch], np.zeros(batch, np.int32), key) for batch in (1, 5)]

    found = [call(q, xs[:batch], np.zeros(batch, np.int32), key) for batch in (1, 5)]
    np.testing.assert_allclose(found, expected(q), rtol=1e-6)
