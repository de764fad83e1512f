"""Priors of other libraries with a closed form here, and priors of exp(u), against a hundred digits and quadrature."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from families import array, softplus
from hundred_digits import DTYPES, assert_exact
from scipy import stats

import illia_fn
from illia_fn import Gaussian, Normal, kl_divergence, kl_loss, kl_tree
from illia_fn.kl.laplace import mean_magnitude
from illia_fn.priors import constrained
from illia_fn.priors._transformed import ExpGamma

RHO = np.log(np.expm1(0.2))
Q = {
    name: Gaussian(array(loc), array(np.full(np.shape(loc), RHO)))
    for name, loc in (("a", np.full((2, 3), 0.3)), ("b", [0.1, -2.0]))
}


def stand_in(module, name, **fields):
    """A type that looks like one of a library which is not installed with these tests."""
    cls = type(name, (), {"__module__": module, "log_prob": lambda self, w: 1 / 0})
    node = cls()
    node.__dict__ |= fields
    return node


TFP = "tensorflow_probability.substrates.jax.distributions"
SCALE = np.array([0.5, 2.0], np.float32)
NORMALS = {
    "numpyro": dist.Normal(0.1, 0.5),
    "integers": dist.Normal(0, 2),
    "distrax": stand_in("distrax._src.distributions.normal", "Normal", loc=jnp.float32(0.1), scale=jnp.float32(0.5)),
    "tfp": stand_in(f"{TFP}.normal", "Normal", loc=jnp.float32(0.1), scale=jnp.float32(0.5)),
    "a tree": {"a": dist.Normal(0.1, 0.5).expand((2, 3)), "b": dist.Normal(0.1, SCALE)},
    "events": {"a": dist.Normal(0.1, 0.5).expand((2, 3)).to_event(2), "b": dist.Normal(0.1, SCALE).to_event(1)},
    "independent of tfp": {
        "a": Normal(0.0, 1.0),
        "b": stand_in(
            f"{TFP}.independent",
            "Independent",
            distribution=stand_in(f"{TFP}.normal", "Normal", loc=jnp.float32(0.1), scale=jnp.asarray(SCALE)),
            batch_shape=(),
            event_shape=(2,),
        ),
    },
}


def ours(p):
    """The same prior, built here."""
    if isinstance(p, Normal):
        return p
    while hasattr(p, "base_dist") or hasattr(p, "distribution"):
        p = p.base_dist if hasattr(p, "base_dist") else p.distribution
    return Normal(p.loc, p.scale)


@pytest.mark.promotes
@pytest.mark.parametrize("name", NORMALS)
def test_a_normal_of_another_library_is_exact(name):
    prior = NORMALS[name]
    expected = jax.tree.map(ours, prior, is_leaf=lambda p: hasattr(type(p), "log_prob"))

    @jax.jit
    def told(q):
        both = [jax.value_and_grad(lambda q, p=p: kl_loss(q, p, reduction="sum"))(q) for p in (prior, expected)]
        return both, sum(kl_tree(q, prior).values())

    ((value, grads), (right, slopes)), of_leaves = told(Q)
    np.testing.assert_allclose(value, right, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), grads, slopes)
    np.testing.assert_allclose(of_leaves, right, rtol=1e-6)


def test_it_is_exact_in_every_place_that_takes_a_prior():
    """Its parameters are learned and mapped, a bound takes it, and so does the natural gradient."""
    kinds = dist.Normal, Normal
    slopes = jax.jit(lambda s: [jax.grad(lambda s, p=p: kl_loss(Q, p(0.0, s)))(s) for p in kinds])(0.5)
    np.testing.assert_allclose(*slopes, rtol=1e-6)
    each = jax.jit(jax.vmap(lambda s: [kl_divergence(Q["a"], p(0.0, s)) for p in kinds]))(SCALE)
    np.testing.assert_allclose(*each, rtol=1e-6)
    q = {"w": Gaussian(array(np.zeros((3, 2))), array(np.full((3, 2), RHO)))}
    data = np.ones((5, 3), np.float32), np.array([0, 1, 0, 1, 1]), jax.random.key(0), 2
    losses = illia_fn.pac_bayes_loss, illia_fn.iwae_loss

    @jax.jit
    def told(q, prior):
        options = {"num_data": 10, "prior": prior, "chunk_size": None}
        return [loss(lambda w, x: x @ w["w"], q, *data, **options) for loss in losses]

    np.testing.assert_allclose(*[told(q, p(0.0, 1.0)) for p in kinds], rtol=1e-6)
    grads = jax.tree.map(np.ones_like, q)
    rules = [illia_fn.natural_gradient(0.1, num_data=10, prior=p(0.0, 1.0), inner=optax.identity()) for p in kinds]
    updates = jax.jit(lambda q, grads: [rule.update(grads, rule.init(q), q)[0] for rule in rules])(q, grads)
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_a_class_of_that_name_elsewhere_is_sampled():
    own = stand_in("my.own", "Normal", loc=0.0, scale=1.0)
    with pytest.raises(ValueError, match=r"KL\(Gaussian \|\| my.own.Normal\) has no closed form"):
        kl_loss(Q, own)


# --- Laplace ----------------------------------------------------------------------------------------------------------


def magnitude(m, s):
    z = m / s
    return s * mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-(z**2) / 2) + m * mpmath.erf(z / mpmath.sqrt(2))


@DTYPES
def test_the_mean_magnitude_against_a_hundred_digits(dtype):
    points = [(m * s, s) for s in (1e-20, 0.3, 1e15) for m in (1e-6, 0.1, -1.0, 3.0, 8.0, -100.0)]
    assert_exact(mean_magnitude, magnitude, points, dtype, places=20, natural={2: lambda m, s: (m / s) ** 2 * 1e-3})


@pytest.mark.promotes
def test_laplace_against_quadrature():
    """Of numpyro: expanded, an event, an array. The densities are numpyro's."""
    q = Gaussian(array([0.3, -1.0]), array([-1.0, 0.5]))
    q_scale = softplus(q.rho)
    w = np.linspace(-12, 12, 200_001)[:, None] * q_scale + np.asarray(q.loc)
    log_q = stats.norm(np.asarray(q.loc), q_scale).logpdf(w)
    kl = jax.jit(kl_divergence)
    scale = np.array([0.5, 2.0], np.float32)
    for prior in (dist.Laplace(0.1, 0.7), dist.Laplace(0.1, scale), dist.Laplace(0.1, 0.7).expand((2,)).to_event(1)):
        base = prior.base_dist.base_dist if prior.event_shape else prior
        terms = np.exp(log_q) * (log_q - np.asarray(base.log_prob(w), np.float64))
        exact = sum(np.trapezoid(terms[:, i], w[:, i]) for i in range(2))
        np.testing.assert_allclose(kl(q, prior), exact, rtol=2e-5)


