"""The law of the outputs as moments propagate: its form, its refusals, and networks of every framework."""

import flax.linen as nn
import framework_scripts as scripts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import linearise, mean_field, predict, propagate_moments
from illia_fn.predictions import softmax_of_gaussian

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
PARAMS = {"w": jnp.array([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]]), "b": jnp.ones(2)}
Q = mean_field(PARAMS, scale=0.3)


def apply_fn(w, x):
    return {"logits": x @ w["w"] + w["b"][None], "size": x[:, 0] * w["b"][0], "fixed": x[:, :1]}


def test_a_linear_model_is_exact():
    law, known = jax.jit(lambda q: (propagate_moments(apply_fn, q, X), linearise(apply_fn, q, X)))(Q)
    for found, exact in zip(*map(jax.tree.leaves, (law.mean, known.mean)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-6)
    for found, exact in zip(*map(jax.tree.leaves, (law.variance, known.variance)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-9)
    assert law.covariance.shape == (6, 4, 4)
    assert not np.any(np.asarray(law.covariance)[:, ~np.eye(4, dtype=bool)])


def test_it_is_a_law_of_logits():
    law = jax.jit(lambda q: propagate_moments(lambda w, x: jnp.tanh(x @ w["w"]), q, X, num_points=30))(Q)
    probs = softmax_of_gaussian(law.mean, law.covariance)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="got an OutputLaw"):
        illia_fn.class_probs(illia_fn.categorical_nll, law)


def linen_mlp():
    network = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)])
    variables = jax.jit(network.init)(KEY, scripts.ROWS)
    return illia_fn.frameworks.from_linen(network, variables), None, None, scripts.ROWS, network


NETWORKS = {
    "nnx": scripts.nnx_mlp,
    "linen": linen_mlp,
    "equinox": scripts.equinox_mlp,
    "haiku": scripts.haiku_mlp,
}


@pytest.mark.promotes
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_every_framework(name):
    """As they are: means and variances of draws, within five standard errors; and of one of them a step of training."""
    model, _, _, x, _ = NETWORKS[name]()
    q = mean_field(model.params, scale=0.3)
    law = propagate_moments(model.eval_fn(), q, x)
    draws = np.asarray(predict(model.eval_fn(), q, x, KEY, 20_000, chunk_size=2000), np.float64)
    center, spread = draws.mean(axis=0), draws.var(axis=0)
    assert np.all(np.abs(law.mean - center) < 5 * np.sqrt(spread / 20_000))
    fourth = np.mean((draws - center) ** 4, axis=0)
    assert np.all(np.abs(law.variance - spread) < 5 * np.sqrt((fourth - spread**2) / 20_000))
    if name != "nnx":
        return
    loss = model.loss(illia_fn.analytic_elbo_loss, num_data=8, method="moments")
    value, grads = jax.jit(jax.value_and_grad(loss))(q, x, scripts.LABELS, KEY)
    assert jnp.isfinite(value)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_refusals():
    with pytest.raises(ValueError, match="propagate_moments: params has no posterior node"):
        propagate_moments(apply_fn, PARAMS, X)
    with pytest.raises(ValueError, match=r"must return outputs that share a leading axis of examples, got shapes \(\)"):
        propagate_moments(lambda w, x: (x @ w["w"]).mean(), Q, X)
    with pytest.raises(ValueError, match="propagate_moments: num_points must be an int of at least 1, got 0"):
        propagate_moments(apply_fn, Q, X, num_points=0)
    with pytest.raises(TypeError, match="propagate_moments: key must be a single PRNG key"):
        propagate_moments(lambda w, x, key: x @ w["w"], Q, X, needs_key=True)
    with pytest.raises(ValueError, match=r"propagate_moments: moments are not propagated through reduce_max.*\['w'\]"):
        propagate_moments(lambda w, x: (x @ w["w"]).max(axis=1), Q, X)
