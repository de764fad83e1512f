"""The variances of outputs that are a linear map of weights with a Gaussian law."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32, widest_dtype
from illia_fn._base.trees import PyTree
from illia_fn.coupling._context import Context, Use
from illia_fn.coupling._interpreter import SUMS, evaluate
from illia_fn.coupling._linear import owner
from illia_fn.coupling._moments import Moments, added, square, total
from illia_fn.coupling._values import Leaf, View, along
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior

_AT_ONCE = 2**18  # numbers of the outputs of several directions

Reduction = Callable[[jax.Array], jax.Array]
Linear = Callable[[list[PyTree]], list[jax.Array]]


class LinearOutputs(NamedTuple):
    """Outputs that are a linear map of w - E[w], w ~ q.

    A `Gaussian` that enters one product with data, as the kernel of a dense layer does, has the variance x^2 scale^2:
    one more product. Any other node is followed along each of the directions of its noise, w = E[w] + A noise,

        Cov[outputs] = sum_j linear(A e_j) linear(A e_j)^T

    in as many passes as its noise has numbers; they go through the linear map, and not the layers before it.

    Attributes:
        linear: the map, of one tree for each node.
        nodes: the posterior nodes.
        closed: the jaxpr of the map.
        direct: the nodes that take one product.
    """

    linear: Linear
    nodes: Sequence[Posterior]
    closed: Any
    direct: set[int]

    @staticmethod
    def of(linear: Linear, nodes: Sequence[Posterior]) -> "LinearOutputs":
        closed = jax.make_jaxpr(linear)([node.like for node in nodes])
        return LinearOutputs(linear, nodes, closed, _direct(closed, nodes))

    def variances(self) -> list[jax.Array]:
        """Of each number of each output, in the shape of the output, in float32 or wider."""
        return self._sums(self.direct, lambda outputs: jnp.sum(jnp.square(outputs), axis=0))

    def covariance(self) -> jax.Array:
        """Of the last axis of the only output, (..., K, K); or (..., K), its diagonal, if nothing is beside it."""
        direct = self.direct & _apart(self.closed, self.nodes, self.direct)
        if len(direct) == len(self.nodes):
            return self.variances()[0]

        def outer(outputs: jax.Array) -> jax.Array:
            return jnp.einsum("s...i,s...j->...ij", outputs, outputs, precision=jax.lax.Precision.HIGHEST)

        return self._sums(direct, outer, jnp.vectorize(jnp.diag, signature="(k)->(k,k)"))[0]

    def _sums(
        self, direct: set[int], reduce: Reduction, embed: Callable[[jax.Array], jax.Array] = lambda v: v
    ) -> list[jax.Array]:
        values = _evaluated(self.closed, self.nodes, direct, self.closed.consts)
        variances = [
            jnp.broadcast_to(_of_output(value), aval.shape)
            for value, aval in zip(values, self.closed.out_avals, strict=True)
        ]
        sums = list(map(embed, variances))
        for index in sorted(set(range(len(self.nodes))) - direct):
            terms = _along_noise(self.linear, self.nodes, index, reduce)
            sums = [one + term for one, term in zip(sums, terms, strict=True)]
        return sums


def _direct(closed: Any, nodes: Sequence[Posterior]) -> set[int]:
    """The nodes whose variance takes one product: each output reads each of their elements once at most."""
    direct = {index for index, node in enumerate(nodes) if type(node) is Gaussian and node.loc.size}
    while True:
        uses: dict[tuple[Leaf, Any], Use] = {}
        probe = Context(sites={}, uses=uses)
        jax.eval_shape(partial(_evaluated, closed, nodes, direct, context=probe), closed.consts)
        good = {index for index in direct if _reads_once([use for (leaf, _), use in uses.items() if leaf == index])}
        if good == direct:
            break
        direct = good
    drawn: dict[Any, Any] = {}  # by what is not known to keep the outputs independent
    context = Context(sites=drawn)
    jax.eval_shape(lambda consts: _leaves(_evaluated(closed, nodes, direct, consts, context=context)), closed.consts)
    return set() if drawn else direct


def _apart(closed: Any, nodes: Sequence[Posterior], direct: set[int]) -> set[int]:
    """The nodes of which no number reaches two places along the last axis of the only output."""
    found: list[tuple[int, np.ndarray]] = []

    def evaluate_owners(consts: Sequence[Any]) -> None:
        (value,) = _evaluated(closed, nodes, direct, consts)
        if isinstance(value, View):
            found.extend(owner(value, {axis: axis for axis in range(len(value.shape))}, len(value.shape)))
        elif isinstance(value, Moments):
            found.extend(value.owners)

    jax.eval_shape(evaluate_owners, closed.consts)
    count = closed.out_avals[0].shape[-1]
    return direct - {leaf for leaf, numbers in found if count > 1 and not _differ_along_last_axis(numbers)}


def _differ_along_last_axis(numbers: np.ndarray) -> bool:
    """Whether no two places along the last axis have a number in common."""
    columns = [np.unique(column) for column in np.moveaxis(numbers, -1, 0).reshape(numbers.shape[-1], -1)]
    return numbers.shape[-1] > 1 and len(np.unique(numbers)) == sum(map(len, columns))


def _reads_once(uses: Sequence[Use]) -> bool:
    return all(use.draws_output and (use.primitive in SUMS or use.copies <= 1) for use in uses) and len(uses) <= 1


def _leaves(values: Sequence[Any]) -> list[Any]:
    return [value.mean if isinstance(value, (Moments, View)) else value for value in values]


def _evaluated(
    closed: Any, nodes: Sequence[Posterior], direct: set[int], consts: Sequence[Any], *, context: Context | None = None
) -> list[Any]:
    """The outputs where some nodes are views, and the others 0; without strategies if the uses are to be noted."""
    values, probing = [], context is not None and context.uses is not None
    for index, node in enumerate(nodes):
        if index not in direct:
            values += [jnp.zeros_like(leaf) for leaf in jax.tree.leaves(node.like)]
            continue
        assert isinstance(node, Gaussian)
        shape, scale = node.loc.shape, node.scale
        positions = {axis: along(np.arange(size), axis, len(shape)) for axis, size in enumerate(shape)}
        strategy = None if probing else "local_reparam"
        mean = jnp.zeros(shape, at_least_float32(node.loc).dtype)
        values.append(View(index, strategy, shape, node.loc.dtype, mean, scale, positions))
    outputs = evaluate(context or Context(), closed.jaxpr, consts, values)
    return _leaves(outputs) if probing else outputs


def _of_output(value: Any) -> jax.Array:
    """The variance of one output: of independent Gaussians, of a weight that has met no data, or of neither."""
    if isinstance(value, View):
        terms = [square(value.dense(value.dev, value.dev.dtype))]
    elif isinstance(value, Moments):
        terms = list(value.variances)
    else:
        return jnp.zeros(jnp.shape(value), at_least_float32(value).dtype)
    parts, unit = added(terms)
    return total(parts) * unit * unit  # the square of the unit may leave the range where the product does not


def _along_noise(linear: Linear, nodes: Sequence[Posterior], index: int, reduce: Reduction) -> list[jax.Array]:
    """The sum over the directions of the noise of one node of what `reduce` makes of linear(A e_j), some at once."""
    node = nodes[index]
    draw, size, dtype = node.reparameterise(), math.prod(node.noise_shape), widest_dtype(node.like)
    others = [jax.tree.map(jnp.zeros_like, other.like) for other in nodes]

    def outputs_along(direction: jax.Array) -> list[jax.Array]:
        column = jax.jvp(draw, (jnp.zeros_like(direction),), (direction,))[1]
        outputs = linear([*others[:index], column, *others[index + 1 :]])
        return [at_least_float32(output) for output in outputs]

    def of_chunk(numbers: jax.Array) -> list[jax.Array]:
        directions = jax.nn.one_hot(numbers, size, dtype=dtype).reshape(-1, *node.noise_shape)
        return [reduce(outputs) for outputs in jax.vmap(outputs_along)(directions)]

    shapes = jax.eval_shape(outputs_along, jax.ShapeDtypeStruct(node.noise_shape, dtype))
    largest = max([size, 1, *[math.prod(shape.shape) for shape in shapes]])
    at_once = max(1, min(size, _AT_ONCE // largest))
    numbers = jnp.arange(-(-size // at_once) * at_once).reshape(-1, at_once)  # one that is none is a row of zeros

    @jax.checkpoint
    def add(sums: list[jax.Array], numbers: jax.Array) -> tuple[list[jax.Array], None]:
        return [one + more for one, more in zip(sums, of_chunk(numbers), strict=True)], None

    first = jax.checkpoint(of_chunk)(numbers[0])
    return first if len(numbers) == 1 else jax.lax.scan(add, first, numbers[1:])[0]
