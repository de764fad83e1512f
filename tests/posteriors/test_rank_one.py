"""Rank-1 factors against the direct product, their KL, and the losses of models that have them."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from families import array, normal

import illia_fn
from illia_fn import Mixture, Normal, elbo_loss, kl_divergence, kl_loss, mean_field, predict, rank_one, rank_one_weights

KEY = jax.random.key(0)
PARAMS = {
    "conv": {"kernel": normal(0, 2, 2, 3, 4), "bias": normal(1, 4)},
    "head": {"kernel": normal(2, 4, 5), "bias": normal(3, 5)},
    "steps": array(3, np.int32),
}
PRIOR = {"params": None, "factors": Normal(1.0, 0.1)}


def test_the_weights_are_the_direct_product():
    q = jax.jit(partial(rank_one, scale=0.3))(PARAMS)

    @jax.jit
    def drawn(q):
        w = illia_fn.sample(KEY, q)
        return w, rank_one_weights(w), rank_one_weights(illia_fn.mean(q))

    w, found, of_mean = drawn(q)
    rows, columns = w["factors"]["rows"], w["factors"]["columns"]
    assert (rows["conv"]["bias"], columns["steps"]) == (None, None)
    r, s = (np.ravel(side["conv"]["kernel"]) for side in (rows, columns))
    direct = np.asarray(PARAMS["conv"]["kernel"]) * r[None, None, :, None] * s[None, None, None, :]
    np.testing.assert_allclose(found["conv"]["kernel"], direct, rtol=1e-6)
    r, s = (np.ravel(side["head"]["kernel"]) for side in (rows, columns))
    assert (r.shape, s.shape) == ((4,), (5,))
    np.testing.assert_allclose(found["head"]["kernel"], PARAMS["head"]["kernel"] * np.outer(r, s), rtol=1e-6)
    assert np.std(r) > 0.05
    for path in (("conv", "bias"), ("head", "bias")):
        np.testing.assert_array_equal(found[path[0]][path[1]], PARAMS[path[0]][path[1]])
    assert found["steps"] == 3
    chex.assert_trees_all_equal(of_mean, PARAMS)
    # r (out, in, ...) of equinox, and a square kernel, of which the sizes do not tell the axes
    square = {"weight": normal(4, 3, 3, 2)}
    equinox, found, _ = drawn(jax.jit(partial(rank_one, out_axis=0))(square))
    assert equinox["factors"]["rows"]["weight"].shape == (1, 3, 1)
    r, s = (np.ravel(equinox["factors"][name]["weight"]) for name in ("rows", "columns"))
    direct = np.asarray(square["weight"]) * r[None, :, None] * s[:, None, None]
    np.testing.assert_allclose(found["weight"], direct, rtol=1e-6)


def test_half_precision_is_multiplied_in_float32():
    """Without jit, in which XLA may leave out the rounding that is looked for."""
    half = {"k": array(PARAMS["head"]["kernel"], jnp.bfloat16)}
    w = jax.jit(lambda half: illia_fn.sample(KEY, rank_one(half)))(half)
    found, wide = (rank_one_weights(tree)["k"] for tree in (w, jax.tree.map(array, w)))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, np.asarray(wide).astype(jnp.bfloat16))


def test_its_kl_is_that_of_the_factors_alone():
    q = jax.jit(partial(rank_one, scale=0.2))(PARAMS)
    each = jax.tree.leaves(q["factors"], is_leaf=illia_fn.is_posterior)
    assert illia_fn.num_params(q) == 3 + 4 + 4 + 5
    exact = sum(np.log(0.1 / 0.2) + 0.2**2 / (2 * 0.1**2) - 0.5 for _ in range(16))
    np.testing.assert_allclose(kl_loss(q, PRIOR, reduction="sum"), exact, rtol=1e-5)
    assert len(each) == 4
    members = jax.jit(partial(rank_one, num_components=3, key=KEY))({"head": PARAMS["head"]})
    node = members["factors"]
    assert isinstance(node, Mixture)  # one choice for the whole network
    both = jax.jit(lambda q: (kl_loss(q, PRIOR, reduction="sum"), kl_divergence(q["factors"], Normal(1.0, 0.1))))
    np.testing.assert_array_equal(*both(members))


def test_objectives_predict_and_checkpoints_take_it(tmp_path):
    q = jax.jit(partial(rank_one, num_components=2, key=KEY))({"head": PARAMS["head"]})
    x, y = normal(5, 4, 4), normal(6, 4, 5)

    def model(w, x):
        head = rank_one_weights(w)["head"]
        return x @ head["kernel"] + head["bias"][None]

    def loss(q):
        return elbo_loss(model, q, x, y, KEY, num_data=4, prior=PRIOR, estimator="doubly_reparameterised")

    value, grads = jax.jit(jax.value_and_grad(loss))(q)
    chex.assert_tree_all_finite((value, grads))
    grads = jax.device_get(grads)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads["params"]))
    assert np.any(grads["factors"].components["columns"]["head"]["kernel"].rho != 0)
    assert jax.eval_shape(lambda q: predict(model, q, x, KEY, 3), q).shape == (3, 4, 5)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "q", q)
        checkpointer.wait_until_finished()
        chex.assert_trees_all_equal(checkpointer.restore(tmp_path / "q", q), q)
    labels = illia_fn.labels(q)
    assert labels["params"]["head"]["kernel"] == "deterministic"


def test_a_mask_says_which_kernels():
    q = rank_one(PARAMS, mask=illia_fn.by_path("head/.*"))
    assert q["factors"]["rows"]["conv"]["kernel"] is None
    assert illia_fn.num_params(q) == 9
    q["params"]["conv"]["kernel"].delete()
    assert PARAMS["conv"]["kernel"].shape == (2, 2, 3, 4)  # a copy
    assert np.isfinite(PARAMS["conv"]["kernel"]).all()


ERRORS = {
    "no kernel": (lambda: rank_one({"b": jnp.ones(3)}), "rank_one: params has no kernel"),
    "a mask of biases": (lambda: rank_one(PARAMS, mask=illia_fn.by_path(".*/bias")), "rank_one: params has no kernel"),
    "a node": (lambda: rank_one(mean_field(PARAMS)), r"rank_one: params.* is already a posterior node"),
    "an axis": (lambda: rank_one(PARAMS, out_axis=1), "rank_one: out_axis must be -1"),
    "no key": (lambda: rank_one(PARAMS, num_components=2), "rank_one: several components start apart"),
    "a count": (lambda: rank_one(PARAMS, num_components=0), "rank_one: num_components must be an int of at least 1"),
    "a scale": (lambda: rank_one(PARAMS, scale=-1.0), "rank_one: scale, a standard deviation, must be positive"),
    "plain parameters": (lambda: rank_one_weights(PARAMS), "rank_one_weights: w must be a draw from a tree that rank_"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name):
    call, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
