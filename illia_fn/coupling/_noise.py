"""The noise of all examples as one explicit tree, drawn outside of the model.

It is keyed by the leaf, or by the place of its site in the jaxpr: the same key gives the same noise however often the
model is traced. With the noise at hand, common random numbers and mirrored pairs need no support from the model.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._numerics import at_least_float32
from illia_fn.coupling._spread import Places, cut, spread_normals
from illia_fn.coupling._values import PerExample, Site, Strategy, View
from illia_fn.posteriors import Gaussian, Posterior


class Chunk(NamedTuple):
    """The samples that are evaluated at once.

    Attributes:
        places: theirs, in a row, among those whose noise is spread together.
        size: how many samples a chunk has; the last one may have fewer.
    """

    places: Places
    size: int = 1


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

    def draw(self, key: jax.Array, batch_size: int, chunk: Chunk) -> "Noise":
        """Noise of these shapes for a chunk of samples, with leading axes (S, B) for all but `leaves`.

        What the samples of a chunk share, `leaves`, is spread over the chunks, and `signs` are the same in all chunks.
        """
        leaves_key, own_key, sign_key = jax.random.split(key, 3)
        samples, count, mirrored = chunk.places
        shapes, structure = jax.tree.flatten(self.leaves)
        place = Places(samples[:1] // chunk.size, -(-count // chunk.size), mirrored)
        leaves = structure.unflatten([leaf[0, 0] for leaf in spread_normals(leaves_key, shapes, 1, place)])
        shapes, structure = jax.tree.flatten((self.examples, self.sites))
        own = structure.unflatten(spread_normals(own_key, shapes, batch_size, chunk.places))
        axes = (chunk.size, batch_size)
        like = jax.tree.map(lambda like: jax.ShapeDtypeStruct((*axes, *like.shape), like.dtype), self.signs)
        signs = _signs(sign_key, like)
        return Noise(leaves, *own, jax.tree.map(lambda sign: sign[: len(samples)], signs))


def _signs(key: jax.Array, shapes: Any) -> Any:
    """Independent signs, one random bit each, as floats: XLA's CPU backend has miscompiled int8 ones."""
    leaves, structure = jax.tree.flatten(shapes)
    words = jax.random.bits(key, (-(-sum(like.size for like in leaves) // 32),), jnp.uint32)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)[None]) & np.uint32(1)
    flat = 1.0 - 2.0 * bits.astype(jnp.float32)
    return structure.unflatten(cut(flat.ravel(), [like.shape for like in leaves]))


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
