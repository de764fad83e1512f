"""Mixtures: their law against numpyro and quadrature, their entropy as a bound, and in trees."""

from functools import partial

import chex
import families
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import orbax.checkpoint as ocp
import pytest
from families import array, flat, nodes, normal
from jax.flatten_util import ravel_pytree
from numpy.polynomial.hermite_e import hermegauss
from scipy import integrate, stats
from scipy.special import logsumexp

import illia_fn
from illia_fn import (
    Gaussian,
    Mixture,
    Normal,
    full_covariance,
    kl_divergence,
    matrix_normal,
    mean_field,
    mixture,
    posterior_tree,
)
from illia_fn.posteriors import mixtures
from illia_fn.posteriors._distances import Independent, half_log_cosh

KEY = jax.random.key(0)
FAMILIES = sorted(nodes())
RHO_OF_1 = float(np.log(np.expm1(1.0)))


def mixed(name, count=3):
    """A mixture over one kernel."""
    return stacked([nodes(100 * k)[name] for k in range(count)])


def stacked(parts):
    """As `Mixture.of`, without a program for each shape."""
    return Mixture(jax.tree.map(lambda *leaves: array(np.stack(leaves), leaves[0].dtype), *parts))


def over_a_tree(count=3):
    """Of a joint node and a mean field together, 8 numbers."""
    params = {"a": normal(0, 2), "b": {"c": normal(1, 3), "d": normal(2, 3)}}
    families = {"a": full_covariance, "b/.*": partial(mean_field, scale=0.5)}
    make = partial(mixture, family=lambda w: posterior_tree(w, families), num_components=count, spread=0.6, key=KEY)
    return jax.jit(make)(params)


@jax.jit
def told(q):
    """A draw, and all that a node says of itself."""
    w = q.sample(KEY)
    cov = illia_fn.covariance(q, lambda w: w)
    return w, q.log_prob(w), q.entropy(), q.component_information(), q.mean, q.stddev, cov


def dense(q):
    """Component by component, in NumPy: means (K, P) and covariances (K, P, P)."""
    parts = [jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[k], q.components) for k in range(q.num_components)]
    return np.stack([flat(one.mean) for one in parts]), np.stack([families.covariance(one) for one in parts])


def distance(m, s, n, t):
    """That of Bhattacharyya, by the textbook."""
    middle = (s + t) / 2
    log_dets = [np.linalg.slogdet(x)[1] for x in (middle, s, t)]
    return (m - n) @ np.linalg.solve(middle, m - n) / 8 + 0.5 * (log_dets[0] - 0.5 * (log_dets[1] + log_dets[2]))


WITHOUT_DISTANCES = ("MatrixNormal", "Eigenbasis")


def information(q, name):
    if name in WITHOUT_DISTANCES:
        return 0.0
    laws = list(zip(*dense(q), strict=True))
    overlaps = np.exp([[-distance(*one, *other) for other in laws] for one in laws])
    return -np.mean(np.log(np.mean(overlaps, axis=1)))


def near(name):
    """Components that overlap: the terms of the locations and of the covariances are of one order."""
    parts = [
        jax.tree.map(lambda x, k=k: x + 0.1 * k * np.asarray(normal(k, *x.shape)), nodes_of_numpy(name))
        for k in range(3)
    ]
    return stacked([families.with_bases(jax.tree.map(array, part), lambda basis: basis) for part in parts])


def nodes_of_numpy(name):
    return jax.tree.map(np.asarray, nodes()[name])


@pytest.mark.parametrize("make", [mixed, near])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_mixture_of_dense_gaussians(name, make):
    q = make(name)
    w, log_prob, entropy, info, mean, stddev, cov = told(q)
    locs, covs = dense(q)
    laws = [stats.multivariate_normal(m, s) for m, s in zip(locs, covs, strict=True)]
    exact = logsumexp([law.logpdf(flat(w)) for law in laws]) - np.log(3)
    np.testing.assert_allclose(log_prob, exact, rtol=1e-4)
    np.testing.assert_allclose(flat(mean), locs.mean(0), rtol=1e-5, atol=1e-6)
    exact = covs.mean(0) + np.cov(locs.T, ddof=0)
    np.testing.assert_allclose(cov, exact, rtol=1e-4, atol=1e-5 * exact.max())
    np.testing.assert_allclose(flat(stddev), np.sqrt(np.diag(exact)), rtol=1e-5)
    exact = information(q, name)
    assert name in WITHOUT_DISTANCES or make is mixed or 0.03 < exact < 1.07
    np.testing.assert_allclose(info, exact, atol=2e-5)
    np.testing.assert_allclose(entropy, np.mean([law.entropy() for law in laws]) + exact, rtol=1e-5)


