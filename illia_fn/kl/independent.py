"""KL from a Gaussian whose numbers depend on each other to priors under which they do not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32, one_program
from illia_fn._base.trees import PyTree
from illia_fn.kl._priors import blocks_of, is_prior
from illia_fn.kl.gaussian import kl_normal_normal
from illia_fn.kl.table import register_kl
from illia_fn.posteriors._factors import Marginals
from illia_fn.posteriors._flat import wide
from illia_fn.posteriors.eigen import Eigenbasis
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.lowrank import LowRank
from illia_fn.posteriors.matrix import MatrixNormal
from illia_fn.posteriors.tied import KTied
from illia_fn.priors.normal import Normal

INDEPENDENT = (Normal, Gaussian, KTied)


@one_program
def kl_to_independent(q: LowRank | FullCovariance | MatrixNormal | Eigenbasis, p: PyTree) -> jax.Array:
    """KL(q || p) = sum_i KL(q_i || p_i) + KL(q || prod_i q_i), q_i the law of one number: no term is negative.

    p is a prior for all that q stands for, or a tree of them. Where that is a Normal with one scale for all numbers, it
    is the same in any basis, so that of an `Eigenbasis` is taken along its own, where its numbers are independent.
    """
    if isinstance(q, Eigenbasis) and isinstance(p, Normal) and np.size(p.scale) == 1:
        # the sum of the terms of means, and that of the terms of scales, each in its own basis
        return kl_normal_normal(Marginals(wide(q.loc), *(x.reshape(q.loc.shape) for x in (q.scale, q.log_scale))), p)
    is_one = isinstance(p, Normal) and np.shape(p.loc) == np.shape(p.scale) == ()
    marginals = q.marginals()
    prior = p if is_one else marginals_of(p, q.mean, marginals.loc.dtype).in_shape(marginals.loc.shape)
    return kl_normal_normal(marginals, prior) + q.total_correlation()


def marginals_of(p: PyTree, mean: PyTree, dtype: Any) -> Marginals:
    """What a prior, or a tree of priors, says of each of the numbers of a posterior's mean, (P,)."""
    pieces = []
    for block in blocks_of(p, mean):
        fields = block.prior.loc, block.prior.scale, block.prior.log_scale
        (shape,) = map(np.shape, block.arrays)
        pieces.append([jnp.broadcast_to(at_least_float32(x).astype(dtype), shape).reshape(-1) for x in fields])
    return Marginals(*[jnp.concatenate(column) for column in zip(*pieces, strict=True)])


def are_independent(p: PyTree) -> bool:
    """Whether a prior, or each of a tree of them, is one of independent Gaussian numbers."""
    return all(isinstance(leaf, INDEPENDENT) for leaf in jax.tree.leaves(p, is_leaf=is_prior))


for _q in (LowRank, FullCovariance, MatrixNormal, Eigenbasis):
    for _p in INDEPENDENT:
        register_kl(_q, _p)(kl_to_independent)
for _pair in ((KTied, Normal), (KTied, Gaussian), (KTied, KTied), (Gaussian, KTied), (Normal, KTied)):
    register_kl(*_pair)(kl_normal_normal)
