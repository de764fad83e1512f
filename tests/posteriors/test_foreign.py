"""Distributions of other libraries as posteriors: densities, draws, KLs, and what trains them."""

from functools import partial

import chex
import equinox as eqx
import families
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import orbax.checkpoint as ocp
import pytest
from families import array, normal
from flowjax import bijections, distributions
from jax.flatten_util import ravel_pytree
from scipy import stats

import illia_fn
from illia_fn import Normal, from_distribution, kl_divergence, kl_loss

pytestmark = pytest.mark.promotes  # code of other libraries

KEY = jax.random.key(0)
PARAMS = {"slope": array([1.0, 1.0]), "intercept": array(0.0)}


def multivariate(u):
    return dist.MultivariateNormal(u["loc"], scale_tril=jnp.tril(u["factor"], -1) + jnp.diag(jnp.exp(u["log"])))


@pytest.fixture(scope="module")
def q():
    """A Gaussian of numpyro, over a subtree."""
    parameters = {
        "loc": array([0.3, -0.2, 0.5]),
        "factor": array([[0, 0, 0], [0.4, 0, 0], [-0.3, 0.2, 0.0]]),
        "log": array([0.0, -1.0, -0.5]),
    }
    return from_distribution(multivariate, parameters, PARAMS)


@pytest.fixture(scope="module")
def twin(q):
    """The same law as a node of ours."""
    u = {name: np.asarray(leaf, np.float64) for name, leaf in q.parameters.items()}
    root = np.tril(u["factor"], -1) + np.diag(np.exp(u["log"]))
    loc = {"intercept": array(u["loc"][0]), "slope": array(u["loc"][1:])}
    return illia_fn.FullCovariance(loc, families.raw(root @ root.T))


@pytest.fixture(scope="module")
def flow():
    """An affine flow over the three numbers, which holds the posterior of a linear model."""
    base, map_ = (
        distributions.Normal(array(np.zeros(3))),
        bijections.TriangularAffine(array(np.zeros(3)), array(np.eye(3))),
    )
    parameters, static = eqx.partition(distributions.Transformed(base, map_), eqx.is_inexact_array)
    return from_distribution(lambda flow: eqx.combine(flow, static), parameters, PARAMS)


def test_it_is_what_its_library_says(q, twin):
    @jax.jit
    def told(q, twin):
        w = illia_fn.sample(KEY, q)
        moments = (illia_fn.mean(q), illia_fn.stddev(q)), (q.mean, q.stddev), (twin.mean, twin.stddev)
        return w, moments, (illia_fn.log_prob(q, w), twin.log_prob(w))

    w, (moments, of_node, of_twin), log_probs = told(q, twin)
    chex.assert_trees_all_equal_shapes_and_dtypes(w, PARAMS, *moments)
    assert illia_fn.num_params(q) == 3
    one = from_distribution(lambda u: dist.Normal(u, 1.0), PARAMS["slope"], PARAMS["slope"])
    assert "ForeignPosterior" in str(illia_fn.summary(one, key=KEY))
    np.testing.assert_allclose(*log_probs, rtol=1e-5)
    chex.assert_trees_all_close(of_node, of_twin, rtol=1e-5)


def test_draws_have_its_law_and_are_independent_of_their_mirror_images(q, twin):
    count = 20_000
    noise = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    draw = jax.jit(jax.vmap(lambda z: ravel_pytree(q.reparameterise()(z))[0]))
    pairs = np.concatenate([draw(noise), draw(-noise)], axis=1).astype(np.float64)
    mean, covariance = families.flat(twin.mean), families.covariance(twin)
    both = np.kron(np.eye(2), covariance)
    scale = np.sqrt(np.diag(both))
    assert np.all(np.abs(pairs.mean(axis=0) - np.tile(mean, 2)) < 5 * scale / np.sqrt(count))
    error = np.sqrt((both**2 + np.outer(scale, scale) ** 2) / count)  # of a sample covariance of normal numbers
    assert np.all(np.abs(np.cov(pairs.T) - both) < 5 * error)


def test_sampled_kl(q, twin):
    @jax.jit
    def kls(q, twin, keys):
        sampled = jax.vmap(lambda key: kl_loss(q, dist.Normal(0.1, 0.7), reduction="sum", key=key))(keys)
        return sampled, kl_loss(twin, Normal(0.1, 0.7), reduction="sum")

    values, exact = map(np.asarray, kls(q, twin, jax.random.split(KEY, 4000)))
    assert abs(np.mean(values) - exact) < 5 * np.std(values) / np.sqrt(len(values))
    assert not any(illia_fn.kl_is_exact(q, Normal(0.1, 0.7)).values())


def test_to_itself_and_as_a_prior(q, twin):
    kls = jax.jit(lambda q, twin: (kl_divergence(q, q, key=KEY), kl_divergence(twin, q, key=KEY, num_samples=3)))
    np.testing.assert_allclose(kls(q, twin), 0.0, atol=1e-5)  # of every draw
    with pytest.raises(ValueError, match=r"KL\(ForeignPosterior \|\| .*Normal\) has no closed form.*pass key"):
        kl_divergence(q, Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="must stand for what the posterior stands for"):
        kl_divergence(families.nodes()["FullCovariance"], q, key=KEY)


