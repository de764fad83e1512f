"""Where an evaluation of the model is, and what it is for: to find the uses of weights, sites of noise, or outputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from illia_fn._base.sharding import moved_like
from illia_fn.coupling._concatenation import Concatenation
from illia_fn.coupling._moments import Moments, draw
from illia_fn.coupling._values import Leaf, PerExample, Site, View


class Place(NamedTuple):
    """A weight within a concatenation: the number of the whole, where it begins, whether each element stands once."""

    whole: int
    start: int
    stands_once: bool


@dataclass(frozen=True)
class Use:
    """What one equation does with a weight.

    Attributes:
        primitive: the name of the operation.
        reads: how many outputs an element of the leaf reaches at most; infinite where one of them may have it twice.
        positions: for every axis of the leaf, the positions along it that are used.
        movable: the axes of the leaf whose sign can be moved in front of the operation or behind it.
        draws_output: whether local reparameterisation applies.
        meets: for an element-wise operation on data, the size of its output; else 0.
        part: where it stands if it is concatenated with other weights.
        copies: how many times an element of the leaf stands in the weight that is met.
        is_linear: whether a rule of LINEAR applies.
        is_small: whether the weight is no larger than the data that it meets, so that each example may have its own.
        joint: the numbers of the directions in the weight.
        rounds: how often it is met in a loop, as far as that is known.
        separable: those of them of which the operation takes one factor after the other, the first or the second of
            them first: see `_linear`.
        is_row: whether all axes of the output are axes of the weight that only go to it, as of one row of data that
            meets a matrix.
    """

    primitive: str
    reads: float
    positions: Mapping[Any, Any]
    movable: frozenset[int]
    draws_output: bool
    meets: int
    part: Place | None = None
    copies: float = 1.0
    is_linear: bool = False
    is_small: bool = False
    joint: frozenset[int] = frozenset()
    separable: Mapping[int, int] = field(default_factory=dict)
    is_row: bool = False
    rounds: int = 1

    @property
    def varying(self) -> frozenset[Any]:
        """The axes of the leaf along which the weight varies here."""
        return frozenset(axis for axis, positions in self.positions.items() if positions.size > 1)

    @property
    def is_met(self) -> bool:
        """Whether it meets as many activations as it has numbers."""
        return self.is_small and self.meets > 0

    @property
    def extent(self) -> int:
        """How many numbers of the leaf are used at most."""
        return self.rounds * math.prod(np.broadcast_shapes(*[positions.shape for positions in self.positions.values()]))

    @property
    def takes_directions(self) -> bool:
        """Whether an example may have any noise of its own along directions that are the same for all examples."""
        return self.is_linear or self.is_small


@dataclass(frozen=True)
class Context:
    """Where the evaluation is, and what it is for.

    Attributes:
        path: the place in the jaxpr.
        noise: the standard normal noise of each site.
        sites: while planning, filled with the shapes of the noise; zeros then take its place.
        uses: while probing, filled with the uses of every leaf, by their place.
        wholes: the weights that are concatenated, by their place; filled while probing.
        signs: the signs of these weights, by their number and their axes.
        rounds: how many times this jaxpr runs, as far as that is known.
        fenced: whether to keep XLA from fusing what it gets wrong: see `_fenced`.
        refused: while probing, the products that are none of `_factors`.
    """

    path: Site = ()
    noise: Mapping[Site, jax.Array] = field(default_factory=dict)
    sites: dict[Site, jax.ShapeDtypeStruct] | None = None
    uses: dict[tuple[Leaf, Site], Use] | None = None
    wholes: dict[Site, Concatenation] = field(default_factory=dict)
    signs: Mapping[int, Mapping[int, jax.Array]] = field(default_factory=dict)
    rounds: int = 1
    fenced: bool = False
    refused: frozenset[tuple[Site, ...]] = frozenset()

    def at(self, index: int) -> "Context":
        return replace(self, path=(*self.path, index))

    def draw(self, value: Moments) -> PerExample:
        if self.sites is None:
            return draw(value, moved_like(self.noise[value.site], value.mean))
        self.sites[value.site] = jax.ShapeDtypeStruct(value.mean.shape, value.variances[0].unit.dtype)
        return PerExample(value.mean)

    def note(self, position: int, view: View, primitive: str, meets: int = 0, **use: Any) -> None:
        """A use of a weight, which only a probe may find without a strategy for it."""
        assert self.uses is not None, f"no strategy for a weight in {primitive}"
        use |= {"copies": view.copies, "positions": view.signs, "joint": frozenset(view.directions)}
        if math.prod(view.shape) <= max(1, meets):
            use |= {"is_small": True, "movable": frozenset(view.signs)}
        use |= {"meets": meets * self.rounds, "rounds": self.rounds}
        self.uses[view.leaf, (*self.path, position)] = Use(primitive, **use)


def concrete(ctx: Context, values: Sequence[Any], primitive: str = "", meets: int = 0) -> list[Any]:
    """Arrays, or arrays per example, in the place of all other values."""

    def one(position: int, value: Any) -> Any:
        if isinstance(value, View) and ctx.uses is None:
            return PerExample(value.of_example())
        if isinstance(value, View):
            none = frozenset()
            ctx.note(position, value, primitive, reads=value.copies, movable=none, draws_output=False, meets=meets)
            return value.dense(value.mean)
        return ctx.draw(value) if isinstance(value, Moments) else value

    return [one(position, value) for position, value in enumerate(values)]


def arrays(values: Sequence[Any]) -> list[jax.Array]:
    """The arrays in concrete values."""
    return [value.value if isinstance(value, PerExample) else value for value in values]
