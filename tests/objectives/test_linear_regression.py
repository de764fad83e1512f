"""elbo_loss on models whose evidence, optima and ELBO are known exactly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_regression import NOISE_VARIANCE, problem

import illia_fn
from illia_fn import Gaussian, Normal, elbo_loss, gaussian_nll

NLL = partial(gaussian_nll, scale=NOISE_VARIANCE**0.5)
PRIOR = Normal(0.0, 1.0)

# log evidence, ELBO and KL of the mean-field optimum
ORACLE = {"yacht": (-303.6921, -305.7293, 21.7469), "energy": (-331.5067, -338.9230, 32.2896)}


def linear(w, x):
    return x @ w


def gaussian(loc, scale):
    return Gaussian(jnp.asarray(loc, jnp.float32), jnp.asarray(np.log(np.expm1(scale)), jnp.float32))


def data(p):
    return jnp.asarray(p.x, jnp.float32), jnp.asarray(p.y, jnp.float32)


@pytest.mark.parametrize("name", ORACLE)
def test_the_oracle_agrees_with_itself(name):
    p = problem(name)
    log_evidence, elbo, kl = ORACLE[name]
    np.testing.assert_allclose(p.log_evidence, log_evidence, atol=1e-4)
    np.testing.assert_allclose(p.elbo(p.loc, p.scale), elbo, atol=1e-4)
    np.testing.assert_allclose(p.kl(p.loc, p.scale), kl, atol=1e-4)
    # the evidence again, as likelihood times prior over posterior, at the posterior mean
    n, d = p.x.shape
    log_joint = -0.5 * (np.sum((p.y - p.x @ p.loc) ** 2) / NOISE_VARIANCE + n * np.log(2 * np.pi * NOISE_VARIANCE))
    log_joint += -0.5 * (p.loc @ p.loc + d * np.log(2 * np.pi))
    log_posterior = 0.5 * (np.linalg.slogdet(p.precision)[1] - d * np.log(2 * np.pi))
    np.testing.assert_allclose(log_joint - log_posterior, p.log_evidence, atol=1e-9)


def losses(p, q, num_draws, indices, weights=None):
    """elbo_loss of many keys, one sample each, on rows `indices[i]` at the i-th key."""
    x, y = data(p)

    def one(key, rows):
        return elbo_loss(linear, q, x[rows], y[rows], key, loss_fn=NLL, prior=PRIOR, num_data=len(y), weights=weights)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_draws), indices), np.float64)


def assert_mean(values, expected):
    standard_error = values.std() / np.sqrt(len(values))
    assert standard_error < 0.01 * abs(expected)  # the test is sharp
    assert abs(values.mean() - expected) < 5 * standard_error, (values.mean(), expected, standard_error)


@pytest.mark.parametrize(("name", "batch_size", "padding"), [("yacht", 10, 3), ("energy", 77, 0)])
def test_the_elbo_of_the_optimum_for_any_batch_size_and_padding(name, batch_size, padding):
    p = problem(name)
    n = len(p.y)
    rng = np.random.default_rng(0)
    indices = np.stack([np.append(rng.choice(n, batch_size, replace=False), [0] * padding) for _ in range(4000)])
    weights = np.float32(np.arange(batch_size + padding) < batch_size) if padding else None
    values = losses(p, gaussian(p.loc, p.scale), 4000, indices.astype(int), weights)
    assert_mean(-n * values, ORACLE[name][1])


def test_more_samples_same_expectation_less_variance():
    p = problem("yacht")
    x, y = data(p)
    q = gaussian(p.loc, p.scale)
    loss = partial(elbo_loss, linear, q, x, y, loss_fn=NLL, prior=PRIOR, num_data=len(y))
    keys = jax.random.split(jax.random.key(3), 1000)
    both = jax.jit(jax.vmap(lambda key: [loss(key), loss(key, num_samples=16)]))
    one, sixteen = (np.asarray(values, np.float64) for values in both(keys))
    assert_mean(-len(y) * sixteen, ORACLE["yacht"][1])
    # a ratio of two variances of 1000 draws: relative standard error about sqrt(2 kurtosis / 1000) < 0.15
    assert 0.5 < 16 * sixteen.var() / one.var() < 2.0


def test_the_gradient_vanishes_at_the_optimum():
    p = problem("energy")
    x, y = data(p)
    grad = jax.grad(partial(elbo_loss, linear, loss_fn=NLL, prior=PRIOR, num_data=len(y)))
    keys = jax.random.split(jax.random.key(1), 4000)
    grads = jax.jit(jax.vmap(lambda key: grad(gaussian(p.loc, p.scale), x, y, key)))(keys)
    for leaf in jax.tree.leaves(grads):
        standard_error = leaf.std(axis=0) / np.sqrt(len(keys))
        np.testing.assert_array_less(np.abs(leaf.mean(axis=0)), 5 * standard_error)


@pytest.mark.promotes
def test_training_from_a_cold_start_reaches_the_optimum():
    p = problem("yacht")
    x, y = data(p)
    q = illia_fn.mean_field(jnp.zeros(x.shape[1]), scale=0.5)
    num_steps = 3000
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    loss = partial(elbo_loss, linear, num_samples=8, loss_fn=NLL, prior=PRIOR, num_data=len(y), chunk_size=None)

    def step(carry, key):
        q, state = carry
        batch_key, key = jax.random.split(key)
        rows = jax.random.choice(batch_key, len(y), (128,), replace=False)
        grads = jax.grad(loss)(q, x[rows], y[rows], key)
        updates, state = optimizer.update(grads, state, q)
        return (optax.apply_updates(q, updates), state), None

    keys = jax.random.split(jax.random.key(0), num_steps)
    (q, _), _ = jax.jit(partial(jax.lax.scan, step))((q, optimizer.init(q)), keys)
    reached = p.elbo(np.asarray(q.loc, np.float64), np.asarray(q.scale, np.float64))
    assert ORACLE["yacht"][1] - 0.1 < reached < ORACLE["yacht"][1] + 1e-3


def test_scalar_case():
    """Prior N(0, 1), y = 5, unit noise: at the posterior N(5/2, 1/2) every draw of log p(y, w) - log q(w) is log Z."""
    q = gaussian(np.array([2.5]), np.array([0.5**0.5]))
    log_evidence = -0.5 * (25 / 2 + np.log(2 * np.pi * 2))
    np.testing.assert_allclose(log_evidence, -7.5155, atol=1e-4)
    x, y = np.ones((1, 1), np.float32), np.float32([5.0])

    def log_weight(key):
        w = illia_fn.sample(key, q)
        return -gaussian_nll(x @ w, y)[0] + PRIOR.log_prob(w)[0] - illia_fn.log_prob(q, w)

    log_weights = jax.jit(jax.vmap(log_weight))(jax.random.split(jax.random.key(0), 5))
    np.testing.assert_allclose(log_weights, log_evidence, atol=2e-6)