X, Y = np.float32([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.0]]), np.float32([0.5, -0.2, 0.1])
FEATURES = np.insert(X, 0, 1.0, axis=1)


def apply_fn(w, x):
    return x @ w["slope"] + w["intercept"]


def test_gradients_are_those_of_the_elbo():
    """In the parameters of the library, against the exact gradient, within five standard errors, of every estimator."""
    parameters = {"loc": array([0.3, -0.2, 0.5]), "log": array([0.0, -1.0, -0.5])}
    q = from_distribution(lambda u: dist.Normal(u["loc"], jnp.exp(u["log"])), parameters, array(np.zeros(3)))

    def loss(q, key, estimator):
        call, num_samples = (lambda w, x: x @ w, q, FEATURES, Y, key), 2 if estimator == "score_function" else 1
        return illia_fn.elbo_loss(*call, num_samples, num_data=3, chunk_size=None, estimator=estimator)

    def exact(u):
        variance = jnp.exp(2 * u["log"])
        nll = 0.5 * jnp.mean((FEATURES @ u["loc"] - Y) ** 2 + FEATURES**2 @ variance) + 0.5 * jnp.log(2 * jnp.pi)
        return nll + jnp.sum(0.5 * (variance + u["loc"] ** 2 - 1) - u["log"]) / 3

    def of_key(key):
        estimators = "reparameterised", "doubly_reparameterised", "score_function"
        return {name: jax.value_and_grad(partial(loss, estimator=name))(q, key) for name in estimators}

    @jax.jit
    def both(keys):
        return jax.value_and_grad(exact)(parameters), jax.vmap(of_key)(keys)

    (value, expected), found_by = both(jax.random.split(KEY, 10_000))
    for estimator, (values, grads) in found_by.items():
        for found, right in [(values, value), *((grads.parameters[name], expected[name]) for name in expected)]:
            found = np.asarray(found, np.float64)
            error = np.std(found, axis=0) / np.sqrt(len(found))
            assert np.all(np.abs(found.mean(axis=0) - right) < 5 * error + 1e-6), estimator


def test_half_precision_rounds_no_draw_before_its_density_is_told():
    half = array(np.ones(50), jnp.bfloat16)
    q = from_distribution(lambda u: dist.Normal(u, np.float32(np.exp(-9.0))), array(np.full(50, 0.503)), half)
    exact = 50 * (9.0 + 0.5 * (np.exp(-18.0) + 0.503**2 - 1.0))
    ones = np.ones(2, np.float32)

    @jax.jit
    def kls(q):
        model, options = (lambda w, x: x * w.sum()), {"num_data": 2, "return_terms": True, "chunk_size": None}
        terms = illia_fn.elbo_loss(model, q, ones, ones, KEY, 100, **options)[1]
        return terms.kl, kl_loss(q, reduction="sum", key=KEY, num_samples=100)

    for kl in kls(q):
        assert abs(kl - exact) < 5 * np.sqrt(50 / 2 / 100)  # log q - log p of a number has a variance of 1/2


def test_a_temperature_takes_the_entropy_of_the_draws_of_the_kl(q, twin):
    def kl(q, key):
        return illia_fn.elbo_loss(apply_fn, q, X, Y, key, num_data=3, temperature=0.3, return_terms=True)[1].kl

    both = jax.jit(lambda q, twin, keys: (jax.vmap(partial(kl, q))(keys), kl(twin, KEY)))
    values, exact = map(np.asarray, both(q, twin, jax.random.split(KEY, 8000)))
    assert abs(np.mean(values) - exact) < 5 * np.std(values) / np.sqrt(len(values))


def test_a_flow_reaches_the_evidence_and_predicts(flow):
    """It holds the posterior, so that at the end every draw has the value of the negative log evidence."""

    def loss(q, key):
        options = {"num_data": 3, "estimator": "doubly_reparameterised", "chunk_size": None}
        return 3 * illia_fn.elbo_loss(apply_fn, q, X, Y, key, 4, **options)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 300))

    @jax.jit
    def seen(q):
        return ravel_pytree(q.mean)[0], illia_fn.predict(apply_fn, q, X, KEY, 5, chunk_size=None)

    def step(carry, key):
        q, state = carry
        value, grads = jax.value_and_grad(loss)(q, key)
        updates, state = optimizer.update(grads, state, q)
        return (optax.apply_updates(q, updates), state), value

    (q, _), values = jax.jit(lambda q: jax.lax.scan(step, (q, optimizer.init(q)), jax.random.split(KEY, 300)))(flow)
    evidence = stats.multivariate_normal(np.zeros(3), np.eye(3) + FEATURES @ FEATURES.T).logpdf(Y)
    # values of a step have its data term by the draws, which does not vanish: its KL does not cancel it draw by draw
    last = np.asarray(values)[-50:]
    assert abs(np.mean(last) + evidence) < 5 * np.std(last) / np.sqrt(50) + 0.01
    middle, outputs = seen(q)
    np.testing.assert_allclose(middle, np.linalg.solve(np.eye(3) + FEATURES.T @ FEATURES, FEATURES.T @ Y), atol=0.2)
    assert outputs.shape == (5, 3)


