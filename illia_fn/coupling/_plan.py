"""Which noise each leaf gets: the uses of every leaf, and from them a strategy and the reason for it."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32
from illia_fn.coupling._concatenation import Concatenation
from illia_fn.coupling._context import Context, Use, arrays, concrete
from illia_fn.coupling._interpreter import evaluate
from illia_fn.coupling._layout import UNKNOWN
from illia_fn.coupling._model import Model
from illia_fn.coupling._noise import Noise, weight
from illia_fn.coupling._values import PerExample, Site, Strategy, View, along
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior

Coupling = Literal["shared", "decorrelated", "flipout", "local_reparam"]


class LeafPlan(NamedTuple):
    """What becomes of the noise of one leaf, or of one posterior over several.

    Attributes:
        path: the path of the leaf in q, or the paths of the leaves.
        shape: its shape, or theirs.
        strategy: how its noise is drawn.
        why: the reason.
        axes: under flipout, the axes of the leaf that carry signs.
    """

    path: str
    shape: tuple[Any, ...]
    strategy: Strategy
    why: str
    axes: tuple[int, ...] = ()


class Plan(NamedTuple):
    """The plan of every posterior leaf, which of them are concatenated, and the noise that one example needs."""

    leaves: list[LeafPlan]
    wholes: dict[Site, Concatenation]
    noise: Noise

    def context(self, noise: Noise, **options: Any) -> Context:
        """For an evaluation with noise of one example."""
        return Context(noise=noise.sites, wholes=self.wholes, signs=noise.signs, **options)


Decision = tuple[Strategy, str, tuple[int, ...]]  # the last three attributes of a `LeafPlan`


def make_plan(model: Model, coupling: Coupling) -> Plan:
    """Abstract passes through the model: what its weights are used for, then which outputs are to be drawn."""
    settled: dict[int, LeafPlan] = {}
    while True:  # what is not linear is no view any more, and what it meets may be used in another way
        leaves, wholes, of_wholes = _leaf_plans(model, coupling, settled)
        not_linear = {index: leaf for index, leaf in enumerate(leaves) if leaf.strategy in ("shared", "per_example")}
        if not_linear.keys() == settled.keys():
            break
        settled = not_linear
    noise = _noise_of_leaves(model.nodes, leaves)
    for whole in wholes.values():
        signs = {axis: jax.ShapeDtypeStruct((whole.shape[axis],), jnp.float32) for axis in of_wholes[whole.index][2]}
        noise.signs.update({whole.index: signs} if signs else {})
    plan, sites = Plan(leaves, wholes, noise), {}
    _abstractly(model, lambda noise: (plan.context(noise, sites=sites), weights(model.nodes, leaves, noise)), noise)
    return plan._replace(noise=noise._replace(sites=sites))


def weights(nodes: Sequence[Posterior], leaves: Sequence[LeafPlan], noise: Noise) -> list[Any]:
    """The value of each array of weights in the model of one example."""
    plans = enumerate(zip(nodes, leaves, strict=True))
    return [value for index, (node, leaf) in plans for value in weight(node, index, leaf.strategy, noise)]


def outputs(ctx: Context, model: Model, weights: Sequence[Any], x: Sequence[jax.Array]) -> list[jax.Array]:
    """The outputs for one example: a batch of one."""
    values = evaluate(ctx, model.jaxpr.jaxpr, model.jaxpr.consts, [*weights, *map(PerExample, x)])
    known = [
        concrete(ctx, [value], "output", meets=shape.size)[0]
        for value, shape in zip(values, model.jaxpr.out_avals, strict=True)
    ]
    return arrays(known)


def _abstractly(model: Model, start: Callable[..., tuple[Context, list[Any]]], *args: Any) -> None:
    """Evaluates the outputs without data, for what that leaves in the context."""
    x = model.jaxpr.in_avals[sum(len(jax.tree.leaves(node.like)) for node in model.nodes) :]

    def run(args: Any, x: Sequence[jax.Array]) -> list[jax.Array]:
        ctx, weights = start(*args)
        return outputs(ctx, model, weights, x)

    jax.eval_shape(run, args, x)


def _leaf_plans(
    model: Model, coupling: Coupling, settled: Mapping[int, LeafPlan]
) -> tuple[list[LeafPlan], dict[Site, Concatenation], dict[int, Decision]]:
    """The plan of every leaf, and of what is concatenated, from their uses beside those leaves that are settled."""
    uses: dict[tuple[int, Site], Use] = {}
    wholes: dict[Site, Concatenation] = {}

    def probe(index: int, node: Posterior) -> list[Any]:
        if index not in settled:
            return _probe(index, node)
        means = jax.tree.leaves(node.like)
        return means if settled[index].strategy == "shared" else list(map(PerExample, means))

    def probes() -> tuple[Context, list[Any]]:
        values = [value for pair in enumerate(model.nodes) for value in probe(*pair)]
        return Context(sites={}, uses=uses, wholes=wholes), values

    _abstractly(model, probes)
    used = {leaf for leaf, _ in uses}

    def of(index: int) -> list[Use]:
        mine = [use for (leaf, _), use in uses.items() if leaf == index]
        return [use for use in mine if not use.part or use.part[0] in used]

    of_wholes: dict[int, Decision] = {}
    for index, shape in sorted({(whole.index, whole.shape) for whole in wholes.values()}):  # a whole before its parts
        of_wholes[index] = _strategy(of(index), math.prod(shape), coupling, of_wholes)
    leaves = []
    for index, (path, node) in enumerate(zip(model.paths, model.nodes, strict=True)):
        decision = _of_node(node, of(index), coupling, of_wholes)
        leaves.append(settled.get(index) or LeafPlan(path, shape_of(node), *decision))
    return leaves, wholes, of_wholes


def shape_of(node: Posterior) -> tuple[Any, ...]:
    """The shape of its array, or the shapes of its arrays."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(node.like)]
    return shapes[0] if jax.tree.structure(node.like) == jax.tree.structure(0) else tuple(shapes)


