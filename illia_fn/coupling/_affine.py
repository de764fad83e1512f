"""Whether the outputs of a model are affine in its Bayesian leaves, read off its jaxpr; and if not, what is in the way.

An operation is affine in what depends on the leaves if its derivative does not depend on that again: JAX's own rules of
differentiation tell, for every operation that has one. So this needs no table, and loops and branches are no exception.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from illia_fn._base.jaxprs import bind
from illia_fn.engine._randomness import depends_on


class Break(NamedTuple):
    """An operation that is not affine.

    Attributes:
        primitive: its name.
        leaves: the leaves on which its operands depend.
        is_product: whether it is affine in each of these operands by itself.
    """

    primitive: str
    leaves: frozenset[int]
    is_product: bool = False


class Reach(NamedTuple):
    """What a value has from the leaves.

    Attributes:
        leaves: those that it depends on.
        breaks: the operations that are not affine on the way from there; it is affine in them if there are none.
    """

    leaves: frozenset[int]
    breaks: frozenset[Break] = frozenset()


CALLS = {"checkpoint", "closed_call", "core_call", "jit", "pjit", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def reaches(jaxpr: Any, arguments: Sequence[Reach | None]) -> list[Reach | None]:
    """What the outputs of a jaxpr have from the leaves, given what its arguments have; None is nothing."""
    values = dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Reach | None:
        return None if isinstance(atom, Literal) else values.get(atom)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if any(operands):
            values.update(zip(eqn.outvars, _of_equation(eqn, operands), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _of_equation(eqn: Any, operands: list[Reach | None]) -> list[Reach | None]:
    name, inner = eqn.primitive.name, eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if name in CALLS or name in CUSTOM:
        results = reaches(getattr(inner, "jaxpr", inner), operands)
        if name in CALLS:
            return results
        # a derivative of its own need not be that of the function, by which the variance would go
        return [result and _broken(result, name) for result in results]
    if name == "cond" and operands[0] is None:
        branches = [reaches(branch.jaxpr, operands[1:]) for branch in eqn.params["branches"]]
        return [_either([result for result in results if result]) for results in zip(*branches, strict=True)]
    flags = [operand is not None for operand in operands]
    leaves = frozenset().union(*[operand.leaves for operand in operands if operand])
    breaks = frozenset().union(*[operand.breaks for operand in operands if operand])
    depends = depends_on(_as_jaxpr(eqn), flags)
    if breaks:
        return [Reach(leaves, breaks) if flag else None for flag in depends]
    affine = _is_affine(eqn, flags)
    if any(flag and not good for flag, good in zip(depends, affine, strict=True)):
        alone = [
            [index == only for index in range(len(flags))] for only in itertools.compress(range(len(flags)), flags)
        ]
        is_product = len(alone) > 1 and all(all(_is_affine(eqn, one)) for one in alone)
        breaks = frozenset([Break(name, leaves, is_product)])
    return [
        Reach(leaves, frozenset() if good else breaks) if flag else None
        for flag, good in zip(depends, affine, strict=True)
    ]


def _broken(reach: Reach, name: str) -> Reach:
    return reach if reach.breaks else Reach(reach.leaves, frozenset([Break(name, reach.leaves)]))


def _either(some: Sequence[Reach]) -> Reach | None:
    """What a value has from the leaves that may be any of some."""
    if not some:
        return None
    return Reach(frozenset().union(*[one.leaves for one in some]), frozenset().union(*[one.breaks for one in some]))


def _bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    with eqn.ctx.manager:
        return bind(eqn, operands)


def _as_jaxpr(eqn: Any) -> Any:
    return jax.make_jaxpr(lambda operands: _bind(eqn, operands))([atom.aval for atom in eqn.invars]).jaxpr


def _is_affine(eqn: Any, flags: Sequence[bool]) -> list[bool]:
    """For each output, whether it is affine in these operands together, with the derivative that JAX takes it to have.

    What cannot be differentiated is not, nor what depends on them but has no derivative, such as a rounded number.
    """
    avals = [atom.aval for atom in eqn.invars]
    fixed, moving = ([aval for aval, flag in zip(avals, flags, strict=True) if flag is side] for side in (False, True))
    is_real = [jnp.issubdtype(variable.aval.dtype, jnp.floating) for variable in eqn.outvars]

    def tangents(primals: list[Any], tangents: list[Any], fixed: list[Any]) -> list[Any]:
        def real_outputs(*moving: Any) -> list[Any]:
            rest = {True: iter(moving), False: iter(fixed)}
            return list(itertools.compress(_bind(eqn, [next(rest[flag]) for flag in flags]), is_real))

        return jax.jvp(real_outputs, tuple(primals), tuple(tangents))[1]

    try:
        jaxpr = jax.make_jaxpr(tangents)(moving, moving, fixed).jaxpr
    except Exception:  # no derivative
        return [False] * len(is_real)
    count, rest = len(moving), len(fixed)
    by_primals = depends_on(jaxpr, [True] * count + [False] * (count + rest))
    by_tangents = depends_on(jaxpr, [False] * count + [True] * count + [False] * rest)
    real = iter([of_tangent and not of_primal for of_tangent, of_primal in zip(by_tangents, by_primals, strict=True)])
    return [next(real) if flag else False for flag in is_real]


def breaks_of(f: Callable[..., Any], arguments: Sequence[Any]) -> tuple[list[Reach | None], frozenset[Break]]:
    """What each output of f(*arguments) has from the arguments, by their numbers, and all that is in the way."""
    jaxpr = jax.make_jaxpr(f)(*arguments)
    counts = [len(jax.tree.leaves(argument)) for argument in arguments]
    starts = [Reach(frozenset([index])) for index, count in enumerate(counts) for _ in range(count)]
    results = reaches(jaxpr.jaxpr, starts)
    return results, frozenset().union(*[result.breaks for result in results if result])
