"""Priors that are built for every leaf of a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import array

import illia_fn
from illia_fn import Normal, priors

PARAMS = {
    "conv": array(np.ones((3, 3, 4, 8))),
    "dense": array(np.ones((5, 2))),
    "bias": array(np.zeros(2)),
    "steps": array([0, 1], np.int32),
}


@pytest.mark.parametrize(("out_axis", "fans"), [(-1, (36, 5)), (0, (96, 2))])
def test_activations_keep_their_size(out_axis, fans):
    prior = priors.fan_in(PARAMS, 2.0, out_axis=out_axis)
    for name, fan in zip(("conv", "dense"), fans, strict=True):
        np.testing.assert_allclose(prior[name].scale, 2.0 / np.sqrt(fan), rtol=1e-6)
        assert prior[name].loc == 0.0
    assert (prior["bias"].loc, prior["bias"].scale) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    wide = priors.fan_in(array(np.ones((50, 400))), 1.5, rest=Normal(0.0, 1.0))
    outputs = rng.normal(size=(2000, 50)) @ (np.asarray(wide.scale) * rng.normal(size=(50, 400)))
    np.testing.assert_allclose(outputs.std(), 1.5, rtol=5 * np.sqrt(1 / (2 * 50 * 400) + 1 / (2 * 50 * 2000)))


def test_what_is_no_kernel():
    """Biases of attention, of convolutions in equinox, and behind a container of flax.nnx."""
    shapes = {
        "query": {"bias": array(np.ones((8, 8)))},
        "conv": {"bias": array(np.ones((16, 1, 1)))},
        "nnx": {"bias": {"value": array(np.ones((2, 3)))}},
    }
    for prior in jax.tree.leaves(priors.fan_in(shapes, 3.0), is_leaf=lambda leaf: isinstance(leaf, Normal)):
        assert prior.scale == 1.0


def test_the_rest_is_yours():
    prior = priors.fan_in(PARAMS, 1.0, rest=Normal(1.0, 0.3))
    assert (prior["bias"].loc, prior["bias"].scale) == (1.0, 0.3)


def test_around_a_trained_network():
    params = {"w": array([[3.0, -0.01]], jnp.bfloat16), "b": array([0.5]), "steps": PARAMS["steps"]}
    prior = priors.centred(params, 0.05, relative=0.1)
    np.testing.assert_allclose(prior["w"].scale, [[0.3, 0.05]], rtol=1e-2)
    np.testing.assert_allclose(prior["w"].loc, np.asarray(params["w"], np.float32))
    q = illia_fn.mean_field(params, scale=0.05)
    np.testing.assert_allclose(
        illia_fn.kl_loss({"b": q["b"]}, {"b": priors.centred(params, 0.05)["b"]}), 0.0, atol=1e-6
    )  # at the start, q is the prior
    assert np.isfinite(illia_fn.kl_loss(q, prior))


def test_it_has_no_gradient_of_its_own():
    def loss(w):
        q = illia_fn.mean_field({"w": w + 1.0}, scale=0.1)
        return illia_fn.kl_loss(q, priors.centred({"w": w}, 0.5), reduction="sum")

    np.testing.assert_allclose(
        jax.jit(jax.grad(loss))(array([2.0])), 1.0 / 0.25, rtol=1e-6
    )  # (m - w) / s^2, by m alone


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: priors.fan_in(PARAMS, 0.0), ValueError, "fan_in: gain"),
        (lambda: priors.fan_in(PARAMS, 1.0, out_axis=3), ValueError, r"fan_in: params\['dense'\].* has no axis 3"),
        (lambda: priors.centred(PARAMS, -1.0), ValueError, "centred: scale"),
        (lambda: priors.centred(PARAMS, 1.0, relative=-1.0), ValueError, "centred: relative"),
        (
            lambda: priors.centred(illia_fn.mean_field(PARAMS), 1.0),
            TypeError,
            r"centred: params must be plain .*illia_fn.mean\(q\)",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
