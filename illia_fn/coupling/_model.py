"""A model as the jaxpr of one example, and the checks that this is the same model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from illia_fn._base.sharding import mesh_of, type_of_rows
from illia_fn._base.trees import PyTree, path_of
from illia_fn.coupling._joint import Factor
from illia_fn.engine._randomness import HINT, random_shapes
from illia_fn.posteriors.posterior import Posterior, is_posterior


class Model(NamedTuple):
    """apply_fn traced on a batch of one example.

    Attributes:
        jaxpr: of the weights, the arrays of each posterior node, the leaves of x, and the key if apply_fn takes one.
        outputs: the structure of what apply_fn returns.
        names: of the posterior nodes, or of the leaves that they stand for: their paths, as tables show them.
        nodes: the posterior nodes.
        batch_size: that of x.
        takes_max: whether it reduces anything to its maximum, as max-pooling does.
        factors: what moves several of the nodes together.
    """

    jaxpr: Any
    outputs: Any
    names: list[str]
    nodes: list[Posterior]
    batch_size: int
    takes_max: bool
    factors: Sequence[Factor] = ()


class Weights(NamedTuple):
    """The posterior nodes of a tree.

    Attributes:
        paths: of the nodes, or of the leaves that they stand for, as errors write them.
        names: the same, as tables show them.
        nodes: themselves.
        tree: from what takes their places to the tree.
    """

    paths: list[str]
    names: list[str]
    nodes: list[Posterior]
    tree: Callable[[Sequence[PyTree]], PyTree]

    @staticmethod
    def of(q: PyTree) -> "Weights":
        leaves, structure = jax.tree.flatten(q, is_leaf=is_posterior)
        ways = [way for way in jax.tree_util.tree_leaves_with_path(q, is_leaf=is_posterior) if is_posterior(way[1])]
        paths, names = ([_listed(*way, spelling) for way in ways] for spelling in (jax.tree_util.keystr, path_of))

        def tree(weights: Sequence[PyTree]) -> PyTree:
            remaining = iter(weights)
            return structure.unflatten([next(remaining) if is_posterior(leaf) else leaf for leaf in leaves])

        return Weights(paths, names, [leaf for leaf in leaves if is_posterior(leaf)], tree)


def trace(caller: str, apply_fn: Callable[..., Any], q: PyTree, x: PyTree, key: jax.Array | None) -> Model:
    """The model of one example; refuses one whose outputs for a batch are not those of its examples, stacked."""
    batch_size = _batch_size(caller, x)
    _, names, nodes, tree = Weights.of(q)

    def apply(weights: Sequence[PyTree], x: PyTree, *key: jax.Array) -> Any:
        return apply_fn(tree(weights), x, *key)

    weights = jax.tree.map(lambda mean: jax.typeof(mean).update(weak_type=False), [node.like for node in nodes])
    keys = [] if key is None else [jax.typeof(key)]

    def traced(size: int) -> tuple[Any, PyTree]:
        some = jax.tree.map(lambda leaf: type_of_rows(leaf, size), x)
        with mesh_of((q, x)):
            return jax.make_jaxpr(apply, return_shape=True)(weights, some, *keys)

    whole, expected = traced(batch_size)
    try:
        jaxpr, outputs = traced(1)
    except Exception as error:
        raise ValueError(
            f"{caller}: apply_fn fails on a batch of one example, which is how a coupling sees the model: "
            f"{_first_words(error)} {_ADVICE}"
        ) from error
    _check_outputs(caller, expected, outputs, batch_size)
    if random_shapes(whole.jaxpr, takes_key=key is not None) != random_shapes(jaxpr.jaxpr, takes_key=key is not None):
        raise ValueError(
            f"{caller}: apply_fn draws random numbers for the batch from a key that it closes over, so that every "
            f"example would get the same ones. {HINT}"
        )
    takes_max = "reduce_max" in {eqn.primitive.name for eqn in _equations(jaxpr.jaxpr)}
    return Model(jaxpr, jax.tree.structure(outputs), names, nodes, batch_size, takes_max)


_ADVICE = (
    "Drop squeeze() and sizes of the batch that are written into the model (reshape(len(x), -1) takes any), keep the "
    'batch axis first, or pass coupling="shared".'
)


def _listed(keys: Any, node: Posterior, spelling: Callable[[Any], str]) -> str:
    return ", ".join(spelling((*keys, *inner)) for inner, _ in jax.tree_util.tree_leaves_with_path(node.like))


def _batch_size(caller: str, x: PyTree) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    sizes = {shape[0] for shape in shapes if shape}
    if not shapes or not all(shapes) or len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            f"{caller}: the arrays of x must share a leading batch axis of size at least 1, got shapes "
            f"{', '.join(map(str, shapes)) or 'none'}. What is the same for all examples belongs into apply_fn."
        )
    return sizes.pop()


def _check_outputs(caller: str, expected: PyTree, outputs: PyTree, batch_size: int) -> None:
    whole, one = ([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (expected, outputs))
    stacked = [((batch_size, *shape[1:]), dtype) for shape, dtype in one if shape[:1] == (1,)]
    if stacked != whole or jax.tree.structure(expected) != jax.tree.structure(outputs):
        shapes = [", ".join(str(shape) for shape, _ in leaves) or "none" for leaves in (whole, one)]
        raise ValueError(
            f"{caller}: a coupling needs outputs whose first axis is the batch, but apply_fn returns {shapes[0]} for a "
            f"batch of {batch_size} and {shapes[1]} for a batch of 1. {_ADVICE}"
        )


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Of the jaxpr and of those within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def _first_words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else f"{text[:160]} ..."
