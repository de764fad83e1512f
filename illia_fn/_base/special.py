"""Special functions in forms that keep what cancels, with derivatives as good as their values, for any positive x.

XLA's lgamma, digamma and i0e are good to their own last places; differences of them, which likelihoods are made of, are
not. Here each difference is a function of its own: a sum of terms of one sign, and an expansion where x is large.
"""

import itertools
import math
import operator
from fractions import Fraction

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import HALF_LOG_2PI

# Stieltjes's continued fraction of `stirling_error`: DLMF 5.10.1, https://dlmf.nist.gov/5.10.
STIELTJES = [
    float(Fraction(a))
    for a in ("1/12", "1/30", "53/210", "195/371", "22999/22737", "29944523/19733142", "109535241009/48264275462")
]
# B_2, B_4, ...
BERNOULLI = [
    float(Fraction(b)) for b in ("1/6", "-1/30", "1/42", "-1/30", "5/66", "-691/2730", "7/6", "-3617/510", "43867/798")
]


@jax.jit
def minus_log(x: jax.Array, log: jax.Array) -> jax.Array:
    """x - log(1 + x) >= 0 for x > -1, where `log` is log(1 + x), as well as it can be had: for x away from 0."""
    # 2 atanh(w) - 2 w, with w = x / (2 + x), in its Taylor series: for |w| < 1/4 the difference would cancel.
    near = jnp.abs(x) < 0.25 * (2.0 + x)
    x_near = jnp.where(near, x, 0.0)
    w = x_near / (2.0 + x_near)
    series = jnp.zeros_like(w)
    for power in range(_of_dtype(x, 15, 29), 1, -2):
        series = series * w * w + 1.0 / power
    return jnp.where(near, w * (x_near - 2.0 * w * w * series), x - log)


@jax.jit
def stirling_error(x: jax.Array, log_x: jax.Array) -> jax.Array:
    """log Gamma(x + 1) - (x + 1/2) log(x) + x - log(2 pi) / 2, for x > 0; 1 / (12 x) for large x."""
    shift = _of_dtype(x, 3, 8)
    low = x < shift
    small = jnp.where(low, x, 1.0)
    # log of Gamma(x + shift + 1) / Gamma(x + 1), each factor over x + shift
    top = small + shift
    product = math.prod((small + k) / top for k in range(1, shift))
    step = (small + 0.5) * (jnp.log(top) - jnp.where(low, log_x, 0.0)) - shift - jnp.log(product)
    return jnp.where(low, step, 0.0) + _stieltjes(jnp.where(low, top, x))


@jax.jit
def digamma_error(x: jax.Array) -> jax.Array:
    """log(x) - 1 / (2 x) - digamma(x) > 0, for x > 0, minus the derivative of `stirling_error`."""
    shift = _of_dtype(x, 3, 8)
    low = x < shift
    small = jnp.where(low, x, 1.0)
    large = jnp.where(low, small + shift, x)
    # log(x) - digamma(x) of x and of x + 1 differ by 1 / x - log(1 + 1 / x)
    steps = sum(minus_log(1.0 / (small + k), jnp.log((small + k + 1) / (small + k))) for k in range(shift))
    steps -= 0.5 * shift / small / large
    inverse_square = jnp.square(1.0 / large)
    series = inverse_square * _horner([b / (2 * k) for k, b in enumerate(BERNOULLI, 1)], inverse_square)
    return jnp.where(low, steps, 0.0) + series


@jax.custom_jvp
def log_gamma_half_step(x: jax.Array) -> jax.Array:
    """log Gamma(x + 1/2) - log Gamma(x) - log(x) / 2 < 0, for x > 0; -1 / (8 x) for large x."""
    low, steps, inverse = _half_steps(x)
    product = 4.0 * steps[0] * (steps[0] + 1.0) / jnp.square(2.0 * steps[0] + 1.0)
    product *= math.prod(1.0 - 1.0 / jnp.square(2.0 * step + 1.0) for step in steps[1:])
    return jnp.where(low, 0.5 * jnp.log(product), 0.0) - inverse * _horner(_HALF_STEP, inverse * inverse)


