"""KL between Gaussians, right where they nearly agree and at both ends of every scale."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from illia_fn._base.numerics import at_least_float32, minus_log1p
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
    return jnp.sum(_kl_gaussian(not isinstance(p, Normal), q, p))  # whose scale does not underflow


def _kl_gaussian(p_underflows: bool, q: Any, p: Any) -> jax.Array:  # noqa: FBT001
    q_loc, q_scale, q_log_scale = at_least_float32(q.loc), at_least_float32(q.scale), q.log_scale
    p_loc, p_scale, p_log_scale = (at_least_float32(x).astype(q_loc.dtype) for x in (p.loc, p.scale, p.log_scale))
    # of a quarter, as the reciprocal of the largest numbers would be subnormal, which XLA flushes to 0
    inverse = 1.0 / jnp.maximum(_QUARTER * p_scale, jnp.finfo(p_scale.dtype).tiny)
    args = jnp.broadcast_arrays(q_loc - p_loc, q_scale, q_log_scale, p_scale, p_log_scale, inverse)
    return _kl_from_scales(p_underflows, *args)


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
    """KL = (z^2 + t (t + 2)) / 2 - log(1 + t), with z = delta / s_p, t = s_q / s_p - 1 and inverse = 4 / s_p."""
    z, t, ratio, log_ratio = _standardise(p_underflows, delta, q_scale, q_log_scale, p_scale, p_log_scale, inverse)
    # that of the ratio is the more precise of the two, where there is a ratio
    precise = jnp.log(jnp.clip(ratio, _SMALL, float(jnp.finfo(t.dtype).max)))
    log1p_t = jnp.where(ratio > _SMALL, precise, log_ratio)
    return minus_log1p(t, log1p_t, plus=0.5 * z * z + 0.5 * t * t)  # products halve first, as z^2 may overflow


_QUARTER = 0.25
_SMALL = 1e-4


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


def _kl_from_scales_jvp(p_underflows, primals, tangents):
    """The scales are functions of their logarithms, so all of their gradient goes through the logarithms.

    Nothing is divided by s^2 or s^3, which underflow, and the gradient at q = p is exactly 0.
    """
    z, t, _, _ = _standardise(p_underflows, *primals)
    square = t * (t + 2.0)
    delta_dot, _, q_log_scale_dot, _, p_log_scale_dot, _ = tangents
    slopes = [
        (z * (_QUARTER * primals[-1]), delta_dot),
        (square, q_log_scale_dot),
        (-(z * z + square), p_log_scale_dot),
    ]
    terms = [slope * dot for slope, dot in slopes if not isinstance(dot, SymbolicZero)]
    return _kl_from_scales(p_underflows, *primals), sum(terms, start=jnp.zeros_like(z))


_kl_from_scales.defjvp(_kl_from_scales_jvp, symbolic_zeros=True)
