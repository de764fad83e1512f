"""KL between matrix normals, by the triangles of their rows and of their columns."""

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import one_program
from illia_fn.kl.gaussian import kl_normal_normal
from illia_fn.kl.table import register_kl
from illia_fn.posteriors._factors import Marginals, Triangle
from illia_fn.posteriors._flat import wide
from illia_fn.posteriors.matrix import MatrixNormal


@register_kl(MatrixNormal, MatrixNormal)
@one_program
def kl_matrix_normal(q: MatrixNormal, p: MatrixNormal) -> jax.Array:
    """KL(q || p), with E = L_A,p^-1 L_A,q, F = L_B,p^-1 L_B,q, and |.|^2 of what lies below their diagonals e and f:

        KL = sum_ij KL(N(0, (e_i f_j)^2) || N(0, 1))
             + 1/2 [ |E_<|^2 |F|^2 + |e|^2 |F_<|^2 + |L_A,p^-1 (M_q - M_p) L_B,p^-T|^2 ].

    No term is negative, or depends on how a factor is shared out between A and B.
    """
    loc = wide(q.loc)
    p_roots = [Triangle(*[field.astype(loc.dtype) for field in root]) for root in p.triangles]
    below, on = [], []
    for ours, its in zip(q.triangles, p_roots, strict=True):
        apart = its.solve(ours.matrix - its.matrix)
        below.append(jnp.sum(jnp.square(jnp.tril(apart, -1))))
        on.append(jnp.sum(jnp.square(1.0 + jnp.diagonal(apart))))
    of_scales = kl_normal_normal(_products(*q.triangles), _products(*p_roots))
    whitened = p_roots[1].solve(p_roots[0].solve((loc - wide(p.loc).astype(loc.dtype)).reshape(q.matrix_shape)).T)
    of_roots = below[0] * (below[1] + on[1]) + on[0] * below[1]
    return of_scales + 0.5 * (of_roots + jnp.sum(jnp.square(whitened)))


def _products(rows: Triangle, columns: Triangle) -> Marginals:
    """The diagonal of the Kronecker product, (p, q)."""
    scale = jnp.diagonal(rows.matrix)[:, None] * jnp.diagonal(columns.matrix)[None, :]
    return Marginals(jnp.zeros_like(scale), scale, rows.log_diagonal[:, None] + columns.log_diagonal[None, :])
