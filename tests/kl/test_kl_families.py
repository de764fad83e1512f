"""The closed forms between families: against dense linear algebra, near q = p, at large condition numbers, by draws."""

from dataclasses import replace
from functools import partial

import chex
import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import at_condition, exact_kl, flat, nodes, normal, nudged
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.distributions import Laplace

import illia_fn
from illia_fn import (
    Eigenbasis,
    FullCovariance,
    Gaussian,
    KTied,
    LowRank,
    Normal,
    kl_divergence,
    kl_is_exact,
    kl_loss,
    kl_tree,
    mean_field,
)

KEY = jax.random.key(0)
SAMPLED = {(q, "MatrixNormal") for q in ("Gaussian", "KTied", "LowRank")} | {
    ("MatrixNormal", "LowRank"),
    ("LowRank", "Eigenbasis"),
    ("Eigenbasis", "LowRank"),
    ("Eigenbasis", "MatrixNormal"),
}
PAIRS = [(q, p) for q in nodes() for p in nodes() if (q, p) not in SAMPLED]
PRIOR = Normal(0.5, 2.0)


# of each formula, and of each way into it
FORMS = [(name, name) for name in nodes()] + [
    *[(name, "FullCovariance") for name in ("Gaussian", "LowRank", "MatrixNormal", "Eigenbasis")],
    ("KTied", "LowRank"),
    ("Eigenbasis", "Gaussian"),
    ("Gaussian", "Eigenbasis"),
    ("MatrixNormal", "Eigenbasis"),
]


def kls_of(pairs):
    """The closed forms of these pairs between two sets of nodes, and to one Normal."""

    def kls(q, p):
        between = {(one, other): kl_divergence(q[one], p[other]) for one, other in pairs}
        return between | {(name, "Normal"): kl_divergence(node, PRIOR) for name, node in q.items()}

    return jax.jit(kls)


# and what is independent, or dense, on the other side: the side of q and that of p have nothing to do with each other
BETWEEN = [*FORMS, ("FullCovariance", "MatrixNormal"), ("MatrixNormal", "KTied"), ("Gaussian", "KTied")]
# in float64 each formula once
ONCE = [pair for pair in FORMS if pair not in (("Gaussian", "FullCovariance"), ("MatrixNormal", "FullCovariance"))]
all_kls = kls_of(BETWEEN)


def exact_kls(q, p):
    scale = np.full(families.SHAPE, np.log(np.expm1(2.0)))
    prior = illia_fn.Gaussian(np.full(families.SHAPE, 0.5), scale)
    between = {pair: exact_kl(q[pair[0]], p[pair[1]]) for pair in BETWEEN}
    return between | {(name, "Normal"): exact_kl(node, prior) for name, node in q.items()}


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_closed_forms_are_those_of_dense_gaussians(seed):
    q, p = nodes(seed), nodes(seed + 50)
    exact = exact_kls(q, p)
    for pair, kl in all_kls(q, p).items():
        np.testing.assert_allclose(kl, exact[pair], rtol=3e-4, err_msg=str(pair))


def test_every_pair_has_one():
    q = nodes()
    assert all(kl_is_exact({"q": q[one]}, {"q": q[other]})["q"] for one, other in PAIRS)


def test_closed_forms_in_float64(x64):
    q, p = families.wide(nodes(0)), families.wide(nodes(50))
    exact = exact_kls(q, p)
    for pair, kl in jax.device_get(kls_of(ONCE)(q, p)).items():
        assert kl.dtype == np.float64
        np.testing.assert_allclose(kl, exact[pair], rtol=1e-9, err_msg=str(pair))
    of_both_types = jax.eval_shape(kl_divergence, q["LowRank"], nodes(50)["LowRank"])
    assert of_both_types.dtype == jnp.float64


def test_a_node_does_not_diverge_from_itself():
    q = nodes()
    found = all_kls(q, q)
    assert all(abs(found[name, name]) < 1e-12 for name in q), found
    slopes = jax.jit(jax.grad(lambda q, p: sum(kl_divergence(q[name], p[name]) for name in q)))(q, q)
    size = np.max(np.abs(flat(slopes)))
    assert size < 1e-5, size


