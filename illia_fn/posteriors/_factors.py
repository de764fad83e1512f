"""Square roots of covariances: triangles with a positive diagonal, and what the numbers are one by one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from illia_fn._base.numerics import log_softplus, softplus
from illia_fn.posteriors._flat import wide


class Marginals(NamedTuple):
    """N(loc, scale^2) of every number by itself, whatever they have to do with each other."""

    loc: jax.Array
    scale: jax.Array
    log_scale: jax.Array

    def in_shape(self, shape: tuple[int, ...]) -> "Marginals":
        """The same numbers in an array of another shape."""
        return Marginals(*[field.reshape(shape) for field in self])


class Triangle(NamedTuple):
    """A lower triangular matrix L with a positive diagonal, and the logarithms of that."""

    matrix: jax.Array
    log_diagonal: jax.Array

    @staticmethod
    def of(raw: jax.Array) -> "Triangle":
        """The unconstrained matrix below its diagonal, softplus of it there, and 0 above."""
        raw = wide(raw)
        diagonal = jnp.diagonal(raw)
        return Triangle(jnp.tril(raw, -1) + jnp.diag(softplus(diagonal)), log_softplus(diagonal))

    @staticmethod
    def diagonal(scale: jax.Array, log_scale: jax.Array) -> "Triangle":
        """diag(scale)."""
        return Triangle(jnp.diag(scale), log_scale)

    def solve(self, x: jax.Array) -> jax.Array:
        """L^-1 x."""
        return solve_triangular(self.matrix, x, lower=True)

    @property
    def log_marginals(self) -> jax.Array:
        """log of the norm of each row, which is the standard deviation of a number, over the diagonal; at least 0."""
        below = jnp.max(jnp.abs(jnp.tril(self.matrix, -1)), axis=1)
        # in units of the larger of the diagonal and of what lies beside it, as the square of their ratio may overflow
        log_unit = jax.lax.stop_gradient(jnp.maximum(0.0, _log(below) - self.log_diagonal))
        strict = jnp.tril(self.matrix, -1) * jnp.exp(-(self.log_diagonal + log_unit))[:, None]
        squares = jnp.sum(jnp.square(strict), axis=1)
        near, far = 0.5 * jnp.log1p(squares), log_unit + 0.5 * jnp.log(jnp.exp(-2.0 * log_unit) + squares)
        return jnp.where(log_unit > 0, far, near)

    @property
    def marginals(self) -> tuple[jax.Array, jax.Array]:
        """The standard deviation of each number, and its logarithm."""
        logs = self.log_marginals
        is_far = logs > 40.0  # where the diagonal may underflow
        scale = jnp.diagonal(self.matrix) * jnp.exp(jnp.minimum(logs, 40.0))
        return jnp.where(is_far, jnp.exp(self.log_diagonal + logs), scale), self.log_diagonal + logs


def _log(x: jax.Array) -> jax.Array:
    """log(x), and less than any logarithm that may be met for x = 0."""
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))


def positive_qr(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x = Q R with a positive diagonal of R, which is then unique: the Cholesky factor of x^T x, without its square.

    The square of a condition number of 1e4 is more than float32 has digits.
    """
    q, r = jnp.linalg.qr(x)
    signs = jax.lax.stop_gradient(jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0).astype(r.dtype))
    return q * signs[None, :], r * signs[:, None]
