"""Which noise each leaf gets: the uses of every leaf, and from them a strategy and the reason for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32
from illia_fn.coupling._concatenation import Concatenation
from illia_fn.coupling._context import Context, Use, arrays, concrete
from illia_fn.coupling._interpreter import evaluate
from illia_fn.coupling._joint import drawn_together, is_linear_in_noise, probe_together
from illia_fn.coupling._model import Model
from illia_fn.coupling._noise import Noise, weight
from illia_fn.coupling._strategies import Coupling, Decision, strategy_of, together
from illia_fn.coupling._values import PerExample, Site, Strategy, View, along
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior


class LeafPlan(NamedTuple):
    """What becomes of the noise of one leaf, or of one posterior over several.

    Attributes:
        path: the path of the leaf in q, or the paths of the leaves.
        shape: its shape, or theirs.
        strategy: how its noise is drawn.
        why: the reason.
        axes: under flipout, the axes of the leaf that carry signs.
        signs: under flipout without such axes, how many signs an example has for all that the posterior stands for.
    """

    path: str
    shape: tuple[Any, ...]
    strategy: Strategy
    why: str
    axes: tuple[int, ...] = ()
    signs: int = 0


class Plan(NamedTuple):
    """The plan of every posterior leaf, which of them are concatenated, and the noise that one example needs."""

    leaves: list[LeafPlan]
    wholes: dict[Site, Concatenation]
    noise: Noise

    def context(self, noise: Noise, **options: Any) -> Context:
        """For an evaluation with noise of one example."""
        return Context(noise=noise.sites, wholes=self.wholes, signs=noise.signs, **options)


def make_plan(model: Model, coupling: Coupling) -> Plan:
    """Abstract passes through the model: what its weights are used for, then which outputs are to be drawn."""
    settled: dict[int, LeafPlan] = {}
    while True:  # what has no signs of its own is another view, or none, and what it meets may be used in another way
        leaves, wholes, of_wholes = _leaf_plans(model, coupling, settled)
        now = {i: leaf for i, leaf in enumerate(leaves) if leaf.signs or leaf.strategy in ("shared", "per_example")}
        if {i: leaf[2:] for i, leaf in now.items()} == {i: leaf[2:] for i, leaf in settled.items()}:
            break
        settled = now
    noise = _noise_of_leaves(model.nodes, leaves)
    for whole in wholes.values():
        signs = {axis: jax.ShapeDtypeStruct((whole.shape[axis],), jnp.float32) for axis in of_wholes[whole.index].axes}
        noise.signs.update({whole.index: signs} if signs else {})
    plan, sites = Plan(leaves, wholes, noise), {}
    _abstractly(model, lambda noise: (plan.context(noise, sites=sites), weights(model.nodes, leaves, noise)), noise)
    return plan._replace(noise=noise._replace(sites=sites))


def weights(nodes: Sequence[Posterior], leaves: Sequence[LeafPlan], noise: Noise) -> list[Any]:
    """The value of each array of weights in the model of one example."""

    def of(index: int, node: Posterior, leaf: LeafPlan) -> list[Any]:
        return drawn_together(node, index, noise) if leaf.signs else weight(node, index, leaf.strategy, noise)

    plans = enumerate(zip(nodes, leaves, strict=True))
    return [value for index, pair in plans for value in of(index, *pair)]


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
    x = model.jaxpr.in_avals[sum(len(jax.tree.leaves(node.mean)) for node in model.nodes) :]

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
        means, strategy = jax.tree.leaves(node.mean), settled[index].strategy if index in settled else None
        if strategy in ("shared", "per_example"):
            return means if strategy == "shared" else list(map(PerExample, means))
        return _probe(index, node) if strategy is None and type(node) is Gaussian else probe_together(node, index)

    def probes() -> tuple[Context, list[Any]]:
        values = [value for pair in enumerate(model.nodes) for value in probe(*pair)]
        return Context(sites={}, uses=uses, wholes=wholes), values

    _abstractly(model, probes)
    used = {leaf for leaf, _ in uses}
    known = {place: use for place, use in uses.items() if not use.part or use.part[0] in used}

    def of(index: int) -> list[Use]:
        return [use for (leaf, _), use in known.items() if leaf == index]

    def decision(index: int, node: Posterior) -> Decision:
        if coupling == "shared":
            return Decision("shared", "as asked")
        if index in settled and not settled[index].signs:
            return Decision(*settled[index][2:])
        if index not in settled and type(node) is Gaussian:
            return strategy_of(of(index), node.loc.size, coupling, of_wholes)
        if not is_linear_in_noise(node):
            return Decision("shared", f"a {type(node).__name__} posterior, whose draws are not linear in their noise")
        return together([use for use in known.values() if index in use.joint and not use.part])

    of_wholes: dict[int, Decision] = {}
    for index, shape in sorted({(whole.index, whole.shape) for whole in wholes.values()}):  # a whole before its parts
        of_wholes[index] = strategy_of(of(index), math.prod(shape), coupling, of_wholes)
    leaves = [
        LeafPlan(path, shape_of(node), *decision(index, node))
        for index, (path, node) in enumerate(zip(model.paths, model.nodes, strict=True))
    ]
    return leaves, wholes, of_wholes


def shape_of(node: Posterior) -> tuple[Any, ...]:
    """The shape of its array, or the shapes of its arrays."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(node.mean)]
    return shapes[0] if jax.tree.structure(node.mean) == jax.tree.structure(0) else tuple(shapes)


def _probe(index: int, node: Posterior) -> list[Any]:
    """A view without a strategy, whose signs are positions; only of what may have a strategy."""
    if type(node) is not Gaussian:
        return probe_together(node, index)
    if not node.loc.size:
        return [node.loc]
    mean = at_least_float32(node.loc)
    shape = mean.shape
    positions = {axis: along(np.arange(size), axis, len(shape)) for axis, size in enumerate(shape)}
    return [View(index, None, shape, node.loc.dtype, mean, mean, positions)]


def _noise_of_leaves(nodes: Sequence[Posterior], leaves: Sequence[LeafPlan]) -> Noise:
    noise = Noise({}, {}, {}, {})
    for index, (node, leaf) in enumerate(zip(nodes, leaves, strict=True)):
        dtype = jnp.result_type(*map(at_least_float32, jax.tree.leaves(node.mean)))
        like = jax.ShapeDtypeStruct(node.noise_shape, dtype)
        if leaf.strategy == "per_example":
            noise.examples[index] = like
        elif leaf.strategy != "local_reparam":
            noise.leaves[index] = like
        if leaf.strategy == "flipout":
            sizes = {axis: leaf.shape[axis] for axis in leaf.axes} or ({0: leaf.signs} if leaf.signs else {})
            noise.signs[index] = {axis: jax.ShapeDtypeStruct((size,), jnp.float32) for axis, size in sizes.items()}
    return noise
