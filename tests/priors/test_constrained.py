"""Priors of positive and bounded parameters: the change of variables against numpyro's, and at both ends."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro.distributions as dist
import pytest
from families import array
from hundred_digits import assert_exact

import illia_fn
from illia_fn.priors import Constrained, ScaleMixture, constrained

T = {
    "positive": dist.transforms.ExpTransform(),
    "softplus": dist.transforms.SoftplusTransform(),
    (0.0, 1.0): dist.transforms.SigmoidTransform(),
    (-1.0, 3.0): dist.transforms.ComposeTransform(
        [dist.transforms.SigmoidTransform(), dist.transforms.AffineTransform(-1.0, 4.0)]
    ),
}
CASES = {  # built anew in each test: some keep arrays of the dtype in which they were first used
    "LogNormal": (lambda: dist.LogNormal(0.3, 0.7), "positive"),
    "HalfNormal": (lambda: dist.HalfNormal(2.0), "positive"),
    "HalfCauchy": (lambda: dist.HalfCauchy(0.5), "positive"),
    "Gamma": (lambda: dist.Gamma(2.0, 3.0), "positive"),
    "Chi2": (lambda: dist.Chi2(3.0), "positive"),
    "Exponential": (lambda: dist.Exponential(2.0), "positive"),
    "InverseGamma": (lambda: dist.InverseGamma(2.0, 0.5), "positive"),
    "Weibull": (lambda: dist.Weibull(1.5, 0.7), "positive"),
    "LeftTruncatedDistribution": (
        lambda: dist.LeftTruncatedDistribution(dist.StudentT(3.0), 0.0),
        "positive",
    ),  # evaluated at exp(u)
    "Gamma of softplus": (lambda: dist.Gamma(2.0, 3.0), "softplus"),
    "HalfNormal of softplus": (lambda: dist.HalfNormal(2.0), "softplus"),
    "Beta": (lambda: dist.Beta(2.0, 0.5), (0.0, 1.0)),
    "Uniform": (lambda: dist.Uniform(-1.0, 3.0), (-1.0, 3.0)),
    "TwoSidedTruncatedDistribution": (
        lambda: dist.TwoSidedTruncatedDistribution(dist.Normal(0.0, 1.0), -1.0, 3.0),
        (-1.0, 3.0),
    ),  # evaluated at T(u)
}


FAR = np.float32([-3e38, -1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 1e4, 3e38])


@pytest.mark.promotes
@pytest.mark.parametrize("name", CASES)
def test_it_is_numpyros_change_of_variables_and_far_out_nothing_is_nan(name):
    """Values, gradients and T itself, over the range where numpyro is right."""
    law, to = CASES[name]
    u = np.linspace(-5.0, 4.0, 25)
    with jax.enable_x64(True):
        oracle = dist.TransformedDistribution(law(), T[to].inv)
        theirs = jax.jit(jax.vmap(lambda u: (*jax.value_and_grad(oracle.log_prob)(u), T[to](u))))
        expected, slopes, w = jax.tree.map(np.asarray, theirs(u))
    prior = constrained(law(), to)
    ours = jax.jit(jax.vmap(lambda u: (*jax.value_and_grad(prior.log_prob)(u), prior.forward(u))))
    values, gradients, forward = map(np.asarray, ours(np.concatenate([np.float32(u), FAR])))
    np.testing.assert_allclose(values[:25], expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(gradients[:25], slopes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forward[:25], w, rtol=1e-6, atol=1e-6)
    assert not np.isnan(values).any()
    assert not np.isnan(gradients).any()
    assert (values < 50.0).all()


LOG_LAWS = {  # by the logarithm of w, where w itself is 0 or infinite
    "HalfCauchy": (
        dist.HalfCauchy,
        "positive",
        lambda u, s: mp.log(2 / mp.pi / s) + u - mp.log(1 + (mp.exp(u) / s) ** 2),
    ),
    "HalfNormal": (
        dist.HalfNormal,
        "positive",
        lambda u, s: mp.log(2 / mp.pi) / 2 - mp.log(s) + u - (mp.exp(u) / s) ** 2 / 2,
    ),
    "InverseGamma": (
        lambda s: dist.InverseGamma(2.0, s),
        "positive",
        lambda u, s: 2 * mp.log(s) - 2 * u - s * mp.exp(-u),
    ),
    "Beta": (
        lambda s: dist.Beta(s, 2.0),
        (0.0, 1.0),
        lambda u, s: s * u - (s + 2) * mp.log(1 + mp.exp(u)) - mp.log(mp.beta(s, 2)),
    ),
}


@pytest.mark.promotes
@pytest.mark.optimised
@pytest.mark.parametrize("name", LOG_LAWS)
def test_both_ends_against_a_hundred_digits(name):
    law, to, oracle = LOG_LAWS[name]
    ends = (-60.0, 3.0, 40.0) if name == "InverseGamma" else (-500.0, -90.0, 3.0, 40.0)
    points = [(u, s) for u in (*ends, *(() if name in ("HalfNormal",) else (90.0, 500.0))) for s in (0.3, 20.0)]
    natural = {0: lambda u, s: 1 + abs(u), 2: lambda u, s: 1 + 1 / s}
    f = lambda u, s: constrained(law(s), to).log_prob(u)  # noqa: E731
    assert_exact(f, oracle, points, np.float32, places=8, natural=natural)


def test_a_joint_density():
    """A Dirichlet's cousin: independent gammas as an event."""

    @jax.jit
    def both(u):
        whole = constrained(dist.Gamma(2.0, jnp.ones(3)).to_event(1), "softplus")
        return whole.log_prob(u), constrained(dist.Gamma(2.0, 1.0), "softplus").log_prob(u)

    with jax.numpy_rank_promotion("allow"):
        whole, each = both(np.float32([0.1, -0.4, 2.0]))
    assert (whole.shape, each.shape) == ((), (3,))
    np.testing.assert_allclose(whole, np.sum(np.asarray(each)), rtol=1e-6)


