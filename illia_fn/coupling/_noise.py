"""The noise of all examples as one explicit tree, drawn outside of the model.

It is keyed by the leaf, or by the place of its site in the jaxpr: the same key gives the same noise however often the
model is traced. With the noise at hand, common random numbers and mirrored pairs need no support from the model.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._numerics import at_least_float32
from illia_fn.coupling._values import PerExample, Site, Strategy, View
from illia_fn.posteriors import Gaussian, Posterior

_BLOCK = 2**16  # numbers; larger draws leave the cache between the rounds of threefry


class Noise(NamedTuple):
    """Noise, or the shapes of it; all but `leaves` for one example, or with leading axes of samples and examples.

    Attributes:
        leaves: standard normal, for each leaf that is shared or under flipout: one draw for all examples.
        examples: standard normal, for each leaf that is drawn for every example.
        sites: standard normal, for each output that is drawn in the place of its weights.
        signs: +1 and -1, for each axis of a leaf under flipout that carries signs.
    """

    leaves: dict[int, Any]
    examples: dict[int, Any]
    sites: dict[Site, Any]
    signs: dict[int, dict[int, Any]]

    def mirrored(self) -> "Noise":
        """The noise of the networks on the other side of the mean."""
        leaves, examples, sites = jax.tree.map(jnp.negative, (self.leaves, self.examples, self.sites))
        return Noise(leaves, examples, sites, self.signs)

    def draw(self, key: jax.Array, axes: tuple[int, ...]) -> "Noise":
        """Noise of these shapes, with leading `axes` for all but `leaves`."""
        normal_key, sign_key = jax.random.split(key)
        batched = jax.tree.map(lambda like: jax.ShapeDtypeStruct((*axes, *like.shape), like.dtype), self[1:])
        normals = (self.leaves, *batched[:2])
        leaves, structure = jax.tree.flatten(normals)
        return Noise(*structure.unflatten(_normals(normal_key, leaves)), _signs(sign_key, batched[2]))


def _normals(key: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Standard normal noise of all shapes, cut from one flat draw for each dtype."""
    groups: dict[Any, list[int]] = {}
    for index, like in enumerate(shapes):
        groups.setdefault(like.dtype, []).append(index)
    noise = {}
    for number, (dtype, group) in enumerate(groups.items()):
        flat = _flat_normal(jax.random.fold_in(key, number), sum(shapes[index].size for index in group), dtype)
        noise |= zip(group, _cut(flat, [shapes[index].shape for index in group]), strict=True)
    return [noise[index] for index in range(len(shapes))]


def _flat_normal(key: jax.Array, size: int, dtype: Any) -> jax.Array:
    count = max(1, -(-size // _BLOCK))
    block = -(-size // count)
    block += block % 2  # XLA's CPU backend draws an odd number many times slower
    if count == 1:
        return jax.random.normal(key, (block,), dtype)
    return jax.lax.map(lambda key: jax.random.normal(key, (block,), dtype), jax.random.split(key, count)).ravel()


def _signs(key: jax.Array, shapes: Any) -> Any:
    """Independent signs, one random bit each, as floats: XLA's CPU backend has miscompiled int8 ones."""
    leaves, structure = jax.tree.flatten(shapes)
    words = jax.random.bits(key, (-(-sum(like.size for like in leaves) // 32),), jnp.uint32)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)[None]) & np.uint32(1)
    flat = 1.0 - 2.0 * bits.astype(jnp.float32)
    return structure.unflatten(_cut(flat.ravel(), [like.shape for like in leaves]))


def _cut(flat: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=int)
    pieces = jnp.split(flat[: ends[-1]], ends[:-1]) if shapes else []
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def weight(node: Posterior, index: int, strategy: Strategy, noise: Noise) -> Any:
    """The value of a leaf in the model of one example."""
    if strategy == "shared":
        return node.reparameterise()(noise.leaves[index])
    if strategy == "per_example":
        return PerExample(node.reparameterise()(noise.examples[index]))
    assert isinstance(node, Gaussian)
    signs = {}
    if strategy == "flipout":
        signs = {axis: along(sign, axis, node.loc.ndim) for axis, sign in noise.signs[index].items()}
    dev = node.scale * noise.leaves[index] if strategy == "flipout" else node.scale
    return View(index, strategy, node.loc.shape, node.loc.dtype, at_least_float32(node.loc), dev, signs)


def along(x: Any, axis: int, rank: int) -> Any:
    """A vector as an array that varies along one axis."""
    return x.reshape([-1 if index == axis else 1 for index in range(rank)])
