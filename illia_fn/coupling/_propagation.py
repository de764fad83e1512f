"""Means and variances of all values of a network, in one pass over its jaxpr: deterministic variational inference.

Wu et al. 2019, Deterministic variational inference for robust Bayesian neural networks,
https://arxiv.org/abs/1810.03958, without the covariances of the units of a layer. A value is an array, or independent
Gaussians (`Random`). What an operation makes of their moments is in four tables, and to add one is to add its name:

    ELEMENTWISE     f(z) of one array z                E and Var of f: see `_elementwise`
    SUMS            sums of numbers, or moved ones     mean = op(means), variance = op(variances)
    PRODUCTS        bilinear: sums of x w              mean = op(m, n), variance = op(m^2, d) + op(c, n^2 + d)
    CALLS           a jaxpr of its own                 the moments of its outputs

for x ~ N(m, c) and w ~ N(n, d). The means are right if the values are Gaussian; covariances are neglected.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from illia_fn._base.jaxprs import bind
from illia_fn._base.numerics import at_least_float32
from illia_fn.coupling._elementwise import ELEMENTWISE, Law, Random, Source, combined, elementwise
from illia_fn.coupling._interpreter import or_on

Array = jax.Array


@dataclass(frozen=True)
class Context:
    """What all rules know.

    Attributes:
        caller: the public function that errors name.
        paths: of the posterior nodes.
        num_points: of the quadrature.
        known: the moments of values that have been read.
    """

    caller: str
    paths: Sequence[str]
    num_points: int
    known: dict[Random, Law] = field(default_factory=dict)

    def moments(self, value: Any) -> Law:
        """Mean and variance; 0 is the variance of an array."""
        if not isinstance(value, Random):
            mean = at_least_float32(value)
            return mean, jnp.zeros_like(mean)
        if value not in self.known:
            self.known[value] = value.law(self.num_points)
        return self.known[value]

    def refuse(self, eqn: Any, operands: Sequence[Any], why: str = "") -> NoReturn:
        name, leaves = eqn.primitive.name, _leaves(operands)
        raise ValueError(
            f"{self.caller}: moments are not propagated through {name}, here of what depends on "
            f"{_listed([self.paths[leaf] for leaf in sorted(leaves)])}: {why or WHY.get(name, 'no rule for it')}. "
            "Make the leaves before it deterministic, with a mask of mean_field, or average over draws: elbo_loss, "
            "predict."
        )


def evaluate(ctx: Context, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, each an array or a `Random`."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    mesh = jax.sharding.get_abstract_mesh()
    for eqn in _live(jaxpr):
        with eqn.ctx.manager, or_on(mesh):
            values.update(zip(eqn.outvars, _equation(ctx, eqn, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _live(jaxpr: Any) -> Iterator[Any]:
    """The equations that the outputs are made of: what is not used need not be known."""
    used, live = set(map(id, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(id(variable) in used for variable in eqn.outvars):
            used |= set(map(id, eqn.invars))
            live.append(eqn)
    return reversed(live)


def _equation(ctx: Context, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    """The outputs of one equation, by the first table that has a rule for it."""
    name, sources = eqn.primitive.name, {value.source for value in operands if isinstance(value, Random)}
    if not sources:
        return bind(eqn, operands)
    if name in CALLS:
        return _call(ctx, eqn, operands)
    if name in ELEMENTWISE and len(sources) == 1:
        return [elementwise(eqn, operands)]
    if any(isinstance(value, Random) and not jnp.issubdtype(value.dtype, jnp.floating) for value in operands):
        ctx.refuse(eqn, operands, "what it takes is not continuous")
    if name in SUMS:
        return _sums(ctx, eqn, operands)
    if name in PRODUCTS:
        return _products(ctx, eqn, operands)
    return ctx.refuse(eqn, operands)


def _call(ctx: Context, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    """The jaxpr of a call; of an element-wise function its own derivative, where it has one, is kept."""
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    results = evaluate(ctx, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
    sources = {value.source for value in [*operands, *results] if isinstance(value, Random)}
    if eqn.primitive.name not in CUSTOM or len(sources) > 1 or not all(isinstance(value, Random) for value in results):
        return results
    whole = [
        combined(lambda *xs, at=at: bind(eqn, xs)[at], operands, value.dtype, is_straight=False)
        for at, value in enumerate(results)
    ]
    return [value if value.pieces else one for one, value in zip(whole, results, strict=True)]


def _sums(ctx: Context, eqn: Any, operands: list[Any]) -> list[Random]:
    """Sums of independent numbers, such as a layer's output and its bias, and numbers that are only moved."""
    is_number = [jnp.issubdtype(atom.aval.dtype, jnp.floating) for atom in eqn.invars]  # others are indices
    laws = [ctx.moments(value) if flag else (value, value) for value, flag in zip(operands, is_number, strict=True)]
    means, variances = zip(*laws, strict=True)
    params = {"fill_value": 0} if eqn.params.get("fill_value") is not None else {}
    means = bind(eqn, means)
    variances = [jnp.add(*variances)] if eqn.primitive.name == "sub" else bind(eqn, variances, **params)
    return [
        Random.of(Source(mean, variance, variable.aval.dtype, _leaves(operands)))
        for mean, variance, variable in zip(means, variances, eqn.outvars, strict=True)
    ]


def _products(ctx: Context, eqn: Any, operands: list[Any]) -> list[Random]:
    """x w: m n and m^2 d + c (n^2 + d), summed, for x ~ N(m, c) and w ~ N(n, d) that are independent."""
    x, w = operands
    shared = _leaves([x]) & _leaves([w])
    if shared:
        both = _listed([ctx.paths[leaf] for leaf in sorted(shared)])
        ctx.refuse(eqn, operands, f"a product of two values that both depend on {both}, whose covariance is not known")
    wide = {"preferred_element_type": None} if "preferred_element_type" in eqn.params else {}
    times = lambda *factors: bind(eqn, factors, **wide)[0]  # noqa: E731
    (m, c), (n, d) = ctx.moments(x), ctx.moments(w)
    if not isinstance(w, Random):
        variance = times(c, jnp.square(n))
    else:
        variance = times(jnp.square(m), d)
        variance += times(c, jnp.square(n) + d) if isinstance(x, Random) else 0.0
    return [Random.of(Source(times(m, n), variance, eqn.outvars[0].aval.dtype, _leaves(operands)))]


def _leaves(values: Sequence[Any]) -> frozenset[int]:
    return frozenset().union(*[value.source.leaves for value in values if isinstance(value, Random)])


def _listed(paths: Sequence[str]) -> str:
    names = [f"params{path}" for path in paths]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} other leaves"


SUMS = {
    "add", "add_any", "broadcast_in_dim", "concatenate", "cumsum", "dynamic_slice", "dynamic_update_slice", "gather",
    "pad", "reduce_sum", "reduce_window_sum", "reshape", "reshard", "rev", "scatter", "scatter-add", "select_n",
    "sharding_constraint", "slice", "split", "squeeze", "stack", "sub", "tile", "transpose", "unstack",
}  # fmt: skip
PRODUCTS = {"conv_general_dilated", "dot_general", "mul"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
CALLS = {*CUSTOM, "checkpoint", "closed_call", "core_call", "jit", "pjit", "remat", "remat2"}
WHY = {
    "div": "a quotient, such as a normalisation",
    "max": "the larger of two random values",
    "reduce_max": "a maximum. Pool by the mean; of a softmax return the logits",
    "reduce_window_max": "a maximum. Pool by the mean",
    "scan": "a loop",
    "while": "a loop",
}
