"""by_path: masks by the names of the parameters, in every framework's own tree."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from illia_fn import by_path, is_posterior, mean_field

PARAMS = {"body": {"kernel": jnp.ones((3, 4)), "head_bias": jnp.ones(4)}, "head": {"kernel": jnp.ones((4, 2))}}


def selected(params, pattern):
    leaves = jax.tree.leaves(mean_field(params, scale=0.1, mask=by_path(pattern)), is_leaf=is_posterior)
    return [is_posterior(leaf) for leaf in leaves]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("head/.*", [False, False, True]),  # not a path that only holds it
        (".*/kernel", [False, True, True]),
        ("body/head_bias|head/kernel", [True, False, True]),
        ("body/ker|head/kernel", [False, False, True]),  # nor one that begins so
        (".*", [True, True, True]),
    ],
)
def test_the_whole_path_matches(pattern, expected):
    assert selected(PARAMS, pattern) == expected


def linen_params():
    return nn.Sequential([nn.Dense(5), nn.Dense(2)]).init(jax.random.key(0), jnp.ones((1, 3)))["params"]


def nnx_params():
    return nnx.state(nnx.Sequential(*[nnx.Linear(3, 3, rngs=nnx.Rngs(0)) for _ in range(2)]), nnx.Param)


def equinox_params():
    return eqx.filter(eqx.nn.MLP(3, 2, 5, 1, key=jax.random.key(0)), eqx.is_inexact_array)


def list_of_params():
    return [jnp.ones(2)] * 4


@pytest.mark.parametrize(
    ("params", "pattern"),
    [
        (linen_params, "layers_1/.*"),
        (nnx_params, "layers/1/.*"),
        (equinox_params, "layers/1/.*"),
        (list_of_params, "[23]"),
    ],
)
def test_paths_of_the_frameworks(params, pattern):
    assert selected(params(), pattern) == [False, False, True, True]


@pytest.mark.parametrize(
    ("pattern", "error", "match"),
    [
        (
            "kernel",
            ValueError,
            "matches no path of params as a whole. There are 'head/kernel', 'body/kernel', 'body/head_bias'",
        ),
        (
            "body|head",
            ValueError,
            r"It names a subtree, whose leaves a pattern names that ends in '/\.\*'\.$",
        ),
        ("head/(", ValueError, r"must be a regular expression, got 'head/\(': missing \)"),
        (3, TypeError, "must be a string, got 3 of type int"),
    ],
)
def test_refused(pattern, error, match):
    with pytest.raises(error, match=f"by_path: .*{match}"):
        mean_field(PARAMS, scale=0.1, mask=by_path(pattern))


def test_what_is_near_is_listed_first():
    params = {**{f"block_{index}": {"kernel": 0.0} for index in range(9)}, "output": {"kernel": 0.0}}
    with pytest.raises(ValueError, match="There are 'output/kernel'"):
        by_path("output")(params)


def test_a_long_tree_is_not_listed_whole():
    with pytest.raises(ValueError, match=r"'7', \.\.\."):
        by_path("head")([0.0] * 9)
