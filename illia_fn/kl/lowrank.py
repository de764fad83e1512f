"""KL between Gaussians of low rank plus a diagonal, in matrices no larger than P x R."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from illia_fn._base.numerics import log_softplus, matmul, minus_log1p, one_program, softplus, widest_dtype
from illia_fn._base.trees import PyTree
from illia_fn.kl._priors import blocks_of
from illia_fn.kl.gaussian import kl_normal_normal
from illia_fn.kl.independent import INDEPENDENT, are_independent, kl_to_independent, marginals_of
from illia_fn.kl.table import register_kl, register_kl_to_trees
from illia_fn.posteriors._factors import Marginals, positive_qr
from illia_fn.posteriors._flat import ravel, wide
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.lowrank import LowRank, LowRankForm, excess_of_root, stacked_root
from illia_fn.posteriors.tied import KTied


def kl_low_rank(q: LowRank | Gaussian | KTied, p: PyTree) -> jax.Array:
    """KL(q || p) of q = N(m, D^2 + U U^T) and p = N(n, E^2 + W W^T), D and E diagonal, in units of E (as if E = I).

    Triangles and bases are those of [W; I] = [H; .] R, [U / D; I] = [H_q; .] R_q and [U; I] = [.; .] R_u, with h_i and
    h_qi the squares of the rows of H and H_q. With F = I + W W^T, |x|_F^2 = tr(x^T F^-1 x), T = (R_u - R) R^-1,
    r = D^2 and e(A) = tr(A - I) - log|A|,

        2 KL = sum_i e(r_i) + |m - n|_F^2 + |U - W|_F^2 - |(U - W) R^-1|^2 + e((I + T)^T (I + T))
             + sum_i (r_i - 1) (h_qi - h_i) - e(I + H_q^T diag(r - 1) H_q).

    Each term is of second order in what differs: where q is near p, whatever their condition, little cancels. U may be
    turned, U O with O^T O = I, and is turned such that U - W is small.
    """
    rank = max(rank_of(q, q.mean), rank_of(p, q.mean))
    form, prior = form_of(q, q.mean, rank), form_of(p, q.mean, rank)
    prior = LowRankForm(*[field.astype(form.loc.dtype) for field in prior])
    diagonals = [Marginals(jnp.zeros_like(one.loc), one.scale, one.log_scale) for one in (form, prior)]
    t = (form.scale - prior.scale) * prior.inverse
    more = t * (t + 2.0)  # r - 1

    factor = form.factor * (1.0 + t)[:, None]
    factor = matmul(factor, _turned(factor, prior))
    root, apart = stacked_root(factor)[1], factor - prior.factor
    roots = _right_solve(root - prior.root, prior.root)
    logs = jnp.log(jnp.diagonal(root)) - jnp.log(jnp.diagonal(prior.root))
    of_factors = prior.squares(apart) - jnp.sum(jnp.square(_right_solve(apart, prior.root)))
    of_factors += jnp.sum(jnp.square(roots)) + 2.0 * jnp.sum(minus_log1p(jnp.diagonal(roots), logs))

    # I - H_q^T H_q = R_q^-T R_q^-1, so that I + H_q^T diag(r - 1) H_q has the triangle of a sum of squares
    inverse_root = solve_triangular(form.root, jnp.eye(rank, dtype=form.root.dtype))
    tilted = jnp.concatenate([(1.0 + t)[:, None] * form.basis, inverse_root])
    excess = excess_of_root(positive_qr(tilted)[1])
    of_scales = jnp.sum(more * (_squared_rows(form.basis) - _squared_rows(prior.basis))) - excess
    of_loc = prior.squares((form.loc - prior.loc) * prior.inverse)
    return kl_normal_normal(*diagonals) + 0.5 * (of_loc + of_factors + of_scales)


def _turned(factor: jax.Array, prior: LowRankForm) -> jax.Array:
    """The orthogonal O with the smallest |U O - W|_F, or I where that is small, too, and rounds less.

    It is a constant, as no KL depends on it.
    """
    factor, prior = jax.lax.stop_gradient((factor, prior))
    whitened = solve_triangular(prior.root, prior.basis.T).T  # F^-1 W, without the difference W - W a
    left, _, right = jnp.linalg.svd(matmul(factor.T, whitened))
    turn, none = matmul(left, right), jnp.eye(factor.shape[1], dtype=factor.dtype)
    before, after = (prior.squares(matmul(factor, each) - prior.factor) for each in (none, turn))
    return jnp.where(after < 0.1 * before, turn, none)


def _squared_rows(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x), axis=1)


_kl_to_node = one_program(kl_low_rank)  # of a tree the places of one node would be nodes of their own
for _family in (LowRank, Gaussian, KTied):
    register_kl(_family, LowRank)(_kl_to_node)


@register_kl_to_trees(LowRank, (*INDEPENDENT, LowRank))
def _kl_to_tree(q: LowRank, p: PyTree) -> jax.Array:
    return kl_to_independent(q, p) if are_independent(p) else kl_low_rank(q, p)


def _right_solve(x: jax.Array, root: jax.Array) -> jax.Array:
    """x R^-1 of an upper triangle R."""
    return solve_triangular(root, x.T, trans=1).T


def rank_of(p: PyTree, mean: PyTree) -> int:
    """The count of the directions of a distribution, or of independent blocks of them."""
    return sum(np.shape(block.prior.factor)[1] for block in blocks_of(p, mean) if isinstance(block.prior, LowRank))


def form_of(p: PyTree, mean: PyTree, rank: int) -> LowRankForm:
    """A distribution, or independent blocks of them, each with columns of its own, in units of the scales."""
    pieces, start = [], 0
    for block in blocks_of(p, mean):
        if isinstance(block.prior, LowRank):
            rho, factor = wide(block.prior.rho), wide(block.prior.factor)
            marginals = Marginals(ravel(block.prior.loc), softplus(rho), log_softplus(rho))
        else:
            marginals = marginals_of(block.prior, block.arrays[0], widest_dtype(mean))
            factor = jnp.zeros((len(marginals.loc), 0), marginals.loc.dtype)
        after = rank - start - factor.shape[1]
        pieces.append([*marginals, jnp.pad(factor, ((0, 0), (start, after)))])
        start += factor.shape[1]
    dtype = widest_dtype(pieces)
    return LowRankForm.of(*[jnp.concatenate([x.astype(dtype) for x in column]) for column in zip(*pieces, strict=True)])
