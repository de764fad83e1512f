"""Empirical Bayes in closed form, against a search for the scale and the derivative through it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from families import array, normal
from scipy.optimize import minimize_scalar

import illia_fn
from illia_fn import Gaussian, Normal, kl_divergence, kl_loss, kl_tree, mean_field
from illia_fn.priors import EmpiricalBayes

PRIOR = EmpiricalBayes(concentration=4.4798, rate=10.0)
PARAMS = {"a": array(np.linspace(-1.0, 2.0, 12).reshape(3, 4)), "b": array([0.1, -0.3, 0.2, 0.0])}
Q = mean_field(PARAMS, scale=0.3)


def through(q, a, b):
    """min over s by its formula, differentiated through it: KL and -log InverseGamma(s) of one node."""
    n = q.loc.size
    s = (jnp.sum(q.loc**2 + q.scale**2) + 2 * b) / (n + 2 * a + 2)
    return kl_divergence(q, Normal(0.0, jnp.sqrt(s))), -dist.InverseGamma(a, b).log_prob(s)


@pytest.mark.promotes
@pytest.mark.parametrize(("a", "b"), [(4.4798, 10.0), (0.5, 1e-3), (30.0, 2.0)])
def test_the_scale_is_the_best_one(a, b):
    with jax.enable_x64(True):
        q = Gaussian(array(PARAMS["a"], float), array(np.full((3, 4), -1.0), float))
        options = {"bounds": (-6.0, 6.0), "method": "bounded", "options": {"xatol": 1e-10}}
        found = minimize_scalar(lambda log_s: float(objective(log_s, q, a, b)), **options)
        normal, hyperprior = EmpiricalBayes(a, b).fit(q.mean, q.stddev)
        np.testing.assert_allclose(2 * np.log(normal.scale), found.x, atol=1e-7)
        value = kl_loss(q, EmpiricalBayes(a, b), reduction="sum")
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, found.fun, rtol=1e-12)
        np.testing.assert_allclose(hyperprior, -dist.InverseGamma(a, b).log_prob(normal.scale**2), rtol=1e-10)


@jax.jit
def objective(log_s, q, a, b):
    kl = kl_divergence(q, Normal(0.0, jnp.exp(0.5 * log_s)))
    return kl - dist.InverseGamma(a, b).log_prob(jnp.exp(log_s))


@pytest.mark.promotes
def test_value_and_gradient_of_each_group():
    """Each leaf is a group; the derivative through the scale is 0. The KL alone is in `kl_tree`."""

    def explicit(q):
        return sum(sum(through(node, 4.4798, 10.0)) for node in q.values())

    @jax.jit
    def every(q):
        alone = jax.value_and_grad(kl_divergence)(q["a"], PRIOR)  # with the whole of the gradient
        others = through(q["a"], 4.4798, 10.0)[0], kl_divergence(q["b"], Normal(0.0, 1.0))
        found = jax.value_and_grad(partial(kl_loss, prior=PRIOR, reduction="sum"))(q)
        tree = kl_tree(q, {"a": PRIOR, "b": Normal(0.0, 1.0)})
        return found, jax.value_and_grad(explicit)(q), alone, tree, others

    (value, grads), (right, slopes), (kl, alone), tree, others = every(Q)
    np.testing.assert_allclose(value, right, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads, slopes)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), alone, slopes["a"])
    np.testing.assert_allclose([tree["a"], tree["b"]], others, rtol=1e-6)
    np.testing.assert_allclose(kl, tree["a"], rtol=1e-6)


X, Y = np.linspace(-1.0, 1.0, 15, dtype=np.float32).reshape(5, 3), np.array([0, 1, 2, 3, 0])
ARGS = lambda w, x: x @ w["a"] + w["b"][None, :], Q, X, Y, jax.random.key(0)


@pytest.mark.promotes
@pytest.mark.parametrize("loss", [illia_fn.elbo_loss, illia_fn.predictive_loss, illia_fn.analytic_elbo_loss])
def test_the_hyperprior_is_a_term(loss):
    """It has the weight of the KL, so that the scales stay the best ones; also of a tempered objective."""
    options = {"num_data": 50, "kl_weight": 0.3, "temperature": 0.7, "return_terms": True}
    options["num_samples"] = 2 if loss is illia_fn.predictive_loss else 1

    def explicit(q):
        scales = {name: PRIOR.fit(node.mean, node.stddev)[0] for name, node in Q.items()}
        return loss(ARGS[0], q, *ARGS[2:], prior=scales, **options)[0]

    @jax.jit
    def every(q):
        run = partial(loss, ARGS[0], prior=PRIOR, **options)
        if loss is illia_fn.elbo_loss:  # the others have the term from the same place
            slopes = jax.grad(lambda q: run(q, *ARGS[2:])[0])(q), jax.grad(explicit)(q)
        else:
            slopes = None
        parts = [through(node, 4.4798, 10.0) for node in q.values()]
        sums = [sum(terms) for terms in zip(*parts, strict=True)]
        return run(q, *ARGS[2:]), slopes, sums, sum(node.entropy() for node in q.values())

    (value, terms), slopes, (kl, hyperprior), entropy = every(Q)
    assert value == terms.nll + terms.weight * terms.kl + terms.weight * terms.hyperprior == terms.loss
    np.testing.assert_allclose(terms.hyperprior, hyperprior, rtol=1e-6)
    np.testing.assert_allclose(terms.kl, kl + 0.3 * entropy, rtol=1e-5)
    if slopes is not None:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *slopes)


def test_other_objectives_have_no_such_term():
    run = partial(illia_fn.elbo_loss, ARGS[0], num_data=50, return_terms=True)
    assert jax.eval_shape(run, *ARGS[1:])[1].hyperprior is None


def test_a_tree_of_priors_of_one_node():
    """A node over a subtree is one group, or with a tree of priors a group for each of its arrays."""
    from illia_fn.kl._priors import fitted

    class Node(illia_fn.Posterior):
        mean = PARAMS
        stddev = jax.tree.map(lambda w: array(np.full_like(w, 0.3)), PARAMS)
        reparameterise = log_prob = entropy = None

    whole, (of_whole,) = fitted(Node(), PRIOR)
    squares = sum(np.sum(np.square(w) + 0.09) for w in PARAMS.values())
    np.testing.assert_allclose(whole.scale**2, (squares + 20.0) / (16 + 2 * 4.4798 + 2), rtol=1e-6)
    each, some = fitted(Node(), {"a": PRIOR, "b": Normal(0.0, 2.0)})
    np.testing.assert_allclose(each["a"].scale, PRIOR.fit(PARAMS["a"], Node.stddev["a"])[0].scale)
    assert (each["b"].scale, len(some)) == (2.0, 1)
    assert of_whole != some[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_are_wide(dtype):
    q = Gaussian(array(np.full(70_000, 0.5), dtype), array(np.full(70_000, -30.0), dtype))
    normal, _ = EmpiricalBayes(1.0, 1e-6).fit(q.mean, q.stddev)
    np.testing.assert_allclose(normal.scale, 0.5, rtol=1e-4)
    assert kl_loss(q, PRIOR).dtype == jnp.float32


def test_the_doubly_reparameterised_gradient_has_the_same_mean():
    def grads(key, estimator):
        options = {"prior": PRIOR, "num_data": 5, "estimator": estimator}
        return jax.grad(lambda q: illia_fn.elbo_loss(ARGS[0], q, X, Y, key, **options))(Q)["b"]

    names = "reparameterised", "doubly_reparameterised"
    both = jax.jit(jax.vmap(lambda key: [grads(key, name) for name in names]))
    plain, doubly = both(jax.random.split(jax.random.key(1), 6000))  # of the same draws
    for a, b in ((plain.loc, doubly.loc), (plain.rho, doubly.rho)):
        difference = np.asarray(a) - np.asarray(b)
        error = difference.std(axis=0) / np.sqrt(6000)
        np.testing.assert_array_less(np.abs(difference.mean(axis=0)), 5 * error + 1e-7)
        assert (error < 0.01).all()


def test_groups_are_those_of_the_tree_of_priors():
    """Whether two arrays have one prior is a matter of the tree, and not of the objects in it: jit makes new ones."""
    q = illia_fn.LowRank(PARAMS, normal(0, 16), normal(1, 16, 1))
    compiled, by_group = jax.jit(partial(kl_loss, reduction="sum")), []
    for prior in (PRIOR, {"a": PRIOR, "b": PRIOR}):
        eager = kl_loss(q, prior, reduction="sum")
        np.testing.assert_allclose(compiled(q, prior), eager, rtol=1e-6)
        by_group.append(float(eager))
    assert by_group[0] != by_group[1]


def test_what_looks_at_q_takes_it():
    assert illia_fn.summary(Q, PRIOR).leaves[0].kl == pytest.approx(float(kl_tree(Q, PRIOR)["a"]), rel=1e-5)
    report = illia_fn.check_setup(*ARGS, num_data=50, prior=PRIOR)
    assert not any("must" in finding.problem for finding in report.findings)


FITTED = "priors.EmpiricalBayes is fitted to q"
REFUSALS = {
    "iwae_loss": {"num_data": 50},
    "renyi_loss": {"num_data": 50, "alpha": 0.5},
    "cubo_loss": {"num_data": 50},
    "f_divergence_loss": {"num_data": 50, "generator": illia_fn.divergences.kl_forward},
    "pac_bayes_loss": {"num_data": 50},
    "pac_bayes_certificate": {},
    "elbo_loss": {"num_data": 50, "free_nats": 1.0},
    "predictive_loss": {"num_data": 50, "free_nats": 1.0},
}


@pytest.mark.parametrize("name", REFUSALS)
def test_where_the_scale_would_be_the_wrong_one_it_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: {FITTED}, and .* Take a fixed prior"):
        getattr(illia_fn, name)(*ARGS, 2, prior={"a": Normal(0.0, 1.0), "b": PRIOR}, **REFUSALS[name])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: EmpiricalBayes(), TypeError, "concentration"),  # there is no default
        (lambda: EmpiricalBayes(0.0, 1.0), ValueError, "EmpiricalBayes: concentration must be positive and finite"),
        (lambda: EmpiricalBayes(1.0, -1.0), ValueError, "EmpiricalBayes: rate must be positive and finite"),
        (lambda: EmpiricalBayes(jnp.ones(2), 1.0), ValueError, "EmpiricalBayes: concentration must be a number"),
        (lambda: kl_divergence(Normal(0.0, 1.0), PRIOR), TypeError, "kl_divergence: q must be a posterior node"),
        (lambda: illia_fn.natural_gradient(0.1, num_data=9, prior=PRIOR), ValueError, "prior must be one Normal"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
