"""Weights that are concatenated, or stacked, and from there on are one weight.

The signs of flipout are free to choose as long as they are the same wherever an element is used: so the whole has signs
of its own, along its own axes, and its parts have none. That holds for parts that are used nowhere else, and whose
elements stand in the whole once.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn.coupling._layout import LAYOUT, UNKNOWN
from illia_fn.coupling._values import View, along


class Part(NamedTuple):
    """A part of a concatenated weight: the leaf (or another whole) that it is of, its shape, and where it begins."""

    leaf: int
    shape: tuple[int, ...]
    start: int
    positions: dict[int, np.ndarray]

    @property
    def stands_once(self) -> bool:
        """Whether no element stands in the part twice, or at another place in another round of a loop."""
        known = all(UNKNOWN not in positions or positions.size == 1 for positions in self.positions.values())
        box = math.prod(len(np.unique(positions)) for positions in self.positions.values())
        return known and box == math.prod(self.shape)


class Concatenation(NamedTuple):
    """A concatenated weight: its number, which counts down from -1, its shape, axis and parts."""

    index: int
    shape: tuple[int, ...]
    axis: int
    parts: tuple[Part, ...]

    def is_that_of(self, other: "Concatenation") -> bool:
        """Whether the same elements are in the same places."""

        def places(whole: Concatenation) -> Any:
            parts = [(*part[:3], {axis: x.tolist() for axis, x in part.positions.items()}) for part in whole.parts]
            return whole.shape, whole.axis, parts

        return places(self) == places(other)


def probed(
    others: Collection[Concatenation], operands: Sequence[Any], axis: int, output: Any
) -> tuple[Concatenation, View]:
    """The concatenated weight, without a strategy; of the number of another one with the same elements."""
    starts = np.cumsum([0, *(jnp.shape(value)[axis] for value in operands)])
    parts = tuple(
        Part(value.leaf, value.shape, int(start), dict(value.signs))
        for value, start in zip(operands, starts, strict=False)
        if isinstance(value, View)
    )
    whole = Concatenation(-1 - len({other.index for other in others}), output.shape, axis, parts)
    whole = whole._replace(index=next((other.index for other in others if whole.is_that_of(other)), whole.index))
    rank = len(output.shape)
    positions = {axis: along(np.arange(size), axis, rank) for axis, size in enumerate(output.shape)}
    return whole, concatenated(whole.index, operands, axis, output, positions)


def expanded(value: Any, axis: int) -> Any:
    """With a new axis of size 1."""
    if not isinstance(value, View):
        return jnp.expand_dims(value, axis)
    shape = (*value.shape[:axis], 1, *value.shape[axis:])
    like = jax.ShapeDtypeStruct(shape, value.dtype)
    return value.laid_out(lambda x, full: LAYOUT["reshape"](x, full, new_sizes=shape), [like])[0]


def concatenated(index: int, operands: Sequence[Any], axis: int, output: Any, signs: dict[int, Any]) -> View:
    """The view of the whole; what is no weight has no noise in it."""
    views = [value for value in operands if isinstance(value, View)]
    dtype = jnp.result_type(*[view.mean.dtype for view in views])

    def dense(value: Any) -> tuple[jax.Array, jax.Array]:
        if isinstance(value, View):
            return value.dense(value.mean, dtype), value.dense(value.dev, dtype)
        return jnp.asarray(value, dtype), jnp.zeros(jnp.shape(value), dtype)

    means, devs = zip(*map(dense, operands), strict=True)
    mean, dev = (jnp.concatenate(arrays, axis) for arrays in (means, devs))
    copies = max(view.copies for view in views)
    return View(index, views[0].strategy, output.shape, output.dtype, mean, dev, signs, copies)