kl_and_slopes = jax.jit(jax.value_and_grad(kl_divergence))


@pytest.mark.parametrize("rho", [-1e4, -200.0, -80.0, 80.0])
def test_laplace_at_the_ends(rho):
    """A scale that underflows leaves |m| / b and -log(scale); one that is large leaves E|w| / b."""
    q, p = Gaussian(array([0.0, 1e-3]), array(np.full(2, rho))), dist.Laplace(0.0, 0.5)
    value, grads = kl_and_slopes(q, p)
    spread = 2 * np.sqrt(2 / np.pi) * max(rho, 0.0)
    log_scale = np.log(rho) if rho > 0 else rho
    exact = 2 * (2 * spread / 2 - log_scale - 0.5 * np.log(2 * np.pi * np.e)) + 2e-3 * (rho < 0)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(grads.loc, [0.0, 2.0 if rho < 0 else 2e-3 * np.sqrt(2 / np.pi) / rho], rtol=1e-3)
    np.testing.assert_allclose(grads.rho, [spread / rho - 1 / rho] * 2 if rho > 0 else [-1.0, -1.0], rtol=1e-5)


# --- the law of log(w) ------------------------------------------------------------------------------------------------


def exp_gamma_kl(loc, log_scale, a, log_rate, k):
    """The textbook form: entropy and moments of a Gaussian."""
    mean, variance = k * loc + log_rate, (k * mpmath.exp(log_scale)) ** 2
    entropy = log_scale + mpmath.log(2 * mpmath.pi * mpmath.e) / 2
    cross = mpmath.log(abs(k)) + a * mean - mpmath.exp(mean + variance / 2) - mpmath.loggamma(a)
    return -entropy - cross