def test_distances_are_differentiable_where_components_coincide():
    together = ["Gaussian", "LowRank", "FullCovariance"]
    slope = jax.jit(jax.grad(lambda qs: sum(q.component_information() for q in qs.values())))
    equal = slope({name: stacked([nodes()[name]] * 3) for name in together})
    assert np.max(np.abs(flat(equal))) < 1e-5
    others = slope({name: near(name) for name in together})
    chex.assert_tree_all_finite(others)
    assert all(np.any(np.abs(flat(leaf)) > 1e-3) for leaf in jax.tree.leaves(others))


def test_in_one_dimension_the_entropy_is_a_lower_bound_and_the_law_that_of_numpyro():
    x = np.linspace(-30, 30, 60001)

    @jax.jit
    def of(locs, scales):
        q = Mixture(Gaussian(locs, jnp.log(jnp.expm1(scales))))
        law = dist.MixtureSameFamily(dist.Categorical(jnp.full(len(locs), 1 / len(locs))), dist.Normal(locs, scales))
        log_probs = jax.vmap(q.log_prob)(jnp.asarray(x, jnp.float32))
        theirs = law.log_prob(jnp.asarray(x[::50], jnp.float32)), law.mean, law.variance**0.5
        return (log_probs, q.mean, q.stddev), theirs, q.entropy()

    gaps = []
    for locs, scales in [
        ((-3.0, 3.0, 3.0), (1.0, 1.0, 1.0)),
        ((-1.0, 1.5, 0.0), (1.0, 0.5, 0.7)),
        ((0.0, 0.0, 0.5), (0.2, 2.0, 1.0)),
        ((0.7, 0.7, 0.7), (0.3, 0.3, 0.3)),
        ((-20.0, 0.0, 20.0), (0.5, 1.0, 0.1)),
    ]:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            (log_probs, *ours), (exact, *theirs), bound = of(np.float32(locs), np.float32(scales))
        log_q = np.asarray(log_probs, np.float64)
        np.testing.assert_allclose(log_q[::50], exact, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        entropy = integrate.simpson(-np.exp(log_q) * log_q, x=x)
        gaps.append(entropy - float(bound))
    assert min(gaps) > -1e-4
    assert max(gaps) > 0.02  # it is a bound
    np.testing.assert_allclose(gaps[3:], 0.0, atol=1e-4)  # of components that coincide, or are far apart


def test_draws_have_its_law_also_in_mirrored_pairs():
    q = over_a_tree()
    noise = np.random.default_rng(0).normal(size=(20_000, *q.noise_shape)).astype(np.float32)
    draws = jax.jit(jax.vmap(lambda z: ravel_pytree(q.reparameterise()(z))[0]))
    told = jax.jit(lambda q: (q.mean, illia_fn.covariance(q, lambda w: w), q.component(0)))
    mean, cov, of_0 = told(q)
    exact_mean, cov = flat(mean), np.asarray(cov)
    one, other = draws(noise), draws(-noise)
    chosen = np.sum(noise[:, :1] > np.array([-0.4307273, 0.4307273]), axis=1)
    assert np.all(np.abs(np.bincount(chosen) / 20_000 - 1 / 3) < 5 * np.sqrt(2 / 9 / 20_000))
    for found in (one, other):
        found = np.asarray(found, np.float64)
        assert np.all(np.abs(found.mean(0) - exact_mean) < 5 * np.sqrt(np.diag(cov) / 20_000))
        products = (found - exact_mean)[:, :, None] * (found - exact_mean)[:, None, :]
        assert np.all(np.abs(products.mean(0) - cov) < 5 * products.std(0) / np.sqrt(20_000))
    first = flat(jax.tree.map(lambda node: node.loc, of_0, is_leaf=illia_fn.is_posterior))
    of_first = np.asarray(one)[chosen == 0]  # one choice for the whole subtree
    assert np.all(np.abs(of_first.mean(0) - first) < 5 * of_first.std(0) / np.sqrt(len(of_first)))


def test_the_gradient_of_draws_is_that_of_the_expectation():
    """E[cos(w)] of a mixture, a sum over its components, by Gauss-Hermite quadrature."""
    q = of_numbers([-1.0, 2.0, 0.3], [0.0, 0.5, -1.0])
    z, share = map(np.float32, hermegauss(40))

    def exact(q):
        at = q.components.loc[:, None] + q.components.scale[:, None] * z[None]
        return jnp.mean(jnp.cos(at) @ (share / np.sum(share)))

    @jax.jit
    def both(q, keys):
        of_draw = jax.grad(lambda q, key: jnp.cos(q.sample(key)))
        return jax.vmap(of_draw, (None, 0))(q, keys), jax.grad(exact)(q)

    slopes = map(jax.tree.leaves, both(q, jax.random.split(KEY, 40_000)))
    for found, right in zip(*slopes, strict=True):
        found = np.asarray(found, np.float64)
        assert np.all(np.abs(found.mean(0) - right) < 5 * found.std(0) / np.sqrt(len(found)))


def of_numbers(loc, rho):
    return Mixture(Gaussian(array(loc), array(rho)))


def test_many_pairs_are_taken_one_by_one(monkeypatch):
    q = near("Gaussian")
    at_once = q.component_information()
    monkeypatch.setattr(mixtures, "_AT_ONCE", 0)
    of = lambda q: Mixture.component_information.__wrapped__(q)  # noqa: E731  as a q that is large would be traced
    assert "scan" in str(jax.make_jaxpr(of)(q))
    one_by_one, slopes = jax.jit(jax.value_and_grad(of))(q)
    np.testing.assert_allclose(one_by_one, at_once, rtol=1e-6)
    chex.assert_tree_all_finite(slopes)


def test_scales_of_any_ratio():
    """The term of the scales for ratios from 1 + 1e-3 to exp(40), of scales of 1e-26; beyond it is a bound."""
    log_ratios = np.array([0.0, 1e-3, -0.3, 1.0, 5.0, -20.0, 40.0, 60.0])

    @jax.jit
    @jax.vmap
    def half(log_ratio):
        q, p = (Gaussian(jnp.zeros(()), rho) for rho in (log_ratio - 60.0, jnp.float32(-60.0)))
        return half_log_cosh(Independent.of(q), Independent.of(p))

    found = np.asarray(half(np.float32(log_ratios)))
    rounded = np.float32(np.float32(log_ratios) - np.float32(60.0)).astype(np.float64) + 60.0
    exact = 0.5 * np.log1p(2 * np.sinh(rounded / 2) ** 2)
    np.testing.assert_allclose(found[:-1], exact[:-1], rtol=2e-3)
    assert 20 < found[-1] <= exact[-1]


# --- ends of the range -------------------------------------------------------------------------------------------


def test_it_is_right_at_the_ends_of_the_range():
    stddev_and_mean = jax.jit(lambda q: (q.stddev, q.mean))
    far = of_numbers([1e6, 1e6 + 1.0], [-30.0] * 2)
    stddev, mean = stddev_and_mean(far)
    assert (stddev, mean) == (0.5, 1e6 + 0.5)  # (1e6)^2 would drown it
    three = of_numbers(1e7 + np.array([0.0, 1.0, 3.0]), [-30.0] * 3)
    np.testing.assert_allclose(stddev_and_mean(three)[0], np.std([0.0, 1.0, 3.0]), rtol=1e-6)
    tiny = of_numbers([0.0, 3e-30], [np.log(2e-30)] * 2)
    np.testing.assert_allclose(stddev_and_mean(tiny)[0], np.hypot(1.5e-30, 2e-30), rtol=1e-5)
    none = of_numbers([0.0] * 2, [-200.0] * 2)
    value_and_slopes = jax.jit(jax.value_and_grad(lambda q: q.stddev + q.mean + q.component_information()))
    for q in (far, tiny, none, of_numbers([-1e30, 1e30], [-80.0, 30.0])):
        chex.assert_tree_all_finite(value_and_slopes(q))
    # densities beyond float32: all, or all but one
    q = of_numbers([-1.0, 1.0], [0.0, -3.0])
    log_prob = jax.jit(lambda q, w: jax.value_and_grad(q.log_prob)(w))
    for w, value in ((1e25, -np.inf), (30.0, None)):
        found, slope = map(np.asarray, log_prob(q, np.float32(w)))
        assert found == value or value is None
        assert -np.inf < slope < 0  # back to where q is
    lost, alone = of_numbers([-1.0, 1e20], [0.0] * 2), Gaussian(array(-1.0), array(0.0))
    (found, slope), (of_one, slope_of_one) = jax.device_get([log_prob(one, np.float32(0.0)) for one in (lost, alone)])
    np.testing.assert_allclose(found, of_one - np.log(2), rtol=1e-6)
    assert slope == slope_of_one


def test_components_that_coincide_are_one():
    one = nodes()["LowRank"]
    q = Mixture.of([one] * 3)
    w, log_prob, entropy, info, mean, stddev, cov = told(q)
    of_one = jax.jit(lambda one, w: (one.log_prob(w), one.entropy(), one.stddev))(one, w)
    for ours, right in zip((log_prob, entropy, stddev), of_one, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-6)
    assert abs(info) < 1e-6
    np.testing.assert_array_equal(mean, one.mean)
    np.testing.assert_allclose(cov, families.covariance(one), rtol=1e-4, atol=1e-6)


def test_in_float64_and_half_precision(x64):
    q = families.wide(mixed("Gaussian"))
    w, log_prob, _, _, mean, stddev, _ = found = told(q)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float64")}
    locs, covs = dense(q)
    exact = logsumexp([stats.multivariate_normal(m, s).logpdf(flat(w)) for m, s in zip(locs, covs, strict=True)])
    np.testing.assert_allclose(log_prob, exact - np.log(3), rtol=1e-12)
    np.testing.assert_allclose(flat(stddev), np.sqrt(np.diag(covs.mean(0) + np.cov(locs.T, ddof=0))), rtol=1e-12)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), nodes())
    half = {name: Mixture(jax.tree.map(lambda leaf: leaf.update(shape=(3, *leaf.shape)), half[name])) for name in half}
    w, *densities, mean, stddev, cov = jax.eval_shape(told, half["LowRank"])
    assert {leaf.dtype for leaf in jax.tree.leaves((w, mean, stddev))} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in (*densities, cov)} == {jnp.dtype("float32")}


