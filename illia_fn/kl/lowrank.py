"""KL between Gaussians of low rank plus a diagonal, in matrices no larger than P x R."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from illia_fn._base.numerics import log_softplus, minus_log1p, softplus, widest_dtype
from illia_fn._base.trees import PyTree
from illia_fn.kl._priors import blocks_of
from illia_fn.kl.gaussian import kl_normal_normal
from illia_fn.kl.independent import INDEPENDENT, are_independent, kl_to_independent, marginals_of
from illia_fn.kl.table import register_kl, register_kl_to_trees
from illia_fn.posteriors._factors import Marginals
from illia_fn.posteriors._flat import ravel, wide
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.lowrank import LowRank, LowRankForm
from illia_fn.posteriors.tied import KTied


@register_kl(LowRank, LowRank)
@register_kl(Gaussian, LowRank)
@register_kl(KTied, LowRank)
def kl_low_rank(q: LowRank | Gaussian | KTied, p: PyTree) -> jax.Array:
    """KL(q || p) of q = N(m, D (I + V V^T) D) and p = N(n, E (I + W W^T) E), with D and E diagonal.

    In units of E let F = I + W W^T = (I - H H^T)^-1, [V; I] = [.; .] R_q, [W; I] = [H; .] R_p, T = (R_q - R_p) R_p^-1,
    and t = D / E - 1. With <X, Y> = tr(X^T F^-1 Y) and |X|_F^2 = <X, X>,

        2 KL = 2 KL(N(0, D^2) || N(0, E^2)) + |(m - n) / E|_F^2
             + |V - W|_F^2 - |(V - W) R_p^-1|^2 + |T|^2 + 2 sum_j (T_jj - log(1 + T_jj))
             + <t V, (2 + t) V> - sum_i t_i (2 + t_i) |h_i|^2.

    Each line is of second order in what differs, and its terms of first order at most: q = p gives exactly 0.
    """
    rank = max(_rank(q, q.mean), _rank(p, q.mean))
    form, prior = _form(q, q.mean, rank), _form(p, q.mean, rank)
    prior = LowRankForm(*[field.astype(form.loc.dtype) for field in prior])
    t, v = (form.scale - prior.scale) * prior.inverse, form.factor
    apart, change = v - prior.factor, (form.loc - prior.loc) * prior.inverse
    diagonals = [Marginals(jnp.zeros_like(one.loc), one.scale, one.log_scale) for one in (form, prior)]
    roots = _right_solve(form.root - prior.root, prior.root)
    log_roots = [jnp.log(jnp.diagonal(one.root)) for one in (form, prior)]
    of_roots = jnp.sum(jnp.square(roots)) + 2.0 * jnp.sum(minus_log1p(jnp.diagonal(roots), log_roots[0] - log_roots[1]))
    of_scales = prior.product(t[:, None] * v, (2.0 + t)[:, None] * v)
    of_scales -= jnp.sum(t * (2.0 + t) * jnp.sum(jnp.square(prior.basis), axis=1))
    of_factors = prior.squares(apart) - jnp.sum(jnp.square(_right_solve(apart, prior.root)))
    return kl_normal_normal(*diagonals) + 0.5 * (prior.squares(change) + of_factors + of_roots + of_scales)


@register_kl_to_trees(LowRank, (*INDEPENDENT, LowRank))
def _kl_to_tree(q: LowRank, p: PyTree) -> jax.Array:
    return kl_to_independent(q, p) if are_independent(p) else kl_low_rank(q, p)


def _right_solve(x: jax.Array, root: jax.Array) -> jax.Array:
    """x R^-1 of an upper triangle R."""
    return solve_triangular(root, x.T, trans=1).T


def _rank(p: PyTree, mean: PyTree) -> int:
    return sum(np.shape(block.prior.factor)[1] for block in blocks_of(p, mean) if isinstance(block.prior, LowRank))


def _form(p: PyTree, mean: PyTree, rank: int) -> LowRankForm:
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
