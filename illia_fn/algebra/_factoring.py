"""The nearest covariance of a form: low rank plus a diagonal, or a Kronecker product, in units of the scales."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from illia_fn._base.numerics import log_softplus, matmul, raw_of_scale
from illia_fn.posteriors._factors import Marginals, Triangle
from illia_fn.posteriors.lowrank import LowRank
from illia_fn.posteriors.tied import KTied

_MOST_ROUNDS = 2000
_LEAST = 1e-3  # of a variance stays with the diagonal
_UNUSED = 1e-3  # of a variance in units of the diagonal: a direction that q does not have


def low_rank_of_dense(root: Triangle, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """scale, log_scale (P,) and the factor (P, rank) nearest to N(0, L L^T) in KL(. || they).

    Factor analysis of the correlation C: with the diagonal d, U U^T = d^(1/2) V (S - I)_+ V^T d^(1/2), V and S the
    first eigenvectors and values of d^(-1/2) C d^(-1/2); with U, d = 1 - |U_i|^2. At the fixed point both are optimal.
    Where a variance is nearly all of the directions the last rounds are slow, and are left out: some 1e-4 nats, and in
    float32 up to a few 1e-3.
    """
    scale, log_scale = root.marginals
    correlation = matmul(root.matrix / scale[:, None], (root.matrix / scale[:, None]).T)

    def directions(diagonal: jax.Array) -> jax.Array:
        units = jnp.sqrt(diagonal)
        values, basis = jnp.linalg.eigh(correlation / (units[:, None] * units[None, :]))
        lengths = jnp.sqrt(jnp.maximum(values[-rank:] - 1.0, 0.0))
        return units[:, None] * basis[:, -rank:] * lengths[None, :]

    def left(factor: jax.Array) -> jax.Array:
        return jnp.maximum(1.0 - jnp.sum(jnp.square(factor), axis=1), _LEAST)

    diagonal = _fixed_point(lambda diagonal: left(directions(diagonal)), jnp.ones_like(scale))
    factor = directions(diagonal)
    norms = jnp.sum(jnp.square(factor), axis=1)
    factor = factor * jnp.sqrt((1.0 - diagonal) / jnp.where(norms > 0, norms, 1.0))[:, None]
    diagonal = jnp.where(norms > 0, diagonal, 1.0)
    return scale * jnp.sqrt(diagonal), log_scale + 0.5 * jnp.log(diagonal), factor * scale[:, None]


def with_spare_directions(
    scale: jax.Array, log_scale: jax.Array, factor: jax.Array, template: LowRank
) -> tuple[jax.Array, jax.Array]:
    """rho and the factor, in which directions that are none take a share of what is left of each variance.

    It is the share that the directions of the template have of its variances, with their signs.
    """
    form = template.form()
    relative = (form.factor / jnp.sqrt(1.0 + jnp.sum(jnp.square(form.factor), axis=1))[:, None]).astype(scale.dtype)
    missing = relative.shape[1] - factor.shape[1]
    factor = jnp.concatenate([factor, jnp.zeros((len(factor), missing), factor.dtype)], axis=1)
    units = jnp.where(scale > 0, scale, 1.0)
    is_spare = jnp.sum(jnp.square(factor / units[:, None]), axis=0) < _UNUSED
    spare = jnp.where(is_spare[None, :], relative, 0.0)
    kept = jnp.sum(jnp.square(jnp.where(is_spare[None, :], factor / units[:, None], 0.0)), axis=1)
    grown = jnp.sqrt(1.0 + kept)  # what the directions had that are replaced
    root = jnp.sqrt(1.0 - jnp.sum(jnp.square(spare), axis=1)) * grown
    factor = jnp.where(is_spare[None, :], spare * (scale * grown)[:, None], factor)
    return raw_of_scale(scale * root, log_scale + jnp.log(root)), factor


def kronecker_of_variances(marginals: Marginals, shape: tuple[int, int]) -> tuple[Triangle, Triangle]:
    """The diagonal roots of A and B nearest to independent numbers: log a_i = log mean_j exp(2 log s_ij - log b_j)."""
    logs = 2.0 * marginals.log_scale.reshape(shape)
    columns = jnp.mean(logs, axis=0)

    def round_(_: int, columns: jax.Array) -> jax.Array:
        rows = _log_mean(logs - columns[None, :], 1)
        return _log_mean(logs - rows[:, None], 0)

    columns = jax.lax.fori_loop(0, 50, round_, columns)
    rows = _log_mean(logs - columns[None, :], 1)
    return _evened(_diagonal(0.5 * rows), _diagonal(0.5 * columns))


def kronecker_of_dense(root: Triangle, shape: tuple[int, int]) -> tuple[Triangle, Triangle]:
    """The roots of A and B nearest to N(0, L L^T): A_ik = mean_jl S_(ij)(kl) (B^-1)_jl, and B likewise of A."""
    p, q = shape
    scale, log_scale = root.marginals
    units = kronecker_of_variances(Marginals(scale, scale, log_scale), shape)
    # in units of the nearest scales, in which all entries are about 1
    logs = (units[0].log_diagonal[:, None] + units[1].log_diagonal[None, :]).reshape(-1)
    unit = (root.matrix / scale[:, None]) * jnp.exp(log_scale - logs)[:, None]
    blocks = unit.reshape(p, q, p * q)

    def step(matrix: jax.Array, axis: int) -> jax.Array:
        """A of B, or B of A."""
        turned = jnp.moveaxis(blocks, axis, 0)  # (own, other, n)
        own, other, count = turned.shape
        flat = jnp.moveaxis(turned, 1, 0).reshape(other, own * count)
        whitened = solve_triangular(jnp.linalg.cholesky(matrix), flat, lower=True)
        rows = jnp.moveaxis(whitened.reshape(other, own, count), 1, 0).reshape(own, other * count)
        return matmul(rows, rows.T) / jnp.asarray(other, rows.dtype)

    def around(columns: jax.Array) -> jax.Array:
        rows = step(columns, 0)
        found = step(rows * (p / jnp.trace(rows)), 1)
        return found * (q / jnp.trace(found))

    columns = _fixed_point(around, jnp.eye(q, dtype=unit.dtype))
    rows = step(columns, 0)
    found = [jnp.linalg.cholesky(matrix) for matrix in (rows, columns)]
    return _evened(*[_scaled(root, unit.log_diagonal) for root, unit in zip(found, units, strict=True)])


def tied(template: KTied, rows: Triangle, columns: Triangle) -> list[jax.Array]:
    """row_rho and column_rho of scales u_i v_j, over k columns that are as far apart as those of the template."""
    shares = log_softplus(template.row_rho) - jax.nn.logsumexp(log_softplus(template.row_rho), axis=1, keepdims=True)
    logs = rows.log_diagonal[:, None] + shares.astype(rows.log_diagonal.dtype)
    others = jnp.broadcast_to(columns.log_diagonal[:, None], template.column_rho.shape)
    return [raw_of_scale(jnp.exp(x), x) for x in (logs, others)]


def _fixed_point(step: Callable[[jax.Array], jax.Array], start: jax.Array) -> jax.Array:
    """What `step` ends at, of numbers of about 1: until a round changes them by hardly more than rounding does."""

    def is_moving(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        count, before, now = state
        return (count < _MOST_ROUNDS) & (jnp.max(jnp.abs(now - before)) > float(jnp.finfo(now.dtype).eps) ** 0.7)

    def moved(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        count, _, now = state
        return count + 1, now, step(now)

    return jax.lax.while_loop(is_moving, moved, (jnp.asarray(0), start, step(start)))[2]


def _log_mean(logs: jax.Array, axis: int) -> jax.Array:
    return jax.nn.logsumexp(logs, axis=axis) - jnp.log(jnp.asarray(logs.shape[axis], logs.dtype))


def _diagonal(logs: jax.Array) -> Triangle:
    return Triangle.diagonal(jnp.exp(logs), logs)


def _scaled(root: jax.Array, logs: jax.Array) -> Triangle:
    return Triangle(jnp.exp(logs)[:, None] * root, logs + jnp.log(jnp.diagonal(root)))


def _evened(rows: Triangle, columns: Triangle) -> tuple[Triangle, Triangle]:
    """c L_A and L_B / c, with diagonals of one geometric mean."""
    by = 0.5 * (jnp.mean(columns.log_diagonal) - jnp.mean(rows.log_diagonal))
    evened = [Triangle(root.matrix * jnp.exp(x), root.log_diagonal + x) for root, x in ((rows, by), (columns, -by))]
    return evened[0], evened[1]
