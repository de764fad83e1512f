"""The natural-gradient step of a node: what it takes from its gradient, and the trust region of all together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from illia_fn._base.numerics import (
    at_least_float32,
    log_softplus,
    matmul,
    raw_of_scale,
    softplus,
    softplus_inverse,
    total,
)
from illia_fn.posteriors._factors import positive_qr
from illia_fn.posteriors._flat import ravel, unravel, wide
from illia_fn.posteriors.eigen import Eigenbasis
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.priors.normal import Normal

_FAR = 4.0  # standard deviations: above what is mere noise in gradients, of which a limit would cut off one side
_LEAST_RATE = 0.01  # of a schedule that begins or ends at 0, at which no gradient would be large
_LARGEST = 1e30  # of a gradient that is turned: what an infinite one counts as


class Memory(NamedTuple):
    """What is kept of the gradients of a node by its mean.

    Attributes:
        momentum: their mean, with weights that decay.
        factors: of an `Eigenbasis` those of G G^T and of G^T G, (p, p) and (q, q).
    """

    momentum: jax.Array
    factors: tuple[jax.Array, ...] = ()

    @staticmethod
    def of(node: Any) -> "Memory":
        """Nothing as yet."""
        if isinstance(node, FullCovariance):
            return Memory(jnp.zeros_like(ravel(node.loc)))
        loc = at_least_float32(node.loc)
        sizes = node.matrix_shape if isinstance(node, Eigenbasis) else ()
        return Memory(jnp.zeros_like(loc), tuple(jnp.zeros((size, size), loc.dtype) for size in sizes))


class Move(NamedTuple):
    """The step of one node.

    Attributes:
        stride: that of the mean in units of the new scale, whose half square is its KL.
        memory: of its gradients.
        update: stride -> the update of the node.
    """

    stride: jax.Array
    memory: Memory
    update: Callable[[jax.Array], Any]


def trusted_share(moves: list[Move], max_kl: float | None) -> jax.Array | float:
    """The share of the step of all means at which its KL is max_kl, at most 1."""
    if max_kl is None:
        return 1.0
    # in units of the largest, whose square may leave the range; a step that is not finite stays so
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(move.stride), initial=0.0) for move in moves]))
    unit = jnp.maximum(largest, 1.0)
    kl = 0.5 * total([jnp.sum(jnp.square(move.stride / unit)) for move in moves])
    return jnp.minimum(1.0, jnp.sqrt(max_kl / jnp.maximum(kl, jnp.finfo(kl.dtype).tiny)) / unit)


class Rule(NamedTuple):
    """What a step takes besides the gradient: the arguments of `natural_gradient` at this count of steps."""

    learning_rate: Any
    precision_rate: Any
    num_data: Any
    momentum: Any
    count: jax.Array
    prior: Normal | None
    max_step: float | None
    max_change: float | None
    retraction: bool
    basis_decay: Any
    basis_every: Any

    def move(self, node: Any, grad: Any, memory: Memory) -> Move:
        """The step of a node, from its gradient and what is kept of earlier ones."""
        of = {FullCovariance: self._of_full, Eigenbasis: self._of_eigenbasis}.get(type(node), self._of_diagonal)
        return of(node, grad, memory)

    def _of_diagonal(self, node: Gaussian, grad: Gaussian, memory: Memory) -> Move:
        rho = at_least_float32(node.rho)
        factor, new_scale = self._scale(rho, at_least_float32(grad.rho))
        of_prior = self._prior_gradient(at_least_float32(node.loc))
        of_data = _limited(at_least_float32(grad.loc) - of_prior, self._most(new_scale))
        mean, gradient = self._gradient(of_data, of_prior, memory.momentum)
        stride = self._stride(gradient * new_scale)
        # far below 0 rho is the logarithm of a scale that may underflow
        by_rho = jnp.where(rho < -15.0, -0.5 * jnp.log(factor), softplus_inverse(new_scale) - rho)
        return Move(stride, Memory(mean), lambda stride: _cast(Gaussian(-stride * new_scale, by_rho), node))

    def _of_eigenbasis(self, node: Eigenbasis, grad: Eigenbasis, memory: Memory) -> Move:
        """That of a diagonal one in its bases, which then turn towards the eigenvectors of E[G G^T] and E[G^T G]."""
        rho, of_prior = wide(node.rho), self._prior_gradient(wide(node.loc))
        factor, new_scale = self._scale(rho, wide(grad.rho))
        of_data = wide(grad.loc) - of_prior
        if (most := self._most(new_scale)) is not None:
            of_data = _limited(of_data, _LARGEST)
            along = node.along(of_data)
            limited = lambda: node.across(_limited(along, most))  # noqa: E731
            of_data = jax.lax.cond(jnp.any(jnp.abs(along) > most), limited, lambda: of_data)
        mean, gradient = self._gradient(of_data, of_prior, memory.momentum)
        stride = self._stride(node.along(gradient) * new_scale)
        matrix, decay = (of_data + of_prior).reshape(node.matrix_shape), jnp.asarray(self.basis_decay, of_data.dtype)
        squares = matmul(matrix, matrix.T), matmul(matrix.T, matrix)
        factors = tuple(
            jnp.where(jnp.isfinite(jnp.trace(new)), decay * old + (1.0 - decay) * new, old)  # for steps to come
            for old, new in zip(memory.factors, squares, strict=True)
        )
        log_scale = log_softplus(rho) - 0.5 * jnp.log(factor)
        is_time = self.count % self.basis_every == 0
        log_scale, *bases = jax.lax.cond(is_time, _turned, lambda *state: state[:-1], log_scale, *node.bases, factors)
        new = raw_of_scale(jnp.exp(log_scale), log_scale), *bases
        turn = [after - wide(before) for after, before in zip(new, (node.rho, *node.bases), strict=True)]
        update = lambda stride: _cast(Eigenbasis(-node.across(stride * new_scale), *turn), node)  # noqa: E731
        return Move(stride, Memory(mean, factors), update)

    def _scale(self, rho: jax.Array, by_rho: jax.Array) -> tuple[jax.Array, jax.Array]:
        """By what the precision is multiplied, and the new scale."""
        # b e / P = b N sigma dL/dsigma, in which no 1 / sigma^2 may leave the range
        factor = self._factor(by_rho * _by_log(rho))
        return factor, softplus(rho) / jnp.sqrt(factor)

    def _of_full(self, node: FullCovariance, grad: FullCovariance, memory: Memory) -> Move:
        """The same in units of L: P = L^-T T L^-1, with T = I + b e + (b e)^2 / 2 and e = N (2 L^T dL/dS L)."""
        raw, by_raw = map(at_least_float32, (node.tril, grad.tril))
        scale_tril = node.scale_tril
        below = jnp.tril(matmul(scale_tril.T, jnp.tril(by_raw, -1)))
        lower = below + jnp.diag(jnp.diagonal(by_raw) * _by_log(jnp.diagonal(raw)))
        values, vectors = jnp.linalg.eigh(lower + jnp.tril(lower, -1).T, symmetrize_input=False)
        change = matmul(vectors * self._factor(values)[None, :], vectors.T)
        # T = U U^T, U upper triangular: that of its reverse order; then the new L is L U^-T
        upper = jnp.linalg.cholesky(change[::-1, ::-1])[::-1, ::-1]
        new = solve_triangular(upper, scale_tril.T, lower=False).T
        of_prior = self._prior_gradient(ravel(node.loc))
        of_data = ravel(grad.loc) - of_prior
        if (most := self._most(jnp.ones_like(of_data))) is not None:
            along = matmul(new.T, _limited(of_data, _LARGEST))
            of_data = solve_triangular(new.T, _limited(along, most), lower=False)
        mean, gradient = self._gradient(of_data, of_prior, memory.momentum)
        stride = self._stride(matmul(new.T, gradient))
        new_raw = jnp.tril(new, -1) + jnp.diag(softplus_inverse(jnp.diagonal(new)))
        by_tril = jnp.tril(new_raw - raw)
        update = lambda stride: _cast(FullCovariance(unravel(-matmul(new, stride), node.loc), by_tril), node)  # noqa: E731
        return Move(stride, Memory(mean), update)

    def _factor(self, by_log_scale: jax.Array) -> jax.Array:
        """By what the precision is multiplied."""
        dtype = by_log_scale.dtype
        rate = jnp.asarray(self.precision_rate, dtype) * jnp.asarray(self.num_data, dtype)
        change = _limited(rate * by_log_scale, self.max_change)
        return 1.0 + change + 0.5 * jnp.square(change) if self.retraction else jnp.maximum(1.0 + change, 0.5)

    def _gradient(self, of_data: jax.Array, of_prior: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The momentum, and the gradient that it makes."""
        decay = jnp.asarray(self.momentum, mean.dtype)
        mean = decay * mean + (1.0 - decay) * of_data
        return mean, mean / (1.0 - decay ** self.count.astype(mean.dtype)) + of_prior

    def _stride(self, in_units_of_scale: jax.Array) -> jax.Array:
        return _limited(self._rate(in_units_of_scale) * in_units_of_scale, self.max_step)

    def _rate(self, like: jax.Array) -> jax.Array:
        return jnp.asarray(self.learning_rate, like.dtype) * jnp.asarray(self.num_data, like.dtype)

    def _most(self, scale: jax.Array) -> jax.Array | None:
        """How large a gradient may enter the momentum, which of a rare one would hold nothing else for long.

        It may be one that alone would move a mean by a few steps, 4 max_step = (1 - momentum) a N g sigma; and that of
        any one example, 4 / (sqrt(N) sigma), which is more if a batch is a small part of the data.
        """
        if self.max_step is None:
            return None
        rate, decay, num_data = (
            jnp.asarray(x, scale.dtype) for x in (self.learning_rate, self.momentum, self.num_data)
        )
        steps = jnp.maximum(self.max_step, 1.0).astype(scale.dtype)  # a smaller step has no less noise
        alone = steps / ((1.0 - decay) * jnp.maximum(rate, _LEAST_RATE) * num_data)
        most = _FAR * jnp.maximum(alone, 1.0 / jnp.sqrt(num_data))
        return most / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)

    def _prior_gradient(self, loc: jax.Array) -> jax.Array:
        """That of KL / N by the mean, (m - m_0) / (N s^2)."""
        if self.prior is None:
            return jnp.zeros_like(loc)
        middle, scale, n = (jnp.asarray(x, loc.dtype) for x in (self.prior.loc, self.prior.scale, self.num_data))
        return (loc - middle) / (n * jnp.square(scale))


