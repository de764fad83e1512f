"""KL to a Gaussian that is diagonal in bases of its own, seen from these."""

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import matmul, one_program, raw_of_scale
from illia_fn.kl.gaussian import kl_normal_normal
from illia_fn.kl.table import register_kl
from illia_fn.posteriors._factors import Marginals
from illia_fn.posteriors._flat import wide
from illia_fn.posteriors.eigen import Eigenbasis
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.matrix import MatrixNormal
from illia_fn.posteriors.tied import KTied


@register_kl(Eigenbasis, Eigenbasis)
@one_program
def kl_eigenbasis(q: Eigenbasis, p: Eigenbasis) -> jax.Array:
    """KL(q || p) in the bases of p, where its numbers are independent, with w' = U_p^T w V_p:

        KL = sum_ij KL(q'_ij || p'_ij) + KL(q' || prod_ij q'_ij)

    No term is negative.
    """
    seen = q.seen_from(p)
    marginals = seen.marginals()
    return _along(q, p, marginals.scale, marginals.log_scale) + seen.total_correlation()


@register_kl(Gaussian, Eigenbasis)
@register_kl(KTied, Eigenbasis)
@one_program
def _of_independent(q: Gaussian | KTied, p: Eigenbasis) -> jax.Array:
    rho = raw_of_scale(wide(q.scale), wide(q.log_scale)).reshape(p.matrix_shape)
    axes = [jnp.eye(size, dtype=rho.dtype) for size in p.matrix_shape]
    return kl_eigenbasis(Eigenbasis(q.loc, rho, *axes), p)


@register_kl(MatrixNormal, Eigenbasis)
@one_program
def _of_matrix_normal(q: MatrixNormal, p: Eigenbasis) -> jax.Array:
    turned = [matmul(basis.T, root) for basis, root in zip(p.bases, q.roots(), strict=True)]
    rows, columns = (0.5 * jnp.log(jnp.sum(jnp.square(root), axis=1)) for root in turned)
    log_scale = rows[:, None] + columns[None, :]
    of_rows, of_columns = (
        _total_correlation(root * jnp.exp(-logs)[:, None], jnp.sum(logs) - jnp.sum(triangle.log_diagonal))
        for root, logs, triangle in zip(turned, (rows, columns), q.triangles, strict=True)
    )
    return _along(q, p, jnp.exp(log_scale), log_scale) + len(columns) * of_rows + len(rows) * of_columns


def _total_correlation(root: jax.Array, far: jax.Array) -> jax.Array:
    """-log|C| / 2 of C = R R^T, R of rows of norm 1, which is `far` but for what cancels in it where C is near I."""
    correlation = matmul(root, root.T)
    others = correlation - jnp.diag(jnp.diagonal(correlation))
    is_near = jnp.max(jnp.sum(jnp.abs(others), axis=1)) < 0.5  # then C has a Cholesky factor
    triangle = jnp.linalg.cholesky(jnp.where(is_near, others, 0.0) + jnp.eye(len(root), dtype=root.dtype))
    near = -0.5 * jnp.sum(jnp.log1p(-jnp.sum(jnp.square(jnp.tril(triangle, -1)), axis=1)))
    return jnp.where(is_near, near, far)


def _along(q: Gaussian | KTied | MatrixNormal | Eigenbasis, p: Eigenbasis, *scales: jax.Array) -> jax.Array:
    """sum_ij KL(q'_ij || p'_ij) of these scales and their logarithms, (p, q)."""
    apart = p.along(wide(q.loc) - wide(p.loc))
    of_q = [scale.reshape(apart.shape) for scale in scales]
    return kl_normal_normal(Marginals(apart, *of_q), Marginals(jnp.zeros_like(apart), p.scale, p.log_scale))
