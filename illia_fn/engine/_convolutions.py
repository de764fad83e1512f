"""Convolutions that stay fast in the body of a loop.

XLA's CPU backend has one fast convolution, for channels last and kernels (*spatial, in, out). It brings other layouts
to that one in the entry computation only; in the body of a loop they run many times slower, and the gradient of
any convolution has another layout. So the layout is set here, before the loop is compiled.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxprs_in_params

from illia_fn._base.jaxprs import bind
from illia_fn._base.sharding import platform


def canonical_convolutions(f: Callable[..., Any], jaxpr: Any) -> Callable[..., Any]:
    """`f`, or on a CPU and if its `jaxpr` has convolutions, f with each of them in the layout of the fast kernel."""
    if platform() != "cpu" or not _has_convolution(jaxpr):
        return f

    def with_canonical_convolutions(*args: Any) -> Any:
        closed_jaxpr, out_shape = jax.make_jaxpr(f, return_shape=True)(*args)
        outputs = _evaluate(closed_jaxpr.jaxpr, closed_jaxpr.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    return with_canonical_convolutions


def _has_convolution(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name == "conv_general_dilated" or any(map(_has_convolution, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _evaluate(jaxpr: Any, consts: list[Any], args: list[Any]) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        with eqn.ctx.manager:
            if eqn.primitive.name == "conv_general_dilated":
                outputs = [_convolve(eqn.primitive, *operands, **eqn.params)]
            elif eqn.primitive.name == "jit":  # relu and the like are functions under jit
                outputs = _evaluate(eqn.params["jaxpr"].jaxpr, eqn.params["jaxpr"].consts, operands)
            else:
                outputs = bind(eqn, operands)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _convolve(convolution: Any, lhs: jax.Array, rhs: jax.Array, *, dimension_numbers: Any, **params: Any) -> jax.Array:
    """The convolution with channels last and a kernel (*spatial, in, out), and the transpositions to and from it."""
    (batch, feature, *spatial), (out_channels, in_channels, *window), out_spec = dimension_numbers
    last = len(spatial) + 1
    channels_last = (0, last, *range(1, last))
    canonical = type(dimension_numbers)(channels_last, (last, last - 1, *range(last - 1)), channels_last)
    result = convolution.bind(
        jnp.transpose(lhs, (batch, *spatial, feature)),
        jnp.transpose(rhs, (*window, in_channels, out_channels)),
        dimension_numbers=canonical,
        **params,
    )
    return jnp.transpose(result, [channels_last[out_spec.index(axis)] for axis in range(last + 1)])
