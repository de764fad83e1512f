"""A sum over chunks, one after another, whose gradient is accumulated along with it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from illia_fn._base.sharding import varying_axes
from illia_fn._base.trees import PyTree
from illia_fn.engine._eager import compiled_once
from illia_fn.engine.convolutions import canonical_convolutions

Chunk = Callable[[PyTree], tuple[PyTree, PyTree]]


def sum_over_chunks(f: Chunk, xs: PyTree, chunk_size: int | None, *, constant: bool = False) -> tuple[PyTree, PyTree]:
    """The sum of the values and the concatenated aux of f(chunk of xs) -> (value, aux).

    If `constant`, without a first derivative; the derivatives of what is then made of it are those that it has.
    """
    total = len(jax.tree.leaves(xs)[0])
    chunk_size = total if chunk_size is None else min(chunk_size, total)
    count, rest = divmod(total, chunk_size)
    head = jax.tree.map(lambda x: x[: total - rest], xs) if rest else xs
    once = constant_once if constant else lambda parts: parts
    if count == 1:
        parts = [once(f(head))]
    else:
        parts = [_loop(f, jax.tree.map(lambda x: x.reshape(count, chunk_size, *x.shape[1:]), head), constant)]
    if rest:
        parts.append(once(f(jax.tree.map(lambda x: x[total - rest :], xs))))
    values, aux = zip(*parts, strict=True)
    return jax.tree.map(lambda *terms: sum(terms[1:], start=terms[0]), *values), jax.tree.map(_concatenate, *aux)


def _concatenate(*leaves: jax.Array) -> jax.Array:
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)


def _loop(f: Chunk, chunks: PyTree, constant: bool) -> tuple[PyTree, PyTree]:  # noqa: FBT001
    """`sum_over_chunks` for chunks of equal size, stacked."""
    # Whatever f closes over becomes an argument, so that the rule below sees all that there is to differentiate.
    first = jax.eval_shape(partial(jax.tree.map, lambda x: x[0]), chunks)
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(first)
    jaxpr = closed.jaxpr  # alone in what is compiled, and kept, without the arrays
    structure = jax.tree.structure(shapes)

    def at_chunk(captured: list[Any], chunk: PyTree) -> tuple[PyTree, PyTree]:
        return structure.unflatten(jax.core.eval_jaxpr(jaxpr, captured, *jax.tree.leaves(chunk)))

    def loop(captured: list[Any], chunks: PyTree) -> tuple[PyTree, PyTree]:
        forward = canonical_convolutions(at_chunk, jaxpr)

        @partial(jax.checkpoint, prevent_cse=False)
        def step(total: PyTree, chunk: PyTree) -> tuple[PyTree, PyTree]:
            value, aux = forward(captured, chunk)
            return jax.tree.map(jnp.add, total, value), aux

        return jax.lax.scan(step, jax.tree.map(_wide_zeros, shapes[0]), chunks)

    run = loop
    if constant:  # a gradient that is not wanted would still be carried through the loop
        run = jax.custom_jvp(loop)
        run.defjvp(lambda primals, _: _without_tangent(compiled_once(_as_it_is(loop), *primals)))
    elif [leaf.shape for leaf in jax.tree.leaves(shapes[0])] == [()]:
        run = jax.custom_jvp(loop)
        run.defjvp(partial(_accumulate, at_chunk, loop, jaxpr, shapes[0]), symbolic_zeros=True)
    total, aux = compiled_once(run, closed.consts, chunks)
    return total, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), aux)


@jax.custom_jvp
def constant_once(values: PyTree) -> PyTree:
    """The values, as constants of the first derivative alone.

    Coefficients of a gradient are constant while it is taken, but depend on all that they were made of when it is
    differentiated in turn. Of what has no derivative yet it would take away the next one: apply it once.
    """
    return values


def _without_tangent(values: PyTree) -> tuple[PyTree, PyTree]:
    def zeros(x: jax.Array) -> Any:
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.zeros_like(x) if inexact else np.zeros(x.shape, jax.dtypes.float0)

    return values, jax.tree.map(zeros, values)


constant_once.defjvp(lambda primals, _: _without_tangent(*primals))


def _accumulate(
    at_chunk: Callable[..., tuple[PyTree, PyTree]],
    loop: Callable[..., tuple[PyTree, PyTree]],
    jaxpr: Any,
    value_shape: PyTree,
    primals: tuple[list[Any], PyTree],
    tangents: tuple[Any, Any],
) -> tuple[PyTree, PyTree]:
    """The value and, linear in the tangents, <gradient, tangent>, where one loop sums the value and the gradient.

    A linear rule serves every mode of differentiation: reverse mode transposes it to cotangent * gradient.
    """
    (captured, chunks), (dots, _) = primals, tangents
    active = _active(dots)
    with_active = partial(_replaced, captured, active)
    # asarray: a Python number may be differentiated, too
    values, dots = [jnp.asarray(captured[index]) for index in active], [jnp.asarray(dots[index]) for index in active]
    if any(varying_axes(value) != varying_axes(value_shape) for value in values):
        # The gradient of what is the same on all devices is a sum over them, and not that of each device's own value.
        return jax.jvp(lambda values: loop(with_active(values), chunks), (values,), (dots,))

    def loop_with_gradients(
        captured: list[Any], values: list[jax.Array], chunks: PyTree
    ) -> tuple[tuple[PyTree, list[jax.Array]], PyTree]:
        def value_of(values: list[jax.Array], chunk: PyTree) -> tuple[jax.Array, PyTree]:
            value, aux = at_chunk(_replaced(captured, active, values), chunk)
            return jax.tree.leaves(value)[0], (value, aux)

        value_and_grad = canonical_convolutions(jax.value_and_grad(value_of, has_aux=True), jaxpr)

        @partial(jax.checkpoint, prevent_cse=False)  # for derivatives of the gradient
        def step(totals: tuple[PyTree, list[jax.Array]], chunk: PyTree) -> tuple[Any, PyTree]:
            (_, (value, aux)), gradients = value_and_grad(values, chunk)
            return jax.tree.map(lambda total, term: total + term.astype(total.dtype), totals, (value, gradients)), aux

        return jax.lax.scan(step, jax.tree.map(_wide_zeros, (value_shape, values)), chunks)

    run = partial(_as_it_is(loop_with_gradients), captured, values)
    (total, gradients), aux = compiled_once(run, chunks)
    terms = [jnp.sum((grad * dot.astype(grad.dtype)).real) for grad, dot in zip(gradients, dots, strict=True)]
    total_tangent = jax.tree.map(
        lambda leaf: sum((term.astype(leaf.dtype) for term in terms), jnp.zeros_like(leaf)), total
    )
    if any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(aux)):
        again = jax.tree.map(_reusable, chunks)
        _, aux_tangent = jax.jvp(lambda values: loop(with_active(values), again)[1], (values,), (dots,))
    else:
        aux_tangent = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), aux)
    return (total, aux), (total_tangent, aux_tangent)


def _active(dots: list[Any]) -> list[int]:
    """Where something is differentiated by."""
    return [index for index, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]


def _replaced(leaves: list[Any], places: list[int], values: list[jax.Array]) -> list[Any]:
    """The leaves, with these values in some places."""
    replacements = dict(zip(places, values, strict=True))
    return [replacements.get(index, leaf) for index, leaf in enumerate(leaves)]


def _as_it_is(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """f, of whose loops JAX does not take out what is the same in every round, as it does beneath a gradient.

    That would be in memory all the time, and is compiled twice, as a checkpoint within computes it again.
    """

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[PyTree, PyTree]:
        (leaves, structure), dots = jax.tree.flatten(primals), jax.tree.leaves(tangents)
        active = _active(dots)

        def of_active(values: list[jax.Array]) -> PyTree:
            return f(*structure.unflatten(_replaced(leaves, active, values)))

        return jax.jvp(of_active, ([leaves[index] for index in active],), ([dots[index] for index in active],))

    run = jax.custom_jvp(f)
    run.defjvp(rule, symbolic_zeros=True)
    return run


def _reusable(x: jax.Array) -> jax.Array:
    """Keys for the same draws once more, which `jax_debug_key_reuse` is not to report."""
    return jax.random.clone(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _wide_zeros(x: Any) -> jax.Array:
    """Zeros to add up terms like x in, sharded and varying as x is: half precision is summed in float32."""
    return jnp.zeros_like(x, jnp.float32 if jnp.finfo(x.dtype).bits < 32 else x.dtype)
