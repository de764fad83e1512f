"""The noise of all examples as one explicit tree, drawn outside of the model.

It is keyed by the leaf, or by the place of its site in the jaxpr: the same key gives the same noise however often the
model is traced. With the noise at hand, common random numbers and mirrored pairs need no support from the model.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.noise import cut, subkeys
from illia_fn._base.numerics import at_least_float32
from illia_fn.coupling._values import PerExample, Site, Strategy, View, along
from illia_fn.engine._latin_hypercube import Strata, stratified_normals
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior


class Noise(NamedTuple):
    """Noise, or the shapes of it; for one example of one sample, or with leading axes of samples, of examples, or both.

    Attributes:
        leaves: standard normal, for each leaf that is shared or under flipout: one draw for all examples of a sample.
        examples: standard normal, for each leaf that is drawn for every example.
        sites: standard normal, for each output that is drawn in the place of its weights.
        signs: +1 and -1, for each axis of a leaf under flipout that carries signs, or of several that are concatenated;
            the same in all samples.
    """

    leaves: dict[int, Any]
    examples: dict[int, Any]
    sites: dict[Site, Any]
    signs: dict[int, dict[int, Any]]

    def mirrored(self) -> "Noise":
        """The noise of the networks on the other side of the mean."""
        leaves, examples, sites = jax.tree.map(jnp.negative, (self.leaves, self.examples, self.sites))
        return Noise(leaves, examples, sites, self.signs)

    def draw(self, key: jax.Array, batch_size: int, strata: Strata) -> "Noise":
        """Noise of these shapes: `leaves` (S, ...), `signs` (B, ...), and (S, B, ...) for what every example has."""
        kinds = self.leaves, (self.examples, self.sites), self.signs
        keys = iter(subkeys(key, sum(bool(jax.tree.leaves(kind)) for kind in kinds)))
        draws = (
            lambda key, shapes: [leaf[:, 0] for leaf in stratified_normals(key, shapes, 1, strata)],
            lambda key, shapes: stratified_normals(key, shapes, batch_size, strata),
            lambda key, shapes: _signs(key, shapes, batch_size),
        )
        drawn = []
        for kind, draw in zip(kinds, draws, strict=True):
            shapes, structure = jax.tree.flatten(kind)
            drawn.append(structure.unflatten(draw(next(keys), shapes) if shapes else []))
        leaves, own, signs = drawn
        return Noise(leaves, *own, signs)


def _signs(key: jax.Array, shapes: list[Any], batch_size: int) -> list[jax.Array]:
    """Independent signs, one random bit each, as floats: XLA's CPU backend has miscompiled int8 ones."""
    size = sum(like.size for like in shapes)
    words = jax.random.bits(key, (-(-batch_size * size // 32),), jnp.uint32)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)[None]) & np.uint32(1)
    flat = (1.0 - 2.0 * bits.astype(jnp.float32)).ravel()[: batch_size * size]
    return cut(flat.reshape(batch_size, size), [like.shape for like in shapes])


def weight(node: Posterior, index: int, strategy: Strategy, noise: Noise) -> list[Any]:
    """The value of a leaf, or of each leaf that the node stands for, in the model of one example."""
    if strategy == "shared":
        return jax.tree.leaves(node.reparameterise()(noise.leaves[index]))
    if strategy == "per_example":
        return list(map(PerExample, jax.tree.leaves(node.reparameterise()(noise.examples[index]))))
    assert isinstance(node, Gaussian)
    signs = {}
    if strategy == "flipout":
        signs = {axis: along(sign, axis, node.loc.ndim) for axis, sign in noise.signs[index].items()}
    dev = node.scale * noise.leaves[index] if strategy == "flipout" else node.scale
    return [View(index, strategy, node.loc.shape, node.loc.dtype, at_least_float32(node.loc), dev, signs)]
