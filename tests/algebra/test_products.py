"""Products against dense linear algebra, and against the posterior of all data."""

from functools import partial

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import array, flat, nodes, wide

import illia_fn
from illia_fn import (
    FullCovariance,
    Gaussian,
    LowRank,
    Normal,
    full_covariance,
    kl_divergence,
    low_rank,
    mean_field,
    moment_match,
    product,
    tempered,
)

KEY = jax.random.key(0)


def moments(q):
    """Of a node or a prior over twelve numbers."""
    if isinstance(q, Normal):
        return np.full(12, q.loc), q.scale**2 * np.eye(12)
    return flat(q.mean), families.covariance(q)


def dense_product(qs, prior=None):
    pairs = [(1.0, *moments(q)) for q in qs] + ([] if prior is None else [(1.0 - len(qs), *moments(prior))])
    precision = sum(weight * np.linalg.inv(cov) for weight, _, cov in pairs)
    covariance = np.linalg.inv(precision)
    return covariance @ sum(weight * np.linalg.solve(cov, loc) for weight, loc, cov in pairs), covariance


# --- regression ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [np.ones(5), np.geomspace(1e-12, 1e12, 5)])
def test_shards_give_the_posterior_of_all_data(x64, scales):
    """Four shards of a linear regression with the prior counted once, whatever the units of the inputs."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), rng.normal(size=60)

    def posterior(x, y):
        precision = x.T @ x / 0.09 + np.eye(5) / 4.0
        loc = np.linalg.solve(precision, x.T @ y / 0.09 + 0.5 / 4.0)
        return loc, np.linalg.inv(precision)

    def node(x, y):
        loc, covariance = posterior(x, y)
        root = np.linalg.cholesky(covariance) * scales[:, None]
        on = np.diag(root)
        raw = np.where(on < 1e-8, np.log(on), on + np.log(-np.expm1(-np.maximum(on, 1e-8))))
        return FullCovariance(array(loc * scales, float), array(np.tril(root, -1) + np.diag(raw), float))

    shards = [node(x[shard::4], y[shard::4]) for shard in range(4)]
    q = product(*shards, prior=Normal(array(0.5 * scales, float), array(2.0 * scales, float)))
    loc, covariance = posterior(x, y)
    np.testing.assert_allclose(q.loc / scales, loc, rtol=1e-10, atol=1e-10)
    root = np.asarray(q.scale_tril) / scales[:, None]
    np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-10, atol=1e-13)


@pytest.mark.promotes
def test_laplace_on_shards():
    """The public calls, in float32, on a subtree with a frozen body."""
    x, y = families.normal(0, 40, 3), families.normal(1, 40)
    head = {"kernel": array(np.zeros(3)), "bias": array(0.0)}
    params = {"body": array(np.eye(3)), "head": head, "steps": array(3, np.int32)}

    def apply_fn(w, x):
        return x @ w["body"] @ w["head"]["kernel"] + w["head"]["bias"][None]

    def posterior(x, y):
        design = np.concatenate([np.ones((len(x), 1)), np.asarray(x)], axis=1)
        mode = np.linalg.solve(design.T @ design + np.eye(4), design.T @ np.asarray(y)).astype(np.float32)
        head = {"bias": array(mode[0]), "kernel": array(mode[1:])}
        q = params | {"head": FullCovariance(head, array(np.eye(4)))}
        return illia_fn.laplace(apply_fn, q, x, y)

    x, y = np.asarray(x), np.asarray(y)
    q = product(posterior(x[:20], y[:20]), posterior(x[20:], y[20:]), prior=Normal(0.0, 1.0))
    np.testing.assert_array_equal(q["body"], params["body"])
    assert q["steps"] == 3
    assert kl_divergence(q["head"], posterior(x, y)["head"]) < 1e-8


def test_one_share_is_taken_out_again(x64):
    """A product of two that holds the third twice, once as the prior: what the others say, as a further round needs."""
    qs = [wide(nodes(11 * seed)["FullCovariance"]) for seed in range(3)]
    prior = wide(FullCovariance(families.normal(5, 4, 3), array(100.0 * np.eye(12))))
    of_all, of_others = product(*qs, prior=prior), product(*qs[1:], prior=prior)
    cavity = product(of_all, prior, prior=qs[0])
    np.testing.assert_allclose(families.covariance(cavity), families.covariance(of_others), rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(cavity.loc, of_others.loc, rtol=1e-7, atol=1e-9)


# --- families -----------------------------------------------------------------------------------------------------

CASES = {
    "Gaussian KTied": Gaussian,
    "LowRank Gaussian": LowRank,
    "KTied LowRank LowRank": LowRank,
    "Gaussian FullCovariance": FullCovariance,
    "MatrixNormal LowRank FullCovariance": FullCovariance,
}


OF_EVERY_PRIOR = ("Gaussian KTied", "LowRank Gaussian", "Gaussian FullCovariance")  # one for each form of a product


@pytest.mark.parametrize("names", CASES)
def test_dense_product(x64, names):
    qs = [wide(nodes(11 * seed)[name]) for seed, name in enumerate(names.split())]
    rho = 3.0 + np.asarray(families.normal(6, 4, 3))
    priors = [None, Gaussian(*wide((families.normal(5, 4, 3), rho)))]
    if names not in OF_EVERY_PRIOR:
        of_full_covariance = CASES[names] is FullCovariance
        priors = [tempered(qs[-1], 2.0 * len(qs)) if of_full_covariance else Normal(0.3, 5.0)]
    for prior in priors:
        q = product(*qs, prior=prior)
        loc, covariance = dense_product(qs, prior)
        assert type(q) is CASES[names]
        np.testing.assert_allclose(flat(q.mean), loc, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(families.covariance(q), covariance, rtol=1e-10, atol=1e-12 * np.max(covariance))


@pytest.mark.parametrize("name", ["Gaussian", "LowRank", "FullCovariance"])
def test_powers(name):
    """q q q is q at a third of its temperature, and q without two thirds of q is q."""
    q = nodes()[name]

    @jax.jit
    def kls(q):
        to_tempered = kl_divergence(product(q, q, q), tempered(q, 1 / 3))
        if name == "LowRank":  # no prior of it is taken out
            return to_tempered, 0.0
        return to_tempered, kl_divergence(product(q, q, q, prior=q), q)

    to_tempered, to_itself = kls(q)
    assert abs(to_tempered) < 2e-5
    assert abs(to_itself) < 1e-4
    np.testing.assert_array_equal(flat(product(q, prior=Normal(0.0, 1.0))), flat(q))  # one of them is itself


def test_a_fractional_prior_in_each_is_not_taken_out():
    shared, fraction = Normal(0.0, 0.5), Normal(0.0, 0.5 * 2**0.5)
    rhos = [array(np.asarray(families.normal(seed + 9, 3)) - 2.0) for seed in range(2)]
    whole = [Gaussian(families.normal(seed, 3), rho) for seed, rho in enumerate(rhos)]

    @jax.jit
    def divergence(whole):
        ones = [Gaussian(np.zeros(3, np.float32), jnp.full(3, np.log(np.expm1(p.scale)))) for p in (shared, fraction)]
        with_prior, with_fraction = ([product(q, one) for q in whole] for one in ones)
        return kl_divergence(product(*with_prior, prior=shared), product(*with_fraction))

    assert abs(divergence(whole)) < 1e-6


def test_nodes_of_other_sizes_in_each_tree():
    """A joint node over what are two nodes elsewhere, one of which has low rank; leaves that are no parameters stay."""
    params = {
        "head": {"a": families.normal(0, 4), "b": families.normal(1, 2)},
        "n": array(3, np.int32),
        "f": array(np.ones(2)),
    }
    first = params | {"head": mean_field(params["head"], scale=0.5)}
    second = params | {"head": full_covariance(params["head"], scale=0.5)}
    third = params | {
        "head": {"a": low_rank(params["head"]["a"], 1, scale=1.0, key=KEY), "b": mean_field(params["head"]["b"])}
    }
    q = product(
        first, second, third, prior={"head": {"a": Normal(0.0, 9.0), "b": Normal(1.0, 8.0)}, "n": None, "f": None}
    )
    assert jax.tree.structure(q) == jax.tree.structure(second)
    loc, roots = flat(params["head"]), [0.25 * np.eye(6), 0.25 * np.eye(6), np.eye(6) * 0.05**2]
    roots[2][:4, :4] = families.covariance(third["head"]["a"])
    prior = np.diag([81.0] * 4 + [64.0] * 2)
    precision = sum(map(np.linalg.inv, roots)) - 2 * np.linalg.inv(prior)
    pull = sum(np.linalg.solve(root, loc) for root in roots) - 2 * np.linalg.solve(prior, [0.0] * 4 + [1.0] * 2)
    np.testing.assert_allclose(families.covariance(q["head"]), np.linalg.inv(precision), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(flat(q["head"].loc), np.linalg.solve(precision, pull), rtol=1e-4, atol=1e-5)
    assert q["n"] == 3


# --- ranges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_from_1e_minus_20_to_1e20(x64, dtype):
    """Element by element, in any mixture, with means that are as far apart as the scales."""
    rng = np.random.default_rng(0)
    scales, locs = 10.0 ** rng.uniform(-20, 20, (3, 400)), rng.normal(size=(3, 400))
    scales[1:] = scales[0] * 10.0 ** rng.uniform(-6, 6, (2, 400))
    rhos = np.where(scales < 1e-15, np.log(scales), scales + np.log(-np.expm1(-np.maximum(scales, 1e-15))))
    qs = [Gaussian(array(loc, dtype), array(rho, dtype)) for loc, rho in zip(locs, rhos, strict=True)]
    given = np.stack([families.softplus(q.rho) for q in qs])
    weights = (given.min(axis=0) / given) ** 2
    taken = 2 * weights.sum(axis=0) / 8  # two priors, each an eighth of what there is
    prior = Normal(array(np.full(400, 0.1), dtype), array(given.min(axis=0) / np.sqrt(taken / 2), dtype))
    q = product(*qs, prior=prior)
    assert {q.loc.dtype, q.rho.dtype} == {jnp.dtype(dtype)}
    eps = np.finfo(dtype).eps
    exact = given.min(axis=0) / np.sqrt(weights.sum(axis=0) - taken)
    np.testing.assert_allclose(families.softplus(q.rho), exact, rtol=200 * eps)  # rho has 46 units of log scale
    loc = (np.sum(weights * np.stack([q.loc for q in qs]).astype(float), axis=0) - 0.1 * taken) / (
        weights.sum(axis=0) - taken
    )
    np.testing.assert_allclose(q.loc, loc, rtol=200 * eps, atol=200 * eps)


def test_scales_that_underflow():
    rhos = np.full(3, -120.0), [-120.0, -110.0, 5.0]
    q = product(*[Gaussian(array(np.full(3, loc)), array(rho)) for loc, rho in zip((0.0, 1.0), rhos, strict=True)])
    np.testing.assert_allclose(q.rho, -120.0 - 0.5 * np.log1p(np.exp([0.0, -20.0, -250.0])), rtol=1e-6)
    np.testing.assert_allclose(q.loc, [0.5, np.exp(-20.0), 0.0], rtol=1e-4)


def test_ill_conditioned_nodes_in_float32():
    """Of a condition number of 1e6, whose precisions squared would have no digits left."""
    for name in ("LowRank", "FullCovariance"):
        one = families.at_condition(1e6)[name]
        q, half, entropies = jax.jit(of_two)(one)
        np.testing.assert_allclose(*entropies, atol=1e-3)
        assert families.exact_kl(q, half) < 1e-6


def of_two(one):
    q, half = product(one, one), tempered(one, 0.5)
    return q, half, (q.entropy(), half.entropy())


def test_under_jit_and_in_half_precision():
    qs = [families.half(nodes(seed)["Gaussian"]) for seed in (0, 11)]
    q = jax.jit(partial(product, prior=Normal(0.0, 9.0)))(*qs)
    loc, covariance = dense_product(qs, Normal(0.0, 9.0))
    assert q.loc.dtype == q.rho.dtype == jnp.bfloat16
    np.testing.assert_allclose(flat(q.loc), loc, rtol=0.01, atol=0.01)
    np.testing.assert_allclose(np.diag(families.covariance(q)), np.diag(covariance), rtol=0.03)


# --- matrices ----------------------------------------------------------------------------------------------------


def test_the_remedy_for_matrices():
    qs = [{"w": nodes(seed)["MatrixNormal"]} for seed in (0, 11)]
    q = product(moment_match(qs[0], {"w": full_covariance}), qs[1])["w"]
    loc, covariance = dense_product([q["w"] for q in qs])
    np.testing.assert_allclose(families.covariance(q), covariance, rtol=1e-3, atol=1e-4 * np.max(covariance))
    np.testing.assert_allclose(flat(q.loc), loc, rtol=1e-3, atol=1e-3)


def test_what_is_no_posterior_tree_is_told_by_its_number():
    q = illia_fn.mean_field(families.normal(0, 2))
    with pytest.raises(TypeError, match=r"got one list of 2 posteriors. Pass product\(\*qs\)"):
        illia_fn.product([q, q], prior=Normal(0.0, 1.0))
    with pytest.raises(TypeError, match=r"posterior number 1 is a Normal. Pass a prior as prior="):
        illia_fn.product(q, Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="of posterior number 1: q has no posterior node"):
        illia_fn.product(q, families.normal(0, 2))
