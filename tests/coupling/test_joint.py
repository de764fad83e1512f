"""Posteriors over numbers that are not independent: their joint law within an example, noise of its own for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coupling_cases import BATCH, IMAGE, KEY, SEQUENCE, VECTOR, array, conv, params
from coupling_networks import outputs_and_reference

from illia_fn import full_covariance, low_rank, matrix_normal, mean_field

pytestmark = pytest.mark.promotes


def varied(node):
    """With fields that are no longer those of the start, so that the numbers depend on each other."""
    leaves, structure = jax.tree.flatten(node)
    return structure.unflatten([leaf + 0.2 * array(*leaf.shape, seed=9) for leaf in leaves])


def matrices(tree):
    def node(leaf):
        return matrix_normal(leaf, scale=0.3) if leaf.ndim > 1 else mean_field(leaf, scale=0.3)

    return jax.tree.map(node, tree)


FAMILIES = {
    "LowRank": lambda tree: varied(low_rank(tree, 2, scale=0.3, key=KEY)),
    "of many directions": lambda tree: varied(low_rank(tree, 12, scale=0.3, key=KEY)),
    "FullCovariance": lambda tree: varied(full_covariance(tree, scale=0.3)),
    "MatrixNormal": lambda tree: varied(matrices(tree)),
}


def layers(w, x):
    """On a sequence, with biases, a number that is met by what is not linear, and a slice."""
    h = jnp.tanh(x @ w["a"] + w["b"]) / jnp.exp(w["tau"])
    return jnp.tanh(h @ w["c"][:, 1:]) + w["c"][0, 0]


def convolutions(w, x):
    h = jax.nn.relu(conv(x, w["k"], strides=(2, 1)) + w["b"])
    return conv(h, w["l"], feature_group_count=2).mean(axis=(1, 2)) @ w["d"]


def moved(w, x):
    """Tied, transposed, masked, and concatenated with each other, with weights of another node, and with zeros."""
    mask = jnp.tril(jnp.ones((4, 5)))
    kernel = jnp.concatenate([-w["a"].T[::-1], w["other"][None], jnp.zeros((1, 4)), w["c"] / 2.0])
    h = jnp.tanh(x @ (w["a"] * mask) + (x @ jnp.concatenate([w["c"], w["c"]])[:4])[:, :1])
    return jnp.concatenate([h, x], axis=1) @ kernel[:9] @ jnp.stack([w["other"], w["b"]], axis=1)


def loops(w, x):
    """A recurrent cell, layers that are scanned, recomputed, and met in branches."""

    def step(h, x):
        return jnp.tanh(x @ w["in"] + h @ w["h"] + w["b"]), None

    h = jax.lax.scan(step, jnp.zeros((len(x), 4)), x.swapaxes(0, 1))[0]
    h = jax.lax.scan(jax.checkpoint(lambda h, layer: (jnp.tanh(h @ layer), None)), h, w["layers"])[0]
    return jax.lax.cond(h[0, 0] > 0, lambda: h @ w["in"], lambda: h @ w["h"] + w["b"])


MODELS = {
    "layers": (layers, params(a=(4, 5), b=(5,), c=(5, 3), tau=()), SEQUENCE),
    "convolutions": (convolutions, params(k=(3, 3, 4, 6), b=(6,), l=(3, 3, 3, 4), d=(4, 2)), IMAGE),
    "moved": (moved, params(a=(4, 5), b=(4,), c=(2, 4), other=(4,)), VECTOR),
    "loops": (loops, params(**{"in": (4, 4), "h": (4, 4), "b": (4,), "layers": (2, 4, 4)}), SEQUENCE),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_networks(name, family):
    apply_fn, tree, x = MODELS[name]
    node = FAMILIES[family]({key: leaf for key, leaf in tree.items() if key != "other"})
    q = {"node": node} | {key: mean_field(leaf, scale=0.3) for key, leaf in tree.items() if key == "other"}
    it, outputs, reference = outputs_and_reference(lambda w, x: apply_fn(w["node"] | w, x), q, x, "flipout")
    assert all(leaf.strategy != "shared" for leaf in it.plan.leaves), it.plan.leaves
    assert not it.plan.hindrances
    assert outputs.shape[:2] == (1, BATCH)
    np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)
