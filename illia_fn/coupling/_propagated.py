"""The law of the outputs of any network as its moments propagate: what `LinearModel` is for one that is linear."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import at_least_float32
from illia_fn._base.sharding import mesh_of
from illia_fn._base.trees import PyTree
from illia_fn.coupling._elementwise import Random, Source
from illia_fn.coupling._model import Weights
from illia_fn.coupling._propagation import Context, evaluate
from illia_fn.posteriors.posterior import Posterior
from illia_fn.posteriors.tied import KTied


class IndependentOutputs(NamedTuple):
    """Outputs that are taken to be independent.

    Attributes:
        of_outputs: the variances of each number of each output.
    """

    of_outputs: list[jax.Array]

    def variances(self) -> list[jax.Array]:
        """Of each output."""
        return self.of_outputs

    def covariance(self) -> jax.Array:
        """Of the last axis of the only output, its diagonal."""
        return self.of_outputs[0]


class PropagatedModel(NamedTuple):
    """f(x, w) ~ N(mean, variance) with w ~ q, about, each number by itself.

    Attributes:
        mean: the outputs, in float32 or wider where they depend on w.
        is_random: for each leaf of the mean, whether it depends on w.
        law: the variances of those leaves that do.
        aux: what apply_fn returns beside the outputs; its mean where it depends on w.
    """

    mean: PyTree
    is_random: list[bool]
    law: IndependentOutputs
    aux: PyTree

    @staticmethod
    def of(
        caller: str, f: Callable[[PyTree], tuple[PyTree, PyTree]], q: PyTree, x: PyTree, num_points: int
    ) -> "PropagatedModel":
        """Of f(w) -> (outputs, aux); refuses operations without a rule, and numbers that are not independent."""
        paths, _, nodes, tree = Weights.of(q)
        for path, node in zip(paths, nodes, strict=True):
            if not (node.elementwise or isinstance(node, KTied)):
                raise ValueError(
                    f"{caller}: params{path} is a {type(node).__name__}, whose numbers are not independent, as those "
                    "must be whose moments are propagated. Take mean_field or k_tied, or use elbo_loss."
                )
        with mesh_of((nodes, x)):
            closed, shapes = jax.make_jaxpr(lambda *w: f(tree(w)), return_shape=True)(*[node.like for node in nodes])
            ctx = Context(caller, paths, num_points)
            weights = [Random.of(_source(index, node)) for index, node in enumerate(nodes)]
            values = evaluate(ctx, closed.jaxpr, closed.consts, weights)
            laws = [ctx.moments(value) if isinstance(value, Random) else (value, None) for value in values]
        like, structure = jax.tree.flatten(shapes)
        count = jax.tree.structure(shapes[0]).num_leaves
        is_random, variances = [v is not None for _, v in laws], [v for _, v in laws[:count] if v is not None]
        means = [m.astype(x.dtype) if v is not None else m for x, (m, v) in zip(like, laws, strict=True)]
        mean, aux = structure.unflatten([*(m for m, _ in laws[:count]), *means[count:]])
        return PropagatedModel(mean, is_random[:count], IndependentOutputs(variances), aux)


def _source(index: int, node: Posterior) -> Source:
    variance = jnp.square(node.widened().stddev)
    return Source(at_least_float32(node.mean), variance, node.mean.dtype, frozenset([index]))
