"""KL between Gaussians, right where they nearly agree and at both ends of every scale, in a form that XLA sums fast."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import at_least_float32
from illia_fn.kl.table import register_kl
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.priors.normal import Normal


@register_kl(Gaussian, Normal)
@register_kl(Gaussian, Gaussian)
@register_kl(Normal, Normal)
@register_kl(Normal, Gaussian)
@jax.jit  # one dispatch outside of a jit, one compilation for each shape inside
def kl_normal_normal(q: Gaussian | Normal, p: Gaussian | Normal) -> jax.Array:
    """KL = sum log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2."""
    p_underflows = not isinstance(p, Normal)  # whose scale does not
    return jnp.sum(_apart(partial(_kl_gaussian, p_underflows), q, p))


def _kl_gaussian(p_underflows: bool, q: Any, p: Any) -> jax.Array:  # noqa: FBT001
    q_loc, q_scale, q_log_scale = at_least_float32(q.loc), at_least_float32(q.scale), q.log_scale
    p_loc, p_scale, p_log_scale = (at_least_float32(x).astype(q_loc.dtype) for x in (p.loc, p.scale, p.log_scale))
    # of a quarter, as the reciprocal of the largest numbers would be subnormal, which XLA flushes to 0
    inverse = 1.0 / jnp.maximum(_QUARTER * p_scale, jnp.finfo(p_scale.dtype).tiny)
    args = jnp.broadcast_arrays(q_loc - p_loc, q_scale, q_log_scale, p_scale, p_log_scale, inverse)
    return _kl_from_scales(p_underflows, *args)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apart(f: Callable[..., jax.Array], *args: Any) -> jax.Array:
    """f(*args), whose value and derivative share no intermediate results.

    Recomputing a few functions of numbers in registers is faster than writing them to memory for the other to read.
    """
    return f(*args)


@_apart.defjvp
def _apart_jvp(f, primals, tangents):
    # In arrays of another shape not even constants are shared, which would be written to memory, too.
    value = f(*primals)
    apart, dots = jax.tree.map(lambda x: x[None] if jnp.ndim(x) else x, (primals, tangents))
    apart = jax.tree.map(jax.lax.optimization_barrier, apart)  # one by one: together, all would vary along one axis
    return value, jax.jvp(f, apart, dots)[1].reshape(value.shape)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kl_from_scales(
    p_underflows: bool,  # noqa: FBT001
    delta: jax.Array,
    q_scale: jax.Array,
    q_log_scale: jax.Array,
    p_scale: jax.Array,
    p_log_scale: jax.Array,
    inverse: jax.Array,
) -> jax.Array:
    """KL = (z^2 + t (t + 2)) / 2 - log(1 + t), with z = delta / s_p, t = s_q / s_p - 1 and inverse = 4 / s_p.

    Written without a branch: XLA's CPU backend sums such an expression faster than one with a select.
    """
    z, t, ratio, log_ratio = _standardise(p_underflows, delta, q_scale, q_log_scale, p_scale, p_log_scale, inverse)
    # Near q = p the terms in t cancel to order t^2; there t - log(1 + t) is summed as a series in u = t / (t + 2):
    # log(1 + t) = 2 atanh(u) and t = 2 u / (1 - u), so t - log(1 + t) = u t - 2 u^3 (1/3 + u^2/5 + u^4/7 + ...).
    near = _clip(t, _LOW - 1.0, _HIGH - 1.0)
    u = near / (near + 2.0)
    last = 9 if t.dtype == jnp.float32 else 21
    square, series = u * u, 1 / last
    for k in range(last - 2, 1, -2):
        series = series * square + 1 / k
    near_kl = near * (0.5 * near + u) - 2.0 * u * square * series
    # What lies beyond is added, and is exactly 0 within: _LOW * _HIGH = 1. Products halve first, as z^2 may overflow
    # where half of it does not; what lies below _SMALL comes from the difference of the logarithms.
    beyond = _clip(ratio, _SMALL, _LOW) * _clip(ratio, _HIGH, float(jnp.finfo(t.dtype).max))
    far_kl = 0.5 * (t - near) * (t + near + 2.0) - jnp.log(beyond)
    return 0.5 * z * z + near_kl + far_kl - jnp.minimum(log_ratio - math.log(_SMALL), 0.0)


_QUARTER = 0.25
_LOW, _HIGH = 3 / 4, 4 / 3  # of the ratio of the scales
_SMALL = 1e-4


def _clip(x: jax.Array, low: float, high: float) -> jax.Array:
    """`jnp.clip`, which XLA would take for a select when it looks for a fast sum."""
    return -jnp.maximum(-jnp.maximum(x, low), -high)


def _standardise(p_underflows, delta, q_scale, q_log_scale, p_scale, p_log_scale, inverse):
    """z, t, the ratio of the scales and its logarithm, each to a few units in the last place."""
    log_ratio = q_log_scale - p_log_scale
    z = (_QUARTER * delta) * inverse
    if not p_underflows:  # a Normal's scale does not
        return z, (_QUARTER * (q_scale - p_scale)) * inverse, (_QUARTER * q_scale) * inverse, log_ratio
    # Where scales underflow, only their logarithms still tell them apart: the ratio is that of the scales, kept above a
    # floor, times exp(below), and above the floor below = 0.
    floor = float(jnp.finfo(p_scale.dtype).tiny) * 2.0**16
    below = log_ratio - (jnp.maximum(q_log_scale, math.log(floor)) - jnp.maximum(p_log_scale, math.log(floor)))
    below = jnp.minimum(below, 80.0)
    p_floored, q_floored = jnp.maximum(p_scale, floor), jnp.maximum(q_scale, floor)
    ratio = jnp.minimum(q_floored / p_floored, float(jnp.finfo(p_scale.dtype).max))  # times 0, inf would be nan
    t = (q_floored - p_floored) / p_floored + jnp.expm1(below) * ratio
    return z, t, ratio * jnp.exp(below), log_ratio


@_kl_from_scales.defjvp
def _kl_from_scales_jvp(p_underflows, primals, tangents):
    """The scales are functions of their logarithms, so all of their gradient goes through the logarithms.

    Nothing is divided by s^2 or s^3, which underflow, and the gradient at q = p is exactly 0.
    """
    z, t, _, _ = _standardise(p_underflows, *primals)
    square = t * (t + 2.0)
    delta_dot, _, q_log_scale_dot, _, p_log_scale_dot, _ = tangents
    slope = z * (_QUARTER * primals[-1]) * delta_dot + square * q_log_scale_dot - (z * z + square) * p_log_scale_dot
    return _kl_from_scales(p_underflows, *primals), slope