# --- trees ---------------------------------------------------------------------------------------------------------

PARAMS = {"body": {"kernel": normal(0, 4, 5), "bias": normal(2, 5)}, "head": {"kernel": normal(1, 5, 2)}}
X, LABELS, TARGETS = normal(5, 8, 4), np.arange(8) % 2, normal(6, 8, 2)


def apply_fn(w, x):
    return jnp.tanh(x @ w["body"]["kernel"] + w["body"]["bias"][None]) @ w["head"]["kernel"]


def in_a_tree():
    patterns = {
        "body": partial(mixture, num_components=3, key=KEY),
        "head/.*": partial(mixture, num_components=2, family=illia_fn.k_tied, key=KEY),
    }
    return jax.jit(lambda params: posterior_tree(params, patterns))(PARAMS)


@pytest.fixture(scope="module")
def tree():
    return in_a_tree()


def test_every_objective_and_estimator_takes_it(tree):
    def losses(q, key):
        call, options = (apply_fn, q, X, TARGETS, key, 2), {"num_data": 8, "chunk_size": None}
        estimators = "doubly_reparameterised", "score_function"
        return sum(illia_fn.elbo_loss(*call, **options, estimator=estimator) for estimator in estimators)

    @jax.jit
    def predictions(q, key):
        decorrelated = illia_fn.elbo_loss(apply_fn, q, X, TARGETS, key, num_data=8, coupling="decorrelated")
        return illia_fn.predict(apply_fn, q, X, key, 2, sampling="latin_hypercube"), decorrelated

    one = tree | {"head": PARAMS["head"]}
    chex.assert_tree_all_finite(jax.jit(jax.grad(losses))(one, KEY))
    outputs, loss = predictions(one, KEY)
    assert outputs.shape == (2, 8, 2)
    assert np.isfinite(loss)
    rows = illia_fn.explain_coupling(apply_fn, tree, X).leaves
    assert {row.why for row in rows} == {"a Mixture posterior, whose draws are not linear in their noise"}


