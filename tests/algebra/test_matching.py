"""The nearest node of another family: exact where the family holds it, and else where the KL divergence is flat."""

from functools import partial

import families
import jax
import numpy as np
import pytest
from families import array, flat, nodes, wide
from scipy import optimize

from illia_fn import (
    FullCovariance,
    Gaussian,
    KTied,
    LowRank,
    full_covariance,
    k_tied,
    kl_divergence,
    low_rank,
    matrix_normal,
    mean_field,
    moment_match,
)

KEY = jax.random.key(0)
FAMILIES = sorted(nodes())


def of_rank(rank):
    return partial(low_rank, rank=rank, key=KEY)


def matched(q, family):
    return jax.jit(lambda q: moment_match({"w": q}, {"w": family})["w"])(q)


@pytest.mark.parametrize("name", FAMILIES)
def test_to_marginals_and_to_the_full_covariance(x64, name):
    q = wide(nodes()[name])
    for family in (mean_field, full_covariance):
        p, expected = matched(q, family), families.covariance(q)
        expected = np.diag(np.diag(expected)) if family is mean_field else expected
        np.testing.assert_array_equal(p.mean, q.mean)
        np.testing.assert_allclose(families.covariance(p), expected, rtol=1e-11, atol=1e-12 * np.max(expected))


@pytest.mark.parametrize("name", ["Gaussian", "KTied", "LowRank"])
def test_to_more_directions_the_variances_are_exact_and_no_direction_is_dead(x64, name):
    q = wide(nodes()[name])
    p = matched(q, of_rank(4))
    np.testing.assert_allclose(np.diag(families.covariance(p)), np.diag(families.covariance(q)), rtol=1e-12)
    shares = np.square(p.factor) / np.square(q.stddev).reshape(12, 1)
    assert np.all(p.factor != 0)
    if name == "LowRank":
        np.testing.assert_allclose(p.factor[:, :2], q.factor, rtol=1e-14)
    else:
        np.testing.assert_allclose(np.sum(shares, axis=1), 0.1, rtol=1e-6)  # as low_rank starts


@pytest.mark.parametrize("by", [1.0, 1e-4])
def test_to_fewer_directions_the_variances_are_exact(x64, by):
    """Also where they are hardly correlated, so that some or all of the directions are of no use."""
    raw = np.asarray(families.normal(8, 12, 12, scale=0.5))
    raw = by * raw + (1.0 - by) * np.diag(np.diagonal(raw))
    q = wide(FullCovariance(families.normal(0, 4, 3), raw))
    for rank in (1, 3):
        p = matched(q, of_rank(rank))
        np.testing.assert_allclose(np.diag(families.covariance(p)), np.diag(families.covariance(q)), rtol=1e-12)
        assert np.all(np.any(p.factor != 0, axis=0))


FLAT = {
    "FullCovariance to 1 direction": (lambda: milder(nodes(20)["FullCovariance"]), of_rank(1)),
    "FullCovariance to MatrixNormal": (lambda: nodes()["FullCovariance"], matrix_normal),
    "Gaussian to MatrixNormal": (lambda: nodes()["Gaussian"], matrix_normal),
    "Gaussian to KTied": (lambda: nodes()["Gaussian"], partial(k_tied, k=1)),
}


def milder(q):
    """Without a variance that is nearly all of the direction, where the last rounds are slow."""
    return FullCovariance(q.loc, 0.3 * np.asarray(q.tril))


@pytest.mark.parametrize("case", FLAT)
def test_the_divergence_is_flat_there(x64, case):
    """In every field, but for what cannot matter; and larger at a start as the constructor makes it."""
    of, family = FLAT[case]
    q = wide(of())
    p = matched(q, family)
    exact = matched(q, mean_field if isinstance(p, KTied) else full_covariance)

    divergence = jax.jit(jax.value_and_grad(lambda p: kl_divergence(exact, p)))
    value, slopes = divergence(p)
    for slope in jax.tree.leaves(slopes):
        np.testing.assert_allclose(slope, 0.0, atol=3e-6)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        moved = jax.tree.map(lambda leaf, rng=rng: np.asarray(leaf) + 0.05 * rng.normal(size=leaf.shape), p)
        assert divergence(moved)[0] > value


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_a_kronecker_product_is_found_again(scale):
    """From the joint covariance, in float32 and in any units."""
    q = nodes()["MatrixNormal"]
    root = np.kron(families.tril(q.row_tril), families.tril(q.column_tril)) * scale
    diagonal = np.diag(root)
    raw = np.where(diagonal < 1, np.log(np.expm1(np.minimum(diagonal, 1))), diagonal)
    full = FullCovariance(q.loc, array(np.tril(root, -1) + np.diag(raw)))
    p = matched(full, matrix_normal)
    expected = families.covariance(q)
    np.testing.assert_allclose(families.covariance(p) / scale**2, expected, rtol=2e-3, atol=1e-4 * np.max(expected))
    variances = matched(Gaussian(q.loc, array(np.full((4, 3), -80.0))), matrix_normal)
    np.testing.assert_allclose(variances.marginals().log_scale, -80.0, rtol=1e-6)


