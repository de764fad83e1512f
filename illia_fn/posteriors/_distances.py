"""Bhattacharyya distances, -log of the integral of sqrt(q p): how far two Gaussians of one family are apart."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from illia_fn._base.numerics import at_least_float32
from illia_fn.posteriors._factors import Triangle, positive_qr


class Independent(NamedTuple):
    """N(loc, scale^2) of each number by itself, and 1 / scale."""

    loc: jax.Array
    scale: jax.Array
    inverse: jax.Array

    @staticmethod
    def of(node: Any) -> "Independent":
        """Of a node with loc, scale and log_scale."""
        floored = jnp.maximum(node.log_scale, jnp.log(jnp.finfo(node.log_scale.dtype).tiny))
        return Independent(at_least_float32(node.loc), node.scale, jnp.exp(-floored))


def between_independent(q: Independent, p: Independent) -> jax.Array:
    """sum_i [ (m_i - n_i)^2 / (4 (s_i^2 + t_i^2)) + log cosh(log(s_i / t_i)) / 2 ]."""
    # in ratios, as squares of scales underflow; s / t + t / s is at least 2
    ratios = jnp.maximum(q.scale * p.inverse + p.scale * q.inverse, 2.0)
    return jnp.sum(0.25 * _product(q.loc - p.loc, q, p) / ratios + half_log_cosh(q, p))


def half_log_cosh(q: Any, p: Any) -> jax.Array:
    """log cosh(log(s / t)) / 2 = log(1 + (s - t)^2 / (2 s t)) / 2, of the scales s and t and their inverses."""
    return 0.5 * jnp.log1p(0.5 * _product(q.scale - p.scale, q, p))


def _product(x: jax.Array, q: Any, p: Any) -> jax.Array:
    """x^2 / (s t), up to where there is no overlap for certain: its slope, a product with 0, must not overflow."""
    return jnp.clip(x * q.inverse, -_FAR, _FAR) * jnp.clip(x * p.inverse, -_FAR, _FAR)


_FAR = 1e18


class Correlated(NamedTuple):
    """N(loc, L L^T) of P numbers."""

    loc: jax.Array
    root: Triangle


def between_correlated(q: Correlated, p: Correlated) -> jax.Array:
    """|R^-T (m - n)|^2 / 8 + log|R| - (log|L_q| + log|L_p|) / 2, with R^T R = (L_q L_q^T + L_p L_p^T) / 2."""
    _, root = positive_qr(0.5**0.5 * jnp.concatenate([q.root.matrix.T, p.root.matrix.T]))
    z = solve_triangular(root, q.loc - p.loc, trans=1)
    log_dets = jnp.log(jnp.diagonal(root)) - 0.5 * (q.root.log_diagonal + p.root.log_diagonal)
    return 0.125 * jnp.sum(jnp.square(z)) + jnp.sum(log_dets)
