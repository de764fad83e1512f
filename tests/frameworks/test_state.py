"""State of a model is no parameter, and its random numbers are fresh: what is not is refused on every path, by name."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import illia_fn
from illia_fn import divergences, mean_field

pytestmark = pytest.mark.promotes

KEY, X, Y = jax.random.key(0), jnp.ones((8, 4)), jnp.arange(8) % 3


class Net(nnx.Module):
    def __init__(self, rngs, *, with_statistics=False):
        self.linear, self.dropout = nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs) if with_statistics else None

    def __call__(self, x):
        return self.dropout(self.linear(x))


def frozen_in_the_tree():
    """As in nnx.split(model): the key is a leaf of the tree."""
    graphdef, params = nnx.split(Net(nnx.Rngs(0)))
    return lambda w, x: nnx.merge(graphdef, w)(x), mean_field(params, scale=0.1)


def frozen_beside_the_tree():
    graphdef, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    return lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x), mean_field(params, scale=0.1)


def frozen_in_linen():
    net = nn.Sequential([nn.Dense(3), nn.Dropout(0.5, deterministic=False)])
    params = net.init({"params": KEY, "dropout": KEY}, X)
    return lambda w, x: net.apply(w, x, rngs={"dropout": jax.random.key(1)}), mean_field(params, scale=0.1)


def frozen_in_equinox():
    net = eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=KEY), eqx.nn.Dropout(0.5)])
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def apply_fn(w, x):
        return jax.vmap(eqx.combine(w, static))(x, key=jax.random.split(jax.random.key(1), len(x)))

    return apply_fn, mean_field(params, scale=0.1)


FROZEN = [frozen_in_the_tree, frozen_beside_the_tree, frozen_in_linen, frozen_in_equinox]
CALLS = {
    "elbo_loss": partial(illia_fn.elbo_loss, num_data=8),
    "elbo_loss, decorrelated": partial(illia_fn.elbo_loss, num_data=8, coupling="decorrelated"),
    "elbo_loss, local_reparam": partial(illia_fn.elbo_loss, num_data=8, coupling="local_reparam"),
    "elbo_loss, with a key that is not used": lambda f, *args: illia_fn.elbo_loss(
        lambda w, x, key: f(w, x), *args, num_data=8, needs_key=True
    ),
    "predictive_loss": partial(illia_fn.predictive_loss, num_data=8),
    "iwae_loss": partial(illia_fn.iwae_loss, num_data=8),
    "renyi_loss": partial(illia_fn.renyi_loss, num_data=8, alpha=0.5),
    "cubo_loss": partial(illia_fn.cubo_loss, num_data=8),
    "f_divergence_loss": partial(illia_fn.f_divergence_loss, num_data=8, generator=divergences.jeffreys),
    "pac_bayes_loss": partial(illia_fn.pac_bayes_loss, num_data=8),
    "pac_bayes_certificate": partial(
        illia_fn.pac_bayes_certificate, prior=illia_fn.Normal(0.0, 1.0), fixed_leaves=True
    ),
    "predict": lambda f, q, x, y, key, n: illia_fn.predict(f, q, x, key, n),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("model", FROZEN)
def test_frozen_randomness_is_refused(model, name):
    apply_fn, q = model()
    with pytest.raises(ValueError, match=f"(?s){name.partition(',')[0]}: apply_fn draws .*needs_key=True.*nnx.reseed"):
        jax.eval_shape(lambda q, key: CALLS[name](apply_fn, q, X, Y, key, 2), *jax.tree.map(lambda x: x, (q, KEY)))


def test_the_hint_leads_to_a_mask_of_its_own_for_every_sample():
    graphdef, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    def apply_fn(w, x, key):
        model = nnx.merge(graphdef, w, rest, copy=True)
        nnx.reseed(model, default=key, dropout=key)
        return model(x)

    q = mean_field(params, scale=0.1)
    outputs = illia_fn.predict(apply_fn, q, X, KEY, 64, needs_key=True)
    dropped = np.asarray(outputs == 0.0)
    assert abs(dropped.mean() - 0.5) < 5 * 0.5 / np.sqrt(dropped.size)
    assert len(np.unique(dropped.reshape(64, -1), axis=0)) == 64
    assert np.isfinite(illia_fn.elbo_loss(apply_fn, q, X, Y, KEY, 2, num_data=8, needs_key=True))


def test_random_features_are_the_models_own():
    """They do not depend on the batch, whatever their size."""

    def apply_fn(w, x):
        return jnp.cos(x @ jax.random.normal(jax.random.key(1), (4, 8))) @ w

    q = mean_field(jnp.ones((8, 3)), scale=0.1)
    for x, y in ((X, Y), (X[:4], Y[:4])):
        assert np.isfinite(illia_fn.elbo_loss(apply_fn, q, x, y, KEY, 2, num_data=8))


class HardCoded(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x.reshape(8, 4)))


def test_a_mask_of_a_batch_size_that_is_written_into_the_model():
    net = HardCoded()
    q = mean_field(net.init({"params": KEY, "dropout": KEY}, X), scale=0.1)
    with pytest.raises(ValueError, match="elbo_loss: apply_fn draws"):
        illia_fn.elbo_loss(lambda w, x: net.apply(w, x, rngs={"dropout": KEY}), q, X, Y, KEY, num_data=8)


def linen_variables():
    return nn.BatchNorm(use_running_average=False).init(KEY, X)


def equinox_norm():
    return eqx.filter(eqx.nn.BatchNorm(3, "batch", mode="ema"), eqx.is_inexact_array)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        (lambda: nnx.split(Net(nnx.Rngs(0), with_statistics=True))[1], r"\['norm'\]\['mean'\].* \(BatchStat\)"),
        (linen_variables, r"\['batch_stats'\]\['mean'\].* \(batch_stats\)"),
        (equinox_norm, r"state_index.* \(StateIndex\)"),
    ],
)
def test_a_statistic_is_no_parameter(params, match):
    params = params()
    with pytest.raises(ValueError, match=f"mean_field: params.*{match} and no parameter"):
        mean_field(params, scale=0.1)


def test_masked_out_statistics_stay():
    params = linen_variables()
    q = mean_field(params, scale=0.1, mask={"params": True, "batch_stats": False})
    assert illia_fn.num_params(q) == 4 + 4
    np.testing.assert_array_equal(q["batch_stats"]["var"], params["batch_stats"]["var"])
