"""Targets that a likelihood refuses are refused by all that take it, where their values are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import divergences

Q = illia_fn.mean_field({"w": jnp.ones((3, 2))})
KEY = jax.random.key(0)
X, BAD = np.ones((4, 3), np.float32), np.array([0, 1, 7, 0], np.int32)


def apply_fn(w, x):
    return x @ w["w"]


def of(objective, num_samples=2, **options):
    return lambda x, y, **others: objective(apply_fn, Q, x, y, KEY, num_samples, num_data=9, **options, **others)


CALLS = {
    "elbo_loss": of(illia_fn.elbo_loss),
    "one sample": of(illia_fn.elbo_loss, 1),
    "decorrelated": of(illia_fn.elbo_loss, coupling="decorrelated"),
    "score_function": of(illia_fn.elbo_loss, estimator="score_function"),
    "predictive_loss": of(illia_fn.predictive_loss),
    "iwae_loss": of(illia_fn.iwae_loss),
    "renyi_loss": of(illia_fn.renyi_loss, alpha=0.5),
    "cubo_loss": of(illia_fn.cubo_loss),
    "f_divergence_loss": of(illia_fn.f_divergence_loss, generator=divergences.pearson),
    "pac_bayes_loss": of(illia_fn.pac_bayes_loss, prior=Q),
    "analytic_elbo_loss": partial(illia_fn.analytic_elbo_loss, apply_fn, Q, num_data=9),
    "laplace": partial(illia_fn.optim.laplace, apply_fn, Q),
    "diagnose": lambda x, y: illia_fn.diagnose(apply_fn, Q, x, y, KEY, 4, num_data=9),
}


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("name", CALLS)
def test_labels_of_no_class(name, convert):
    with pytest.raises(ValueError, match="targets must be classes from 0 to 1, got 0 to 7"):
        CALLS[name](convert(X), convert(BAD))


@pytest.mark.parametrize("name", ["elbo_loss", "decorrelated", "analytic_elbo_loss"])
@pytest.mark.parametrize("weights_of", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_padding_alone_may_hold_them(name, convert, weights_of):
    padded, counted = np.float32([1, 1, 0, 1]), np.float32([0, 1, 1, 1])
    jax.eval_shape(partial(CALLS[name], X, convert(BAD), weights=weights_of(padded)))
    with pytest.raises(ValueError, match="targets must be classes from 0 to 1, got 0 to 7"):
        jax.eval_shape(partial(CALLS[name], X, convert(BAD), weights=weights_of(counted)))


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_weights_may_be_traced(convert):
    loss = lambda weights, y: CALLS["elbo_loss"](X, y, weights=weights)  # noqa: E731
    padded, labels = np.float32([1, 1, 0, 1]), np.where(BAD > 1, 0, BAD)
    found = jax.jit(partial(loss, y=convert(BAD)))(padded)
    np.testing.assert_allclose(found, loss(padded, labels), rtol=1e-6)


def test_counts_below_zero_in_a_step_that_closes_over_them():
    loss = partial(illia_fn.elbo_loss, lambda w, x: apply_fn(w, x)[:, 0], loss_fn=illia_fn.poisson_nll, num_data=9)
    with pytest.raises(ValueError, match="poisson_nll: targets must be counts"):
        jax.jit(lambda q: loss(q, X, -BAD, KEY))(Q)
