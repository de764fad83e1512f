"""With `jax_debug_key_reuse`, nothing is reported that plain code would not do."""

import jax
import jax.numpy as jnp
import pytest

import illia_fn

Q = illia_fn.mean_field({"w": jnp.ones((3, 2))}, scale=0.1)
X, Y = jnp.ones((4, 3)), jnp.array([0, 1, 1, 0])


class Laplace:
    def log_prob(self, w):
        return -jnp.abs(w)


def apply_fn(w, x, key):
    return x @ w["w"] + jax.random.normal(key, (len(x), 2))


def loss(f, **options):
    options |= {"loss_fn": lambda outputs, _: jnp.sum(jnp.square(outputs), axis=1)}
    return lambda q, key: f(apply_fn, q, X, Y, key, 4, num_data=4, needs_key=True, **options)


def loss_with_statistics(q, key):
    def with_aux(w, x, key):
        return apply_fn(w, x, key), jnp.mean(w["w"])

    args = with_aux, q, X, Y, key, 2
    value, aux = illia_fn.elbo_loss(*args, num_data=4, needs_key=True, has_aux=True)
    return value + jnp.sum(aux)


CALLS = {
    "predict": lambda q, key: illia_fn.predict(apply_fn, q, X, key, 3, needs_key=True, chunk_size=2).sum(),
    "latin hypercube": lambda q, key: illia_fn.predict(
        apply_fn, q, X, key, 3, needs_key=True, sampling="latin_hypercube"
    ).sum(),
    "expectation": lambda q, key: illia_fn.expectation(lambda w: w["w"].sum(), q, key, 2),
    "kl_loss": lambda q, key: illia_fn.kl_loss(q, Laplace(), key=key, num_samples=2),
    "elbo_loss": loss(illia_fn.elbo_loss),
    "antithetic": loss(illia_fn.elbo_loss, antithetic=True),
    "a sampled KL": loss(illia_fn.elbo_loss, prior=Laplace()),
    "statistics": loss_with_statistics,
    "doubly_reparameterised": loss(illia_fn.elbo_loss, estimator="doubly_reparameterised"),
    "score_function": loss(illia_fn.elbo_loss, estimator="score_function"),
    "decorrelated": loss(illia_fn.elbo_loss, coupling="decorrelated"),
    "predictive_loss": loss(illia_fn.predictive_loss),
    "iwae_loss": loss(illia_fn.iwae_loss),
}


# Outside of a jit, where keys are used up one call after another: each way to use them again.
EAGER = ("predict", "latin hypercube", "statistics", "a sampled KL", "decorrelated", "predictive_loss", "iwae_loss")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_key_is_reused(call):
    with jax.debug_key_reuse(True):
        jax.jit(jax.value_and_grad(call)).lower(Q, jax.random.key(0))


@pytest.mark.parametrize("name", EAGER)
def test_no_key_is_reused_outside_of_a_jit(name):
    with jax.debug_key_reuse(True):
        CALLS[name](Q, jax.random.key(0))


def test_batches_share_a_key():
    with jax.debug_key_reuse(True):
        illia_fn.predict(apply_fn, Q, X, jax.random.key(0), 2, needs_key=True, batch_size=3)


def test_but_one_of_the_user_is_reported():
    key = jax.random.key(0)
    with jax.debug_key_reuse(True):
        CALLS["predict"](Q, key)
        with pytest.raises(jax.errors.KeyReuseError):
            CALLS["elbo_loss"](Q, key)


def test_and_so_it_is_without_running_it():
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda q, key: CALLS["predict"](q, key) + CALLS["elbo_loss"](q, key)).lower(Q, jax.random.key(0))
