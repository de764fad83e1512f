"""Which noise each leaf gets: the uses of every leaf, and from them a strategy and the reason for it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32
from illia_fn.coupling._concatenation import Concatenation
from illia_fn.coupling._context import Context, Use, arrays, concrete
from illia_fn.coupling._factors import as_factor, factors, probe_factor, refused
from illia_fn.coupling._interpreter import evaluate
from illia_fn.coupling._joint import Factor, drawn_together, is_linear_in_noise, moved, probe_together
from illia_fn.coupling._model import Model
from illia_fn.coupling._noise import Noise, weight
from illia_fn.coupling._strategies import Coupling, Decision, hindrance, of_any, of_matrix, strategy_of, together
from illia_fn.coupling._values import Directions, Leaf, PerExample, Site, Strategy, View, along
from illia_fn.posteriors._kernels import Kernel
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior


class LeafPlan(NamedTuple):
    """What becomes of the noise of one leaf, or of one posterior over several.

    Attributes:
        path: the path of the leaf in q, or the paths of the leaves.
        shape: its shape, or theirs.
        strategy: how its noise is drawn.
        why: the reason.
        axes: under flipout, the axes of the leaf that carry signs; of a matrix whose outputs are drawn, that of them.
        signs: how many signs, or normal numbers, an example has for all that the posterior stands for; 0 with signs
            along axes.
        is_factor: whether it is met in a product with other weights only, of which it moves to the data or the output.
    """

    path: str
    shape: tuple[Any, ...]
    strategy: Strategy
    why: str
    axes: tuple[int, ...] = ()
    signs: int = 0
    is_factor: bool = False


class Plan(NamedTuple):
    """What every posterior leaf gets.

    Attributes:
        leaves: their plans.
        wholes: which of them are concatenated.
        hindrances: for the factors of which an example can have no noise of its own, what is in the way.
        noise: the shapes of the noise that one example needs.
    """

    leaves: list[LeafPlan]
    wholes: dict[Site, Concatenation]
    hindrances: dict[int, str]
    noise: Noise

    def context(self, noise: Noise, **options: Any) -> Context:
        """For an evaluation with noise of one example."""
        return Context(noise=noise.sites, wholes=self.wholes, signs=noise.signs, **options)


def make_plan(model: Model, coupling: Coupling) -> Plan:
    """Abstract passes through the model: what its weights are used for, then which outputs are to be drawn."""
    found = _Decisions({}, {}, frozenset())
    while True:  # what has no signs of its own is another view, or none, and what it meets may be used in another way
        last, (found, of_wholes, wholes) = found, _decisions(model, coupling, found)
        if found.given == last.given:
            break
    leaves = [
        LeafPlan(path, shape_of(node), *found.leaves[index])
        for index, (path, node) in enumerate(zip(model.names, model.nodes, strict=True))
    ]
    plan = Plan(leaves, wholes, found.hindrances, _noise(model, found))
    for whole in wholes.values():
        signs = {axis: jax.ShapeDtypeStruct((whole.shape[axis],), jnp.float32) for axis in of_wholes[whole.index].axes}
        plan.noise.signs.update({whole.index: signs} if signs else {})
    sites: dict[Site, Any] = {}

    def start(noise: Noise) -> tuple[Context, list[Any]]:
        return plan.context(noise, sites=sites), weights(model.nodes, model.factors, plan, noise)

    _abstractly(model, start, plan.noise)
    for factor in model.factors:
        what = factor.explain(found.hindrances.get(factor.number))
        for index in factor.nodes:
            leaves[index] = leaves[index]._replace(why=f"{leaves[index].why}; {what}")
    return plan._replace(noise=plan.noise._replace(sites=sites))


def weights(nodes: Sequence[Posterior], factors: Sequence[Factor], plan: Plan, noise: Noise) -> list[Any]:
    """The value of each array of weights in the model of one example."""
    values = [
        drawn_together(node, index, noise, leaf.axes) if leaf.signs else _weight(node, index, leaf, noise)
        for index, (node, leaf) in enumerate(zip(nodes, plan.leaves, strict=True))
    ]
    for factor in factors:
        directions = factor.drawn([nodes[index].mean for index in factor.nodes], noise)
        _move(values, factor, directions, is_free=factor.number not in plan.hindrances)
    return [value for of_node in values for value in of_node]


def _weight(node: Posterior, index: int, leaf: LeafPlan, noise: Noise) -> list[Any]:
    values = weight(node, index, leaf.strategy, noise)
    if not leaf.is_factor:
        return values
    return [as_factor(index, part, value.value) for part, value in enumerate(values)]


def _move(values: list[list[Any]], factor: Factor, directions: Sequence[Directions], *, is_free: bool) -> None:
    for index, its in zip(factor.nodes, directions, strict=True):
        values[index] = [moved(value, index, factor.number, its, is_free=is_free) for value in values[index]]


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


class _Decisions(NamedTuple):
    """Decisions on leaves, why directions are held back, and which products are none of `_factors`."""

    leaves: dict[int, Decision]
    hindrances: dict[int, str]
    refused: frozenset[tuple[Site, ...]]

    @property
    def settled(self) -> dict[int, Decision]:
        """What is decided of leaves whatever becomes of the others."""
        return {index: one for index, one in self.leaves.items() if one.is_settled}

    @property
    def given(self) -> Any:
        """What the next pass takes as given."""
        return self.settled, self.hindrances, self.refused


def _decisions(
    model: Model, coupling: Coupling, last: _Decisions
) -> tuple[_Decisions, dict[int, Decision], dict[Site, Concatenation]]:
    """On every leaf, and on what is concatenated, from their uses beside those leaves that are settled."""
    uses: dict[tuple[Leaf, Site], Use] = {}
    wholes: dict[Site, Concatenation] = {}

    _abstractly(model, lambda: _probes(model, last, Context(sites={}, uses=uses, wholes=wholes, refused=last.refused)))
    sizes = [sum(jnp.size(leaf) for leaf in jax.tree.leaves(node.like)) for node in model.nodes]
    if more := refused(uses, sizes):
        return last._replace(refused=last.refused | more), {}, wholes
    settled, of_products, used = last.settled, factors(uses), {leaf for leaf, _ in uses}
    known = {place: use for place, use in uses.items() if not use.part or use.part.whole in used}

    def of(index: int) -> list[Use]:
        return [use for (leaf, _), use in known.items() if leaf == index]

    def of_joint(number: int) -> list[Use]:
        return [use for use in known.values() if number in use.joint and not use.part]

    def decision(index: int, node: Posterior) -> Decision:
        if coupling == "shared":
            return Decision("shared", "as asked")
        if index in of_products:
            return Decision("per_example", "a factor: it moves to what its product with others meets", is_factor=True)
        if index in settled and not settled[index].signs:
            return settled[index]
        if index not in settled and type(node) is Gaussian:
            return strategy_of(of(index), node.loc.size, coupling, of_wholes)
        if not is_linear_in_noise(node):
            return of_any(of(index), sizes[index], type(node).__name__)
        if isinstance(node, Kernel):
            return of_matrix(of_joint(index), index, node, coupling)
        return together(of_joint(index))

    of_wholes: dict[int, Decision] = {}
    for index, shape in sorted({(whole.index, whole.shape) for whole in wholes.values()}):  # a whole before its parts
        of_wholes[index] = strategy_of(of(index), math.prod(shape), coupling, of_wholes)
    leaves = {index: decision(index, node) for index, node in enumerate(model.nodes)}
    numbers = [factor.number for factor in model.factors]
    why = {number: "asked" if coupling == "shared" else hindrance(of_joint(number)) for number in numbers}
    hindrances = {number: reason for number, reason in why.items() if reason} | last.hindrances
    return _Decisions(leaves, hindrances, last.refused), of_wholes, wholes


def _probes(model: Model, last: _Decisions, ctx: Context) -> tuple[Context, list[Any]]:
    """Views without a strategy, in the place of what has none that is settled."""
    values = [_probe(index, node, last.settled.get(index)) for index, node in enumerate(model.nodes)]
    for factor in model.factors:
        if factor.number not in last.hindrances:
            means = [model.nodes[index].like for index in factor.nodes]
            _move(values, factor, factor.probed(means), is_free=True)
    return ctx, [value for of_node in values for value in of_node]


def shape_of(node: Posterior) -> tuple[Any, ...]:
    """The shape of its array, or the shapes of its arrays."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(node.like)]
    return shapes[0] if jax.tree.structure(node.like) == jax.tree.structure(0) else tuple(shapes)