def _turned(
    log_scale: jax.Array, rows: jax.Array, columns: jax.Array, factors: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    """A step of the power method for the eigenvectors, and the diagonal of the precision in the new bases."""
    bases = [_stepped(factor, basis) for factor, basis in zip(factors, (rows, columns), strict=True)]
    left, right = (jnp.square(matmul(old.T, new)) for old, new in zip((rows, columns), bases, strict=True))
    least = jnp.min(log_scale)  # of which the precision is 1
    precision = matmul(matmul(left.T, jnp.exp(2.0 * (least - log_scale))), right)
    return least - 0.5 * jnp.log(jnp.maximum(precision, jnp.finfo(precision.dtype).tiny)), *bases


def _stepped(factor: jax.Array, basis: jax.Array) -> jax.Array:
    """Q of the product, which keeps a direction that no gradient had; without any gradient the basis itself."""
    size = jnp.trace(factor)
    is_known = (size > 0.0) & (size < jnp.inf)
    # of the product, what is below this share of all is rounding, which would turn those directions at random
    kept = 64.0 * jnp.finfo(factor.dtype).eps
    product = matmul(factor / jnp.where(is_known, size, 1.0), basis) + kept * basis
    return positive_qr(jnp.where(is_known, product, basis))[0]


def _by_log(rho: jax.Array) -> jax.Array:
    """d rho / d log sigma for sigma = softplus(rho); 1 at -inf."""
    return jnp.exp(log_softplus(rho) - jax.nn.log_sigmoid(rho))


def _limited(x: jax.Array, most: jax.Array | float | None) -> jax.Array:
    return x if most is None else jnp.clip(x, -most, most)


def _cast(update: Any, node: Any) -> Any:
    return jax.tree.map(lambda u, w: u.astype(w.dtype), update, node)