def test_scales_of_many_sizes_in_bases():
    """From 1e-9 to 1, of which products of bases would let the rounding of the large ones into the small ones."""
    base, zeros = nodes()["Eigenbasis"], np.zeros(families.SHAPE, np.float32)
    rho = np.random.default_rng(0).permutation(np.linspace(-20.0, 0.0, 12, dtype=np.float32)).reshape(families.SHAPE)

    @jax.jit
    def kls(q):
        ones = {"full": illia_fn.full_covariance(zeros, scale=1.0), "diagonal": mean_field(zeros, scale=1.0)}
        return {name: kl_divergence(q, other) for name, other in (ones | {"itself": q}).items()}

    found = kls(replace(base, rho=rho))
    assert abs(found["itself"]) < 1e-5
    np.testing.assert_allclose(found["full"], found["diagonal"], rtol=1e-6)


def test_a_normal_of_one_scale_is_the_same_seen_from_any_basis():
    """Scales that are an array go through the marginals, whose products one scale does not take."""
    q = nodes()["Eigenbasis"]
    loc = families.array(np.linspace(-1.0, 1.0, 12).reshape(families.SHAPE))

    @jax.jit
    def kls(q, scale):
        priors = [Normal(loc, jnp.broadcast_to(scale, shape)) for shape in ((), (1, 1), families.SHAPE)]
        of = lambda q, scale, p: kl_divergence(q, Normal(p.loc, p.scale * scale))  # noqa: E731
        return [jax.value_and_grad(of, (0, 1))(q, 1.0, p) for p in priors]

    *found, expected = kls(q, 2.0)
    for one in found:
        chex.assert_trees_all_close(one, expected, rtol=2e-5, atol=1e-6)
    products = ["dot_general" in str(jax.make_jaxpr(kl_divergence)(q, p)) for p in (PRIOR, Normal(loc, loc + 2.0))]
    assert products == [False, True]


@pytest.mark.parametrize("small", [1e-1, 1e-2, 1e-3, 1e-4])
def test_small_scales_in_bases_that_are_turned_among_themselves(small):
    """As of a kernel two inputs of which are dead, with scales of the prior: others must not read the rounding of 1."""
    rng = np.random.default_rng(0)
    scale = np.ones((6, 4))
    scale[2:] = small * np.exp(0.1 * rng.normal(size=(4, 4)))
    rows, turn, columns = np.eye(6), np.eye(6), np.eye(4)
    turn[2:, 2:], rows[:] = (np.linalg.qr(rng.normal(size=(size, size)))[0] for size in (4, 6))
    arrays = np.zeros((6, 4)), np.log(np.expm1(scale))
    q, p = (Eigenbasis(*map(families.array, (*arrays, u, columns))) for u in (rows, rows @ turn))
    np.testing.assert_allclose(jax.jit(kl_divergence)(q, p), exact_kl(families.wide(q), families.wide(p)), rtol=1e-4)


def test_matrices_of_the_same_array_that_are_split_at_other_axes():
    """Their KL has no closed form here, and takes samples."""
    loc = normal(0, 2, 2, 3)
    q, p, p_of_q = (
        jax.jit(partial(illia_fn.matrix_normal, scale=scale, out_axis=axis))(loc)
        for scale, axis in ((0.1, -1), (0.2, 0), (0.2, -1))
    )
    with pytest.raises(ValueError, match=r"MatrixNormal .* has no closed form here.*pass key="):
        kl_divergence(q, p)
    found = jax.jit(jax.vmap(lambda key: kl_divergence(q, p, key=key)))(jax.random.split(KEY, 400))
    exact = exact_kl(q, p_of_q)  # independent in either
    assert abs(np.mean(found) - exact) < 5 * np.std(found) / 20


@pytest.mark.parametrize("by", [1e-2, 1e-4])
def test_it_does_not_cancel_near_the_prior(by):
    """KLs of 1e-3 and 1e-7 nats, of determinants and traces of some tens."""
    q = nodes()
    p = nudged(q, by)
    found = all_kls(q, p)
    for name in q:
        exact = exact_kl(families.wide(q[name]), families.wide(p[name]))
        np.testing.assert_allclose(found[name, name], exact, rtol=5e-7 / by + 1e-3, err_msg=name)