def _probe(index: int, node: Posterior) -> list[Any]:
    """A view without a strategy, whose signs are positions; only of what may have a strategy."""
    if type(node) is not Gaussian or not node.loc.size:
        return jax.tree.leaves(node.like)
    mean = at_least_float32(node.loc)
    shape = mean.shape
    positions = {axis: along(np.arange(size), axis, len(shape)) for axis, size in enumerate(shape)}
    return [View(index, None, shape, node.loc.dtype, mean, mean, positions)]


def _noise_of_leaves(nodes: Sequence[Posterior], leaves: Sequence[LeafPlan]) -> Noise:
    noise = Noise({}, {}, {}, {})
    for index, (node, leaf) in enumerate(zip(nodes, leaves, strict=True)):
        dtype = jnp.result_type(*map(at_least_float32, jax.tree.leaves(node.like)))
        like = jax.ShapeDtypeStruct(node.noise_shape, dtype)
        if leaf.strategy == "per_example":
            noise.examples[index] = like
        elif leaf.strategy != "local_reparam":
            noise.leaves[index] = like
        if leaf.strategy == "flipout":
            noise.signs[index] = {axis: jax.ShapeDtypeStruct((leaf.shape[axis],), jnp.float32) for axis in leaf.axes}
    return noise


def _of_node(node: Posterior, uses: Sequence[Use], coupling: Coupling, of_wholes: Mapping[int, Decision]) -> Decision:
    if coupling == "shared":
        return "shared", "as asked", ()
    if type(node) is not Gaussian:
        return "shared", f"a {type(node).__name__} posterior, not a diagonal Gaussian", ()
    return _strategy(uses, node.loc.size, coupling, of_wholes)


def _strategy(uses: Sequence[Use], size: int, coupling: Coupling, of_wholes: Mapping[int, Decision]) -> Decision:
    """The strategy of lowest variance that is exact for all uses of a weight, and why."""
    if not uses:
        return "shared", "not used", ()
    if any(use.part for use in uses):
        return _of_parts(uses, of_wholes)
    reads = _most_reads(uses)
    if coupling != "flipout" and all(use.draws_output for use in uses):
        if reads <= 1:
            return "local_reparam", "an element reaches one output of an example", ()
        if coupling == "local_reparam" and reads < math.inf:
            return "local_reparam", f"APPROXIMATE: an element reaches {reads:g} outputs of an example", ()
    axes = frozenset.intersection(*[use.movable for use in uses]) & frozenset().union(*[use.varying for use in uses])
    if axes:
        why = f"linear in every use; signs along axes {', '.join(map(str, sorted(axes)))}"
        return "flipout", why, tuple(sorted(axes))
    if all(size <= max(1, use.meets) for use in uses):
        return "per_example", "a draw is no larger than the activations it meets, element-wise", ()
    first = next((use for use in uses if size > use.meets and not use.movable), None)
    if first is None:
        return "shared", "no axis carries signs in every use", ()
    if first.meets:
        return (
            "shared",
            f"{first.primitive}: element-wise, on activations of size {first.meets}, fewer than its own",
            (),
        )
    return "shared", f"{first.primitive}: not linear in it, or no rule for it", ()


def _of_parts(uses: Sequence[Use], of_wholes: Mapping[int, Decision]) -> Decision:
    """That of the weight which this one is a part of."""
    whole, *others = {use.part[0] if use.part else None for use in uses}
    pairs = [pair for pair in itertools.combinations(uses, 2) if pair[0].part != pair[1].part]
    is_apart = not others and not any(itertools.starmap(_overlap, pairs))
    if whole is None or not is_apart or not all(use.stands_once for use in uses):
        return "shared", "concatenated, and used elsewhere as well", ()
    strategy, why, _ = of_wholes[whole]
    return strategy, f"concatenated, as one weight: {why}", ()


def _most_reads(uses: Sequence[Use]) -> float:
    """How many outputs an element reaches at most, over all uses that may share elements."""
    return max(sum(other.reads for other in uses if _overlap(use, other)) for use in uses)


def _overlap(use: Use, other: Use) -> bool:
    return all(_meet(use.positions[axis].ravel(), other.positions[axis].ravel()) for axis in use.positions)


def _meet(some: np.ndarray, others: np.ndarray) -> bool:
    return UNKNOWN in some or UNKNOWN in others or bool(np.isin(some, others).any())