def test_forward_keeps_to_its_range_and_dtype():
    beta = constrained(dist.Beta(1.0, 1.0), (0.0, 1.0))
    assert jax.eval_shape(beta.forward, jax.ShapeDtypeStruct((), jnp.bfloat16)).dtype == jnp.bfloat16
    ours = constrained(dist.Uniform(0.1, 0.7), (0.1, 0.7))
    u = np.linspace(-120.0, 120.0, 999, dtype=np.float32)
    w, slope = jax.jit(lambda u: (ours.forward(u), jax.grad(ours.forward)(0.0)))(u)
    assert np.min(np.asarray(w)) >= np.float32(0.1)
    assert np.max(np.asarray(w)) <= np.float32(0.7)
    np.testing.assert_allclose(slope, 0.15, rtol=1e-6)  # a quarter of the width


def test_a_conjugate_posterior():
    """A Poisson rate with a gamma prior: q on log(rate) against the exact posterior, Gamma(a + sum y, b + n).

    The optimum over Gaussians of KL(q || posterior) is known in closed form here: with t = log(rate) and posterior
    Gamma(A, B) it has v = 1 / A and mean log(A / B) - v / 2, as its terms in the mean and in v part.
    """
    a, b = 2.0, 1.0
    y = np.float32([3.0, 5.0, 4.0, 2.0])
    prior = constrained(dist.Gamma(a, b), to="positive")
    exact = dist.Gamma(a + float(y.sum()), b + len(y))

    def elbo(q):
        """In closed form: E log p(y | rate) of a Poisson takes E u and E exp(u)."""
        mean_rate = jnp.exp(q["u"].loc + 0.5 * q["u"].scale ** 2)
        return illia_fn.kl_loss(q, prior, reduction="sum") - (y.sum() * q["u"].loc - len(y) * mean_rate)

    q = {"u": illia_fn.Gaussian(array(0.0), array(0.0))}
    big_a, big_b = float(exact.concentration), float(exact.rate)
    scale = 1 / np.sqrt(big_a)
    loc = np.log(big_a / big_b) - 0.5 / big_a
    best = {"u": illia_fn.Gaussian(array(loc), array(np.log(np.expm1(scale))))}
    value_and_slopes = jax.jit(jax.value_and_grad(elbo))
    least, slopes = value_and_slopes(best)
    for leaf in jax.tree.leaves(slopes):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-5)
    assert least < value_and_slopes(q)[0]


