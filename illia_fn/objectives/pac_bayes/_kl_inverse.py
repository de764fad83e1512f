"""The inverse of the KL between two coins."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32


def kl_inverse(q: ArrayLike, c: ArrayLike) -> jax.Array:
    """The largest p in [q, 1] with kl(q || p) <= c, where kl(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p)).

    By bisection of p - q to the last bit; differentiable in both.

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
    return _kl_inverse(q.astype(dtype), c.astype(dtype))


@jax.custom_jvp
def _kl_inverse(q: jax.Array, c: jax.Array) -> jax.Array:
    return q + _distance(q, c)


@jax.jit  # outside of a jit, one compilation for all calls
def _distance(q: jax.Array, c: jax.Array) -> jax.Array:
    """p - q."""
    tiny = jnp.finfo(q.dtype).tiny
    rest = 1.0 - q

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        # of the distance: the logarithms of q / p and (1 - q) / (1 - p) would lose a small one
        kl = -rest * jnp.log1p(-middle / jnp.maximum(rest, tiny)) - q * jnp.log1p(middle / jnp.maximum(q, tiny))
        return jnp.where(kl <= c, middle, low), jnp.where(kl <= c, high, middle)

    ends = jnp.zeros_like(q + c), rest + jnp.zeros_like(c)
    distance = jax.lax.fori_loop(0, 64 + jnp.finfo(q.dtype).nmant, halve, ends)[1]
    return jnp.where(c > 0, distance, 0.0)


@_kl_inverse.defjvp
def _kl_inverse_jvp(primals, tangents):
    """dp/dc = p (1 - p) / (p - q), dp/dq = log(p (1 - q) / (q (1 - p))) dp/dc, by the implicit function theorem."""
    (q, c), (q_dot, c_dot) = primals, tangents
    distance = _distance(q, c)
    p = q + distance
    eps = jnp.finfo(p.dtype).eps
    apart = distance > eps * q
    at_the_end = jnp.where(q < 1.0, jnp.inf, 0.0)
    by_c = jnp.where(apart, p * (1.0 - p) / jnp.where(apart, distance, 1.0), at_the_end)
    # infinite at q = 0, but as a logarithm: of q = eps it is a number to train with
    ratio = jnp.log(p / jnp.maximum(q, eps)) + jnp.log(jnp.maximum(1.0 - q, eps) / jnp.maximum(1.0 - p, eps))
    by_q = jnp.where(apart, ratio * by_c, 1.0)
    return p, by_q * q_dot + by_c * c_dot
