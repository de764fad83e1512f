"""Which noise each leaf gets: the uses of every leaf, and from them a strategy and the reason for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32
from illia_fn.coupling._context import Context, Use, arrays, concrete
from illia_fn.coupling._interpreter import evaluate
from illia_fn.coupling._layout import UNKNOWN
from illia_fn.coupling._model import Model
from illia_fn.coupling._noise import Noise, along, weight
from illia_fn.coupling._values import PerExample, Site, Strategy, View
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior

Coupling = Literal["shared", "decorrelated", "flipout", "local_reparam"]


class LeafPlan(NamedTuple):
    """What becomes of the noise of one leaf.

    Attributes:
        path: the path of the leaf in q.
        shape: its shape.
        strategy: how its noise is drawn.
        why: the reason.
        axes: under flipout, the axes of the leaf that carry signs.
    """

    path: str
    shape: tuple[int, ...]
    strategy: Strategy
    why: str
    axes: tuple[int, ...] = ()


class Plan(NamedTuple):
    """The plan of every posterior leaf, and the shapes of the noise that one example needs."""

    leaves: list[LeafPlan]
    noise: Noise


def make_plan(model: Model, coupling: Coupling) -> Plan:
    """Abstract passes through the model: what its weights are used for, then which outputs are to be drawn."""
    settled: dict[int, LeafPlan] = {}
    while True:  # what is not linear is no view any more, and what it meets may be used in another way
        leaves = _leaf_plans(model, coupling, settled)
        not_linear = {index: leaf for index, leaf in enumerate(leaves) if leaf.strategy in ("shared", "per_example")}
        if not_linear.keys() == settled.keys():
            break
        settled = not_linear
    noise = _noise_of_leaves(model.nodes, leaves)
    sites: dict[Site, jax.ShapeDtypeStruct] = {}
    _abstractly(Context(sites=sites), model, lambda noise: weights(model.nodes, leaves, noise), noise)
    return Plan(leaves, noise._replace(sites=sites))


def weights(nodes: Sequence[Posterior], leaves: Sequence[LeafPlan], noise: Noise) -> list[Any]:
    """The value of each leaf in the model of one example."""
    return [
        weight(node, index, leaf.strategy, noise) for index, (node, leaf) in enumerate(zip(nodes, leaves, strict=True))
    ]


def outputs(ctx: Context, model: Model, weights: Sequence[Any], x: Sequence[jax.Array]) -> list[jax.Array]:
    """The outputs for one example: a batch of one."""
    values = evaluate(ctx, model.jaxpr.jaxpr, model.jaxpr.consts, [*weights, *map(PerExample, x)])
    known = [
        concrete(ctx, [value], "output", meets=shape.size)[0]
        for value, shape in zip(values, model.jaxpr.out_avals, strict=True)
    ]
    return arrays(known)


def _abstractly(ctx: Context, model: Model, weights: Callable[..., list[Any]], *args: Any) -> None:
    """Evaluates the outputs without data, for what that leaves in the context."""
    x = model.jaxpr.in_avals[len(model.nodes) :]
    jax.eval_shape(lambda args, x: outputs(ctx, model, weights(*args), x), args, x)


def _leaf_plans(model: Model, coupling: Coupling, settled: Mapping[int, LeafPlan]) -> list[LeafPlan]:
    """The plan of every leaf, from its uses beside those leaves that are settled."""
    uses: dict[tuple[int, Site], Use] = {}

    def probe(index: int, node: Posterior) -> Any:
        if index not in settled:
            return _probe(index, node)
        return node.mean if settled[index].strategy == "shared" else PerExample(node.mean)

    _abstractly(Context(sites={}, uses=uses), model, lambda: [probe(*pair) for pair in enumerate(model.nodes)])
    leaves = []
    for index, (path, node) in enumerate(zip(model.paths, model.nodes, strict=True)):
        mine = [use for (leaf, _), use in uses.items() if leaf == index]
        leaves.append(settled.get(index) or LeafPlan(path, jnp.shape(node.mean), *_strategy(node, mine, coupling)))
    return leaves


def _probe(index: int, node: Posterior) -> Any:
    """A view without a strategy, whose signs are positions; only of what may have a strategy."""
    if type(node) is not Gaussian or not node.loc.size:
        return node.mean
    mean = at_least_float32(node.loc)
    shape = mean.shape
    positions = {axis: along(np.arange(size), axis, len(shape)) for axis, size in enumerate(shape)}
    return View(index, None, shape, node.loc.dtype, mean, mean, positions)


def _noise_of_leaves(nodes: Sequence[Posterior], leaves: Sequence[LeafPlan]) -> Noise:
    noise = Noise({}, {}, {}, {})
    for index, (node, leaf) in enumerate(zip(nodes, leaves, strict=True)):
        like = jax.ShapeDtypeStruct(node.noise_shape, at_least_float32(node.mean).dtype)
        if leaf.strategy == "per_example":
            noise.examples[index] = like
        elif leaf.strategy != "local_reparam":
            noise.leaves[index] = like
        if leaf.strategy == "flipout":
            noise.signs[index] = {axis: jax.ShapeDtypeStruct((leaf.shape[axis],), jnp.float32) for axis in leaf.axes}
    return noise


def _strategy(
    node: Posterior, uses: Sequence[Use], coupling: Coupling
) -> tuple[Strategy, str] | tuple[Strategy, str, tuple[int, ...]]:
    """The strategy of lowest variance that is exact for all uses of a leaf, and why."""
    if coupling == "shared":
        return "shared", "as asked"
    if type(node) is not Gaussian:
        return "shared", f"a {type(node).__name__} posterior, not a diagonal Gaussian"
    if not uses:
        return "shared", "not used"
    reads, size = _most_reads(uses), node.loc.size
    if coupling != "flipout" and all(use.draws_output for use in uses):
        if reads <= 1:
            return "local_reparam", "an element reaches one output of an example"
        if coupling == "local_reparam" and reads < math.inf:
            return "local_reparam", f"APPROXIMATE: an element reaches {reads:g} outputs of an example"
    axes = frozenset.intersection(*[use.movable for use in uses]) & frozenset().union(*[use.varying for use in uses])
    if axes:
        return (
            "flipout",
            f"linear in every use; signs along axes {', '.join(map(str, sorted(axes)))}",
            tuple(sorted(axes)),
        )
    if all(size <= max(1, use.meets) for use in uses):
        return "per_example", "a draw is no larger than the activations it meets, element-wise"
    first = next((use for use in uses if size > use.meets and not use.movable), None)
    if first is None:
        return "shared", "no axis carries signs in every use"
    if first.meets:
        return "shared", f"{first.primitive}: element-wise, on activations of size {first.meets}, fewer than its own"
    return "shared", f"{first.primitive}: not linear in it, or no rule for it"


def _most_reads(uses: Sequence[Use]) -> float:
    """How many outputs an element reaches at most, over all uses that may share elements."""
    return max(sum(other.reads for other in uses if _overlap(use, other)) for use in uses)


def _overlap(use: Use, other: Use) -> bool:
    return all(_meet(use.positions[axis].ravel(), other.positions[axis].ravel()) for axis in use.positions)


def _meet(some: np.ndarray, others: np.ndarray) -> bool:
    return UNKNOWN in some or UNKNOWN in others or bool(np.isin(some, others).any())
