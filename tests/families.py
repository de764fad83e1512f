"""A node of each family, small, and what dense linear algebra says of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from illia_fn import Eigenbasis, FullCovariance, Gaussian, KTied, LowRank, MatrixNormal

SHAPE = (4, 3)


def array(numbers, dtype=np.float32):
    """One of JAX. `jnp.asarray` compiles a program for each shape, and so does all else that makes arrays."""
    return jax.device_put(np.asarray(numbers, dtype))


def normal(seed, *shape, scale=1.0):
    return array(np.random.default_rng(seed).normal(0.0, scale, shape))


def nodes(seed=0):
    """Over one kernel."""
    loc = normal(seed, *SHAPE)
    return {
        "Gaussian": Gaussian(loc, normal(seed + 1, *SHAPE)),
        "KTied": KTied(loc, normal(seed + 2, 4, 2), normal(seed + 3, 3, 2)),
        "MatrixNormal": MatrixNormal(loc, normal(seed + 4, 4, 4), normal(seed + 5, 3, 3)),
        "Eigenbasis": Eigenbasis(loc, normal(seed + 9, *SHAPE), basis(seed + 10, 4), basis(seed + 11, 3)),
        "LowRank": LowRank(loc, normal(seed + 6, 12), normal(seed + 7, 12, 2)),
        "FullCovariance": FullCovariance(loc, normal(seed + 8, 12, 12, scale=0.5)),
    }


def basis(seed, size):
    return orthogonal(normal(seed, size, size))


def orthogonal(basis):
    basis = np.asarray(basis)
    return array(np.linalg.qr(basis)[0], basis.dtype)


BASES = ("row_basis", "column_basis")


def with_bases(tree, of):
    """The tree whose bases are orthogonal again, after of(basis)."""

    def turned(node):
        if not isinstance(node, Eigenbasis):
            return node
        return replace(node, **{name: orthogonal(of(getattr(node, name))) for name in BASES})

    return jax.tree.map(turned, tree, is_leaf=lambda node: isinstance(node, Eigenbasis))


def wide(tree):
    return with_bases(jax.tree.map(lambda leaf: array(leaf, np.float64), tree), lambda basis: basis)


def half(q):
    """In bfloat16, but for bases, which would not be orthogonal."""
    rest = {name: leaf for name, leaf in vars(q).items() if name not in BASES}
    return replace(q, **{name: array(leaf, jnp.bfloat16) for name, leaf in rest.items()})


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def softplus(x):
    return np.logaddexp(0.0, np.asarray(x, np.float64))


def tril(raw):
    raw = np.asarray(raw, np.float64)
    return np.tril(raw, -1) + np.diag(softplus(np.diag(raw)))


def raw(covariance):
    """The triangle of a FullCovariance, and of the sides of a MatrixNormal, as they hold it."""
    root = np.linalg.cholesky(np.asarray(covariance, np.float64))
    return array(np.tril(root, -1) + np.diag(np.log(np.expm1(np.diag(root)))))


def covariance(q):
    """By the formula of each family, in NumPy."""
    if isinstance(q, Gaussian):
        return np.diag(softplus(q.rho).ravel() ** 2)
    if isinstance(q, KTied):
        return np.diag((softplus(q.row_rho) @ softplus(q.column_rho).T).ravel() ** 2)
    if isinstance(q, LowRank):
        factor = np.asarray(q.factor, np.float64)
        return np.diag(softplus(q.rho) ** 2) + factor @ factor.T
    if isinstance(q, MatrixNormal):
        rows, columns = tril(q.row_tril), tril(q.column_tril)
        return np.kron(rows @ rows.T, columns @ columns.T)  # of the rows one after the other
    if isinstance(q, Eigenbasis):
        directions = np.kron(np.asarray(q.row_basis, np.float64), np.asarray(q.column_basis, np.float64))
        return directions @ np.diag(softplus(q.rho).ravel() ** 2) @ directions.T
    return tril(q.tril) @ tril(q.tril).T


def dense(q):
    return stats.multivariate_normal(flat(q.mean), covariance(q))


def exact_kl(q, p):
    """The textbook formula, of means and covariances."""
    (m, s), (n, t) = ((flat(node.mean), covariance(node)) for node in (q, p))
    log_dets = np.linalg.slogdet(t)[1] - np.linalg.slogdet(s)[1]
    return 0.5 * (np.trace(np.linalg.solve(t, s)) - len(m) + (m - n) @ np.linalg.solve(t, m - n) + log_dets)


def spectrum(seed, size, condition):
    """A covariance with eigenvalues from 1 down to 1 / condition, in a random basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return (basis * np.geomspace(1 / condition, 1, size)) @ basis.T


def at_condition(condition):
    """Nodes over 12 numbers whose covariances have about this condition number."""
    root, loc = np.sqrt(condition), normal(0, *SHAPE)
    base = np.asarray(normal(1, 12, 1))  # two directions that are long and nearly parallel, and a short one
    factor = np.concatenate([base, base + 1e-2 * np.asarray(normal(2, 12, 1)), np.asarray(normal(3, 12, 1)) / root], 1)
    raws = [raw(spectrum(n, n, root)) for n in SHAPE]
    return {
        "LowRank": LowRank(loc, normal(4, 12), array(root / np.sqrt(12) * factor)),
        "MatrixNormal": MatrixNormal(loc, *raws),
        "FullCovariance": FullCovariance(loc, raw(spectrum(12, 12, condition))),
    }


def scaled(q, factor):
    """The node whose every standard deviation is `factor` times as large."""

    def rho(x):
        return np.log(np.expm1(factor * softplus(x)))

    def triangle(raw):
        return np.tril(factor * raw, -1) + np.diag(rho(np.diagonal(raw)))

    of = {"rho": rho, "row_rho": rho, "row_tril": triangle, "tril": triangle, "factor": lambda x: factor * x}
    fields = {name: array(of[name](np.asarray(value))) if name in of else value for name, value in vars(q).items()}
    return type(q)(**fields)


def nudged(q, by):
    """Each number of the fields times 1 + by; bases turn by about as much."""
    tree = with_bases(q, lambda basis: np.asarray(basis) + by * np.asarray(normal(12, *basis.shape)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].name in BASES else array((1.0 + by) * np.asarray(leaf)), tree
    )
