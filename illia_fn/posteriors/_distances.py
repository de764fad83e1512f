"""Bhattacharyya distances, -log of the integral of sqrt(q p): how far two Gaussians of one family are apart."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from illia_fn._base.numerics import at_least_float32
from illia_fn.posteriors._factors import Triangle, positive_qr


def between_independent(q: Any, p: Any) -> jax.Array:
    """sum_i [ (m_i - n_i)^2 / (4 (s_i^2 + t_i^2)) + log cosh(log(s_i / t_i)) / 2 ], of loc and log_scale."""
    log_ratio, larger = q.log_scale - p.log_scale, jnp.maximum(q.log_scale, p.log_scale)
    inverse = jnp.exp(-jnp.maximum(larger, jnp.log(jnp.finfo(larger.dtype).tiny)))
    # where the overlap is 0 for certain its slope, a product with 0, must not overflow
    z = jnp.clip((at_least_float32(q.loc) - at_least_float32(p.loc)) * inverse, -_FAR, _FAR)
    of_locs = 0.25 * jnp.square(z) / (1.0 + jnp.exp(-2.0 * jnp.abs(log_ratio)))
    return jnp.sum(of_locs + 0.5 * log_cosh(log_ratio))


_FAR = 1e3


def between_triangles(apart: jax.Array, q: Triangle, p: Triangle) -> jax.Array:
    """|R^-T (m - n)|^2 / 8 + log|R| - (log|L_q| + log|L_p|) / 2, with R^T R = (L_q L_q^T + L_p L_p^T) / 2."""
    _, root = positive_qr(0.5**0.5 * jnp.concatenate([q.matrix.T, p.matrix.T]))
    z = solve_triangular(root, apart, trans=1)
    log_dets = jnp.log(jnp.diagonal(root)) - 0.5 * (q.log_diagonal + p.log_diagonal)
    return 0.125 * jnp.sum(jnp.square(z)) + jnp.sum(log_dets)


@jax.custom_jvp
def log_cosh(x: jax.Array) -> jax.Array:
    """log((exp(x) + exp(-x)) / 2), which is x^2 / 2 near 0 and |x| - log(2) far from it."""
    size = jnp.abs(x)
    near = jnp.minimum(size, 40.0)  # where cosh(x) - 1 = exp(|x|) (1 - exp(-|x|))^2 / 2; beyond its slope is 1
    return jnp.log1p(0.5 * jnp.exp(near) * jnp.square(jnp.expm1(-near))) + (size - near)


log_cosh.defjvps(lambda tangent, _, x: jnp.tanh(x) * tangent)
