"""A subtree of parameters as one vector of its P numbers, and back."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from illia_fn._base.numerics import at_least_float32, widest_dtype
from illia_fn._base.sharding import is_sharded
from illia_fn._base.trees import PyTree


def size_of(tree: PyTree) -> int:
    """P, the count of the numbers of a tree."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def ravel(tree: PyTree) -> jax.Array:
    """The numbers of a tree, leaf after leaf, (P,), in the widest of their dtypes and at least in float32."""
    dtype = widest_dtype(tree)
    return jnp.concatenate([wide(leaf).astype(dtype).reshape(-1) for leaf in jax.tree.leaves(tree)])


def unravel(flat: jax.Array, like: PyTree) -> PyTree:
    """The tree of these numbers, of the structure, shapes and dtypes of another."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])
    pieces = jnp.split(flat, ends[:-1])
    return structure.unflatten([laid_like(piece, leaf) for piece, leaf in zip(pieces, leaves, strict=True)])


def laid_like(x: jax.Array, leaf: jax.Array) -> jax.Array:
    """`x` in the shape and dtype of a leaf, and sharded as it is."""
    x = x.reshape(np.shape(leaf)).astype(leaf.dtype)
    return jax.sharding.reshard(x, jax.typeof(leaf).sharding) if is_sharded(leaf) else x


def check_like(caller: str, w: PyTree, loc: PyTree) -> None:
    """w is of the structure and shapes of loc."""
    shapes = [jax.tree.map(np.shape, tree) for tree in (loc, w)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{caller}: w must have the structure and shapes of loc, {shapes[0]}, got {shapes[1]}.")


def independent(variances: jax.Array, places: np.ndarray) -> jax.Array:
    """The covariance, (n, n), of the numbers at these places, (n,), of independent ones of these variances."""
    same = places[:, None] == places[None, :]
    return jnp.where(same, at_least_float32(variances).reshape(-1)[places][:, None], 0.0)


def wide(x: Any) -> jax.Array:
    """`x` in float32 or wider, and whole on every device, as the factors of matrices take it."""
    x = at_least_float32(x)
    if not is_sharded(x):
        return x
    sharding = jax.typeof(x).sharding
    return jax.sharding.reshard(x, sharding.update(spec=P(*[None] * x.ndim)))
