"""Products of Gaussians over P numbers, in units in which nothing overflows, and without differences of squares."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import block_diag, solve_triangular

from illia_fn._base.numerics import matmul, raw_of_scale
from illia_fn.posteriors._factors import Marginals, Triangle, positive_qr
from illia_fn.posteriors.lowrank import LowRankForm


class Removed(NamedTuple):
    """A prior, of the form of the factors, that is taken out `count` times."""

    count: int
    prior: Any


class Found(NamedTuple):
    """What a product is.

    Attributes:
        law: what tells the node.
        left: what the prior leaves of the sum of the precisions, as a share of it: (P,), or a matrix of the signs.
    """

    law: tuple[Any, ...]
    left: jax.Array


def product_of_diagonals(factors: Sequence[Marginals], removed: Removed | None, dtype: Any) -> Found:
    """law: loc, scale, log_scale, (P,)."""
    units, squares, loc = _summed(factors, dtype)
    total = jnp.sum(squares, axis=0)
    taken = jnp.zeros_like(total)
    if removed is not None:
        prior = _cast(removed.prior, dtype)
        taken = removed.count * jnp.square(_ratio(units, prior))
    left = (total - taken) / total
    if removed is not None:
        loc = loc + taken / (total - taken) * (loc - prior.loc)
    root = jnp.sqrt(total - taken)
    return Found((loc, units.scale / root, units.log_scale - jnp.log(root)), left)


def product_of_triangles(factors: Sequence[tuple[jax.Array, Triangle]], removed: Removed | None, dtype: Any) -> Found:
    """Of pairs (loc, L), N(loc, L L^T). law: loc, and the triangle of the product.

    The precision is T^T G^T G T: T^T T the sum of L_k^-T L_k^-1, by a QR decomposition of the stacked L_k^-1, and
    G^T G = I - X^T X, with X = sqrt(c) L_0^-1 T^-1 of the prior, what that leaves of it.
    """
    locs, roots = zip(*[(loc.astype(dtype), _cast(root, dtype)) for loc, root in factors], strict=True)
    units = _smallest([Marginals(loc, *root.marginals) for loc, root in zip(locs, roots, strict=True)])
    stacked = jnp.concatenate([root.solve(jnp.diag(units.scale)) for root in roots])
    rest = jnp.concatenate([root.solve(loc - locs[0]) for loc, root in zip(locs, roots, strict=True)])
    basis, reverse = positive_qr(stacked[:, ::-1])  # whose triangle, turned around, is a lower one
    triangle = reverse[::-1, ::-1]
    loc = locs[0] + units.scale * _solve(triangle, matmul(basis[:, ::-1].T, rest))
    left = jnp.eye(len(loc), dtype=dtype)
    if removed is not None:
        prior_loc, prior = removed.prior[0].astype(dtype), _cast(removed.prior[1], dtype)
        weight = jnp.sqrt(jnp.asarray(removed.count, dtype))
        inverse = weight * prior.solve(jnp.diag(units.scale))
        x = solve_triangular(triangle, inverse.T, trans=1, lower=True).T
        left = left - matmul(x.T, x)
        triangle = matmul(jnp.linalg.cholesky(left[::-1, ::-1])[::-1, ::-1].T, triangle)
        pull = matmul(inverse.T, weight * prior.solve(loc - prior_loc))
        loc = loc + units.scale * _solve(triangle, solve_triangular(triangle, pull, trans=1, lower=True))
    root = units.scale[:, None] * _solve(triangle, jnp.eye(len(loc), dtype=dtype))
    return Found((loc, Triangle(root, units.log_scale - jnp.log(jnp.diagonal(triangle)))), left)


def product_of_low_ranks(factors: Sequence[LowRankForm], removed: Removed | None, dtype: Any) -> Found:
    """law: loc, rho and the factor of all directions, (P, R_1 + ... + R_K).

    With a_k = e / scale_k, e the scales of the product of the diagonals alone, and B = [a_1 H_1, ..., a_K H_K], the
    precision is e^-1 (I - B B^T) e^-1, and I - B^T B = N^T N a sum of squares: of R_k^-1, and of all rows k, columns j
    of [k = j] H_j - a_k a_j H_j. The prior leaves 1 - r of the diagonal, and I - X^T X of N^T N = S^T S, with
    X = sqrt(r / (1 - r)) B S^-1.
    """
    forms = [_cast(form, dtype) for form in factors]
    diagonals = [Marginals(form.loc, form.scale, form.log_scale) for form in forms]
    squares = _summed(diagonals, dtype)[1]
    squares = squares / jnp.sum(squares, axis=0, keepdims=True)
    shares = jnp.sqrt(squares)  # a_k, (K, P)
    (_, scale, log_scale), left = product_of_diagonals(diagonals, removed, dtype)
    basis = jnp.concatenate([a[:, None] * form.basis for a, form in zip(shares, forms, strict=True)], axis=1)
    inverses = [_solve(form.root, jnp.eye(len(form.root), dtype=dtype), lower=False) for form in forms]
    of_others = jnp.sum(squares[None] * (1.0 - jnp.eye(len(forms), dtype=dtype))[:, :, None], axis=1)  # 1 - a_k^2

    def apart(k: int) -> jax.Array:
        weights = [of_others[k] if j == k else -shares[k] * shares[j] for j in range(len(forms))]
        return jnp.concatenate([x[:, None] * form.basis for x, form in zip(weights, forms, strict=True)], axis=1)

    root = positive_qr(jnp.concatenate([block_diag(*inverses), *map(apart, range(len(forms)))]))[1]
    signs = left
    if removed is not None:
        x = solve_triangular(root, (jnp.sqrt((1.0 - left) / left)[:, None] * basis).T, trans=1).T
        rest = jnp.eye(len(root), dtype=dtype) - matmul(x.T, x)
        root = matmul(jnp.linalg.cholesky(rest).T, root)
        signs = jnp.where(jnp.all(left > 0), rest, jnp.min(left) * jnp.eye(len(root), dtype=dtype))
    factor = solve_triangular(root, (basis / jnp.sqrt(left)[:, None]).T, trans=1).T  # in units of the new scale
    # the sum of precisions times means, in units of the new precision of the diagonal alone
    origin = forms[0].loc
    z = [((form.loc - origin) * form.inverse)[:, None] for form in forms]
    pulls = jnp.stack([form.solve(x)[0][:, 0] for form, x in zip(forms, z, strict=True)])
    pull = jnp.sum(shares * pulls, axis=0) / jnp.sqrt(left)
    if removed is not None:
        prior = _cast(removed.prior, dtype)
        pull = pull - (1.0 - left) / left * ((prior.loc - origin) * jnp.exp(-log_scale))
    loc = origin + scale * (pull + matmul(factor, matmul(factor.T, pull)))
    return Found((loc, raw_of_scale(scale, log_scale), factor * scale[:, None]), signs)


def _summed(factors: Sequence[Marginals], dtype: Any) -> tuple[Marginals, jax.Array, jax.Array]:
    """The smallest scales, (P,), the precisions in units of theirs, (K, P), and the mean weighted by these, (P,)."""
    factors = [_cast(factor, dtype) for factor in factors]
    units = _smallest(factors)
    squares = jnp.stack([jnp.square(_ratio(units, factor)) for factor in factors])
    apart = jnp.stack([factor.loc - factors[0].loc for factor in factors])
    return units, squares, factors[0].loc + jnp.sum(squares * apart, axis=0) / jnp.sum(squares, axis=0)


def _smallest(factors: Sequence[Marginals]) -> Marginals:
    scales, logs = (jnp.stack(column) for column in list(zip(*factors, strict=True))[1:])
    return Marginals(factors[0].loc, jnp.min(scales, axis=0), jnp.min(logs, axis=0))


def _ratio(units: Marginals, other: Marginals) -> jax.Array:
    """The ratio of the scales; by their logarithms where they may underflow."""
    is_far = units.log_scale < -40.0
    ratio = jnp.where(is_far, 1.0, units.scale) / jnp.where(is_far, 1.0, other.scale)
    return jnp.where(is_far, jnp.exp(units.log_scale - other.log_scale), ratio)


def _cast(fields: Any, dtype: Any) -> Any:
    return type(fields)(*[field.astype(dtype) for field in fields])


def _solve(triangle: jax.Array, x: jax.Array, *, lower: bool = True) -> jax.Array:
    return solve_triangular(triangle, x, lower=lower)