def test_in_a_tree_of_priors_learned_and_saved():
    q = {name: illia_fn.Gaussian(array(np.zeros(n)), array(np.full(n, -2.0))) for name, n in (("rate", 2), ("w", 3))}

    def loss(q, scale):
        prior = {"rate": constrained(dist.HalfNormal(scale), "positive"), "w": illia_fn.Normal(0.0, 1.0)}
        return illia_fn.kl_loss(q, prior, reduction="sum")

    slope = jax.grad(loss, 1)(q, np.float32(2.0))
    compiled = jax.jit(jax.value_and_grad(loss, 1))
    np.testing.assert_allclose(slope, compiled(q, np.float32(2.0))[1], rtol=1e-6)
    steps = [compiled(q, np.float32(2.0 + h))[0] for h in (1e-2, -1e-2)]
    np.testing.assert_allclose(slope, (steps[0] - steps[1]) / 2e-2, rtol=1e-3)
    prior = constrained(dist.HalfNormal(2.0), "positive")
    leaves, structure = jax.tree.flatten(prior)
    again = structure.unflatten(leaves)
    assert isinstance(again, Constrained)
    np.testing.assert_allclose(again.log_prob(0.3), prior.log_prob(0.3))


REFUSED = {
    "real": (dist.Gamma(1.0, 1.0), "real", 'to must be "positive", "softplus", or bounds'),
    "no width": (dist.Gamma(1.0, 1.0), (1.0, 0.0), "to must be .* got .1.0, 0.0."),
    "half a line": (dist.Gamma(1.0, 1.0), (0.0, np.inf), "to must be"),
    "ours": (illia_fn.Normal(0.0, 1.0), "positive", "Normal has mass outside of 'positive'"),
    "its mixture": (ScaleMixture(0.5, 1.0, 0.1), "positive", "ScaleMixture has mass outside"),
    "a Normal": (dist.Normal(0.0, 1.0), (0.0, 1.0), r"Normal has mass outside of \(0.0, 1.0\)"),
    "a Cauchy": (dist.Cauchy(0.0, 1.0), "softplus", "Cauchy has mass outside of 'softplus'"),
    "beyond": (dist.Uniform(0.0, 2.0), (0.0, 1.0), r"Uniform has mass outside of \(0.0, 1.0\)"),
    "within": (dist.Uniform(0.0, 1.0), (0.0, 2.0), "Uniform has no density on a part of"),
    "a share": (dist.Beta(1.0, 1.0), "positive", "Beta has no density on a part of 'positive'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_prior_of_another_support_is_refused(name):
    prior, to, match = REFUSED[name]
    with pytest.raises(ValueError, match=f"constrained: .*{match}"):
        constrained(prior, to)


@pytest.mark.promotes
def test_other_bad_input():
    q, key = illia_fn.Gaussian(array(np.ones((2, 3))), array(np.ones((2, 3)))), jax.random.key(0)
    with pytest.raises(TypeError, match=r"constrained: prior must have a log_prob.*got 1\.0"):
        constrained(1.0, "positive")
    with pytest.raises(ValueError, match=r"no density on part of the real line.*priors\.constrained\(prior, to="):
        illia_fn.kl_loss(q, dist.Gamma(1.0, 1.0), key=key)
    with pytest.raises(ValueError, match="pass key="):
        illia_fn.kl_loss(q, constrained(dist.HalfCauchy(1.0), "positive"))
    with pytest.raises(ValueError, match=r"prior parameter of shape \(3,\)"):
        illia_fn.kl_loss(q, constrained(dist.Gamma(array(np.ones(3)), 1.0), "softplus"), key=key)


@pytest.mark.promotes
def test_the_shape_of_a_prior_counts():
    """As in a Uniform, whose law of u has no parameters."""
    key, zeros, ones = jax.random.key(0), *(array(np.full(3, x)) for x in (0.0, 1.0))
    one_more = array(np.zeros(4))
    for prior in (dist.Uniform(zeros, ones), dist.Beta(ones, 1.0)):
        ours = constrained(prior, (0.0, 1.0))
        with pytest.raises(ValueError, match=r"prior parameter of shape \(3,\) does not go with .* shape \(4,\)"):
            illia_fn.kl_loss(illia_fn.Gaussian(one_more, one_more), ours, key=key)
        kl = jax.jit(lambda q, ours=ours: illia_fn.kl_loss(q, ours, key=key))
        assert np.isfinite(kl(illia_fn.Gaussian(zeros, zeros)))
    uniform = constrained(dist.Uniform(0.0, 1.0), (0.0, 1.0))
    both = jax.jit(lambda u: (ours.log_prob(u), uniform.log_prob(u)))
    np.testing.assert_allclose(*both(np.linspace(-3.0, 3.0, 3, dtype=np.float32)), rtol=1e-6)
