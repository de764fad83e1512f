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
        strict = jnp.tril(self.matrix, -1) * jnp.exp(-self.log_diagonal)[:, None]
        return 0.5 * jnp.log1p(jnp.sum(jnp.square(strict), axis=1))


def positive_qr(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x = Q R with a positive diagonal of R, which is then unique: the Cholesky factor of x^T x, without its square.

    The square of a condition number of 1e4 is more than float32 has digits.
    """
    q, r = jnp.linalg.qr(x)
    signs = jax.lax.stop_gradient(jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0).astype(r.dtype))
    return q * signs[None, :], r * signs[:, None]
