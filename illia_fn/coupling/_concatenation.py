"""Weights that are concatenated, or stacked, and from there on are one weight.

The signs of flipout are free to choose as long as they are the same wherever an element is used: so the whole has signs
of its own, along its own axes, and its parts have none. That holds for parts that are used nowhere else, and whose
elements stand in the whole once.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn.coupling._layout import LAYOUT, UNKNOWN
from illia_fn.coupling._values import Directions, View, along


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
        if is_part(value)
    )
    whole = Concatenation(-1 - len({other.index for other in others}), output.shape, axis, parts)
    whole = whole._replace(index=next((other.index for other in others if whole.is_that_of(other)), whole.index))
    rank = len(output.shape)
    positions = {axis: along(np.arange(size), axis, rank) for axis, size in enumerate(output.shape)}
    return whole, concatenated(whole.index, operands, axis, output, positions)


def is_part(value: Any) -> bool:
    """Whether it is a weight with noise for which the whole may have signs."""
    return isinstance(value, View) and value.dev is not None


def expanded(value: Any, axis: int) -> Any:
    """With a new axis of size 1."""
    if not isinstance(value, View):
        return jnp.expand_dims(value, axis)
    shape = (*value.shape[:axis], 1, *value.shape[axis:])
    like = jax.ShapeDtypeStruct(shape, value.dtype)
    return value.laid_out(lambda x, full: LAYOUT["reshape"](x, full, new_sizes=shape), [like])[0]


def concatenated(index: int | None, operands: Sequence[Any], axis: int, output: Any, signs: dict[int, Any]) -> View:
    """The view of the whole; what is no weight has no noise in it, and without a number there are only directions."""
    views = [value for value in operands if isinstance(value, View)]
    parts = [view for view in views if is_part(view)]
    dtype = jnp.result_type(*[view.mean.dtype for view in views])

    def joined(of: Callable[[Any], jax.Array | None], *axes: int) -> jax.Array:
        """What `of` makes of each operand, or zeros if that is None, with leading axes."""
        arrays = [(of(value), (*axes, *jnp.shape(value))) for value in operands]
        dense = [jnp.zeros(shape) if x is None else jnp.broadcast_to(x, shape) for x, shape in arrays]
        return jnp.concatenate([x.astype(dtype) for x in dense], axis + len(axes))

    def moves(number: int) -> Directions:
        its = [view.directions[number] for view in views if number in view.directions]
        coefficients = its[0].coefficients

        def of(value: Any) -> jax.Array | None:
            known = value.directions.get(number) if isinstance(value, View) else None
            return known and known.dense(value.shape)

        return Directions((joined(of, len(coefficients)),), coefficients)

    first = (parts or views)[0]
    return View(
        leaf=first.leaf if index is None else index,
        strategy=first.strategy,
        shape=output.shape,
        dtype=output.dtype,
        mean=joined(lambda value: value.mean if isinstance(value, View) else jnp.asarray(value)),
        dev=joined(lambda value: value.dev if isinstance(value, View) else None) if parts else None,
        signs=signs,
        copies=max(view.copies for view in parts or views),
        directions={number: moves(number) for number in sorted({j for view in views for j in view.directions})},
    )