def test_it_is_saved_and_restored(flow, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "q", {"all": flow})
        checkpointer.wait_until_finished()
        back = checkpointer.restore(tmp_path / "q", {"all": jax.tree.map(jnp.zeros_like, flow)})
    chex.assert_trees_all_equal(back["all"], flow)


def test_beside_others_by_pattern_and_under_a_coupling(q):
    def build(u):
        return dist.Normal(u, np.ones((2, 1), np.float32))  # of the shape of its array, and element-wise

    tree = illia_fn.posterior_tree(
        {"a": normal(0, 2, 1), "b": normal(1, 1)},
        {"a": lambda leaf: from_distribution(build, leaf, leaf), "b": illia_fn.mean_field},
    )
    x = np.ones((4, 2), np.float32)
    (row, _) = illia_fn.explain_coupling(lambda w, x: x @ w["a"] + w["b"], tree, x).leaves
    assert (row.strategy, "ForeignPosterior" in row.why) == ("shared", True)

    @jax.jit
    def told(tree):
        call = (lambda w, x: x @ w["a"] + w["b"]), tree, x, np.ones((4, 1), np.float32), KEY
        w = illia_fn.sample(KEY, tree)["a"]
        return illia_fn.elbo_loss(*call, num_data=4, coupling="decorrelated"), w, tree["a"].log_prob(w)

    value, w, log_prob = told(tree)
    assert np.isfinite(value)
    np.testing.assert_allclose(log_prob, stats.norm(normal(0, 2, 1), 1.0).logpdf(w).sum(), rtol=1e-6)


def test_what_it_cannot_do_is_told(q):
    x = np.ones((4, 2), np.float32)
    with pytest.raises(NotImplementedError, match="entropy of a distribution of another library is not known"):
        q.entropy()
    with pytest.raises(ValueError, match="ForeignPosterior, whose draws are not"):
        jax.jit(lambda q: illia_fn.linearise(apply_fn, q, x).covariance)(q)
    with pytest.raises(ValueError, match="ForeignPosterior, whose draws are not linear"):
        jax.eval_shape(lambda q: illia_fn.analytic_elbo_loss(apply_fn, q, x, x[:, 0], KEY, num_data=4), q)
    with pytest.raises(NotImplementedError, match="ForeignPosterior, whose covariance is not known"):
        jax.eval_shape(lambda q: illia_fn.covariance(q, lambda w: w["slope"]), q)


U = {"loc": array(np.zeros(3))}


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((dist.Normal(0.0, 1.0), U, PARAMS), TypeError, "build must be a function from parameters"),
        ((lambda u: u, U, PARAMS), TypeError, "build must return a distribution, with sample and log_prob, got"),
        ((lambda u: dist.Normal(u["loc"][:2], 1.0), U, PARAMS), ValueError, r"of shape \(3,\), those of params"),
        ((lambda u: dist.Normal(u["loc"], 1.0), U, jnp.ones(2)), ValueError, r"of shape \(2,\)"),
        (
            (lambda u: dist.Bernoulli(logits=u["loc"]), U, PARAMS),
            ValueError,
            "BernoulliLogits cannot be differentiated",
        ),
        ((lambda u: dist.Normal(u["loc"], 1.0), {}, PARAMS), ValueError, "parameters has no arrays"),
        (
            (lambda u: dist.Normal(u["loc"], 1.0), {"loc": jnp.arange(3)}, PARAMS),
            TypeError,
            r"parameters\['loc'\] must",
        ),
        ((lambda u: dist.Normal(u["loc"], 1.0), U, {"n": jnp.arange(3)}), TypeError, r"params\['n'\] must hold"),
        (
            (lambda u: dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(1), U, jnp.ones((2, 3))),
            ValueError,
            r"log_prob must be a scalar, or of the shape of a draw, \(2, 3\)",
        ),
    ],
)
def test_refusals(args, error, match):
    with pytest.raises(error, match=match):
        from_distribution(*args)


def test_the_key_may_be_called_a_seed():
    """As in TFP and distrax."""

    class Seeded:
        def __init__(self, loc):
            self.normal = dist.Normal(loc, 1.0)
            self.log_prob = self.normal.log_prob

        def sample(self, sample_shape=(), seed=None):
            return self.normal.sample(seed, sample_shape)

    builds = Seeded, lambda u: dist.Normal(u, 1.0)
    draws = jax.jit(lambda loc: [illia_fn.sample(KEY, from_distribution(build, loc, loc)) for build in builds])
    np.testing.assert_array_equal(*draws(normal(0, 2)))