@log_gamma_half_step.defjvp
def _log_gamma_half_step_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,) = primals
    low, steps, inverse = _half_steps(x)
    total = sum(0.5 / step / (step + 1.0) / (2.0 * step + 1.0) for step in steps)
    series = _horner([(2 * k - 1) * a for k, a in enumerate(_HALF_STEP, 1)], inverse * inverse)
    return log_gamma_half_step(x), (jnp.where(low, total, 0.0) + inverse * inverse * series) * tangents[0]


_HALF_STEP = [(1 - 0.25**k) * b / (k * (2 * k - 1)) for k, b in enumerate(BERNOULLI, 1)]


def _half_steps(x: jax.Array) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """Where x is small, the steps that make it large, and the inverse of what is large."""
    low = x < 12.0
    small = jnp.where(low, x, 1.0)
    return low, [small + k for k in range(12)], 1.0 / jnp.where(low, small + 12.0, x)


@jax.custom_jvp
def log_i0e(kappa: jax.Array) -> jax.Array:
    """log(exp(-kappa) I_0(kappa)), for kappa >= 0."""
    return _log_i0e(kappa)[0]


def mean_bend(kappa: jax.Array) -> jax.Array:
    """1 - I_1(kappa) / I_0(kappa), the mean of 1 - cos(angle), for kappa >= 0; 1 / (2 kappa) for large kappa."""
    return -_log_i0e(kappa)[1]


@log_i0e.defjvp
def _log_i0e_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, slope = _log_i0e(*primals)
    return value, slope * tangents[0]


@jax.jit
def _log_i0e(kappa: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Value and slope, which is -E[1 - cos(angle)]: a difference of Bessel functions would cancel."""
    # The mean of exp(-kappa (1 - cos)) over equidistant angles is I_0 up to I_{2 nodes}; above, its asymptotic series.
    nodes, border, terms = _of_dtype(kappa, (14, 16.0, 9), (28, 26.0, 20))
    bends = [2.0 * math.sin(math.pi * (k + 0.5) / (2 * nodes)) ** 2 for k in range(nodes)]
    high = kappa > border
    small = jnp.where(high, border, kappa)
    weights = [jnp.exp(-small * bend) for bend in bends]
    mass = sum(weights)
    mean_bend = sum(weight * bend for weight, bend in zip(weights, bends, strict=True)) / mass
    large = jnp.where(high, kappa, border)
    inverse = 1.0 / large
    # (1^2 3^2 ... (2 k - 1)^2) / (k! 8^k kappa^k), k = 1, 2, ...
    ratios = list(itertools.accumulate(((2 * k - 1) ** 2 / (8 * k) for k in range(1, terms + 1)), operator.mul))
    series = inverse * _horner(ratios, inverse)
    slope = _horner([k * a for k, a in enumerate(ratios, 1)], inverse) * inverse / (1.0 + series)
    return (
        jnp.where(high, jnp.log1p(series) - HALF_LOG_2PI - 0.5 * jnp.log(large), jnp.log(mass / nodes)),
        jnp.where(high, -inverse * (0.5 + slope), -mean_bend),
    )


def _stieltjes(x: jax.Array) -> jax.Array:
    fraction = jnp.zeros_like(x)
    for a in reversed(STIELTJES):
        fraction = a / (x + fraction)
    return fraction


def _horner(coefficients: list[float], x: jax.Array) -> jax.Array:
    """c_0 + c_1 x + c_2 x^2 + ..."""
    value = jnp.zeros_like(x)
    for c in reversed(coefficients):
        value = value * x + c
    return value


def _of_dtype(x: jax.Array, single, double):
    return single if x.dtype == jnp.float32 else double
