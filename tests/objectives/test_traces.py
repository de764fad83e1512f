"""A step of every objective is traced once: its results have the types of its arguments, and no value is looked at."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import illia_fn
from illia_fn import divergences, mean_field

pytestmark = pytest.mark.promotes

COUPLED = ("shared", "decorrelated", "flipout", "local_reparam")
LOSSES = {
    **{f"elbo, {coupling}": partial(illia_fn.elbo_loss, coupling=coupling) for coupling in COUPLED},
    "pac_bayes": illia_fn.pac_bayes_loss,
    "pac_bayes, decorrelated": partial(illia_fn.pac_bayes_loss, coupling="decorrelated"),
    "predictive": illia_fn.predictive_loss,
    "iwae": illia_fn.iwae_loss,
    "f_divergence": partial(illia_fn.f_divergence_loss, generator=divergences.jensen_shannon),
}


Q = mean_field({"w": jnp.ones((4, 2)), "b": jnp.zeros((1, 2))}, scale=0.1, mask={"w": True, "b": False})
OPTIMIZER = optax.adam(0.1)
XS, KEYS = jax.random.normal(jax.random.key(0), (3, 6, 4)), jax.random.split(jax.random.key(1), 3)


def step_of(loss):
    """A step of Adam, from one q and state to the next."""

    def step(q, state, *batch):
        updates, state = OPTIMIZER.update(jax.grad(loss)(q, *batch), state, q)
        return optax.apply_updates(q, updates), state

    return step


def loss_of(name):
    return partial(LOSSES[name], lambda w, x: x @ w["w"] + w["b"], num_samples=4, num_data=30)


def types(tree):
    """All that tells one trace from another."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def assert_types_come_back(loss, *batch):
    state = OPTIMIZER.init(Q)
    assert types(jax.eval_shape(step_of(loss), Q, state, *batch)) == types((Q, state))


@pytest.mark.parametrize("name", LOSSES)
def test_the_next_step_has_the_types_of_the_first(name):
    assert_types_come_back(loss_of(name), XS[0], jnp.arange(6) % 2, KEYS[0])


def test_so_has_that_of_the_kl_alone():
    assert_types_come_back(partial(illia_fn.kl_loss, reduction="sum"))


def test_and_so_it_is_traced_once():
    step = jax.jit(chex.assert_max_traces(n=1)(step_of(loss_of("elbo, shared"))))
    chex.clear_trace_counter()
    q, state = Q, OPTIMIZER.init(Q)
    for x, key in zip(XS, KEYS, strict=True):
        q, state = step(q, state, x, jnp.arange(6) % 2, key)
    chex.assert_tree_all_finite(q)
