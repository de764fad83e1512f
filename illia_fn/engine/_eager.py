"""Outside of a jit: what is traced anew at every call is compiled once.

A function that a user passes may close over arrays and state that change between the calls, so it is traced whenever it
is called. Its jaxpr then tells whether there is a compilation for it: that of an equal one, whose arrays are arguments.
"""

import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from illia_fn._base.trees import PyTree

_KEPT = 128  # compilations
_KEPT_WITH_ARRAYS = 8  # of those that keep arrays alive, which a function under jit has closed over
_CUSTOM = ("custom_jvp_call", "custom_vjp_call")


class _NotComparable(Exception):  # noqa: N818
    """Two equal jaxprs could not be told to be equal."""


def compiled_once(f: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """f(*args); outside of a jit, and where nothing is differentiated or mapped over, by one compilation for all calls.

    Anywhere else it is f itself.
    """
    if _has_tracers(jax.tree.leaves(args)) or _has_tracers([jnp.zeros(())]):
        return f(*args)
    return compiled(f, *args)(*args)


def compiled(f: Callable[..., PyTree], *like: PyTree) -> Callable[..., PyTree]:
    """f, for arguments of these structures and types, by one compilation for all that compute the same."""
    closed, shapes = jax.make_jaxpr(lambda *args: f(*args), return_shape=True)(*like)  # f itself JAX would trace once
    closes_over_tracers = _has_tracers(closed.consts)
    run = functools.partial(_evaluate, closed.jaxpr) if closes_over_tracers else _evaluation(closed.jaxpr)

    def call(*args: PyTree) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(shapes), run(*closed.consts, *jax.tree.leaves(args)))

    return call


def _has_tracers(values: list[Any]) -> bool:
    return any(isinstance(value, jax.core.Tracer) for value in values)


class _Program(NamedTuple):
    """A jaxpr that equals all of the same signature; it keeps alive what the signature tells by its identity."""

    signature: Hashable
    jaxpr: Jaxpr

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and self.signature == other.signature

    def __hash__(self) -> int:
        return hash(self.signature)


def _evaluation(jaxpr: Jaxpr) -> Callable[..., list[jax.Array]]:
    try:
        program = _Program(_signature(jaxpr), jaxpr)
        return _compiled_with_arrays(program) if _holds_arrays(program.signature) else _compiled(program)
    except (_NotComparable, TypeError):  # a parameter without a hash
        return functools.partial(_evaluate, jaxpr)


@functools.lru_cache(maxsize=_KEPT)
def _compiled(program: _Program) -> Callable[..., list[jax.Array]]:
    return jax.jit(functools.partial(_evaluate, program.jaxpr))


@functools.lru_cache(maxsize=_KEPT_WITH_ARRAYS)
def _compiled_with_arrays(program: _Program) -> Callable[..., list[jax.Array]]:
    return jax.jit(functools.partial(_evaluate, program.jaxpr))


def _evaluate(jaxpr: Jaxpr, *operands: Any) -> list[jax.Array]:
    count = len(jaxpr.constvars)
    return jax.core.eval_jaxpr(jaxpr, operands[:count], *operands[count:])


def _signature(jaxpr: Jaxpr) -> Hashable:
    """What a jaxpr computes, without the names of its variables."""
    numbers: dict[Any, int] = {}

    def defined(variables: Any) -> Hashable:
        for variable in variables:
            numbers[variable] = len(numbers)
        return tuple(variable.aval for variable in variables)

    def read(atom: Any) -> Hashable:
        return ("literal", atom.aval, *_of_array(atom.val)) if isinstance(atom, Literal) else numbers[atom]

    def equations() -> Iterator[Hashable]:
        yield defined([*jaxpr.constvars, *jaxpr.invars])
        for eqn in jaxpr.eqns:
            operands = tuple(map(read, eqn.invars))
            yield eqn.primitive, operands, _of_params(eqn), defined(eqn.outvars), eqn.ctx
        yield tuple(map(read, jaxpr.outvars))

    return tuple(equations())


def _of_params(eqn: Any) -> Hashable:
    if eqn.primitive.name in _CUSTOM:  # nothing is differentiated any more
        return _of_param(eqn.params["call_jaxpr"])
    return tuple((name, _of_param(value)) for name, value in sorted(eqn.params.items()))


def _of_param(value: Any) -> Hashable:
    if isinstance(value, ClosedJaxpr):
        return _signature(value.jaxpr), tuple(map(_of_array, value.consts))
    if isinstance(value, Jaxpr):
        return _signature(value)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_of_param, value))
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, float):
        return float, value.hex()  # 0.0 is not -0.0, and a NaN is itself
    hash(value)
    return type(value), value


def _holds_arrays(signature: Any) -> bool:
    return signature is jax.Array or (isinstance(signature, tuple) and any(map(_holds_arrays, signature)))


def _of_array(value: Any) -> tuple[Hashable, ...]:
    if isinstance(value, jax.core.Tracer):
        raise _NotComparable
    if isinstance(value, jax.Array):
        return jax.Array, id(value)  # of a function under jit, which has it for good
    value = np.asarray(value)
    return value.dtype, value.shape, value.tobytes()
