"""A model whose outputs are affine in its Bayesian leaves: its law in closed form, and what it says of each leaf."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from illia_fn._base.numerics import widest_dtype
from illia_fn._base.sharding import mesh_of
from illia_fn._base.trees import PyTree
from illia_fn.coupling._affine import Break, breaks_of
from illia_fn.coupling._model import Weights
from illia_fn.coupling._plan import shape_of
from illia_fn.coupling._variances import LinearOutputs
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior


class LinearModel(NamedTuple):
    """f(x, w) ~ N(mean, covariance) with w ~ q, exactly: all Bayesian leaves enter linearly.

    Attributes:
        mean: the outputs at the mean of q, as the model returns them.
        is_random: for each leaf of the mean, whether it depends on w.
        law: the linear map from w - E[w] to those leaves that do.
        aux: what apply_fn returns beside the outputs.
    """

    mean: PyTree
    is_random: list[bool]
    law: LinearOutputs
    aux: PyTree

    @staticmethod
    def of(caller: str, f: Callable[[PyTree], tuple[PyTree, PyTree]], q: PyTree, x: PyTree) -> "LinearModel":
        """Of f(w) -> (outputs, aux); refuses one that is not linear, and posteriors that are not Gaussian."""
        paths, _, nodes, tree = Weights.of(q)
        for path, node in zip(paths, nodes, strict=True):
            _check_gaussian(caller, path, node)
        means = [node.mean for node in nodes]
        with mesh_of((nodes, x)):
            reached, breaks = breaks_of(lambda *weights: jax.tree.leaves(f(tree(weights))[0]), means)
            if breaks:
                raise ValueError(_refusal(caller, paths, breaks))
            is_random = [reach is not None for reach in reached]

            def random_outputs(*weights: PyTree) -> tuple[list[jax.Array], tuple[PyTree, PyTree]]:
                outputs, aux = f(tree(weights))
                return list(itertools.compress(jax.tree.leaves(outputs), is_random)), (outputs, aux)

            _, linear, (mean, aux) = jax.linearize(random_outputs, *means, has_aux=True)
            law = LinearOutputs.of(lambda weights: linear(*weights), nodes)
        return LinearModel(mean, is_random, law, aux)


def _check_gaussian(caller: str, path: str, node: Posterior) -> None:
    """A draw is affine in its noise."""
    if type(node) is Gaussian:
        return
    noise = jax.ShapeDtypeStruct(node.noise_shape, widest_dtype(node.like))
    _, breaks = breaks_of(lambda noise: jax.tree.leaves(node.reparameterise()(noise)), [noise])
    if breaks:
        raise ValueError(
            f"{caller}: params{path} is a {type(node).__name__}, whose draws are not linear in the noise "
            f"({', '.join(sorted(one.primitive for one in breaks))}), so the outputs are not Gaussian. Use elbo_loss."
        )


def _refusal(caller: str, paths: Sequence[str], breaks: frozenset[Break]) -> str:
    reasons = {leaf: _reason(leaf, paths, breaks) for one in breaks for leaf in one.leaves}
    first = min(reasons)
    others = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return (
        f"{caller}: the outputs must be linear in the Bayesian leaves, and are not in params{paths[first]} "
        f"({reasons[first]}){others}. Make these leaves deterministic, with a mask of mean_field, or use elbo_loss; or "
        'take method="moments", an approximation. explain_linearity(apply_fn, q, x) tells of each leaf.'
    )


def _reason(leaf: int, paths: Sequence[str], breaks: frozenset[Break]) -> str | None:
    """Why the outputs are not linear in a leaf; None if they are."""
    mine = sorted((one for one in breaks if leaf in one.leaves), key=lambda one: (one.is_product, one.primitive))
    if not mine:
        return None
    if not mine[0].is_product:
        return f"{mine[0].primitive}: not linear in it"
    others = ", ".join(paths[other] for other in sorted(mine[0].leaves - {leaf}))
    return f"{mine[0].primitive}: times what depends on {others or 'it, too'}"


class LeafLinearity(NamedTuple):
    """Whether the outputs are linear in one leaf, or in one posterior over several.

    Attributes:
        path: the path of the leaf in q, or the paths of the leaves.
        shape: its shape, or theirs.
        is_linear: whether they are.
        why: what is in the way, or what the variance takes.
    """

    path: str
    shape: tuple[Any, ...]
    is_linear: bool
    why: str


def linearity(apply_fn: Callable[..., Any], q: PyTree, x: PyTree, key: jax.Array | None) -> list[LeafLinearity]:
    """What becomes of each posterior node; no numbers are computed."""
    _, names, nodes, tree = Weights.of(q)
    keys = [] if key is None else [key]

    def outputs(*weights: PyTree) -> list[jax.Array]:
        return jax.tree.leaves(apply_fn(tree(weights), x, *keys))

    means = [node.like for node in nodes]
    with mesh_of((nodes, x)):
        reached, breaks = breaks_of(outputs, means)
        direct: list[set[int]] = []
        if not breaks:

            def find_direct(*means: PyTree) -> None:
                _, linear = jax.linearize(outputs, *means)
                direct.append(LinearOutputs.of(lambda weights: linear(*weights), nodes).direct)

            jax.eval_shape(find_direct, *means)
    used = frozenset().union(*[reach.leaves for reach in reached if reach])

    def why(index: int) -> str:
        if index not in used:
            return "not used"
        if breaks:
            return _reason(index, names, breaks) or "where the others are deterministic"
        if index in direct[0]:
            return "its variance takes one product"
        return f"its variance takes {math.prod(nodes[index].noise_shape)} passes of the linear part"

    def leaf(index: int) -> LeafLinearity:
        is_linear = _reason(index, names, breaks) is None
        return LeafLinearity(names[index], shape_of(nodes[index]), is_linear, why(index))

    return [leaf(index) for index in range(len(nodes))]