def test_nor_does_that_of_a_matrix_normal_near_a_node_in_its_eigenbases():
    """Where what its numbers have to do with each other, seen from there, is 1e-6 nats."""
    q = nodes()["MatrixNormal"]
    (rows, of_rows, _), (columns, of_columns, _) = (np.linalg.svd(np.asarray(root, np.float64)) for root in q.roots())
    rho = np.log(np.expm1(of_rows[:, None] * of_columns[None, :]))
    p = nudged({"p": Eigenbasis(q.loc, *map(families.array, (rho, rows, columns)))}, 1e-4)["p"]
    exact = exact_kl(families.wide(q), families.wide(p))
    np.testing.assert_allclose(jax.jit(kl_divergence)(q, p), exact, rtol=6e-3)


@pytest.mark.parametrize("condition", [1e4, 1e8])
def test_ill_conditioned_covariances_in_float32(condition):
    q = at_condition(condition)
    p, other = nudged(q, 0.01), nodes()["Gaussian"]
    found, grads = ill_conditioned(q, p, other)
    for name, node in q.items():
        np.testing.assert_allclose(found[name], exact_kl(node, p[name]), rtol=2e-3, err_msg=name)
        np.testing.assert_allclose(found[f"{name} to Gaussian"], exact_kl(node, other), rtol=1e-4, err_msg=name)
        if name != "MatrixNormal":
            np.testing.assert_allclose(found[f"Gaussian to {name}"], exact_kl(other, node), rtol=1e-4, err_msg=name)
    chex.assert_tree_all_finite(grads)


@jax.jit
def ill_conditioned(q, p, other):
    def of(q, p):
        found = {name: kl_divergence(node, p[name]) for name, node in q.items()}
        found |= {f"{name} to Gaussian": kl_divergence(node, other) for name, node in q.items()}
        return sum(found.values()), found

    slopes, found = jax.grad(of, (0, 1), has_aux=True)(q, p)
    froms = [name for name in q if name != "MatrixNormal"]
    return found | {f"Gaussian to {name}": kl_divergence(other, q[name]) for name in froms}, slopes


def low_rank(size, scale, factor):
    return LowRank(np.zeros(size, np.float32), np.full(size, np.log(np.expm1(scale)), np.float32), np.float32(factor))


@jax.jit
def kls_of_low_rank(q, p):
    """To a prior of scale 1 and to another of low rank, with their slopes."""
    return [jax.value_and_grad(kl_divergence)(q, other) for other in (Normal(0.0, 1.0), p)]


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4])
def test_low_rank_of_small_scales_in_float32(scale):
    """Conditions of 1e4 to 1e8 where the KL is of some hundred nats: to a prior of scale 1, and to one of low rank."""
    factor = np.random.default_rng(1).normal(size=(50, 3))
    q = low_rank(50, scale, factor)
    cov, of_p = families.covariance(q), families.covariance(low_rank(50, 1.0, 0.5 * factor))
    to_each = kls_of_low_rank(q, low_rank(50, 1.0, 0.5 * factor))
    for (found, slopes), other in zip(to_each, (np.eye(50), of_p), strict=True):
        logs = np.linalg.slogdet(other)[1] - np.linalg.slogdet(cov)[1]
        exact = 0.5 * (np.trace(np.linalg.solve(other, cov)) - 50 + logs)
        np.testing.assert_allclose(found, exact, rtol=1e-4)
        chex.assert_tree_all_finite(slopes)


