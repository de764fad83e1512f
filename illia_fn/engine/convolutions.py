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
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

from illia_fn._base.checks import check_callable
from illia_fn._base.jaxprs import bind
from illia_fn._base.sharding import platform


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
        step: a function of trees, to trees of arrays; leaves that are no arrays are passed on as they are. What is
            differentiated afterwards has the convolutions of the gradient in their old layouts: take it within.

    Returns:
        A function of the same arguments and outputs.

    Raises:
        TypeError: if `step` cannot be called.

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
        leaves, structure = jax.tree.flatten((args, kwargs))
        is_array = [isinstance(leaf, (jax.Array, np.ndarray, np.generic)) for leaf in leaves]

        def of_arrays(arrays: list[Any]) -> Any:
            given = iter(arrays)
            args, kwargs = structure.unflatten(
                [next(given) if flag else leaf for leaf, flag in zip(leaves, is_array, strict=True)]
            )
            return step(*args, **kwargs)

        arrays = [leaf for leaf, flag in zip(leaves, is_array, strict=True) if flag]
        closed_jaxpr, out_shape = jax.make_jaxpr(of_arrays, return_shape=True)(arrays)
        outputs = _evaluate(closed_jaxpr.jaxpr, closed_jaxpr.consts, arrays, inline=True)
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


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], *, inline: bool = False) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        with eqn.ctx.manager:
            if eqn.primitive.name == "conv_general_dilated":
                outputs = [_convolve(eqn.primitive, *operands, **eqn.params)]
            elif inline and _is_plain_jit(eqn):  # so that a call outside of a jit compiles nothing anew
                inner = eqn.params["jaxpr"]
                outputs = _evaluate(inner.jaxpr, inner.consts, operands, inline=True)
            else:
                outputs = bind(eqn, operands, **_fast_functions(eqn))
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_plain_jit(eqn: Any) -> bool:
    """Whether it is a function under jit that asks for nothing else: no shardings, no donation."""
    if eqn.primitive.name != "jit":
        return False
    shardings = *eqn.params["in_shardings"], *eqn.params["out_shardings"]
    return not any(eqn.params["donated_invars"]) and all(type(s).__name__ == "UnspecifiedValue" for s in shardings)


def _fast_functions(eqn: Any) -> dict[str, Any]:
    """Those parameters of an equation that are functions with convolutions, with fast ones in their place."""
    if eqn.primitive.name == "shard_map" or not any(map(_has_convolution, jaxprs_in_params(eqn.params))):
        return {}
    return {
        name: jax.tree.map(_fast_jaxpr, value, is_leaf=_is_jaxpr)
        for name, value in eqn.params.items()
        if any(map(_is_jaxpr, jax.tree.leaves(value, is_leaf=_is_jaxpr)))
    }


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, (Jaxpr, ClosedJaxpr))


def _fast_jaxpr(jaxpr: Any) -> Any:
    """A function in an equation, with fast convolutions; its rule of differentiation, if it has one, stays."""
    if not _is_jaxpr(jaxpr):
        return jaxpr
    closed = jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())
    fast = jax.make_jaxpr(partial(_evaluate, closed.jaxpr, closed.consts))([atom.aval for atom in closed.jaxpr.invars])
    if isinstance(jaxpr, ClosedJaxpr):
        return fast
    assert not fast.consts  # it has none of its own, and functions under jit keep theirs
    return fast.jaxpr


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
