"""Mean and variance of an element-wise function of independent Gaussians.

Of straight pieces, as those of relu, they are known; of anything else, they are taken by Gauss-Hermite quadrature.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc

from illia_fn._base.jaxprs import bind
from illia_fn._base.numerics import HALF_LOG_2PI, at_least_float32, gauss_hermite
from illia_fn.coupling._moments import root

Array = jax.Array
Function = Callable[[Array], Array]
Law = tuple[Array, Array]  # mean and variance, in float32 or wider

_FAR = 50.0  # standard deviations, where the density is 0 in float64


@dataclass(frozen=True, eq=False)
class Source:
    """Independent Gaussians z.

    Attributes:
        mean, variance: theirs, in float32 or wider.
        dtype: that of z in the model.
        leaves: the posterior nodes that z depends on.
    """

    mean: Array
    variance: Array
    dtype: Any
    leaves: frozenset[int]


class Pieces(NamedTuple):
    """`above` where `side` is positive, and `below` elsewhere: functions of z that are affine, or constant if Boolean.

    Without a side the two are the same.
    """

    below: Function
    above: Function
    side: Function | None = None


@dataclass(frozen=True, eq=False)
class Random:
    """f(z), element by element.

    Attributes:
        source: z.
        f: the function.
        dtype: of what it returns.
        pieces: the function again, if it is made of straight pieces.
    """

    source: Source
    f: Function
    dtype: Any
    pieces: Pieces | None = None

    @staticmethod
    def of(source: Source) -> "Random":
        return Random(source, _same, source.dtype, Pieces(_same, _same))

    def law(self, num_points: int) -> Law:
        """E[f(z)] and Var[f(z)]."""
        source = self.source
        if self.f is _same:
            return source.mean, source.variance
        if self.pieces is None:
            return _by_quadrature(self, num_points)
        below, above, side = self.pieces
        if side is None:
            value, slope = _line(source, below)
            return value, jnp.square(slope) * source.variance
        stddev = root(source.variance)
        lines = [(value, slope * stddev) for value, slope in (_line(source, piece) for piece in (below, above, side))]
        return of_two_pieces(*lines)


def _same(z: Array) -> Array:
    return z


def elementwise(eqn: Any, operands: list[Any]) -> Random:
    """A function of one source; of straight pieces if its operands are, and it keeps them so or folds them."""
    name, dtype = eqn.primitive.name, eqn.outvars[0].aval.dtype
    is_straight = _is_straight(eqn, [isinstance(value, Random) for value in operands])
    value = combined(lambda *xs: bind(eqn, xs)[0], operands, dtype, is_straight=is_straight)
    lines = [_line_of(operand, eqn.outvars[0].aval.shape) for operand in operands]
    if name not in FOLDS or None in lines:
        return value
    return Random(value.source, value.f, dtype, FOLDS[name](*lines))


def _is_straight(eqn: Any, is_random: Sequence[bool]) -> bool:
    """Whether an element-wise operation is affine in the operands that are random."""
    name = eqn.primitive.name
    if name == "mul":
        return is_random.count(True) == 1
    if name == "div":
        return not is_random[1]
    if name == "convert_element_type":
        return jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
    return name in STRAIGHT


def combined(op: Callable[..., Array], operands: Sequence[Any], dtype: Any, *, is_straight: bool) -> Random:
    """op(*operands), of arrays and of functions of one source; made of straight pieces if op keeps them so."""
    randoms = [value for value in operands if isinstance(value, Random)]

    def through(pick: Callable[[Random], Function]) -> Function:
        functions = [pick(value) if isinstance(value, Random) else _constant(value) for value in operands]
        return lambda z: op(*[f(z) for f in functions])

    pieces = {value: value.pieces for value in randoms if value.pieces is not None}
    sides = {piece.side for piece in pieces.values() if piece.side is not None}
    merged = None
    if is_straight and all(value in pieces for value in randoms) and len(sides) <= 1:
        merged = Pieces(through(lambda value: pieces[value].below), through(lambda value: pieces[value].above), *sides)
    return Random(randoms[0].source, through(lambda value: value.f), dtype, merged)


def _constant(value: Any) -> Function:
    return lambda _: value


def _line_of(value: Any, shape: tuple[int, ...]) -> Function | None:
    """A value as one straight piece, if it is one, of this shape: a scalar meets arrays of any."""
    if not isinstance(value, Random):
        return _constant(jnp.broadcast_to(value, shape))
    if value.pieces is None or value.pieces.side is not None:
        return None
    line = value.pieces.below
    return lambda z: jnp.broadcast_to(line(z), shape)


def _line(source: Source, piece: Function) -> tuple[Array, Array]:
    """Value and slope at the mean."""
    mean = source.mean.astype(source.dtype)
    value, slope = jax.jvp(piece, (mean,), (jnp.ones_like(mean),))
    return at_least_float32(value), at_least_float32(slope)


def of_two_pieces(below: Law, above: Law, side: Law) -> Law:
    """Mean and variance of `above` where side > 0 and of `below` elsewhere, each a + b u, u ~ N(0, 1), as (a, b).

    With t = a / b of the side, and u mirrored where b is negative, the side is positive for u > -t.
    """
    sign = jnp.where(side[1] < 0, -1.0, 1.0).astype(side[1].dtype)
    t = _standardised(side[0], sign * side[1])
    mean, variance = _with_jump(sign * below[1], above[0] - below[0], sign * (above[1] - below[1]), t)
    return below[0] + mean, variance


class _Truncated(NamedTuple):
    """E[1], E[u 1] and E[u^2 1] where u > -t, and the mean E[e 1] and covariance E[u e 1] of e = step + turn u."""

    inside: Array
    density: Array
    second: Array
    mean: Array
    covariance: Array

    @staticmethod
    def of(step: Array, turn: Array, t: Array) -> "_Truncated":
        tail, density = 0.5 * erfc(jnp.abs(t) * math.sqrt(0.5)), jnp.exp(-0.5 * jnp.square(t) - HALF_LOG_2PI)
        inside = jnp.where(t > 0, 1.0 - tail, tail)
        second = inside - t * density
        return _Truncated(inside, density, second, inside * step + density * turn, density * step + second * turn)


@jax.custom_jvp
def _with_jump(slope: Array, step: Array, turn: Array, t: Array) -> Law:
    """Mean and variance of slope u + (step + turn u) 1[u > -t].

    For relu, where slope is 0, step = m and turn = s, the mean is s r with r = phi(t) + t Phi(t), and the variance
    s^2 (Phi(t) + t r - r^2).
    """
    inside, density, second, mean, covariance = _Truncated.of(step, turn, t)
    # E[(e 1)^2] - E[e 1]^2, with Phi(t) Phi(-t) in the place of Phi(t) - Phi(t)^2: it cancels only where all is 0
    variance = (1.0 - inside) * step * (mean + density * turn) + (second - jnp.square(density)) * jnp.square(turn)
    return mean, jnp.maximum(variance + slope * (slope + 2.0 * covariance), 0.0)


@_with_jump.defjvp
def _with_jump_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Law, Law]:
    slope, step, turn, t = primals
    d_slope, d_step, d_turn, d_t = tangents
    inside, density, second, mean, covariance = _Truncated.of(step, turn, t)
    gap = step - turn * t  # of the two pieces where they meet: 0 if what is folded is continuous
    d_mean = inside * d_step + density * d_turn + density * gap * d_t
    by_step = slope * density + mean * (1.0 - inside)
    by_turn = slope * second + covariance - mean * density
    d_variance = 2.0 * ((slope + covariance) * d_slope + by_step * d_step + by_turn * d_turn)
    d_variance += density * gap * (gap - 2.0 * (mean + slope * t)) * d_t
    return _with_jump(*primals), (d_mean, d_variance)


@jax.custom_jvp
def _standardised(mean: Array, stddev: Array) -> Array:
    """mean / stddev, within bounds beyond which nothing changes; 0 / 0 is 0."""
    at_zero = jnp.sign(mean) * _FAR
    return jnp.where(stddev > 0, jnp.clip(mean / jnp.where(stddev > 0, stddev, 1.0), -_FAR, _FAR), at_zero)


@_standardised.defjvp
def _standardised_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    t, stddev = _standardised(*primals), primals[1]
    near = (jnp.abs(t) < _FAR) & (stddev > 0)
    # the square of a small stddev, by which JAX divides, would underflow
    return t, jnp.where(near, tangents[0] - t * tangents[1], 0.0) / jnp.where(near, stddev, 1.0)


def _by_quadrature(value: Random, num_points: int) -> Law:
    """sum_k share_k f(mean + z_k stddev), at the points and with the shares of Gauss and Hermite; so the variance.

    Point by point, as all at once would take the memory, and on CPU ten times as long; for the gradient once more.
    """
    source, stddev = value.source, root(value.source.variance)
    at = lambda z: at_least_float32(value.f(z.astype(source.dtype)))  # noqa: E731
    center = at(source.mean)  # what is near to the mean, so that its square does not cancel from that of the values

    @jax.checkpoint
    def add(sums: Law, point: Law) -> tuple[Law, None]:
        z, share = point
        gap = at(source.mean + z * stddev) - center
        return (sums[0] + share * gap, sums[1] + share * jnp.square(gap)), None

    points, shares = gauss_hermite(num_points)
    points = jnp.asarray(points, stddev.dtype), jnp.asarray(shares, center.dtype)
    (mean, second), _ = jax.lax.scan(add, (jnp.zeros_like(center), jnp.zeros_like(center)), points)
    return center + mean, jnp.maximum(second - jnp.square(mean), 0.0)


def _step(side: Function) -> Pieces:
    """Whether a side is positive."""
    return Pieces(lambda z: jnp.zeros_like(z, bool), lambda z: jnp.ones_like(z, bool), side)


def _gap(a: Function, b: Function) -> Function:
    return lambda z: a(z) - b(z)


FOLDS: dict[str, Callable[..., Pieces]] = {
    "abs": lambda a: Pieces(lambda z: -a(z), a, a),
    "ge": lambda a, b: _step(_gap(a, b)),
    "gt": lambda a, b: _step(_gap(a, b)),
    "le": lambda a, b: _step(_gap(b, a)),
    "lt": lambda a, b: _step(_gap(b, a)),
    "max": lambda a, b: Pieces(b, a, _gap(a, b)),
    "min": lambda a, b: Pieces(a, b, _gap(a, b)),
}
STRAIGHT = {"add", "add_any", "copy", "copy_p", "name", "neg", "pvary", "reduce_precision", "select_n", "sub"}
ELEMENTWISE = {
    *FOLDS, *STRAIGHT,
    "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp", "convert_element_type",
    "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "integer_pow",
    "is_finite", "lgamma", "log", "log1p", "logistic", "mul", "ne", "not", "or", "pow", "rem", "round", "rsqrt", "sign",
    "sin", "sinh", "sqrt", "square", "stop_gradient", "tan", "tanh", "xor",
}  # fmt: skip
