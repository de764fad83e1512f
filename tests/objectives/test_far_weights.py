"""Importance weights that are far from each other, or 0: they cost the others no digits, and no gradient."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import illia_fn
from illia_fn import Gaussian, Normal, cubo_loss, iwae_loss, renyi_loss
from illia_fn.objectives._importance import log_power_mean

ORDERS = (1.0, 0.5, 2.0, 3.5)


@jax.jit
def power_means(log_weights):
    """At each order, and the shares of the weights at the first."""
    value, shares = jax.value_and_grad(partial(log_power_mean, order=1.0))(log_weights)
    return jnp.stack([value, *[log_power_mean(log_weights, order) for order in ORDERS[1:]]]), shares


@pytest.mark.parametrize("far", [-1e6, -1e8, -1e10, -np.inf])
def test_a_small_weight_costs_the_others_no_digits(far):
    values, shares = power_means(np.float32([far, -3.3, -2.7, -3.9]))
    exact = [special.logsumexp(order * np.array([-3.3, -2.7, -3.9]), b=0.25) / order for order in ORDERS]
    np.testing.assert_allclose(values, exact, rtol=5e-7)
    np.testing.assert_allclose(shares, [0.0, 0.297, 0.541, 0.163], atol=1e-3)


@pytest.mark.parametrize("far", [1e6, 1e10])
def test_a_large_weight_is_all_there_is(far):
    log_weights = np.float32([far, -3.3, -2.7, -3.9])
    values, shares = power_means(log_weights)
    np.testing.assert_allclose(values[0], far - np.log(4.0), rtol=3e-7)
    np.testing.assert_array_equal(shares, [1.0, 0.0, 0.0, 0.0])
    # of a negative order, as beyond alpha = 1, the smallest is
    value = jax.jit(partial(log_power_mean, order=-1.0))(-log_weights)
    np.testing.assert_allclose(value, -far + np.log(4.0), rtol=3e-7)


def test_no_weight_at_all_is_minus_infinity():
    values, _ = power_means(np.full(4, -np.inf, np.float32))
    assert np.isneginf(values).all()


class OnAnInterval:
    """A prior of bounded support: the density is 1/2 on (-1, 1)."""

    def log_prob(self, w):
        return jnp.where(jnp.abs(w) < 1.0, -jnp.log(2.0), -jnp.inf).astype(w.dtype)


BOUNDED = {  # and what it is with the key of the test: of each kind of mean every estimator, or nearly
    "iwae": (iwae_loss, 1.20868, ("doubly_reparameterised", "score_function")),
    "renyi": (partial(renyi_loss, alpha=0.5), 1.35697, ("reparameterised",)),
    "cubo": (cubo_loss, -1.12845, ("doubly_reparameterised", "score_function")),
}
Q = Gaussian(jnp.array(0.8), jnp.array(0.0))
KEY = jax.random.key(0)


def test_a_prior_of_bounded_support():
    """Two of the eight weights are 0."""

    def run(q, loss, estimator):
        options = {"num_data": 2, "prior": OnAnInterval(), "estimator": estimator, "return_log_weights": True}
        return loss(lambda w, x: x * w, q, np.ones(2), np.ones(2), KEY, 8, chunk_size=None, **options)

    @jax.jit
    def every(q):
        step = jax.value_and_grad(run, has_aux=True)
        return {name: [step(q, loss, each) for each in estimators] for name, (loss, _, estimators) in BOUNDED.items()}

    for name, found in every(Q).items():
        for (value, log_weights), gradient in found:
            assert np.isneginf(log_weights).sum() == 2, name
            np.testing.assert_allclose(value, BOUNDED[name][1], rtol=1e-5)
            chex.assert_tree_all_finite(gradient)


AT_ZERO = {"kl_forward": 0.0, "jensen_shannon": np.log(2), "total_variation": 0.5, "pearson": 1, "squared_hellinger": 1}


def test_a_divergence_whose_generator_is_finite_at_zero_is_finite():
    """f(0) of the draws without density."""

    def loss(q):
        options = {"num_data": 2, "prior": OnAnInterval(), "estimator": "reparameterised", "chunk_size": None}
        args = lambda w, x: x * w, q, np.ones(2), np.ones(2), KEY, 8
        return illia_fn.f_divergence_loss(*args, generator=illia_fn.divergences.kl_forward, **options)

    @jax.jit
    def every(q, at):
        generators = {name: getattr(illia_fn.divergences, name) for name in AT_ZERO}
        return {name: jax.value_and_grad(f)(at) for name, f in generators.items()}, jax.value_and_grad(loss)(q)

    ends, found = every(Q, -np.inf)
    for name, (value, slope) in ends.items():
        np.testing.assert_allclose(value, AT_ZERO[name], rtol=1e-6, atol=1e-7)
        assert np.isfinite(slope), name
    chex.assert_tree_all_finite(found)


def test_log_weights_of_a_sharp_likelihood_are_reduced_like_those_in_float64():
    """1000 data, one weight, a likelihood scale of 1e-4."""
    x = jnp.ones(1000)
    q = Gaussian(jnp.array(1.0), jnp.array(-4.0))
    value, log_weights = jax.jit(
        lambda q: iwae_loss(
            *(lambda w, x: w * x, q, x, x, jax.random.key(0), 8),
            num_data=1000,
            loss_fn=partial(illia_fn.gaussian_nll, scale=1e-4),
            prior=Normal(0.0, 1.0),
            return_log_weights=True,
        )
    )(q)
    assert np.ptp(log_weights) > 1e6
    exact = special.logsumexp(np.asarray(log_weights, np.float64), b=1 / 8)
    np.testing.assert_allclose(-1000 * value, exact, rtol=3e-7)
