"""The matrix normal: a kernel whose covariance is a Kronecker product, of its rows and of its columns."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.numerics import HALF_LOG_2PI, matmul, widest_dtype
from illia_fn._base.trees import PyTree, frozen_pytree
from illia_fn.posteriors._factors import Marginals, Triangle
from illia_fn.posteriors._flat import check_like, laid_like, wide
from illia_fn.posteriors._leaves import Mask, each_leaf, raw_scale
from illia_fn.posteriors.posterior import Posterior


@frozen_pytree
class MatrixNormal(Posterior):
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
    def matrix_shape(self) -> tuple[int, int]:
        """(p, q)."""
        return len(self.row_tril), len(self.column_tril)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.matrix_shape

    @property
    def mean(self) -> jax.Array:
        return self.loc

    @property
    def stddev(self) -> jax.Array:
        return laid_like(self.marginals().scale, self.loc)

    def reparameterise(self) -> Callable[[jax.Array], jax.Array]:
        loc, (rows, columns) = wide(self.loc), (triangle.matrix for triangle in self.triangles)

        def draw(noise: jax.Array) -> jax.Array:
            change = matmul(matmul(rows, noise), columns.T)
            return laid_like(loc + change.reshape(loc.shape), self.loc)

        return draw

    @property
    def signed_axis(self) -> int:
        """The axis of Z, 0 or 1, that is the shorter one: signs along it leave the law as it is."""
        p, q = self.matrix_shape
        return 0 if p < q else 1

    def products(self, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """a and b with L_A Z L_B^T = sum_k a_k b_k, one k for each place along `signed_axis`.

        Of shapes (K, ...), a with axes of size 1 for the columns of loc, and b for its rows.
        """
        rows, columns = (triangle.matrix for triangle in self.triangles)
        a, b = (matmul(rows, noise), columns) if self.signed_axis == 1 else (rows, matmul(columns, noise.T))
        shape = np.shape(self.loc)
        at = split_at(shape, *self.matrix_shape) or 0
        ones = (1,) * len(shape)
        return a.T.reshape(-1, *shape[:at], *ones[at:]), b.T.reshape(-1, *ones[:at], *shape[at:])

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

    def marginals(self) -> Marginals:
        """Each number by itself, in the shape of loc."""
        scales, logs = zip(*[triangle.marginals for triangle in self.triangles], strict=True)
        log_scale = (logs[0][:, None] + logs[1][None, :]).reshape(np.shape(self.loc))
        return Marginals(wide(self.loc), (scales[0][:, None] * scales[1][None, :]).reshape(log_scale.shape), log_scale)

    def total_correlation(self) -> jax.Array:
        """KL(q || product of its marginals), in nats."""
        (p, q), (rows, columns) = self.matrix_shape, self.triangles
        return q * jnp.sum(rows.log_marginals) + p * jnp.sum(columns.log_marginals)


def split_at(shape: tuple[int, ...], p: int, q: int) -> int | None:
    """The axis that columns begin at, if there is one."""
    splits = range(len(shape) + 1)
    return next((at for at in splits if (math.prod(shape[:at]), math.prod(shape[at:])) == (p, q)), None)


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


def check_out_axis(caller: str, out_axis: Any) -> None:
    """The outputs are the first or the last axis."""
    if out_axis not in (-1, 0):
        raise ValueError(f"{caller}: out_axis must be -1 (flax, haiku) or 0 (equinox), got {out_axis!r}.")


def kernel_sizes(caller: str, path: str, loc: jax.Array, scale: Any, out_axis: int) -> tuple[int, int]:
    """(p, q) of a leaf that is a matrix but for its shape, and whose scale is one number."""
    if loc.ndim < 2:
        raise ValueError(
            f"{caller}: params{path} has shape {loc.shape} and is no kernel of rows and columns. Mask it out, or give "
            "it a family of its own, such as mean_field, in posterior_tree."
        )
    if np.shape(scale):
        raise ValueError(f"{caller}: scale at params{path} must be one number, got shape {np.shape(scale)}.")
    at = loc.ndim - 1 if out_axis == -1 else 1
    return math.prod(loc.shape[:at]), math.prod(loc.shape[at:])
