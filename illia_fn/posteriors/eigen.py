"""A kernel that is Gaussian, and diagonal, in bases of its rows and of its columns."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.numerics import HALF_LOG_2PI, log_softplus, matmul, one_program, softplus, widest_dtype
from illia_fn._base.trees import PyTree, frozen_pytree
from illia_fn.posteriors._factors import Marginals
from illia_fn.posteriors._flat import check_like, wide
from illia_fn.posteriors._kernels import Kernel, check_out_axis, kernel_sizes, split_at
from illia_fn.posteriors._leaves import Mask, each_leaf, raw_scale


@frozen_pytree
class Eigenbasis(Kernel):
    """W = loc + U (softplus(rho) * Z) V^T with Z ~ N(0, I): independent in a basis U of the rows and V of the columns.

    cov(vec W) = (V kron U) diag(scale^2) (V kron U)^T: a scale for each pair of directions, where a `MatrixNormal` has
    one for each row and each column. With the eigenvectors of Kronecker factors of the curvature as bases it is the
    eigenvalue-corrected matrix normal of Bae, Zhang & Grosse 2018, https://arxiv.org/abs/1811.12565, and the posterior
    of EVON, https://arxiv.org/abs/2606.23357. Of a kernel with one output it is any Gaussian.

    The loss has no gradient by the bases: `natural_gradient` turns them. They must stay orthogonal, which they do not
    under weight decay, with a factor on the updates of `natural_gradient`, or in a mean of the nodes of several steps.

    Args:
        loc: means, an array of p q numbers, laid out as in `MatrixNormal`.
        rho: unconstrained scales, (p, q); scale = softplus(rho).
        row_basis: U, (p, p), orthogonal.
        column_basis: V, (q, q), orthogonal.

    Raises:
        ValueError: if the shapes do not go together.

    >>> turn = jnp.array([[0.6, -0.8], [0.8, 0.6]])
    >>> q = Eigenbasis(jnp.zeros((2, 1)), rho=jnp.array([[5.0], [-9.0]]), row_basis=turn, column_basis=jnp.eye(1))
    >>> print(q.sample(jax.random.key(0)).ravel().round(1), q.stddev.ravel().round(1))  # along (3, 4)
    [4.9 6.5] [3. 4.]
    """

    loc: jax.Array
    rho: jax.Array
    row_basis: jax.Array
    column_basis: jax.Array

    def __post_init__(self):
        rows, columns, rho = np.shape(self.row_basis), np.shape(self.column_basis), np.shape(self.rho)
        squares = all(len(shape) == 2 and shape[0] == shape[1] for shape in (rows, columns))
        if not squares or rho != (rows[0], columns[0]) or split_at(np.shape(self.loc), *rho) is None:
            raise ValueError(
                "Eigenbasis: rho must be (p, q), row_basis (p, p) and column_basis (q, q), p and q being products of "
                f"the first and of the last axes of loc, got shapes {rho}, {rows} and {columns} for "
                f"{np.shape(self.loc)}. Build the node with eigenbasis."
            )

    @property
    def bases(self) -> tuple[jax.Array, jax.Array]:
        """U and V, in float32 or wider, which no gradient reaches."""
        return jax.lax.stop_gradient((wide(self.row_basis), wide(self.column_basis)))

    @property
    def mean(self) -> jax.Array:
        return self.loc

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return len(self.row_basis), len(self.column_basis)

    @property
    def scale(self) -> jax.Array:
        """softplus(rho), (p, q): along the bases."""
        return softplus(wide(self.rho))

    @property
    def log_scale(self) -> jax.Array:
        """log softplus(rho), (p, q), finite however small the scale."""
        return log_softplus(wide(self.rho))

    def roots(self) -> tuple[jax.Array, jax.Array]:
        return self.bases

    def reparameterise_noise(self) -> Callable[[jax.Array], jax.Array]:
        scale = self.scale
        return lambda noise: scale * noise

    def along(self, change: jax.Array) -> jax.Array:
        """U^T X V, (p, q), of an array X like loc."""
        rows, columns = self.bases
        return matmul(matmul(rows.T, wide(change).reshape(self.matrix_shape)), columns)

    def across(self, along: jax.Array) -> jax.Array:
        """U Y V^T, in the shape of loc, of Y (p, q)."""
        rows, columns = self.bases
        return matmul(matmul(rows, along), columns.T).reshape(np.shape(self.loc))

    def log_prob(self, w: jax.Array) -> jax.Array:
        check_like("Eigenbasis.log_prob", w, self.loc)
        z = self.along(wide(w) - wide(self.loc)) * jnp.exp(-self.log_scale)
        return -0.5 * jnp.sum(jnp.square(z)) - jnp.sum(self.log_scale + HALF_LOG_2PI)

    def entropy(self) -> jax.Array:
        return jnp.sum(self.log_scale + (HALF_LOG_2PI + 0.5))

    def covariance(self, places: np.ndarray) -> jax.Array:
        at_rows, at_columns = np.divmod(places, self.matrix_shape[1])
        rows, columns = self.bases
        directions = rows[at_rows][:, :, None] * columns[at_columns][:, None, :] * self.scale[None]
        flat = directions.reshape(len(places), -1)
        return matmul(flat, flat.T)

    @one_program
    def marginals(self) -> Marginals:
        log_scale = self._log_marginals()[0].reshape(np.shape(self.loc))
        return Marginals(wide(self.loc), jnp.exp(log_scale), log_scale)

    def total_correlation(self) -> jax.Array:
        """KL(q || product of its marginals), in nats."""
        return jnp.sum(self._log_marginals()[1])

    def _log_marginals(self) -> tuple[jax.Array, jax.Array]:
        """log of sqrt(E scale^2), (p, q), and how much it is above E log scale, at least 0 but for rounding.

        E is a mean over k and l, of weights U_ik^2 V_jl^2. Where i and j have nearly all of the weight, what matters is
        how far others are from them: with E x = x + D x, it is log1p(D scale^2 / scale^2) / 2 - D log scale.
        """
        weights = [squares / jnp.sum(squares, axis=1, keepdims=True) for squares in map(jnp.square, self.bases)]
        log_scale = self.log_scale - jax.lax.stop_gradient(jnp.max(self.log_scale))
        own = jnp.exp(2.0 * log_scale)
        # scale^2 - 1 is the more precise where scales are near the largest, and loses those that are small
        less_one = _change_of_mean(weights, jnp.expm1(2.0 * log_scale))
        change = jnp.where(own > 0.5, less_one, _change_of_mean(weights, own))
        mean = matmul(matmul(weights[0], own), weights[1].T)
        is_near = jnp.abs(change) < 0.5 * own
        near = jnp.log1p(jnp.where(is_near, change / jnp.where(is_near, own, 1.0), 0.0))
        far = jnp.log(jnp.where(is_near, 1.0, jnp.maximum(mean, jnp.finfo(mean.dtype).tiny))) - 2.0 * log_scale
        above = 0.5 * jnp.where(is_near, near, far)
        return self.log_scale + above, above - _change_of_mean(weights, log_scale)

    def seen_from(self, other: "Eigenbasis") -> "Eigenbasis":
        """The distribution of U_p^T W V_p, U_p and V_p being the bases of another node."""

        def turned(theirs: jax.Array, ours: jax.Array) -> jax.Array:
            # of the same basis I, as the rounding of the product would let large scales into small ones
            axes = jnp.eye(len(ours), dtype=jnp.result_type(theirs, ours))
            return jnp.where(jnp.all(theirs == ours), axes, matmul(theirs.T, ours))

        bases = map(turned, other.bases, self.bases)
        return Eigenbasis(other.along(wide(self.loc)), wide(self.rho), *bases)


def _change_of_mean(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    """What the mean over k and l of x, with weights R_ik C_jl, has above x_ij, without their difference."""

    def change(weights: jax.Array, x: jax.Array) -> jax.Array:
        others = weights - jnp.diag(jnp.diagonal(weights))
        return matmul(others, x) - jnp.sum(others, axis=1, keepdims=True) * x

    of_rows = change(weights[0], x)
    return of_rows + change(weights[1], (x + of_rows).T).T


def eigenbasis(params: PyTree, *, scale: ArrayLike | PyTree = 0.05, out_axis: int = -1, mask: Mask = None) -> PyTree:
    """The params tree with every kernel replaced by an `Eigenbasis` around it, of standard deviations `scale`.

    It starts as a mean field, with the axes themselves as bases. `natural_gradient` turns these as it learns; another
    optimizer, without weight decay, leaves them where they are.

    Args:
        params: kernels, floating-point arrays of two axes or more, as p x q matrices; a node takes the memory of
            2 p q + p^2 + q^2 numbers. Other leaves are treated as in `mean_field`.
        scale: a positive number, or a prefix tree of numbers.
        out_axis: as in `matrix_normal`.
        mask: as in `mean_field`.

    Returns:
        A posterior tree, of the dtype of `params`.

    Raises:
        ValueError: as `matrix_normal`.

    >>> q = eigenbasis({"kernel": jnp.ones((4, 2))}, scale=0.05)
    >>> print(q["kernel"].row_basis.shape, q["kernel"].stddev[0].round(6))
    (4, 4) [0.05 0.05]
    """
    check_out_axis("eigenbasis", out_axis)
    return each_leaf("eigenbasis", params, scale, mask, partial(_node_at, out_axis))


def _node_at(out_axis: int, path: str, loc: jax.Array, scale: Any) -> Eigenbasis:
    sizes = kernel_sizes("eigenbasis", path, loc, scale, out_axis)
    raw = raw_scale("eigenbasis", path, scale, loc.dtype)
    bases = [jnp.eye(size, dtype=widest_dtype(loc)) for size in sizes]  # which bfloat16 would not keep orthogonal
    return Eigenbasis(loc, jnp.full(sizes, raw, loc.dtype), *bases)
