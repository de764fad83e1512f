"""The inverse of the KL between two coins."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.special import minus_log


def kl_inverse(q: ArrayLike, c: ArrayLike) -> jax.Array:
    """The largest p in [q, 1] with kl(q || p) <= c, where kl(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p)).

    By bisection to the last bit; differentiable in both.

    Args:
        q: a probability; an array is inverted element-wise.
        c: nats, not negative, of the shape of q.

    Raises:
        ValueError: if a probability lies outside of [0, 1] or c is negative, where that is known before tracing, or
            their shapes differ.

    >>> print(kl_inverse(0.0, 0.1).round(6), kl_inverse(0.25, 0.0), kl_inverse(1.0, 0.1))  # 1 - exp(-0.1), ...
    0.095163 0.25 1.0
    """
    if jnp.shape(q) != jnp.shape(c):
        raise ValueError(f"kl_inverse: q and c must have one shape, got {jnp.shape(q)} and {jnp.shape(c)}.")
    for name, given, inside in (
        ("q must be a probability", q, lambda q: (q >= 0) & (q <= 1)),
        ("c must not be negative", c, lambda c: c >= 0),
    ):
        value = concrete(given)
        if value is not None and not np.all(inside(value)):
            raise ValueError(f"kl_inverse: {name}, got {describe(given)}.")
    q, c = at_least_float32(q), at_least_float32(c)
    dtype = jnp.promote_types(q.dtype, c.dtype)
    return _kl_inverse(q.astype(dtype), c.astype(dtype))[0]


@jax.custom_jvp
@jax.jit  # outside of a jit, one compilation for all calls
def _kl_inverse(q: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """p, p - q and 1 - p, each to its own last places."""
    # With p - q = s (1 - q), s or 1 - s is at most 1/2, and is halved by its bits, which are in the order of the
    # numbers: to the last of them, however small it is.
    one, bits = jnp.ones_like(q + c), jnp.finfo(q.dtype).bits
    upper = (_kl(q, 0.5 * one, 0.5 * one) <= c) & (c > 0)
    as_int = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.dtype(f"int{bits}"))
    as_pair = lambda bits: _pair(jax.lax.bitcast_convert_type(bits, q.dtype), upper)  # noqa: E731

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = low + ((high - low) >> 1)
        too_high = (_kl(q, *as_pair(middle)) <= c) == upper
        return jnp.where(too_high, low, middle), jnp.where(too_high, middle, high)

    low, high = jax.lax.fori_loop(0, bits, halve, (as_int(0.0 * one), as_int(0.5 * one)))
    s, left = as_pair(jnp.where(c > 0, jnp.where(upper, high, low), 0))
    rest = 1.0 - q
    return jnp.where(upper, 1.0 - rest * left, q + rest * s), rest * s, rest * left


def _pair(small: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
    """s and 1 - s, of which `small` is the second where `upper`."""
    return jnp.where(upper, 1.0 - small, small), jnp.where(upper, small, 1.0 - small)


def _kl(q: jax.Array, s: jax.Array, left: jax.Array) -> jax.Array:
    """kl(q || q + s (1 - q)), with left = 1 - s: its two logarithms less what in their sum cancels."""
    rest, q = 1.0 - q, jnp.maximum(q, jnp.finfo(q.dtype).tiny)
    growth = rest * s / q
    return rest * minus_log(-s, jnp.log(left)) + q * minus_log(growth, jnp.log1p(growth))


@_kl_inverse.defjvp
def _kl_inverse_jvp(primals, tangents):
    """dp/dc = p (1 - p) / (p - q), dp/dq = log(p (1 - q) / (q (1 - p))) dp/dc, by the implicit function theorem."""
    (q, c), (q_dot, c_dot) = primals, tangents
    p, distance, left = _kl_inverse(q, c)
    tiny = jnp.finfo(q.dtype).tiny
    apart = distance > 0
    by_c = jnp.where(apart, p * left / jnp.where(apart, distance, 1.0), jnp.where(q < 1.0, jnp.inf, 0.0))
    # log(p / q), infinite at q = 0, but as a logarithm: of the smallest q it is a number to train with
    of_success = jnp.log1p(distance / jnp.maximum(q, tiny))
    # log((1 - q) / (1 - p)), by log(1 + x) = x - (x - log(1 + x)) where it is small
    rest = jnp.maximum(1.0 - q, tiny)
    of_failure = distance / rest + minus_log(-distance / rest, jnp.log(jnp.maximum(left, tiny) / rest))
    ratio = of_success + of_failure
    by_q = jnp.where(apart, ratio * by_c, jnp.where((q < 1.0) | (c == 0), 1.0, 0.0))
    p_dot = by_q * q_dot + by_c * c_dot
    return (p, distance, left), (p_dot, p_dot - q_dot, -p_dot)
