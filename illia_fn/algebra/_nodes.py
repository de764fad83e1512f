"""Where the posterior nodes of a tree stand among the arrays of its mean, and what those of several trees say there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32, raw_of_scale
from illia_fn._base.trees import PyTree
from illia_fn.kl._priors import blocks_of
from illia_fn.kl.independent import INDEPENDENT, marginals_of
from illia_fn.posteriors._factors import Marginals, Triangle
from illia_fn.posteriors._flat import unravel
from illia_fn.posteriors.eigen import Eigenbasis
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.lowrank import LowRank
from illia_fn.posteriors.matrix import MatrixNormal
from illia_fn.posteriors.posterior import check_nodes, is_posterior
from illia_fn.posteriors.tied import KTied

FAMILIES = (Gaussian, KTied, MatrixNormal, Eigenbasis, LowRank, FullCovariance)


class Place(NamedTuple):
    """A posterior node or a deterministic leaf, and the arrays of the mean, from start to stop, that it stands for."""

    keys: Any
    node: Any
    start: int
    stop: int

    @property
    def path(self) -> str:
        """As JAX writes it."""
        return jax.tree_util.keystr(self.keys)

    @property
    def is_posterior(self) -> bool:
        """Whether it is a node."""
        return is_posterior(self.node)

    def within(self, other: "Place") -> bool:
        """Whether all of its arrays are among those of the other."""
        return other.start <= self.start and self.stop <= other.stop


def places_of(tree: PyTree) -> list[Place]:
    """All of a tree, in its order."""
    places, start = [], 0
    for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_posterior):
        count = jax.tree.structure(node.mean).num_leaves if is_posterior(node) else 1
        places.append(Place(keys, node, start, start + count))
        start += count
    return places


def check_has_nodes(caller: str, q: PyTree) -> None:
    """q has a posterior node."""
    check_nodes(caller, q)
    if not any(map(is_posterior, jax.tree.leaves(q, is_leaf=is_posterior))):
        raise ValueError(f"{caller}: q has no posterior node. Pass a posterior tree, such as mean_field makes.")


def with_nodes(like: PyTree, nodes: Mapping[Any, Any]) -> PyTree:
    """A tree of parameters in which nodes stand in the place of the subtrees at these keys."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(
        like, is_leaf=lambda keys, _: keys in nodes, is_leaf_takes_path=True
    )
    return structure.unflatten([nodes.get(keys, leaf) for keys, leaf in leaves])


def repeated(places: Sequence[Place]) -> list[Any]:
    """The node of each array."""
    return [place.node for place in places for _ in range(place.stop - place.start)]


def marginals_by_array(nodes: list[Any], arrays: list[Any], dtype: Any) -> Marginals:
    """What nodes, one for each of these arrays, say of each of the numbers, (P,)."""
    pieces = []
    for block in blocks_of(nodes, arrays):
        node = block.prior
        if isinstance(node, INDEPENDENT):
            found = marginals_of(node, block.arrays[0], dtype)
        elif isinstance(node, FAMILIES):
            found = node.marginals()
        else:
            scale = jnp.concatenate([at_least_float32(leaf).ravel() for leaf in jax.tree.leaves(node.stddev)])
            loc = jnp.concatenate([at_least_float32(leaf).ravel() for leaf in jax.tree.leaves(node.mean)])
            found = Marginals(loc, scale, jnp.log(scale))
        pieces.append([field.astype(dtype).reshape(-1) for field in found])
    return Marginals(*[jnp.concatenate(column) for column in zip(*pieces, strict=True)])


def gaussian_of(like: Any, loc: jax.Array, scale: jax.Array, log_scale: jax.Array) -> Gaussian:
    """The node of these numbers, in the shape and dtype of an array."""
    fields = (loc, raw_of_scale(scale, log_scale))
    return Gaussian(*[field.reshape(np.shape(like)).astype(like.dtype) for field in fields])


def raw_of_triangle(triangle: Triangle) -> jax.Array:
    """The unconstrained matrix of a triangle."""
    raw = raw_of_scale(jnp.diagonal(triangle.matrix), triangle.log_diagonal)
    return jnp.tril(triangle.matrix, -1) + jnp.diag(raw)


def full_of(like: PyTree, loc: jax.Array, root: Triangle) -> FullCovariance:
    """The node of these numbers, over a tree of arrays like these."""
    return FullCovariance(unravel(loc, like), raw_of_triangle(root))