@pytest.mark.parametrize("scale", [1e-2, 1e-3])
def test_directions_that_are_turned_against_each_other_in_float32(scale):
    """U and U O are one distribution, at conditions of 1e5 and 1e7."""
    rng = np.random.default_rng(0)
    factor, turn = rng.normal(size=(50, 3)), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    p = low_rank(50, scale, factor)
    for raised in (scale, 1.1 * scale):
        q = low_rank(50, raised, factor @ turn)
        _, (kl, slopes) = kls_of_low_rank(q, p)
        np.testing.assert_allclose(kl, exact_kl(q, p), rtol=1e-3, atol=1e-5)  # of what the product's rounding makes
        chex.assert_tree_all_finite(slopes)


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_directions_beside_others_that_are_none(size):
    """The same two directions as a turn of four, of which two are nothing, at conditions of 1e6 and 1e8."""
    rng = np.random.default_rng(0)
    factor, turn = size * rng.normal(size=(7, 2)), np.linalg.qr(rng.normal(size=(4, 4)))[0]
    q, p = low_rank(7, 1.0, factor), low_rank(7, 1.0, np.pad(factor, ((0, 0), (0, 2))) @ turn)
    for one, other in ((q, p), (p, q)):
        assert abs(jax.jit(kl_divergence)(one, other)) < 1e-4  # of which the rounding of the turn makes 1e-5


def test_pairs_without_a_closed_form_take_a_key_and_say_which():
    q = nodes()
    for one, two in SAMPLED:
        with pytest.raises(ValueError, match=rf"KL\({one} \|\| illia_fn.*{two}\) has no closed form here"):
            kl_divergence(q[one], q[two])
    one, two = q["LowRank"], q["MatrixNormal"]
    assert np.isfinite(jax.jit(lambda q, p: kl_divergence(q, p, key=KEY, num_samples=2))(one, two))


# --- trees of priors -------------------------------------------------------------------------------------------------

PARAMS = {"a": normal(0, 2), "b": normal(1, 2, 3), "c": {"d": normal(2, 3), "e": normal(3)}}


def joint(seed):
    """Over 12 numbers."""
    loc = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1 * seed), PARAMS)
    return {
        "LowRank": LowRank(loc, normal(seed, 12), normal(seed + 1, 12, 3)),
        "FullCovariance": FullCovariance(loc, normal(seed + 2, 12, 12, scale=0.5)),
    }


def block(node, seed):
    """A node of the family over c alone."""
    c = jax.tree.map(lambda x: np.asarray(x) - np.float32(0.2), PARAMS["c"])
    full = FullCovariance(c, normal(seed, 4, 4, scale=0.5))
    return full if isinstance(node, FullCovariance) else LowRank(c, normal(seed, 4), normal(seed + 1, 4, 2))


def prior_trees(q):
    array = Normal(normal(7, 2, 3), np.full((2, 1), 0.7, np.float32))
    tied = KTied(PARAMS["b"], normal(8, 2, 2), normal(9, 3, 2))
    return {
        "independent": {"a": Normal(0.0, 1.0), "b": tied, "c": Normal(1.0, 3.0)},
        "blocks": {"a": Gaussian(PARAMS["a"], normal(6, 2)), "b": array, "c": block(q, 11)},
        "itself": joint(20)[type(q).__name__],
    }


def dense_prior(p):
    """Mean and covariance of a tree of priors over PARAMS."""
    if illia_fn.is_posterior(p):
        return flat(p.mean), families.covariance(p)
    locs, variances = np.zeros(12), np.zeros((12, 12))
    parts = {"a": (0, PARAMS["a"]), "b": (2, PARAMS["b"]), "c": (8, PARAMS["c"])}
    for name, (start, like) in parts.items():
        prior = p[name]
        stop = start + len(flat(like))
        at = slice(start, stop)
        if illia_fn.is_posterior(prior):
            locs[at], variances[at, at] = flat(prior.mean), families.covariance(prior)
        else:
            shape = np.shape(like) if name != "c" else (stop - start,)
            locs[at] = np.broadcast_to(prior.loc, shape).ravel()
            variances[at, at] = np.diag(np.broadcast_to(prior.scale, shape).ravel() ** 2)
    return locs, variances


