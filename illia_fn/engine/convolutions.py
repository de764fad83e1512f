"""Convolutions that stay fast in the body of a loop.

XLA's CPU backend has one fast convolution, for channels last and kernels (*spatial, in, out). It brings other layouts
to that one in the entry computation only; in the body of a loop they run many times slower, and the gradient of
any convolution has another layout. So the layout is set here, before the loop is compiled.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxprs_in_params, valid_jaxtype

from illia_fn._base.checks import check_callable, describe
from illia_fn._base.jaxprs import bind
from illia_fn._base.sharding import platform
from illia_fn._base.trees import leaves_with_path


def fast_convolutions(step: Callable[..., Any]) -> Callable[..., Any]:
    r"""`step`, with every convolution in it in the layout that is fast in a loop on a CPU.

    In the body of a `jax.lax.scan`, `while_loop` or `fori_loop`, XLA's CPU backend runs only convolutions of channels
    last with kernels (\*spatial, in, out) fast, and the gradient of any convolution is another one: a training loop
    under scan is many times slower than the same steps one by one. Wrap the whole step, gradients included:

        state, losses = jax.lax.scan(fast_convolutions(step), state, batches)

    The numbers are those of `step`, to rounding; loops, branches, `jax.checkpoint` and rules of differentiation within
    it stay, and it may be jitted, mapped and sharded as before. Convolutions within a `jax.shard_map` are left as they
    are: there, wrap what is mapped. On other platforms it is `step` itself that runs.

    Args:
        step: a function of trees of arrays, to trees of arrays. What is differentiated afterwards has the convolutions
            of the gradient in their old layouts: take the gradient within.

    Returns:
        A function of the same arguments and outputs.

    Raises:
        TypeError: if `step` cannot be called; at a call, if an argument has leaves that are no arrays.

    >>> def step(x, _):
    ...     return x + jax.lax.conv(x, jnp.ones((1, 1, 3)), (1,), "SAME"), None
    >>> x, _ = jax.lax.scan(fast_convolutions(step), jnp.ones((1, 1, 4)), length=2)
    >>> print(x)
    [[[10. 15. 15. 10.]]]
    """
    check_callable("fast_convolutions", "step", step)

    @wraps(step)
    def with_fast_convolutions(*args: Any, **kwargs: Any) -> Any:
        if platform() != "cpu":
            return step(*args, **kwargs)
        for path, leaf in leaves_with_path((args, kwargs)):
            if not valid_jaxtype(leaf):
                raise TypeError(
                    f"fast_convolutions: the arguments of the step must be trees of arrays, got {describe(leaf)} at "
                    f"{path}. Close over what is none: fast_convolutions(lambda ...: step(...))."
                )
        closed_jaxpr, out_shape = jax.make_jaxpr(step, return_shape=True)(*args, **kwargs)
        outputs = _evaluate(closed_jaxpr.jaxpr, closed_jaxpr.consts, jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    return with_fast_convolutions


def canonical_convolutions(f: Callable[..., Any], jaxpr: Any) -> Callable[..., Any]:
    """`fast_convolutions` of f if its `jaxpr` has any: else it need not be traced once more."""
    return fast_convolutions(f) if _has_convolution(jaxpr) else f


def _has_convolution(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name == "conv_general_dilated" or any(map(_has_convolution, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
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
                outputs = bind(eqn, operands, **_fast_functions(eqn))
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _fast_functions(eqn: Any) -> dict[str, Any]:
    """Those parameters of an equation that are functions with convolutions, with fast ones in their place."""
    if eqn.primitive.name == "shard_map" or not any(map(_has_convolution, jaxprs_in_params(eqn.params))):
        return {}
    functions = {
        name: value for name, value in eqn.params.items() if any(True for _ in jaxprs_in_params({name: value}))
    }
    return {
        name: tuple(map(_fast_jaxpr, value)) if isinstance(value, (tuple, list)) else _fast_jaxpr(value)
        for name, value in functions.items()
    }


def _fast_jaxpr(jaxpr: Any) -> Any:
    """A function in an equation, with fast convolutions; its rule of differentiation, if it has one, stays."""
    closed = jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())
    fast = jax.make_jaxpr(partial(_evaluate, closed.jaxpr, closed.consts))([atom.aval for atom in closed.jaxpr.invars])
    return fast if isinstance(jaxpr, ClosedJaxpr) else fast.jaxpr


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
