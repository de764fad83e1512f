"""A Gaussian of low rank plus a diagonal, over one array or jointly over a subtree."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from illia_fn._base.checks import check_count, check_key
from illia_fn._base.numerics import (
    HALF_LOG_2PI,
    at_least_float32,
    log_softplus,
    matmul,
    minus_log1p,
    one_program,
    softplus,
)
from illia_fn._base.trees import PyTree, frozen_pytree
from illia_fn.posteriors._distances import half_log_cosh
from illia_fn.posteriors._factors import Marginals, positive_qr
from illia_fn.posteriors._flat import check_like, independent, ravel, size_of, unravel, wide
from illia_fn.posteriors._joint import JointGaussian
from illia_fn.posteriors._leaves import raw_scale, whole
from illia_fn.posteriors.gaussian import Gaussian


@frozen_pytree
class LowRank(JointGaussian):
    """Gaussian of low rank plus a diagonal, w ~ N(loc, diag(softplus(rho)^2) + U U^T), over P numbers.

    R directions U move all that it stands for together. No matrix is larger than P x R. Ong, Nott & Smith 2018,
    Gaussian variational approximation with a factor covariance structure, https://arxiv.org/abs/1701.03208.

    Densities, entropies and KLs come from the triangle of a QR decomposition, and not from its square, so that in
    float32 they hold for condition numbers of the covariance up to some 1e8. Directions of 1e19 scales overflow.

    Args:
        loc: means, an array or a subtree of arrays of P numbers together, in the order of its leaves.
        rho: unconstrained scales, (P,); scale = softplus(rho).
        factor: U, (P, R), in the units of the numbers.

    Raises:
        ValueError: if the shapes do not go together.

    >>> loc = {"a": jnp.zeros(2), "b": jnp.ones(1)}
    >>> q = LowRank(loc, rho=jnp.full(3, -30.0), factor=jnp.array([[1.0], [2.0], [-1.0]]))
    >>> w = q.sample(jax.random.key(0))
    >>> print((w["a"] / w["a"][0]).round(3), ((w["b"] - 1) / w["a"][0]).round(3))  # all move together
    [1. 2.] [-1.]
    """

    loc: PyTree
    rho: jax.Array
    factor: jax.Array

    def __post_init__(self):
        size = size_of(self.loc)
        rank = np.shape(self.factor)[-1] if np.ndim(self.factor) == 2 else 0
        if rank < 1 or np.shape(self.rho) != (size,) or np.shape(self.factor) != (size, rank):
            raise ValueError(
                f"LowRank: for a loc of P = {size} numbers rho must have shape (P,) and factor (P, R), got "
                f"{np.shape(self.rho)} and {np.shape(self.factor)}. Build the node with low_rank."
            )

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (sum(np.shape(self.factor)),)

    def reparameterise(self) -> Callable[[jax.Array], PyTree]:
        loc, scale, factor = ravel(self.loc), softplus(wide(self.rho)), wide(self.factor)
        return lambda noise: unravel(loc + scale * noise[: len(scale)] + matmul(factor, noise[len(scale) :]), self.loc)

    def log_prob(self, w: PyTree) -> jax.Array:
        check_like("LowRank.log_prob", w, self.loc)
        form = self.form()
        return -0.5 * form.squares((ravel(w) - form.loc) * form.inverse) - form.log_det - len(form.loc) * HALF_LOG_2PI

    def entropy(self) -> jax.Array:
        form = self.form()
        return form.log_det + len(form.loc) * (HALF_LOG_2PI + 0.5)

    def independent(self) -> PyTree:
        """The distribution without its directions: a `Gaussian` in the place of each array."""
        rho = unravel(wide(self.rho), jax.tree.map(at_least_float32, self.loc))
        return jax.tree.map(Gaussian, self.loc, rho)

    def bhattacharyya_form(self) -> "LowRankForm":
        return self.form()

    @staticmethod
    def bhattacharyya(q: "LowRankForm", p: "LowRankForm") -> jax.Array:
        # the mean of both covariances has the directions of both
        log_scale = 0.5 * (q.log_scale + p.log_scale) + half_log_cosh(q, p)
        factors = [form.factor * form.scale[:, None] for form in (q, p)]
        middle = LowRankForm.of(q.loc, jnp.exp(log_scale), log_scale, 0.5**0.5 * jnp.concatenate(factors, axis=1))
        log_dets = middle.log_det - 0.5 * (q.log_det + p.log_det)
        return 0.125 * middle.squares((q.loc - p.loc) * middle.inverse) + log_dets

    def covariance(self, places: np.ndarray) -> jax.Array:
        rows = wide(self.factor)[places]
        return matmul(rows, rows.T) + independent(jnp.square(softplus(wide(self.rho))), places)

    @one_program
    def marginals(self) -> Marginals:
        """Each of the P numbers by itself."""
        scale, log_scale = softplus(wide(self.rho)), log_softplus(wide(self.rho))
        more = jnp.sum(jnp.square(wide(self.factor) * _inverse(log_scale)[:, None]), axis=1)
        return Marginals(ravel(self.loc), scale * jnp.sqrt(1.0 + more), log_scale + 0.5 * jnp.log1p(more))

    def total_correlation(self) -> jax.Array:
        """KL(q || product of its marginals), in nats: 1/2 [sum_i log(1 + |v_i|^2) - log|I + V^T V|], V = U / scale."""
        form = self.form()
        each = jnp.sum(jnp.square(form.factor), axis=1)
        logs = jnp.log1p(each)
        # near V = 0 both terms are |V|^2, which is taken out of each; where that is large it would drown them
        near = 0.5 * (excess_of_root(form.root) - jnp.sum(minus_log1p(each, logs)))
        far = 0.5 * jnp.sum(logs) - jnp.sum(jnp.log(jnp.diagonal(form.root)))
        return jnp.where(jnp.sum(each) < 1.0, near, far)

    def form(self) -> "LowRankForm":
        """In units of the scales."""
        rho = wide(self.rho)
        return LowRankForm.of(ravel(self.loc), softplus(rho), log_softplus(rho), wide(self.factor))


class LowRankForm(NamedTuple):
    """N(loc, S (I + V V^T) S), S = diag(scale), as G = I + V^T V = R^T R tells it, with [V; I] = [H; .] R.

    Attributes:
        loc, scale, log_scale, inverse: (P,); inverse = 1 / scale.
        factor: V = U / scale, (P, R).
        basis: H = V R^-1, (P, R).
        root: R, (R, R), upper triangular with a positive diagonal.
    """

    loc: jax.Array
    scale: jax.Array
    log_scale: jax.Array
    inverse: jax.Array
    factor: jax.Array
    basis: jax.Array
    root: jax.Array

    @staticmethod
    def of(loc: jax.Array, scale: jax.Array, log_scale: jax.Array, factor: jax.Array) -> "LowRankForm":
        """Of a factor U, (P, R)."""
        inverse = _inverse(log_scale)
        v = factor * inverse[:, None]
        return LowRankForm(loc, scale, log_scale, inverse, v, *stacked_root(v))

    @property
    def log_det(self) -> jax.Array:
        """Half the logarithm of the determinant of the covariance."""
        return jnp.sum(self.log_scale) + jnp.sum(jnp.log(jnp.diagonal(self.root)))

    def solve(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """y = (I + V V^T)^-1 x = x - V a for columns x, and a; x^T y = |y|^2 + |a|^2, which does not cancel."""
        a = solve_triangular(self.root, matmul(self.basis.T, x))
        return x - matmul(self.factor, a), a

    def squares(self, x: jax.Array) -> jax.Array:
        """x^T (I + V V^T)^-1 x, summed over the columns of x, (P,) or (P, K)."""
        y, a = self.solve(x[:, None] if x.ndim == 1 else x)
        return jnp.sum(jnp.square(y)) + jnp.sum(jnp.square(a))


def stacked_root(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """H = v R^-1 and R with R^T R = I + v^T v."""
    q, root = positive_qr(jnp.concatenate([v, jnp.eye(v.shape[1], dtype=v.dtype)]))
    return q[: len(v)], root


def excess_of_root(root: jax.Array) -> jax.Array:
    """tr(R^T R - I) - log|R^T R| = |R - I|^2 + 2 sum_j (t_j - log(1 + t_j)), t_j = R_jj - 1, for a triangle R."""
    off = root - jnp.eye(len(root), dtype=root.dtype)
    t = jnp.diagonal(off)
    return jnp.sum(jnp.square(off)) + 2.0 * jnp.sum(minus_log1p(t, jnp.log1p(t)))


def _inverse(log_scale: jax.Array) -> jax.Array:
    # as in normal_log_prob: its gradient has no square of 1 / scale
    return jnp.exp(-jnp.maximum(log_scale, jnp.log(jnp.finfo(log_scale.dtype).tiny)))


_SHARE = 0.1  # of the variance, to the directions at the start


def low_rank(params: PyTree, rank: int, *, scale: ArrayLike | PyTree = 0.05, key: jax.Array) -> LowRank:
    """One `LowRank` node for all of `params`, with standard deviations of `scale` at the start.

    A tenth of every variance is that of the directions, U_ir = +- scale sqrt(0.1 / R) with random signs, as directions
    of 0 would stay there.

    Args:
        params: an array or a tree of floating-point arrays, P numbers together.
        rank: R, from 1 to P. It takes the memory of P (R + 2) numbers, and O(P R^2) operations.
        scale: a positive number, or a prefix tree of numbers or of arrays in the shape of their leaf.
        key: a PRNG key, for the signs.

    Returns:
        A posterior node, in the place of `params`; its rho and factor are float32 or wider.

    Raises:
        ValueError: for a rank below 1 or above P, a scale that is not positive, a tree without numbers or one that
            already holds posterior nodes.
        TypeError: for leaves that are not floating-point numbers, or a key that is none.

    >>> q = low_rank({"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, rank=2, scale=0.05, key=jax.random.key(0))
    >>> print(q.factor.shape, q.stddev["bias"].round(6))
    (8, 2) [0.05 0.05]
    """
    loc, full = whole("low_rank", params, scale)
    check_count("low_rank", "rank", rank)
    check_key("low_rank", key)
    if rank > len(full):
        raise ValueError(f"low_rank: rank must be at most the {len(full)} numbers of params, got {rank}.")
    signs = jax.random.rademacher(key, (len(full), int(rank)), full.dtype)
    factor = signs * (full * jnp.asarray(np.sqrt(_SHARE / rank), full.dtype))[:, None]
    rho = raw_scale("low_rank", "", full * jnp.asarray(np.sqrt(1.0 - _SHARE), full.dtype), full.dtype)
    return LowRank(loc, rho, factor)