@pytest.mark.parametrize("name", ["LowRank", "FullCovariance"])
def test_a_joint_node_to_a_tree_of_priors(name):
    q = joint(0)[name]
    trees = prior_trees(q)
    found = jax.jit(lambda q, trees: {key: kl_loss(q, p, reduction="sum") for key, p in trees.items()})(q, trees)
    m, s = flat(q.mean), families.covariance(q)
    for key, p in trees.items():
        n, t = dense_prior(p)
        log_dets = np.linalg.slogdet(t)[1] - np.linalg.slogdet(s)[1]
        exact = 0.5 * (np.trace(np.linalg.solve(t, s)) - 12 + (m - n) @ np.linalg.solve(t, m - n) + log_dets)
        np.testing.assert_allclose(found[key], exact, rtol=1e-4, err_msg=key)
        assert all(kl_is_exact(q, p).values())
    (path,) = jax.eval_shape(kl_tree, {"q": q}, {"q": trees["blocks"]})
    assert path == "q/a, q/b, q/c/d, q/c/e"


@pytest.mark.promotes
def test_a_tree_with_another_prior_in_it_is_sampled_from_the_joint_draw():
    q = joint(0)["LowRank"]
    prior = {"a": Laplace(0.0, 1.0), "b": Normal(0.0, 1.0), "c": block(q, 11)}
    assert kl_is_exact({"q": q}, {"q": prior}) == {"q/a, q/b, q/c/d, q/c/e": False}

    def log_ratio(key):
        w = q.sample(key)
        priors = Laplace(0.0, 1.0).log_prob(w["a"]).sum() + Normal(0.0, 1.0).log_prob(w["b"]).sum()
        return q.log_prob(w) - priors - prior["c"].log_prob(w["c"])

    @jax.jit
    def both(keys):
        sampled = kl_loss(q, prior, reduction="sum", key=KEY, num_samples=2000)
        return sampled, jax.vmap(log_ratio)(keys)

    sampled, values = both(jax.random.split(jax.random.key(1), 2000))
    values = np.asarray(values, np.float64)
    assert abs(sampled - values.mean()) < 5 * np.sqrt(2) * values.std() / np.sqrt(2000)


def test_an_empirical_prior_has_the_gradient_of_its_closed_form():
    q = joint(0)["LowRank"]
    second_moment = np.sum(flat(q.mean) ** 2) + np.trace(families.covariance(q))
    slope = jax.grad(lambda log_scale: kl_loss(q, Normal(0.0, jnp.exp(log_scale)), reduction="sum"))(0.0)
    np.testing.assert_allclose(slope, 12 - second_moment, rtol=1e-4)


REFUSED = {
    "over other arrays": (
        joint(0)["LowRank"],
        nodes()["LowRank"],
        "of type LowRank, must stand for what the posterior stands for: it is over one array, and the posterior over "
        "'a', 'b', 'c/d', 'c/e'",
    ),
    "over another container of arrays at the same paths": (
        LowRank([normal(0, 2), normal(0, 2)], normal(0, 4), normal(1, 4, 1)),
        LowRank((normal(0, 2), normal(0, 2)), normal(0, 4), normal(1, 4, 1)),
        r"is over PyTreeDef\(\(\*, \*\)\), and the posterior over PyTreeDef\(\[\*, \*\]\)",
    ),
    "a block over other arrays": (
        joint(0)["LowRank"],
        {"a": Normal(0.0, 1.0), "b": Normal(0.0, 1.0), "c": LowRank(normal(0, 4), normal(0, 4), normal(1, 4, 1))},
        r"kl_loss at params\['c'\]\['d'\]: the prior, of type LowRank, must stand for",
    ),
    "a parameter of another shape": (
        joint(0)["FullCovariance"],
        {"a": Normal(normal(0, 3), 1.0), "b": Normal(0.0, 1.0), "c": Normal(0.0, 1.0)},
        r"kl_loss at params\['a'\]: a prior parameter of shape \(3,\) does not go with a posterior of shape \(2,\)",
    ),
    "an array for all arrays": (joint(0)["LowRank"], Normal(normal(0, 2), 1.0), r"\['b'\]: a prior parameter of shape"),
    "another prior": (
        joint(0)["LowRank"],
        {"a": Normal(0.0, 1.0), "b": Laplace(0.0, 1.0), "c": Normal(0.0, 1.0)},
        "KL",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    q, p, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        kl_loss(q, p)