def _probe(index: int, node: Posterior, settled: Decision | None) -> list[Any]:
    """Views without a strategy, whose signs are positions, of what may have one."""
    settled = None if settled and settled.is_factor else settled
    means, strategy = jax.tree.leaves(node.like), settled and settled.strategy
    if strategy in ("shared", "per_example"):
        return means if strategy == "shared" else list(map(PerExample, means))
    if type(node) is not Gaussian and not is_linear_in_noise(node):
        return [probe_factor(index, part, leaf) for part, leaf in enumerate(means)]
    if settled or type(node) is not Gaussian:
        return probe_together(node, index)
    if not node.loc.size:
        return means
    mean = at_least_float32(node.loc)
    shape = mean.shape
    positions = {axis: along(np.arange(size), axis, len(shape)) for axis, size in enumerate(shape)}
    return [View(index, None, shape, node.loc.dtype, mean, mean, positions, is_pure=True)]


def _noise(model: Model, found: _Decisions) -> Noise:
    """The shapes of the noise of nodes and factors."""
    noise = Noise({}, {}, {}, {})
    for index, node in enumerate(model.nodes):
        decision = found.leaves[index]
        dtype = jnp.result_type(*map(at_least_float32, jax.tree.leaves(node.like)))
        like = jax.ShapeDtypeStruct(node.noise_shape, dtype)
        if decision.strategy == "per_example":
            noise.examples[index] = like
        elif decision.strategy == "local_reparam" and decision.signs:
            noise.examples[index] = jax.ShapeDtypeStruct((decision.signs,), dtype)
        elif decision.strategy != "local_reparam":
            noise.leaves[index] = like
        if decision.strategy == "flipout":
            sizes = {0: decision.signs} if decision.signs else {axis: node.noise_shape[axis] for axis in decision.axes}
            noise.signs[index] = {axis: jax.ShapeDtypeStruct((size,), jnp.float32) for axis, size in sizes.items()}
    for factor in model.factors:
        factor.add_noise(noise, is_free=factor.number not in found.hindrances)
    return noise