def test_a_family_of_its_own_stays_as_it_is():
    for name, family in {"KTied": k_tied, "LowRank": of_rank(2), "MatrixNormal": matrix_normal}.items():
        q = nodes()[name]
        assert moment_match({"w": q}, {"w": family})["w"] is q


def test_the_columns_of_k_tied_start_apart():
    p = matched(nodes()["Gaussian"], partial(k_tied, k=2))
    one = matched(nodes()["Gaussian"], partial(k_tied, k=1))
    np.testing.assert_allclose(p.stddev, one.stddev, rtol=1e-5)
    assert np.std(np.subtract(*np.asarray(p.row_rho).T)) > 0.01


# --- trees --------------------------------------------------------------------------------------------------------

PARAMS = {
    "body": {"kernel": families.normal(0, 4, 3), "bias": families.normal(1, 3)},
    "head": {"kernel": families.normal(2, 3, 2), "bias": families.normal(3, 2)},
    "steps": array(7, np.int32),
}


def test_a_joint_node_over_what_were_many():
    q = mean_field(PARAMS, scale={"body": 0.2, "head": {"kernel": 0.3, "bias": 0.4}, "steps": None})
    p = jax.jit(lambda q: moment_match(q, {"head": full_covariance}))(q)
    assert isinstance(p["head"], FullCovariance)
    np.testing.assert_allclose(p["head"].stddev["kernel"], 0.3, rtol=1e-6)
    np.testing.assert_array_equal(flat(p["head"].mean), flat(PARAMS["head"]))
    assert p["steps"] == 7
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(flat(p["body"][name]), flat(q["body"][name]))
    back = moment_match(p, {"head/.*": mean_field})
    assert jax.tree.structure(back) == jax.tree.structure(q)
    np.testing.assert_allclose(flat(back), flat(q), rtol=1e-5, atol=1e-6)


def test_a_joint_node_may_be_split(x64):
    """Each part is the marginal of its numbers, in whatever order and family."""
    q = wide({"head": FullCovariance(PARAMS["head"], families.normal(9, 8, 8, scale=0.5))})
    covariance = families.covariance(q["head"])
    p = moment_match(q, {"head/kernel": full_covariance, "head/bias": of_rank(1)})["head"]
    np.testing.assert_allclose(families.covariance(p["kernel"]), covariance[2:, 2:], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.diag(families.covariance(p["bias"])), np.diag(covariance[:2, :2]), rtol=1e-10)
    np.testing.assert_array_equal(p["kernel"].loc, PARAMS["head"]["kernel"])


def test_a_low_rank_over_nodes_of_low_rank_and_others():
    q = {"body": low_rank(PARAMS["body"], 2, scale=0.2, key=KEY), "head": mean_field(PARAMS["head"], scale=0.1)}
    p = moment_match(q, {".*": of_rank(2)})
    assert isinstance(p, LowRank)
    np.testing.assert_allclose(families.covariance(p)[:15, :15], families.covariance(q["body"]), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(families.covariance(p)[15:, 15:], 0.01 * np.eye(8), rtol=1e-5, atol=1e-8)


def test_factor_analysis_goes_on_to_its_end():
    """Where variances are nearly all of the directions, a fixed point is slow: within a few 1e-3 nats in float32."""
    root = np.random.default_rng(3).normal(size=(6, 6))
    q = FullCovariance(array(np.zeros(6)), families.raw(root @ root.T + 0.05 * np.eye(6)))
    covariance = root @ root.T + 0.05 * np.eye(6)
    correlation = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))

    def kl(numbers):  # with the least share of the diagonal that moment_match leaves
        factor, rest = numbers[:12].reshape(6, 2), 1e-3 + np.exp(numbers[12:])
        other = factor @ factor.T + np.diag(rest)
        logs = np.linalg.slogdet(other)[1] - np.linalg.slogdet(correlation)[1]
        return 0.5 * (np.trace(np.linalg.solve(other, correlation)) - 6 + logs)

    starts = [np.concatenate([np.random.default_rng(k).normal(size=12) / 2, np.full(6, -1.0)]) for k in range(3)]
    best = min(optimize.minimize(kl, start, method="BFGS").fun for start in starts)
    assert best - 1e-4 < kl_divergence(q, matched(q, of_rank(2))) < best + 4e-3
