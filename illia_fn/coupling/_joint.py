"""Posteriors over numbers that are not independent: noise of each example's own that moves all of them together.

Within an example all that a posterior stands for must have its joint law; across examples any coupling will do. A draw
that is linear in its noise, w = mean + A z, has a law that is symmetric around the mean. So

    w_i = mean + s_i A z,        s_i = +1 or -1, one sign for each example, z the same for all of them

has it, too, for any A, if s_i is the same in all leaves and in all uses: flipout with a sign that has no axis. It takes
one more product wherever w meets data.
"""

from typing import Any

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import at_least_float32, widest_dtype
from illia_fn._base.sharding import vary_along, varying_axes
from illia_fn.coupling._affine import breaks_of
from illia_fn.coupling._noise import Noise
from illia_fn.coupling._values import Directions, View
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior


def is_linear_in_noise(node: Posterior) -> bool:
    """Whether draws are, so that they are Gaussian, whatever the family."""
    if type(node) is Gaussian:
        return True
    noise = jax.ShapeDtypeStruct(node.noise_shape, widest_dtype(node.mean))
    return not breaks_of(lambda noise: jax.tree.leaves(node.reparameterise()(noise)), [noise])[1]


def probe_together(node: Posterior, number: int) -> list[Any]:
    """A view without a strategy for each array that the node stands for."""
    leaves = jax.tree.leaves(node.mean)
    return [_view(leaf, leaf[None], jnp.zeros(1), number, None) if leaf.size else leaf for leaf in leaves]


def drawn_together(node: Posterior, number: int, noise: Noise) -> list[Any]:
    """mean + s A z, for each array that the node stands for."""
    z, signs = noise.leaves[number], noise.signs[number][0]
    origin = vary_along(jnp.zeros_like(z), varying_axes(z))
    means, changes = map(jax.tree.leaves, jax.jvp(node.reparameterise(), (origin,), (z,)))
    pairs = zip(means, changes, strict=True)
    return [_view(mean, change[None], signs, number, "flipout") if mean.size else mean for mean, change in pairs]


def _view(mean: jax.Array, change: jax.Array, coefficients: jax.Array, number: int, strategy: Any) -> View:
    directions = {number: Directions((at_least_float32(change),), coefficients)}
    wide = at_least_float32(mean)
    return View(number, strategy, mean.shape, mean.dtype, wide, None, {}, directions=directions)