def test_it_is_saved_and_restored(tree, tmp_path):
    q = tree | {"density": {"components": {"w": normal(0, 2)}}}  # a name that parameters may have
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "q", q)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "q", q)
        raw = checkpointer.restore(tmp_path / "q")
    chex.assert_trees_all_equal(restored, q)
    chex.assert_trees_all_equal(illia_fn.frameworks.restore_nodes(raw), q)
    with pytest.raises(ValueError, match="the fields of a Gaussian that has lost its type"):
        illia_fn.kl_loss({"body": raw["body"]})
    assert illia_fn.kl_loss({"components": normal(0, 2)}, reduction="sum") == 0.0


def test_tools_take_it(tree):
    head = tree["head"]
    table = illia_fn.summary(head)
    assert [(row.family, row.exact) for row in table.leaves] == [("Mixture", False)]
    assert "~" in str(table)
    labels = illia_fn.labels(tree)
    assert (labels["body"].components["bias"].loc, labels["head"]["kernel"].components.row_rho) == ("loc", "rho")
    slow = illia_fn.slow_scales(0.5)
    slower = jax.jit(lambda q: slow.update(q, slow.init(q))[0])(tree)
    np.testing.assert_array_equal(slower["body"].components["bias"].loc, tree["body"].components["bias"].loc)
    np.testing.assert_array_equal(
        slower["body"].components["bias"].rho, 0.5 * np.asarray(tree["body"].components["bias"].rho)
    )
    assert illia_fn.num_params(tree) == 35
    moments = jax.eval_shape(lambda q: (illia_fn.mean(q), illia_fn.stddev(q)), tree)
    chex.assert_trees_all_equal_shapes(PARAMS, *moments)
    chex.assert_trees_all_equal_shapes(illia_fn.prune(head, 0.5), PARAMS["head"])
    with pytest.raises(ValueError, match=r"linearise: params.* is a Mixture, whose draws are not its mean and a lin"):
        jax.jit(lambda q: illia_fn.linearise(apply_fn, q, X))(tree)
    with pytest.raises(ValueError, match=r"analytic_elbo_loss: params.* is a Mixture, whose draws are not linear"):
        illia_fn.analytic_elbo_loss(apply_fn, tree, X, LABELS, num_data=8, key=KEY)
    with pytest.raises(ValueError, match=r"pac_bayes_loss: KL\(q \|\| prior\) must have a closed form"):
        illia_fn.pac_bayes_loss(apply_fn, tree, X, LABELS, KEY, num_data=8)

    @jax.jit
    def covariances(q):
        picked = illia_fn.covariance(q, lambda w: (w["head"]["kernel"][0], w["body"]["bias"][:2]))
        return picked, illia_fn.covariance({"q": q["body"]}, lambda w: w["q"]["bias"][:2])

    picked, whole = map(np.asarray, covariances(tree))
    np.testing.assert_allclose(picked[2:, 2:], whole, rtol=1e-6)
    assert np.all(picked[:2, 2:] == 0)
    assert np.any(whole - np.diag(np.diagonal(whole)) != 0)  # one choice for all of the body