@DTYPES
def test_laws_of_the_logarithm_against_a_hundred_digits(dtype):
    """Down to a divergence of 1e-5 nats: a gamma of a large concentration, and the Gaussian that is nearest."""

    def kl(loc, log_scale, a, log_rate, k):
        scale = jnp.exp(log_scale)
        return kl_divergence(Gaussian(loc, scale + jnp.log(-jnp.expm1(-scale))), ExpGamma(a, log_rate, k))

    near = [(np.log(a) - 0.5 / a, -0.5 * np.log(a), a, 0.0, 1.0) for a in (1e2, 1e4)]
    points = [(0.3, -1.0, 0.5, -0.7, 2.0), (-2.0, 0.3, 3.0, 1.0, -1.0), (5.0, -8.0, 0.01, 0.5, 0.7), *near]
    # t and log(a) are rounded before they are compared
    natural = {0: lambda *_: 1.0} | dict.fromkeys(range(1, 6), lambda m, s, a, r, k: 1 / a + 3 * a * abs(np.log(a)))
    assert_exact(kl, exp_gamma_kl, points, dtype, places=10, natural=natural)


LAWS = {
    "gamma": dist.Gamma(2.5, 3.0),
    "exponential": dist.Exponential(0.5),
    "inverse gamma": dist.InverseGamma(3.0, 2.0),
    "half-normal": dist.HalfNormal(0.7),
    "Weibull": dist.Weibull(1.5, 2.0),
    "log-normal": dist.LogNormal(0.5, 0.4),
}


@pytest.mark.promotes
@pytest.mark.parametrize("name", LAWS)
def test_priors_of_a_positive_number_are_exact(name):
    """The KL between the log-normal law of exp(u) and numpyro's, by quadrature in u."""
    law, q, scale = LAWS[name], Gaussian(array([0.2]), array([-1.0])), np.log1p(np.exp(-1.0))
    u = np.linspace(-12, 12, 20_001) * scale + 0.2
    log_q = stats.norm(0.2, scale).logpdf(u)
    log_p = np.asarray(law.log_prob(np.exp(u)), np.float64) + u
    exact = np.trapezoid(np.exp(log_q) * (log_q - log_p), u)

    @jax.jit
    def kls(q):
        forms = law, law.expand((1,)), law.expand((1,)).to_event(1)
        return [kl_loss({"u": q}, constrained(prior, to="positive")) for prior in forms]

    np.testing.assert_allclose(kls(q), [exact] * 3, rtol=2e-5)


class TensorShape(tuple):
    """That of TFP, which is true even where it is empty."""

    def __bool__(self):
        return True


def test_libraries_that_tell_no_support():
    """Names tell it; a half-Cauchy that starts elsewhere is not taken for one that starts at 0."""
    gamma = stand_in(f"{TFP}.gamma", "Gamma", concentration=2.0, rate=3.0, batch_shape=TensorShape(), event_shape=())
    for prior in (gamma, stand_in(f"{TFP}.independent", "Independent", distribution=gamma)):
        with pytest.raises(ValueError, match="has no density on part of the real line"):
            kl_loss(Q, prior, key=jax.random.key(0))
    with pytest.raises(ValueError, match="Gamma has mass outside of"):
        constrained(gamma, (0.0, 1.0))
    both = jax.jit(lambda q: [kl_loss(q, constrained(p, "positive")) for p in (gamma, dist.Gamma(2.0, 3.0))])
    np.testing.assert_allclose(*both(Q), rtol=1e-6)
    for loc, is_known in ((0.0, True), (1.0, False)):
        moved = stand_in(f"{TFP}.half_cauchy", "HalfCauchy", loc=jnp.float32(loc), scale=jnp.float32(2.0))
        assert (constrained(moved, "positive").on_the_line() is not None) == is_known


def test_a_shape_that_is_true_is_no_shape():
    node = stand_in("my.own", "Wide", batch_shape=TensorShape())
    type(node).log_prob = lambda self, w: -jnp.abs(w)
    assert np.isfinite(jax.jit(lambda q: kl_loss(q, node, key=jax.random.key(0)))(Q))
