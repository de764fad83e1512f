"""Operations that hold a jaxpr of their own: to add one, add a rule to RECURSION.

A rule evaluates the inner jaxpr with views among its arguments. Every constant of a loop is met again in each round:
the same noise and the same signs serve all of them. What is stacked for a scan (`xs`) is met once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn.coupling._context import Context, arrays, concrete
from illia_fn.coupling._layout import UNKNOWN
from illia_fn.coupling._moments import Moments
from illia_fn.coupling._values import PerExample, View
from illia_fn.engine._randomness import scan_counts

Evaluate = Callable[[Context, Any, Sequence[Any], Sequence[Any]], list[Any]]


def _inline(evaluate: Evaluate, ctx: Context, eqn: Any, operands: list[Any]) -> list[Any]:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return _inner(evaluate, ctx, inner, operands)


def _checkpoint(evaluate: Evaluate, ctx: Context, eqn: Any, operands: list[Any]) -> list[Any]:
    def f() -> list[jax.Array]:
        return arrays(concrete(ctx, _inner(evaluate, ctx, eqn.params["jaxpr"], operands)))

    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    return list(map(PerExample, jax.checkpoint(f, **options)()))


def _cond(evaluate: Evaluate, ctx: Context, eqn: Any, operands: list[Any]) -> list[Any]:
    index, *operands = operands
    (index,) = arrays(concrete(ctx, [index], "cond"))

    def branch(number: int, inner: Any) -> Callable[[], list[jax.Array]]:
        at = ctx.at(number)
        return lambda: arrays(concrete(at, _inner(evaluate, at, inner, operands)))

    branches = [branch(number, inner) for number, inner in enumerate(eqn.params["branches"])]
    return list(map(PerExample, jax.lax.switch(index, branches)))


def _while(evaluate: Evaluate, ctx: Context, eqn: Any, operands: list[Any]) -> list[Any]:
    first, second = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    consts = [_read_again(value, math.inf) for value in _drawn(ctx, operands[:second])]
    start = concrete(ctx, operands[second:], "while")

    def run(number: int, inner: Any, consts: list[Any], carry: list[jax.Array]) -> list[jax.Array]:
        at = ctx.at(number)
        return arrays(concrete(at, _inner(evaluate, at, inner, [*consts, *map(PerExample, carry)])))

    carry = jax.lax.while_loop(
        lambda carry: run(0, eqn.params["cond_jaxpr"], consts[:first], carry)[0],
        lambda carry: run(1, eqn.params["body_jaxpr"], consts[first:], carry),
        arrays(start),
    )
    return list(map(PerExample, carry))


def _scan(evaluate: Evaluate, ctx: Context, eqn: Any, operands: list[Any]) -> list[Any]:
    num_consts, num_carry = scan_counts(eqn.params)
    length = eqn.params["length"]
    consts = [_read_again(value, length) for value in _drawn(ctx, operands[:num_consts])]
    start = arrays(concrete(ctx, operands[num_consts : num_consts + num_carry], "scan"))
    stacked = [_stacked(value, length) for value in _drawn(ctx, operands[num_consts + num_carry :])]
    noise = {site: array for site, array in ctx.noise.items() if site[: len(ctx.path)] == ctx.path}
    sites: dict[Any, Any] = {}

    def body(carry: list[jax.Array], slices: tuple[Any, list[Any]]) -> tuple[list[jax.Array], list[jax.Array]]:
        inner = replace(ctx, noise=slices[0], sites=None if ctx.sites is None else sites, rounds=ctx.rounds * length)
        xs = [at(parts) for (_, at), parts in zip(stacked, slices[1], strict=True)]
        outputs = _inner(evaluate, inner, eqn.params["jaxpr"], [*consts, *map(PerExample, carry), *xs])
        outputs = arrays(concrete(inner, outputs, "scan"))
        return outputs[:num_carry], outputs[num_carry:]

    options = {name: eqn.params[name] for name in ("reverse", "unroll")}
    xs = noise, [parts for parts, _ in stacked]
    carry, ys = jax.lax.scan(body, start, xs, length, **options)
    if ctx.sites is not None:  # one draw for each round
        ctx.sites.update({s: jax.ShapeDtypeStruct((length, *like.shape), like.dtype) for s, like in sites.items()})
    return list(map(PerExample, [*carry, *ys]))


def _stacked(value: Any, length: int) -> tuple[Any, Callable[[Any], Any]]:
    """The arrays that a scan slices, and the value that is made of their slices."""
    if not isinstance(value, View):
        return arrays([value])[0], PerExample if isinstance(value, PerExample) else lambda array: array

    def rows(array: jax.Array) -> jax.Array:
        return jnp.broadcast_to(array, (length, *array.shape[1:]))

    def rows_of_each(array: jax.Array) -> jax.Array:  # of each direction
        return rows(jnp.moveaxis(array, 1, 0))

    mean, dev = rows(value.mean), None if value.dev is None else rows(value.dev)
    factors = {j: tuple(map(rows_of_each, moves.factors)) for j, moves in value.directions.items()}
    signs = {axis: sign for axis, sign in value.signs.items() if 0 in value.spans(axis)}
    positions = {axis: sign for axis, sign in signs.items() if isinstance(sign, np.ndarray)}  # not known in a round
    fixed = {axis: sign[0] for axis, sign in value.signs.items() if axis not in signs}
    fixed |= {axis: np.full(sign.shape[1:], UNKNOWN) for axis, sign in positions.items()}

    def at(slices: tuple[Any, ...]) -> View:
        mean, dev, signs, factors = slices
        directions = {j: moves._replace(factors=factors[j]) for j, moves in value.directions.items()}
        return replace(value, shape=value.shape[1:], mean=mean, dev=dev, signs=fixed | signs, directions=directions)

    return (mean, dev, {axis: sign for axis, sign in signs.items() if axis not in positions}, factors), at


def _inner(evaluate: Evaluate, ctx: Context, jaxpr: Any, args: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr within the jaxpr, with constants of its own or without."""
    return evaluate(ctx, getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), args)


def _drawn(ctx: Context, values: Sequence[Any]) -> list[Any]:
    return [ctx.draw(value) if isinstance(value, Moments) else value for value in values]


def _read_again(value: Any, rounds: float) -> Any:
    return replace(value, copies=value.copies * rounds) if isinstance(value, View) else value


RECURSION: dict[str, Callable[[Evaluate, Context, Any, list[Any]], list[Any]]] = {
    "checkpoint": _checkpoint,
    "closed_call": _inline,
    "cond": _cond,
    "core_call": _inline,
    "jit": _inline,
    "pjit": _inline,
    "remat": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
    "while": _while,
}
