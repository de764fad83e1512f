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
    **{f"pac_bayes, {coupling}": partial(illia_fn.pac_bayes_loss, coupling=coupling) for coupling in COUPLED},
    "predictive": illia_fn.predictive_loss,
    "iwae": illia_fn.iwae_loss,
    "renyi": partial(illia_fn.renyi_loss, alpha=0.5),
    "cubo": illia_fn.cubo_loss,
    "f_divergence": partial(illia_fn.f_divergence_loss, generator=divergences.jensen_shannon),
}


def train(loss, *batches):
    """Steps of Adam, from one q and state to the next."""
    optimizer = optax.adam(0.1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(q, state, *batch):
        updates, state = optimizer.update(jax.grad(loss)(q, *batch), state, q)
        return optax.apply_updates(q, updates), state

    chex.clear_trace_counter()
    q = mean_field({"w": jnp.ones((4, 2)), "b": jnp.zeros((1, 2))}, scale=0.1, mask={"w": True, "b": False})
    state = optimizer.init(q)
    for batch in batches:
        q, state = step(q, state, *batch)
    chex.assert_tree_all_finite(q)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_traced_once(name):
    def apply_fn(w, x):
        return x @ w["w"] + w["b"]

    loss = partial(LOSSES[name], apply_fn, num_samples=4, num_data=30)
    xs, keys = jax.random.normal(jax.random.key(0), (3, 6, 4)), jax.random.split(jax.random.key(1), 3)
    train(loss, *((x, jnp.arange(6) % 2, key) for x, key in zip(xs, keys, strict=True)))


def test_a_step_of_the_kl_alone_is_traced_once():
    train(partial(illia_fn.kl_loss, reduction="sum"), (), ())
