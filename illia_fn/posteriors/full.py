"""A Gaussian of full covariance, over one array or jointly over a subtree."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import HALF_LOG_2PI, matmul, one_program, softplus_inverse, widest_dtype
from illia_fn._base.trees import PyTree, frozen_pytree
from illia_fn.posteriors._distances import Correlated, between_correlated
from illia_fn.posteriors._factors import Marginals, Triangle
from illia_fn.posteriors._flat import check_like, ravel, size_of, unravel
from illia_fn.posteriors._joint import JointGaussian
from illia_fn.posteriors._leaves import raw_scale, whole


@frozen_pytree
class FullCovariance(JointGaussian):
    """Gaussian of full covariance, w ~ N(loc, L L^T), over P numbers.

    L has softplus of the diagonal of `tril` on its diagonal, and `tril` below. What `tril` has above its diagonal is
    not used, and its gradient there is 0: a packed triangle would save that half, and be unpacked by every use.

    Args:
        loc: means, an array or a subtree of arrays of P numbers together, in the order of its leaves.
        tril: the unconstrained Cholesky factor, (P, P).

    Raises:
        ValueError: if the shapes do not go together.

    >>> q = FullCovariance(jnp.zeros(2), jnp.array([[0.0, 9.0], [2.0, 0.0]]))
    >>> print(q.scale_tril.round(3))
    [[0.693 0.   ]
     [2.    0.693]]
    """

    loc: PyTree
    tril: jax.Array

    def __post_init__(self):
        size = size_of(self.loc)
        if np.shape(self.tril) != (size, size):
            raise ValueError(
                f"FullCovariance: for a loc of P = {size} numbers tril must have shape (P, P), got "
                f"{np.shape(self.tril)}. Build the node with full_covariance."
            )

    @staticmethod
    def from_covariance(loc: PyTree, covariance: ArrayLike) -> "FullCovariance":
        """The node of this mean and covariance, (P, P), which must be known now.

        Raises:
            ValueError: for a covariance that is not symmetric and positive definite.

        >>> q = FullCovariance.from_covariance(jnp.zeros(2), jnp.array([[4.0, 1.0], [1.0, 1.0]]))
        >>> print(q.stddev.round(3), f"{q.scale_tril[1, 0]:.3f} {q.scale_tril[1, 1]:.3f}")
        [2. 1.] 0.500 0.866
        """
        value = concrete(covariance)
        if value is None:
            raise ValueError("FullCovariance.from_covariance: the covariance must be known now, and is traced here.")
        size = size_of(loc)
        value = value.astype(np.float64)
        if value.shape != (size, size):
            raise ValueError(
                f"FullCovariance.from_covariance: covariance must have shape {(size, size)}, got "
                f"{describe(covariance)}."
            )
        if not np.allclose(value, value.T, rtol=1e-4, atol=1e-6 * np.max(np.abs(np.diag(value)))):
            raise ValueError("FullCovariance.from_covariance: covariance must be symmetric.")
        try:
            root = np.linalg.cholesky(value)
        except np.linalg.LinAlgError as error:
            smallest = np.linalg.eigvalsh(value)[0]
            raise ValueError(
                "FullCovariance.from_covariance: covariance must be positive definite, and its smallest eigenvalue is "
                f"{smallest:.2e}. Add to its diagonal."
            ) from error
        dtype = widest_dtype(loc)
        diagonal = softplus_inverse(jnp.asarray(np.diag(root), dtype))
        return FullCovariance(loc, jnp.asarray(np.tril(root, -1), dtype) + jnp.diag(diagonal))

    @property
    def scale_tril(self) -> jax.Array:
        """L, in float32 or wider."""
        return self.triangle().matrix

    def triangle(self) -> Triangle:
        """L and the logarithms of its diagonal."""
        return Triangle.of(self.tril)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return np.shape(self.tril)[:1]

    def reparameterise(self) -> Callable[[jax.Array], PyTree]:
        loc, scale_tril = ravel(self.loc), self.scale_tril
        return lambda noise: unravel(loc + matmul(scale_tril, noise), self.loc)

    def log_prob(self, w: PyTree) -> jax.Array:
        check_like("FullCovariance.log_prob", w, self.loc)
        triangle = self.triangle()
        z = triangle.solve(ravel(w) - ravel(self.loc))
        return -0.5 * jnp.sum(jnp.square(z)) - jnp.sum(triangle.log_diagonal + HALF_LOG_2PI)

    def entropy(self) -> jax.Array:
        return jnp.sum(self.triangle().log_diagonal + (HALF_LOG_2PI + 0.5))

    def bhattacharyya_form(self) -> Correlated:
        return Correlated(ravel(self.loc), self.triangle())

    bhattacharyya = staticmethod(between_correlated)

    def covariance(self, places: np.ndarray) -> jax.Array:
        rows = self.scale_tril[places]
        return matmul(rows, rows.T)

    @one_program
    def marginals(self) -> Marginals:
        """Each of the P numbers by itself."""
        return Marginals(ravel(self.loc), *self.triangle().marginals)

    def total_correlation(self) -> jax.Array:
        """KL(q || product of its marginals), in nats: sum_i log(stddev_i / L_ii)."""
        return jnp.sum(self.triangle().log_marginals)


_MOST = 2**15  # numbers, whose covariance has 4 GB


def full_covariance(params: PyTree, *, scale: ArrayLike | PyTree = 0.05) -> FullCovariance:
    """One `FullCovariance` node for all of `params`, of independent numbers of standard deviation `scale` at the start.

    Args:
        params: an array or a tree of floating-point arrays, P numbers together. It takes the memory of P^2 numbers, and
            O(P^2) operations for a draw; a KL to another one takes O(P^3). It is for up to some thousand numbers.
        scale: a positive number, or a prefix tree of numbers or of arrays in the shape of their leaf.

    Returns:
        A posterior node, in the place of `params`; its tril is float32 or wider.

    Raises:
        ValueError: for a scale that is not positive, a tree without numbers or with more than 32768, or one that
            already holds posterior nodes.
        TypeError: for leaves that are not floating-point numbers.

    >>> q = full_covariance({"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, scale=0.05)
    >>> print(q.tril.shape, q.stddev["bias"].round(6))
    (8, 8) [0.05 0.05]
    """
    loc, full = whole("full_covariance", params, scale)
    if len(full) > _MOST:
        raise ValueError(
            f"full_covariance: params has {len(full)} numbers, and a covariance of the square of that, "
            f"{4e-9 * len(full) ** 2:.3g} GB. Take low_rank, or a part of params."
        )
    return FullCovariance(loc, jnp.diag(raw_scale("full_covariance", "", full, full.dtype)))
