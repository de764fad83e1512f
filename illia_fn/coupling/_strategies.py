"""The strategy of lowest variance that is exact for all uses of a weight, and why."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from illia_fn.coupling._context import Use
from illia_fn.coupling._layout import UNKNOWN
from illia_fn.coupling._values import Strategy
from illia_fn.posteriors._kernels import Kernel

REACHES_ONE = "an element reaches one output of an example"
SMALL = "a draw is no larger than the activations it meets, element-wise"

Coupling = Literal["shared", "decorrelated", "flipout", "local_reparam"]


class Decision(NamedTuple):
    """The last attributes of a `LeafPlan`."""

    strategy: Strategy
    why: str
    axes: tuple[int, ...] = ()
    signs: int = 0
    is_factor: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether the leaf has no noise that signs along axes, or a drawn output, could be for."""
        return self.signs > 0 or self.strategy in ("shared", "per_example")


def strategy_of(uses: Sequence[Use], size: int, coupling: Coupling, of_wholes: Mapping[int, Decision]) -> Decision:
    """Of a weight of independent numbers, or of several that are concatenated."""
    if not uses:
        return Decision("shared", "not used")
    if any(use.part for use in uses):
        return _of_parts(uses, of_wholes)
    reads = _most_reads(uses)
    if coupling != "flipout" and all(use.draws_output for use in uses):
        if reads <= 1:
            return Decision("local_reparam", REACHES_ONE)
        if coupling == "local_reparam" and reads < math.inf:  # else not even the variance of an output would be right
            return Decision("local_reparam", f"APPROXIMATE: an element reaches {reads:g} outputs of an example")
    if all(size <= max(1, use.meets) for use in uses):
        return Decision("per_example", SMALL)
    axes = frozenset.intersection(*[use.movable for use in uses]) & frozenset().union(*[use.varying for use in uses])
    if not axes:
        return together(uses)
    names = ", ".join(map(str, sorted(axes)))
    return Decision("flipout", f"linear in every use; signs along axes {names}", tuple(sorted(axes)))


def together(uses: Sequence[Use]) -> Decision:
    """One sign for all numbers, whatever they have to do with each other, wherever they are used linearly."""
    if not uses:
        return Decision("shared", "not used")
    bad = hindrance(uses)
    return Decision("shared", bad) if bad else Decision("flipout", "linear in every use; one sign for all of it", (), 1)


def of_matrix(uses: Sequence[Use], number: int, node: Kernel, coupling: Coupling) -> Decision:
    """Where a matrix is used as one, outputs drawn, or signs along the shorter axis of its noise; else one sign."""
    decision, count = together(uses), min(node.matrix_shape)
    is_matrix = all(number in use.separable for use in uses if use.is_linear)
    if not decision.signs or not is_matrix:
        return decision
    only, axis = uses[0], uses[0].separable.get(number)
    # outputs beside its own axes, as in a batch or another round of a loop, would be drawn apart from each other
    if coupling != "flipout" and len(uses) == only.rounds == 1 and axis is not None and only.is_row and only.reads <= 1:
        count = node.matrix_shape[1 - axis]
        return Decision("local_reparam", REACHES_ONE, (1 - axis,), count)
    if count == 1:
        return decision
    name = ("rows", "columns")[node.signed_axis]
    return Decision("flipout", f"linear in every use; signs along the {name} of its noise", (), count)


def of_any(uses: Sequence[Use], size: int, family: str) -> Decision:
    """Of a family of which nothing is known: a draw for each example, or one for all."""
    if uses and all(use.is_met for use in uses) and size <= sum(use.extent for use in uses):
        return Decision("per_example", SMALL, is_factor=True)
    return Decision("shared", f"a {family} posterior, whose draws are not linear in their noise")


def hindrance(uses: Sequence[Use]) -> str | None:
    """Why an example may not have noise of its own along directions that all examples share; None if it may."""
    first = next((use for use in uses if not use.takes_directions), None)
    if first is None:
        return None
    if first.meets:
        return f"{first.primitive}: element-wise, on activations of size {first.meets}, fewer than its own"
    return f"{first.primitive}: not linear in it, or no rule for it"


def _of_parts(uses: Sequence[Use], of_wholes: Mapping[int, Decision]) -> Decision:
    """That of the weight which this one is a part of; if it is used elsewhere, too, all that it meets is to tell."""
    whole, *others = {use.part.whole if use.part else None for use in uses}
    pairs = [pair for pair in itertools.combinations(uses, 2) if pair[0].part != pair[1].part]
    is_apart = not others and not any(itertools.starmap(_overlap, pairs))
    if whole is None or not is_apart or not all(use.part and use.part.stands_once for use in uses):
        return Decision("flipout", "concatenated, and used elsewhere as well; one sign for all of it", (), 1)
    of_whole = of_wholes[whole]
    return of_whole._replace(why=f"concatenated, as one weight: {of_whole.why}", axes=())


def _most_reads(uses: Sequence[Use]) -> float:
    """How many outputs an element reaches at most, over all uses that may share elements."""
    return max(sum(other.reads for other in uses if _overlap(use, other)) for use in uses)


def _overlap(use: Use, other: Use) -> bool:
    return all(_meet(use.positions[axis].ravel(), other.positions[axis].ravel()) for axis in use.positions)


def _meet(some: np.ndarray, others: np.ndarray) -> bool:
    return UNKNOWN in some or UNKNOWN in others or bool(np.isin(some, others).any())
