"""The variance of each output of a linear map of weights that are independent Gaussians, or Gaussian over a subtree."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32, widest_dtype
from illia_fn._base.trees import PyTree
from illia_fn.coupling._context import Context, Use
from illia_fn.coupling._interpreter import SUMS, evaluate
from illia_fn.coupling._moments import Moments, added, square, total
from illia_fn.coupling._values import View, along
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior

_AT_ONCE = 2**18  # numbers of the outputs of several directions

Linear = Callable[[list[PyTree]], list[jax.Array]]


def output_variances(linear: Linear, nodes: Sequence[Posterior]) -> list[jax.Array]:
    """Var[output] of linear(w - E[w]), w ~ q, each number by itself: of the shape of the output, float32 or wider.

    A `Gaussian` that enters one product with data, as the kernel of a dense layer does, has the variance x^2 scale^2:
    one more product. Any other node is followed along each of its directions of noise, draw = mean + A noise:

        Var[output] = sum_j linear(A e_j)^2

    in as many passes as its noise has numbers; the linear map alone is passed through, and not the layers before it.
    """
    closed = jax.make_jaxpr(linear)([node.mean for node in nodes])
    direct = _direct(closed, nodes)
    variances = [_of_output(value) for value in _evaluated(closed, nodes, direct, closed.consts)]
    for index in sorted(set(range(len(nodes))) - direct):
        terms = _along_noise(linear, nodes, index)
        variances = [variance + term for variance, term in zip(variances, terms, strict=True)]
    return [jnp.broadcast_to(v, aval.shape) for v, aval in zip(variances, closed.out_avals, strict=True)]


def _direct(closed: Any, nodes: Sequence[Posterior]) -> set[int]:
    """The nodes whose variance takes one product: each output reads each of their elements once at most."""
    direct = {index for index, node in enumerate(nodes) if type(node) is Gaussian and node.loc.size}
    while True:
        uses: dict[tuple[int, Any], Use] = {}
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
            values += [jnp.zeros_like(leaf) for leaf in jax.tree.leaves(node.mean)]
            continue
        assert isinstance(node, Gaussian)
        shape, scale = node.loc.shape, node.scale
        positions = {axis: along(np.arange(size), axis, len(shape)) for axis, size in enumerate(shape)}
        strategy, signs = (None, positions) if probing else ("local_reparam", {})
        mean = jnp.zeros(shape, at_least_float32(node.loc).dtype)
        values.append(View(index, strategy, shape, node.loc.dtype, mean, scale, signs))
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


def _along_noise(linear: Linear, nodes: Sequence[Posterior], index: int) -> list[jax.Array]:
    """The sum of linear(A e_j)^2 over the directions of the noise of one node, some at once."""
    node = nodes[index]
    draw, size, dtype = node.reparameterise(), math.prod(node.noise_shape), widest_dtype(node.mean)
    others = [jax.tree.map(jnp.zeros_like, other.mean) for other in nodes]

    def outputs_along(direction: jax.Array) -> list[jax.Array]:
        column = jax.jvp(draw, (jnp.zeros_like(direction),), (direction,))[1]
        outputs = linear([*others[:index], column, *others[index + 1 :]])
        return [at_least_float32(output) for output in outputs]

    @jax.checkpoint
    def add(sums: list[jax.Array], numbers: jax.Array) -> tuple[list[jax.Array], None]:
        directions = jax.nn.one_hot(numbers, size, dtype=dtype).reshape(-1, *node.noise_shape)
        squares = [jnp.sum(jnp.square(output), axis=0) for output in jax.vmap(outputs_along)(directions)]
        return [sum_ + square for sum_, square in zip(sums, squares, strict=True)], None

    shapes = jax.eval_shape(outputs_along, jax.ShapeDtypeStruct(node.noise_shape, dtype))
    at_once = max(1, min(size, _AT_ONCE // max(1, size, *[math.prod(shape.shape) for shape in shapes])))
    numbers = jnp.arange(-(-size // at_once) * at_once).reshape(-1, at_once)  # one that is none is a row of zeros
    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
    return jax.lax.scan(add, zeros, numbers)[0]
