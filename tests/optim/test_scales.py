"""Means and scales have learning rates of their own."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from families import array

import illia_fn
from illia_fn import labels, mean_field, slow_scales

HEAD = {"w": array(np.ones((3, 2))), "b": array(np.zeros(2))}
Q = {"body": array(np.ones(3)), "head": mean_field(HEAD, scale=0.1)}
GRADS = jax.tree.map(np.ones_like, Q)


def test_labels_name_every_array():
    found = labels(Q)
    assert jax.tree.structure(found) == jax.tree.structure(Q)
    assert found["body"] == "deterministic"
    assert [(node.loc, node.rho) for node in found["head"].values()] == [("loc", "rho")] * 2


def test_labels_of_a_family_of_your_own():
    @illia_fn.frozen_pytree
    class LowRank(illia_fn.Posterior):
        loc: dict
        factor: jax.Array
        rank: int = dataclasses.field(metadata={"static": True})

        reparameterise = log_prob = entropy = mean = stddev = None

    found = labels(LowRank({"a": jnp.ones(2), "b": jnp.ones(3)}, jnp.ones((5, 1)), 1))
    assert (found.loc, found.factor, found.rank) == ({"a": "loc", "b": "loc"}, "factor", 1)


def test_bases_are_no_scales():
    """A factor on a turn of them would leave them no longer orthogonal."""
    found = labels(jax.eval_shape(illia_fn.eigenbasis, HEAD["w"]))
    assert vars(found) == {"loc": "loc", "rho": "rho", "row_basis": "deterministic", "column_basis": "deterministic"}


@pytest.mark.promotes
@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_the_rate_of_scales_under_adam(factor):
    """As Adam with a rate of its own for each."""
    slow = optax.chain(optax.adam(1e-2), slow_scales(factor))
    own = optax.multi_transform(
        {"loc": optax.adam(1e-2), "rho": optax.adam(factor * 1e-2), "deterministic": optax.adam(1e-2)}, labels
    )
    trees = [Q, Q]
    for index, optimizer in enumerate((slow, own)):
        state, update = jax.jit(optimizer.init)(Q), jax.jit(optimizer.update)
        for step in range(3):
            grads = jax.tree.map(lambda g, step=step: (step + 1) * g, GRADS)
            updates, state = update(grads, state, trees[index])
            trees[index] = jax.tree.map(lambda old, new: np.asarray(old) + np.asarray(new), trees[index], updates)
    chex.assert_trees_all_close(*trees, rtol=1e-6)
    moved = jax.tree.map(lambda new, old: np.max(np.abs(new - np.asarray(old))), trees[0], Q)
    np.testing.assert_allclose(moved["head"]["w"].rho / moved["head"]["w"].loc, factor, rtol=1e-4)
    np.testing.assert_allclose(moved["body"], moved["head"]["w"].loc, rtol=1e-4)


def test_what_is_frozen_stays():
    rates = {"loc": optax.sgd(0.1), "rho": optax.sgd(0.1), "deterministic": optax.set_to_zero()}
    optimizer = optax.multi_transform(rates, labels)
    updates, _ = jax.jit(lambda q: optimizer.update(GRADS, optimizer.init(q), q))(Q)
    assert not np.any(updates["body"])
    assert np.all(np.asarray(updates["head"]["w"].rho) != 0)


def test_half_precision_stays():
    q = mean_field(jnp.ones(2, jnp.bfloat16))
    updates, _ = slow_scales(0.5).update(q, optax.EmptyState())
    assert updates.rho.dtype == updates.loc.dtype == jnp.bfloat16


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), "slow"])
def test_bad_factors(factor):
    with pytest.raises((ValueError, TypeError), match="slow_scales: factor"):
        slow_scales(factor)


def test_nothing_to_slow_down():
    for optimizer, params in ((slow_scales(), {"w": jnp.ones(2)}), (optax.flatten(slow_scales()), Q)):
        with pytest.raises(ValueError, match="slow_scales: the parameters have no scale"):
            optimizer.init(params)


def test_all_scales_of_our_families_have_one_label_and_a_foreign_law_that_of_means():
    params = dict.fromkeys("ab", HEAD["w"]) | dict.fromkeys("cde", HEAD["b"])
    constructors = {
        "a": illia_fn.matrix_normal,
        "b": illia_fn.k_tied,
        "c": illia_fn.full_covariance,
        "d": partial(illia_fn.low_rank, rank=1, key=jax.random.key(0)),
        "e": lambda leaf: illia_fn.from_distribution(lambda u: dist.StudentT(3.0, *u), (leaf, leaf), leaf),
    }
    q = jax.eval_shape(lambda params: illia_fn.posterior_tree(params, constructors), params)
    found = illia_fn.labels(q)
    assert {name: set(jax.tree.leaves(of)) for name, of in found.items()} == {
        **{name: {"loc", "rho"} for name in "abcd"},
        "e": {"loc"},
    }
