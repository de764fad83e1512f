"""Weights that are products of others, such as W o (r s^T) with factors r of the inputs and s of the outputs.

Where such a product meets data its factors move to either side,

    f(x, W o r s^T) = s o f(r o x, W),

so that each example has a draw of r and of s of its own, for one product with W, which is the same for all examples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32
from illia_fn.coupling._context import Context, Use
from illia_fn.coupling._values import Site, View

Arrays = tuple[Site, ...]  # each by the index of its posterior node, and by its own among those of the node


def as_factor(index: int, part: int, draw: jax.Array) -> Any:
    """A draw of an example's own as 1 * draw, in which the draw takes the place of signs."""
    if not draw.size:
        return draw
    one = jnp.ones((1,) * draw.ndim, at_least_float32(draw).dtype)
    signs = {(index, part): draw}
    return View(index, "flipout", draw.shape, draw.dtype, jnp.zeros_like(one), one, signs, part=part, is_pure=True)


def probe_factor(index: int, part: int, like: jax.Array) -> Any:
    """A view without a strategy, of an array that has no signs along its axes."""
    if not like.size:
        return like
    mean = at_least_float32(like)
    signs = {(index, part): np.zeros(mean.shape, int)}
    return View(index, None, mean.shape, like.dtype, mean, mean, signs, part=part, is_pure=True)


def are_factors(ctx: Context, one: View, other: View) -> bool:
    """Whether the product of the two is a weight that may have such a form."""
    arrays = _arrays(one) + _arrays(other)
    is_pure = all(view.is_pure and not view.directions for view in (one, other))
    return is_pure and len(set(arrays)) == len(arrays) and arrays not in ctx.refused


def product(one: View, other: View, output: Any) -> View:
    """A view of all their arrays."""
    one, other = (view if len(view.shape) == output.ndim else view.of_rank(output.ndim) for view in (one, other))
    assert one.dev is not None
    assert other.dev is not None
    mean, dev = one.mean * other.mean, one.dev * other.dev
    signs = {**_signs(one), **_signs(other)}
    return View(_arrays(one) + _arrays(other), one.strategy, output.shape, output.dtype, mean, dev, signs, is_pure=True)


def count(view: View) -> int:
    """How many numbers it is made of."""
    return sum(sign.size for sign in view.signs.values()) if isinstance(view.leaf, tuple) else view.mean.size


def refused(uses: Mapping[Any, Use], sizes: Sequence[int]) -> frozenset[Arrays]:
    """The products that cannot have it, or at too high a price.

    Some factor cannot move, has a use of its own in which it meets fewer activations than it has numbers, or is less
    than half of what its node would draw.
    """
    products = [(leaf, use) for (leaf, _), use in uses.items() if isinstance(leaf, tuple)]
    bad = {leaf for (leaf, _), use in uses.items() if isinstance(leaf, int) and not use.is_met}
    used: Counter[int] = Counter()
    for (leaf, _), use in uses.items():
        if isinstance(leaf, int):
            used[leaf] += use.extent
            continue
        for (index, _), positions in use.positions.items():
            used[index] += use.rounds * positions.size

    def is_refused(arrays: Arrays, use: Use) -> bool:
        moves = use.takes_directions and len(use.movable) == len(arrays)
        return not moves or any(index in bad or sizes[index] > 2 * used[index] for index, _ in arrays)

    return frozenset(leaf for leaf, use in products if is_refused(leaf, use))


def factors(uses: Mapping[Any, Use]) -> frozenset[int]:
    """The posterior nodes of all that is in a product."""
    return frozenset(index for leaf, _ in uses if isinstance(leaf, tuple) for index, _ in leaf)


def _arrays(view: View) -> Arrays:
    return view.leaf if isinstance(view.leaf, tuple) else ((view.leaf, view.part),)


def _signs(view: View) -> dict[Any, Any]:
    """Of each factor what varies along the axes along which it does."""
    if all(isinstance(axis, tuple) for axis in view.signs) and view.signs:
        return dict(view.signs)
    extent = np.broadcast_shapes((1,) * len(view.shape), *[sign.shape for sign in view.signs.values()])
    return {_arrays(view)[0]: np.zeros(extent, int)}
