"""KL between Gaussians of which one has a full covariance, by the triangles of both."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag

from illia_fn._base.numerics import minus_log1p, one_program, widest_dtype
from illia_fn._base.trees import PyTree
from illia_fn.kl._priors import blocks_of
from illia_fn.kl.independent import INDEPENDENT, are_independent, kl_to_independent, marginals_of
from illia_fn.kl.table import register_kl, register_kl_to_trees
from illia_fn.posteriors._factors import Triangle, positive_qr
from illia_fn.posteriors._flat import ravel
from illia_fn.posteriors.eigen import Eigenbasis
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.lowrank import LowRank
from illia_fn.posteriors.matrix import MatrixNormal
from illia_fn.posteriors.posterior import Posterior
from illia_fn.posteriors.tied import KTied


def kl_full(q: Posterior, p: PyTree) -> jax.Array:
    """KL = 1/2 [ |T|^2 + 2 sum_j (T_jj - log(1 + T_jj)) + |L_p^-1 (m_q - m_p)|^2 ], T = L_p^-1 (L_q - L_p).

    As I + T = L_p^-1 L_q, it is 1/2 [ tr(P^-1 Q) - n - log|P^-1 Q| + ... ] without its cancellation where q is near p.
    """
    (q_loc, q_root), (p_loc, p_root) = dense(q, q.mean), dense(p, q.mean)
    p_loc, p_root = p_loc.astype(q_loc.dtype), Triangle(*[field.astype(q_loc.dtype) for field in p_root])
    apart = p_root.solve(q_root.matrix - p_root.matrix)
    of_roots = minus_log1p(jnp.diagonal(apart), q_root.log_diagonal - p_root.log_diagonal)
    z = p_root.solve(q_loc - p_loc)
    return 0.5 * (jnp.sum(jnp.square(apart)) + jnp.sum(jnp.square(z))) + jnp.sum(of_roots)


_kl_to_node = one_program(kl_full)  # of a tree the places of one node would be nodes of their own
for _family in (Gaussian, KTied, LowRank, MatrixNormal, Eigenbasis):
    register_kl(_family, FullCovariance)(_kl_to_node)
for _family in (LowRank, MatrixNormal, Eigenbasis, FullCovariance):
    register_kl(FullCovariance, _family)(_kl_to_node)


@register_kl_to_trees(FullCovariance, (*INDEPENDENT, LowRank, MatrixNormal, Eigenbasis, FullCovariance))
def _kl_to_tree(q: FullCovariance, p: PyTree) -> jax.Array:
    return kl_to_independent(q, p) if are_independent(p) else kl_full(q, p)


def dense(p: PyTree, mean: PyTree) -> tuple[jax.Array, Triangle]:
    """The mean, (P,), and the Cholesky factor of a distribution, or of independent blocks of them."""
    found = [_dense_of(block.prior, block.arrays, widest_dtype(mean)) for block in blocks_of(p, mean)]
    dtype = widest_dtype(found)
    locs, roots, logs = zip(*[[x.astype(dtype) for x in (loc, *root)] for loc, root in found], strict=True)
    return jnp.concatenate(locs), Triangle(block_diag(*roots), jnp.concatenate(logs))


def _dense_of(p: PyTree, arrays: list[jax.Array], dtype: np.dtype) -> tuple[jax.Array, Triangle]:
    if isinstance(p, FullCovariance):
        return ravel(p.loc), p.triangle()
    if isinstance(p, MatrixNormal):
        rows, columns = p.triangles
        logs = rows.log_diagonal[:, None] + columns.log_diagonal[None, :]
        return ravel(p.loc), Triangle(jnp.kron(rows.matrix, columns.matrix), logs.reshape(-1))
    if isinstance(p, Eigenbasis):
        scale = p.scale.reshape(-1, 1)
        falling = jnp.argsort(-scale[:, 0])  # in this order rows of a QR decomposition keep the digits of small ones
        return ravel(p.loc), _root_of((jnp.kron(*p.bases).T * scale)[falling])
    if isinstance(p, LowRank):
        form = p.form()
        stacked = jnp.concatenate([jnp.diag(form.scale), (form.factor * form.scale[:, None]).T])
        return form.loc, _root_of(stacked)
    loc, scale, log_scale = marginals_of(p, arrays[0], dtype)
    return loc, Triangle.diagonal(scale, log_scale)


def _root_of(stacked: jax.Array) -> Triangle:
    """The triangle L with L L^T = X^T X."""
    _, root = positive_qr(stacked)
    return Triangle(root.T, jnp.log(jnp.diagonal(root)))
