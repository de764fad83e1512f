"""The matrix normal: a kernel whose covariance is a Kronecker product, of its rows and of its columns."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.numerics import HALF_LOG_2PI, matmul, one_program, widest_dtype
from illia_fn._base.trees import PyTree, frozen_pytree
from illia_fn.posteriors._factors import Marginals, Triangle
from illia_fn.posteriors._flat import check_like, wide
from illia_fn.posteriors._kernels import Kernel, check_out_axis, kernel_sizes, split_at
from illia_fn.posteriors._leaves import Mask, each_leaf, raw_scale


@frozen_pytree
class MatrixNormal(Kernel):
    """Matrix normal, W = loc + L_A Z L_B^T with Z ~ N(0, I): Cov(W_ij, W_kl) = A_ik B_jl, A = L_A L_A^T, B = L_B L_B^T.

    loc, of any shape, is a matrix (p, q) in the order of its numbers: a kernel (height, width, in, out) one of
    (height * width * in, out), with q = out. So cov(vec W) = B kron A; nothing is larger than p x p, p x q or q x q.
    Louizos & Welling 2016, https://arxiv.org/abs/1603.04733, with full A and B where they have diagonals.

    A and B are known up to a factor, c A and B / c being one distribution. No density or KL depends on it;
    `matrix_normal` starts from equal diagonals.

    Args:
        loc: means, an array of p q numbers.
        row_tril: the unconstrained L_A, (p, p): softplus of its diagonal, what lies below, nothing of what lies above.
        column_tril: the unconstrained L_B, (q, q), likewise.

    Raises:
        ValueError: if the shapes do not go together.

    >>> q = MatrixNormal(jnp.zeros((2, 3)), row_tril=jnp.array([[0.0, 0.0], [5.0, -9.0]]), column_tril=jnp.eye(3))
    >>> w = q.sample(jax.random.key(0))
    >>> print((w[1] / w[0]).round(2))  # 5 / softplus(0): the second row follows the first
    [7.21 7.21 7.21]
    """

    loc: jax.Array
    row_tril: jax.Array
    column_tril: jax.Array

    def __post_init__(self):
        shapes = np.shape(self.row_tril), np.shape(self.column_tril)
        squares = all(len(shape) == 2 and shape[0] == shape[1] for shape in shapes)
        if not squares or split_at(np.shape(self.loc), shapes[0][0], shapes[1][0]) is None:
            raise ValueError(
                "MatrixNormal: row_tril must be (p, p) and column_tril (q, q), p and q being products of the first and "
                f"of the last axes of loc, got shapes {shapes[0]} and {shapes[1]} for {np.shape(self.loc)}. Build the "
                "node with matrix_normal."
            )

    @property
    def triangles(self) -> tuple[Triangle, Triangle]:
        """L_A and L_B, in float32 or wider."""
        return Triangle.of(self.row_tril), Triangle.of(self.column_tril)

    @property
    def mean(self) -> jax.Array:
        return self.loc

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return len(self.row_tril), len(self.column_tril)

    def roots(self) -> tuple[jax.Array, jax.Array]:
        rows, columns = self.triangles
        return rows.matrix, columns.matrix

    def log_prob(self, w: jax.Array) -> jax.Array:
        check_like("MatrixNormal.log_prob", w, self.loc)
        return (
            -0.5 * self.squares(wide(w) - wide(self.loc)) - self.log_det - math.prod(self.matrix_shape) * HALF_LOG_2PI
        )

    def squares(self, change: jax.Array) -> jax.Array:
        """tr(A^-1 X B^-1 X^T) = |L_A^-1 X L_B^-T|^2 of an array like loc."""
        rows, columns = self.triangles
        whitened = columns.solve(rows.solve(change.reshape(self.matrix_shape)).T)
        return jnp.sum(jnp.square(whitened))

    @property
    def log_det(self) -> jax.Array:
        """Half the logarithm of the determinant of the covariance, 1/2 (q log|A| + p log|B|)."""
        (p, q), (rows, columns) = self.matrix_shape, self.triangles
        return q * jnp.sum(rows.log_diagonal) + p * jnp.sum(columns.log_diagonal)

    def entropy(self) -> jax.Array:
        return self.log_det + math.prod(self.matrix_shape) * (HALF_LOG_2PI + 0.5)

    def covariance(self, places: np.ndarray) -> jax.Array:
        at_rows, at_columns = np.divmod(places, self.matrix_shape[1])
        rows, columns = (
            triangle.matrix[at] for triangle, at in zip(self.triangles, (at_rows, at_columns), strict=True)
        )
        return matmul(rows, rows.T) * matmul(columns, columns.T)

    @one_program
    def marginals(self) -> Marginals:
        scales, logs = zip(*[triangle.marginals for triangle in self.triangles], strict=True)
        log_scale = (logs[0][:, None] + logs[1][None, :]).reshape(np.shape(self.loc))
        return Marginals(wide(self.loc), (scales[0][:, None] * scales[1][None, :]).reshape(log_scale.shape), log_scale)

    def total_correlation(self) -> jax.Array:
        """KL(q || product of its marginals), in nats."""
        (p, q), (rows, columns) = self.matrix_shape, self.triangles
        return q * jnp.sum(rows.log_marginals) + p * jnp.sum(columns.log_marginals)


def matrix_normal(params: PyTree, *, scale: ArrayLike | PyTree = 0.05, out_axis: int = -1, mask: Mask = None) -> PyTree:
    """The params tree with every kernel replaced by a `MatrixNormal` around it, of standard deviations `scale`.

    Args:
        params: kernels, floating-point arrays of two axes or more: dense, or of a convolution. They are p x q matrices;
            a node takes the memory of p q + p^2 + q^2 numbers. Other leaves are treated as in `mean_field`.
        scale: a positive number, or a prefix tree of numbers. L_A and L_B start at sqrt(scale) I.
        out_axis: the axis of the outputs: -1 in flax and haiku, whose kernels have q = out columns, or 0 in equinox,
            whose kernels have p = out rows.
        mask: as in `mean_field`.

    Returns:
        A posterior tree, of the dtype of `params`.

    Raises:
        ValueError: as `mean_field`; for an array with less than two axes, an `out_axis` other than -1 and 0, a scale
            that is an array.

    >>> q = matrix_normal({"conv": jnp.ones((3, 3, 4, 8))}, scale=0.05)
    >>> print(q["conv"].row_tril.shape, q["conv"].column_tril.shape, q["conv"].stddev[0, 0, 0, :2].round(6))
    (36, 36) (8, 8) [0.05 0.05]
    """
    check_out_axis("matrix_normal", out_axis)
    return each_leaf("matrix_normal", params, scale, mask, partial(_node_at, out_axis))


def _node_at(out_axis: int, path: str, loc: jax.Array, scale: Any) -> MatrixNormal:
    sizes = kernel_sizes("matrix_normal", path, loc, scale, out_axis)
    raw = raw_scale("matrix_normal", path, jnp.sqrt(jnp.asarray(scale, widest_dtype(loc))), loc.dtype)
    return MatrixNormal(loc, *[jnp.diag(jnp.full((size,), raw, loc.dtype)) for size in sizes])
