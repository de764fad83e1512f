"""The k-tied normal: a diagonal Gaussian whose scales are a matrix of low rank."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_count
from illia_fn._base.numerics import (
    HALF_LOG_2PI,
    log_softplus,
    normal_log_prob,
    raw_of_scale,
    softplus,
    widest_dtype,
)
from illia_fn._base.trees import PyTree, frozen_pytree
from illia_fn.posteriors._distances import Independent, between_independent
from illia_fn.posteriors._flat import check_like, independent, laid_like, wide
from illia_fn.posteriors._kernels import check_out_axis, kernel_sizes, split_at
from illia_fn.posteriors._leaves import Mask, each_leaf, raw_scale
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import Posterior


@frozen_pytree
class KTied(Posterior):
    """k-tied normal, w_ij ~ N(loc_ij, scale_ij^2) with scale_ij = sum_k u_ik v_jk, u and v positive.

    All numbers are independent; (p + q) k numbers hold their p q scales. loc, of any shape, is a matrix (p, q) in the
    order of its numbers, as in `MatrixNormal`. Swiatkowski et al. 2020, The k-tied normal distribution,
    https://arxiv.org/abs/2002.02655, whose networks lose nothing with k = 2.

    Args:
        loc: means, an array of p q numbers.
        row_rho: unconstrained u, (p, k); u = softplus(row_rho).
        column_rho: unconstrained v, (q, k); v = softplus(column_rho).

    Raises:
        ValueError: if the shapes do not go together.

    >>> q = KTied(jnp.zeros((2, 3)), row_rho=jnp.array([[0.0], [9.0]]), column_rho=jnp.zeros((3, 1)))
    >>> print(q.stddev.round(2))
    [[0.48 0.48 0.48]
     [6.24 6.24 6.24]]
    """

    loc: jax.Array
    row_rho: jax.Array
    column_rho: jax.Array

    def __post_init__(self):
        rows, columns, shape = np.shape(self.row_rho), np.shape(self.column_rho), np.shape(self.loc)
        tied = len(rows) == len(columns) == 2 and rows[1] == columns[1] >= 1
        if not tied or split_at(shape, rows[0], columns[0]) is None:
            raise ValueError(
                "KTied: row_rho must be (p, k) and column_rho (q, k), p and q being products of the first and of the "
                f"last axes of loc, got shapes {rows} and {columns} for {shape}. Build the node with k_tied."
            )

    @property
    def scale(self) -> jax.Array:
        """sum_k u_ik v_jk, in the shape of loc, in float32 or wider."""
        return self._summed(softplus, jnp.multiply, jnp.add)

    @property
    def log_scale(self) -> jax.Array:
        """log sum_k u_ik v_jk, finite however small the scale."""
        return self._summed(log_softplus, jnp.add, jnp.logaddexp)

    def _summed(self, of: Callable[..., Any], product: Callable[..., Any], add: Callable[..., Any]) -> jax.Array:
        rows, columns = of(wide(self.row_rho)).T, of(wide(self.column_rho)).T
        terms = [product(row[:, None], column[None, :]) for row, column in zip(rows, columns, strict=True)]
        return reduce(add, terms).reshape(np.shape(self.loc))

    @property
    def mean(self) -> jax.Array:
        return self.loc

    @property
    def stddev(self) -> jax.Array:
        return laid_like(self.scale, self.loc)

    def reparameterise(self) -> Callable[[jax.Array], jax.Array]:
        loc, scale = wide(self.loc), self.scale
        return lambda noise: laid_like(loc + scale * noise, self.loc)

    def log_prob(self, w: jax.Array) -> jax.Array:
        check_like("KTied.log_prob", w, self.loc)
        return jnp.sum(normal_log_prob(wide(w), wide(self.loc), self.log_scale))

    def entropy(self) -> jax.Array:
        return jnp.sum(self.log_scale + (HALF_LOG_2PI + 0.5))

    def bhattacharyya_form(self) -> Independent:
        return Independent.of(self)

    bhattacharyya = staticmethod(between_independent)

    def untied(self) -> Gaussian:
        """The same distribution as a diagonal Gaussian, with a scale for each number."""
        return Gaussian(self.loc, raw_of_scale(self.scale, self.log_scale))

    def covariance(self, places: np.ndarray) -> jax.Array:
        return independent(jnp.square(self.scale), places)


def k_tied(
    params: PyTree, k: int = 2, *, scale: ArrayLike | PyTree = 0.05, out_axis: int = -1, mask: Mask = None
) -> PyTree:
    """The params tree with every kernel replaced by a `KTied` normal around it, of standard deviations `scale`.

    Args:
        params: kernels, floating-point arrays of two axes or more, as p x q matrices. Other leaves are treated as in
            `mean_field`.
        k: the rank of the scales, from 1 to the smaller of p and q.
        scale: a positive number, or a prefix tree of numbers. The columns of u start a tenth apart, in ways that leave
            every sum at scale: what starts equal would stay equal.
        out_axis: the axis of the outputs, -1 or 0, as in `matrix_normal`.
        mask: as in `mean_field`.

    Returns:
        A posterior tree, of the dtype of `params`.

    Raises:
        ValueError: as `mean_field`; for an array with less than two axes, a k below 1 or beyond the rank of a leaf, a
            scale that is an array.

    >>> q = k_tied({"kernel": jnp.ones((100, 50))}, k=2, scale=0.05)
    >>> print(q["kernel"].row_rho.shape, q["kernel"].column_rho.shape, q["kernel"].stddev[0, :2].round(6))
    (100, 2) (50, 2) [0.05 0.05]
    """
    check_count("k_tied", "k", k)
    check_out_axis("k_tied", out_axis)
    return each_leaf("k_tied", params, scale, mask, partial(_node_at, int(k), out_axis))


_APART = 0.1


def _node_at(k: int, out_axis: int, path: str, loc: jax.Array, scale: Any) -> KTied:
    p, q = kernel_sizes("k_tied", path, loc, scale, out_axis)
    if k > min(p, q):
        raise ValueError(f"k_tied: k must be at most the rank of params{path}, {min(p, q)}, got {k}.")
    root = jnp.sqrt(jnp.asarray(scale, widest_dtype(loc)) / k)
    angles = 2.0 * np.pi * (np.arange(k) / k + np.arange(p)[:, None] * (np.sqrt(5) - 1) / 2)
    apart = 1.0 + (_APART * np.cos(angles) if k > 1 else np.zeros((p, 1)))  # whose sums over k are k
    rows = raw_scale("k_tied", path, root * jnp.asarray(apart, root.dtype), loc.dtype)
    return KTied(loc, rows, jnp.full((q, k), raw_scale("k_tied", path, root, loc.dtype)))
