"""The KL from a mixture: an upper bound, exact where components coincide or are far apart, or samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import array, nodes, normal
from numpyro.distributions import Laplace, StudentT
from scipy import integrate, stats

import illia_fn
from illia_fn import (
    FullCovariance,
    Gaussian,
    Mixture,
    Normal,
    kl_divergence,
    kl_is_exact,
    kl_loss,
    mean_field,
    mixture,
)

KEY = jax.random.key(0)
LOCS = {"a": np.asarray(normal(0, 2)), "b": {"c": np.asarray(normal(1, 3)), "d": np.asarray(normal(2, 3))}}
PARAMS = {"a": normal(0, 2), "b": {"c": normal(1, 3), "d": normal(2, 3)}}
Q = jax.jit(lambda params: mixture(params, 3, lambda w: mean_field(w, scale=0.5), spread=0.3, key=KEY))(PARAMS)
JOINT = FullCovariance(PARAMS, normal(3, 8, 8, scale=0.5))


def of_one_number(locs, scales):
    return Mixture(Gaussian(np.float32(locs), np.float32(np.log(np.expm1(scales)))))


def test_in_one_dimension_it_is_above_the_kl_and_below_convexity():
    x = np.linspace(-40.0, 40.0, 80_001)
    kl = lambda q: kl_divergence(q, Normal(0.5, 2.0))  # noqa: E731
    found = jax.jit(lambda q: (kl(q), jax.vmap(q.log_prob)(jnp.asarray(x, jnp.float32)), jax.vmap(kl)(q.components)))
    gaps = []
    for locs, scales in [
        ((-1.0, 1.5), (1.0, 0.5)),
        ((0.0, 0.4), (0.2, 2.0)),
        ((0.7, 0.7), (0.3, 0.3)),
        ((-15.0, 20.0), (0.5, 1.0)),
    ]:
        q = of_one_number(locs, scales)
        bound, log_q, each = found(q)
        log_q = np.asarray(log_q, np.float64)
        exact = integrate.simpson(np.exp(log_q) * (log_q - stats.norm(0.5, 2.0).logpdf(x)), x=x)
        convex = float(np.mean(each))
        assert exact - 1e-4 * abs(exact) < bound <= convex + 1e-5
        gaps.append((float(bound) - exact, convex - float(bound)))
    (_, gained), _, (coincide, none), (far, all_of_it) = gaps
    assert gained > 0.1
    np.testing.assert_allclose([coincide, none], 0.0, atol=1e-4)
    np.testing.assert_allclose([far, all_of_it], [0.0, np.log(2)], atol=3e-3)  # of 50 nats


PRIORS = {
    "one": Normal(0.2, 1.5),
    "a prefix": {"a": Normal(0.0, 1.0), "b": Normal(np.full(3, 1.0, np.float32), 3.0)},
    "a mean field": jax.tree.map(lambda x: Gaussian(array(x + 0.2), array(np.full_like(x, 0.01))), LOCS),
}


def test_it_is_above_what_draws_say_and_needs_no_key():
    kls = lambda q: {name: kl_loss(q, p, reduction="sum") for name, p in PRIORS.items()}  # noqa: E731

    def log_ratios(key):
        w = Q.sample(key)
        log_priors = {
            "one": sum(jnp.sum(PRIORS["one"].log_prob(leaf)) for leaf in jax.tree.leaves(w)),
            "a prefix": jnp.sum(Normal(0.0, 1.0).log_prob(w["a"]))
            + sum(jnp.sum(Normal(1.0, 3.0).log_prob(leaf)) for leaf in w["b"].values()),
            "a mean field": illia_fn.log_prob(PRIORS["a mean field"], w),
        }
        return jax.tree.map(lambda log_p: Q.log_prob(w) - log_p, log_priors)

    @jax.jit
    def told(q, keys):
        return (kls(q), jax.vmap(kls)(q.components), q.component_information()), jax.vmap(log_ratios)(keys)

    (found, each, information), drawn = told(Q, jax.random.split(KEY, 4000))
    for name, values in drawn.items():
        values = np.asarray(values, np.float64)
        error = values.std() / np.sqrt(len(values))
        assert values.mean() - 5 * error < found[name] < values.mean() + 0.2, name
        np.testing.assert_allclose(found[name], np.mean(each[name]) - information, rtol=1e-5)
        assert list(kl_is_exact({"q": Q}, {"q": PRIORS[name]}).values()) == [False]
    assert 0.5 < information < np.log(3) - 0.05


def test_components_that_coincide_have_the_kl_of_one():
    """To what is independent, and to a joint node."""
    ones = {name: one for name, one in nodes().items() if name != "Gaussian"}
    priors = dict.fromkeys(ones, Normal(0.5, 2.0)) | dict.fromkeys(("KTied", "Eigenbasis"), nodes(50)["FullCovariance"])
    together = {name: Mixture(jax.tree.map(lambda leaf: np.stack([leaf, leaf]), one)) for name, one in ones.items()}
    kls = jax.jit(lambda qs: {name: kl_divergence(q, priors[name]) for name, q in qs.items()})
    of_one = kls(ones)
    for name, kl in kls(together).items():
        np.testing.assert_allclose(kl, of_one[name], rtol=1e-5, err_msg=name)


@pytest.mark.promotes
def test_priors_without_a_closed_form_are_sampled_from_the_mixture():
    others = {
        "of no closed form": {"a": Normal(0.0, 1.0), "b": StudentT(4.0)},
        "joint over several nodes": JOINT,
        "another mixture": Mixture(jax.tree.map(lambda x: Gaussian(array([x, x]), wide_and_narrow(x)), LOCS)),
    }
    for p in others.values():
        with pytest.raises(ValueError, match=r"kl_loss at params: KL\(Mixture \|\| .* has no closed form here"):
            kl_loss(Q, p)

    def log_ratios(key):
        w = Q.sample(key)
        log_priors = [
            Normal(0.0, 1.0).log_prob(w["a"]).sum() + sum(StudentT(4.0).log_prob(x).sum() for x in w["b"].values()),
            JOINT.log_prob(w),
            others["another mixture"].log_prob(w),
        ]
        return [Q.log_prob(w) - log_p for log_p in log_priors]

    options = {"reduction": "sum", "key": KEY, "num_samples": 4000}

    @jax.jit
    def told(q, keys):
        of_laplace = kl_loss(q, Laplace(0.0, 1.0))  # as of a Gaussian, without a key
        kls = [kl_loss(q, p, **options) for p in others.values()], of_laplace, kl_divergence(q, q, key=KEY)
        return kls, jax.vmap(log_ratios)(keys)

    (found, of_laplace, of_itself), values = told(Q, jax.random.split(jax.random.key(1), 4000))
    assert np.isfinite(of_laplace)
    assert of_itself == 0.0
    for number, (one, some) in enumerate(zip(found, values, strict=True)):
        error = 5 * np.sqrt(2) * np.asarray(some, np.float64).std() / np.sqrt(4000)
        mean = np.mean(some)
        assert abs(one - mean) < error + 0.2 * (number == 0), number  # the entropy of the first is a bound
        assert number or one > mean - error
    with pytest.raises(ValueError, match="the prior, of type FullCovariance, must stand for what the posterior st"):
        kl_loss(Q, FullCovariance(np.ones(8, np.float32), np.eye(8, dtype=np.float32)), key=KEY)


def wide_and_narrow(x):
    return array([np.full_like(x, 0.0), np.full_like(x, -1.5)])


def test_fitted_and_tempered():
    """The best scale is of the second moments; and of any temperature the KL is -T H - E log p of one bound of H."""
    prior = illia_fn.priors.EmpiricalBayes(4.0, 10.0)
    x, y = np.ones((4, 2), np.float32), np.arange(4) % 2

    @jax.jit
    def told(q, temperature):
        fitted, hyperprior = prior.fit(q.mean["a"], q.stddev["a"])
        one = Mixture(q.components["a"])
        of_fitted = kl_loss(one, prior, reduction="sum"), kl_loss(one, fitted, reduction="sum") + hyperprior
        options = {"num_data": 4, "temperature": temperature, "prior": Normal(0.2, 1.5), "return_terms": True}
        _, terms = illia_fn.elbo_loss(lambda w, x: x * w["a"][None], q, x, y, KEY, **options)
        return of_fitted, terms.kl, kl_loss(q, Normal(0.2, 1.5), reduction="sum"), q.entropy()

    for temperature in (0.1, 3.0):
        of_fitted, tempered, kl, entropy = told(Q, temperature)
        np.testing.assert_allclose(*of_fitted, rtol=1e-5)
        np.testing.assert_allclose(tempered, kl + (1.0 - temperature) * entropy, rtol=1e-5)


def test_a_tempered_kl_that_is_sampled_is_that_of_the_mixture():
    """E_q[T log q - log p] by quadrature."""
    locs, scale = np.array([-1.0, 1.0]), float(np.log1p(np.exp(-0.2)))
    q, prior = Mixture(Gaussian(np.float32(locs), np.full(2, -0.2, np.float32))), StudentT(5.0)

    @jax.jit
    def kls(temperature):
        def kl(key):
            call = (lambda w, x: x * w), q, np.ones(1, np.float32), np.ones(1, np.float32), key
            options = {"num_data": 1, "prior": prior, "temperature": temperature, "return_terms": True}
            return illia_fn.elbo_loss(*call, **options)[1].kl

        return jax.vmap(kl)(jax.random.split(KEY, 8000))

    grid = np.linspace(-8.0, 8.0, 4001)
    density = stats.norm.pdf(grid[:, None], locs, scale).mean(axis=1)
    for temperature in (0.1, 2.0):
        values = kls(temperature)
        each = density * (temperature * np.log(density) - stats.t.logpdf(grid, 5.0))
        exact = np.sum(each) * (grid[1] - grid[0])
        assert abs(np.mean(values) - exact) < 5 * np.std(values) / np.sqrt(len(values)) + 1e-4
