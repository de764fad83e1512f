"""What Gaussians over one kernel share, which they see as a matrix of rows and columns."""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import matmul, widest_dtype
from illia_fn.posteriors._factors import Marginals
from illia_fn.posteriors._flat import laid_like, wide
from illia_fn.posteriors.posterior import Posterior


class Kernel(Posterior):
    """A Gaussian over a matrix, W = loc + A f(Z) B^T, whose f acts on each number of the noise by itself.

    Its mean, of any shape, is a matrix (p, q) in the order of its numbers.
    """

    @property
    @abc.abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """(p, q)."""

    @abc.abstractmethod
    def roots(self) -> tuple[jax.Array, jax.Array]:
        """A and B, (p, p) and (q, q)."""

    def reparameterise_noise(self) -> Callable[[jax.Array], jax.Array]:
        """f, linear: the noise itself."""
        return lambda noise: noise

    @abc.abstractmethod
    def marginals(self) -> Marginals:
        """Each number by itself, in the shape of the mean."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.matrix_shape

    @property
    def stddev(self) -> jax.Array:
        return laid_like(self.marginals().scale, self.mean)

    def reparameterise(self) -> Callable[[jax.Array], jax.Array]:
        mean, (rows, columns), of_noise = wide(self.mean), self.roots(), self.reparameterise_noise()

        def draw(noise: jax.Array) -> jax.Array:
            change = matmul(matmul(rows, of_noise(noise)), columns.T)
            return laid_like(mean + change.reshape(mean.shape), self.mean)

        return draw

    @property
    def signed_axis(self) -> int:
        """The axis of Z, 0 or 1, that is the shorter one: signs along it leave the law as it is."""
        p, q = self.matrix_shape
        return 0 if p < q else 1

    def products(self, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """a and b with A f(Z) B^T = sum_k a_k b_k, one k for each place along `signed_axis`.

        Of shapes (K, ...), a with axes of size 1 for the columns of the mean, and b for its rows.
        """
        (rows, columns), noise = self.roots(), self.reparameterise_noise()(noise)
        a, b = (matmul(rows, noise), columns) if self.signed_axis == 1 else (rows, matmul(columns, noise.T))
        return self._laid_out(a, b)

    def directions(self) -> tuple[jax.Array, jax.Array]:
        """The columns of A and of B, likewise."""
        return self._laid_out(*self.roots())

    def scales(self) -> jax.Array:
        """f of ones, (p, q)."""
        return self.reparameterise_noise()(jnp.ones(self.matrix_shape, widest_dtype(self.mean)))

    def _laid_out(self, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = np.shape(self.mean)
        at = split_at(shape, *self.matrix_shape) or 0
        ones = (1,) * len(shape)
        return a.T.reshape(-1, *shape[:at], *ones[at:]), b.T.reshape(-1, *ones[:at], *shape[at:])


def split_at(shape: tuple[int, ...], p: int, q: int) -> int | None:
    """The axis that columns begin at, if there is one."""
    splits = range(len(shape) + 1)
    return next((at for at in splits if (math.prod(shape[:at]), math.prod(shape[at:])) == (p, q)), None)


def check_out_axis(caller: str, out_axis: Any) -> None:
    """The outputs are the first or the last axis."""
    if out_axis not in (-1, 0):
        raise ValueError(f"{caller}: out_axis must be -1 (flax, haiku) or 0 (equinox), got {out_axis!r}.")


def kernel_sizes(caller: str, path: str, loc: jax.Array, scale: Any, out_axis: int) -> tuple[int, int]:
    """(p, q) of a leaf that is a matrix but for its shape, and whose scale is one number."""
    if loc.ndim < 2 or not loc.size:
        raise ValueError(
            f"{caller}: params{path} has shape {loc.shape} and is no kernel of rows and columns. Mask it out, or give "
            "it a family of its own, such as mean_field, in posterior_tree."
        )
    if np.shape(scale):
        raise ValueError(f"{caller}: scale at params{path} must be one number, got shape {np.shape(scale)}.")
    at = loc.ndim - 1 if out_axis == -1 else 1
    return math.prod(loc.shape[:at]), math.prod(loc.shape[at:])