def test_the_number_of_components_does_not_multiply_the_program():
    def size(count):
        q = jax.eval_shape(lambda params: mixture(params, count, key=KEY), PARAMS["head"])
        step = jax.grad(lambda q: kl_divergence(q, Normal(0.0, 1.0)) + q.log_prob(q.sample(KEY)))
        return str(jax.make_jaxpr(step)(q)).count("\n")

    assert size(9) < 1.05 * size(2)


def test_starts_are_apart_around_the_parameters():

    @jax.jit
    def means(params):
        q = mixture(params, 4, spread=0.5, key=KEY)
        return q.mean, [illia_fn.mean(q.component(k)) for k in range(4)]

    mean, each = means(PARAMS)
    np.testing.assert_allclose(flat(mean), flat(PARAMS), atol=1e-6)
    moves = np.stack([flat(one) - flat(PARAMS) for one in each])
    assert abs(moves.std() / 0.5 - 1) < 5 / np.sqrt(2 * 3 * 35)


ERRORS = {
    "one": (lambda: mixture(PARAMS, 1, key=KEY), "mixture: num_components must be at least 2, got 1"),
    "no count": (lambda: mixture(PARAMS, 2.5, key=KEY), "mixture: num_components must be an int"),
    "no key": (lambda: mixture(PARAMS, 2, key=0), "mixture: key must be a single PRNG key"),
    "no spread": (lambda: mixture(PARAMS, 2, spread=0.0, key=KEY), "mixture: spread.* must be positive"),
    "no family": (lambda: mixture(PARAMS, 2, "full", key=KEY), "mixture: family must be a function"),
    "an integer leaf": (lambda: mixture({"n": jnp.arange(3)}, 2, key=KEY), r"mixture: params\['n'\] must hold float"),
    "a node again": (lambda: mixture(mean_field(PARAMS), 2, key=KEY), "mixture: params.* is already a posterior node"),
    "a deterministic leaf": (
        lambda: jax.eval_shape(
            partial(mixture, num_components=2, family=partial(mean_field, mask=illia_fn.by_path("head/.*")), key=KEY),
            PARAMS,
        ),
        r"mixture: component 0\['body'\]\['bias'\] must be a posterior node",
    ),
    "what the family refuses": (
        lambda: jax.eval_shape(lambda params: mixture(params, 2, matrix_normal, key=KEY), PARAMS),
        "matrix_normal: params.* is no ker",
    ),
    "a mixture of mixtures": (lambda: Mixture.of([mixed("Gaussian")] * 2), "Mixture.of: component 0 must be a post"),
    "a list of one": (lambda: Mixture.of([nodes()["Gaussian"]]), "Mixture.of: .* at least 2 posteriors, got 1 of them"),
    "no list": (lambda: Mixture.of(nodes()["Gaussian"]), "Mixture.of: a mixture is of a list"),
    "other families": (
        lambda: Mixture.of([nodes()["Gaussian"], nodes()["KTied"]]),
        "Mixture.of: all components must be of one family",
    ),
    "other shapes": (
        lambda: Mixture.of([mean_field(jnp.ones(2)), mean_field(jnp.ones(3))]),
        "Mixture.of: .* component 1 is not as the first",
    ),
    "no leading axis": (
        lambda: Mixture(mean_field(jnp.ones(()))),
        "Mixture: the arrays of components must share a lead",
    ),
    "leading axes that differ": (
        lambda: Mixture({"a": mean_field(jnp.ones((2, 3))), "b": mean_field(jnp.ones((3, 3)))}),
        "Mixture: the arrays of components must share",
    ),
    "an array": (lambda: Mixture({"a": jnp.ones((2, 3))}), r"Mixture: components\['a'\] must be a posterior node"),
    "w of another shape": (lambda: mixed("KTied").log_prob(jnp.ones(12)), "Mixture.log_prob: w must have the struct"),
    "by posterior_tree": (
        lambda: posterior_tree(PARAMS, {"head": partial(mixture, num_components=1, key=KEY)}),
        "posterior_tree: at 'head', by the pattern 'head': mixture: num_components must be at least 2",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name):
    call, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_components_that_are_one_are_refused():
    """A family that takes the shapes of its parameters alone."""
    with pytest.raises(ValueError, match="mixture: the family makes one and the same component"):
        illia_fn.mixture(jnp.ones(2), 2, lambda params: illia_fn.mean_field(jnp.zeros(2)), key=KEY)
