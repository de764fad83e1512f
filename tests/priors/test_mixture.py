"""The scale mixture against a hundred digits, where the published form underflows."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from families import array
from hundred_digits import DTYPES, assert_exact
from scipy import stats

import illia_fn
from illia_fn.priors import ScaleMixture


def log_mixture(w, pi, scale_1, scale_2):
    def density(scale):
        return mpmath.exp(-((w / scale) ** 2) / 2) / (scale * mpmath.sqrt(2 * mpmath.pi))

    return mpmath.log(pi * density(scale_1) + (1 - pi) * density(scale_2))


POINTS = [
    (w, pi, *scales)
    for w in (1e-3, 0.0123, 0.5, -3.0, 40.0, 1e4)
    for pi, *scales in ((0.25, 1.0, 2.5e-3), (0.999, 2.5e-3, 1.0), (1e-6, 0.3, 0.1), (0.5, 1e-12, 1e6))
]


@DTYPES
def test_against_a_hundred_digits(dtype):
    """The logarithms of the scales, of the size of the last term, are rounded before they are added."""
    natural = dict.fromkeys(range(5), lambda w, pi, s, t: 2.0) | {0: lambda w, pi, s, t: 40.0}
    assert_exact(lambda w, *p: ScaleMixture(*p).log_prob(w), log_mixture, POINTS, dtype, places=20, natural=natural)


def test_the_published_form_underflows_where_this_one_does_not():
    @jax.jit
    def both(w):
        density = 0.5 * jnp.exp(-0.5 * w**2) / jnp.sqrt(2 * jnp.pi)
        return jnp.log(density), ScaleMixture(0.5, 1.0, 1e-3).log_prob(w)

    published, ours = both(np.float32(15.0))
    assert published == -np.inf
    np.testing.assert_allclose(ours, np.log(0.5 / np.sqrt(2 * np.pi)) - 112.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_far_out_nothing_is_nan(dtype):
    w = array([0.0, -1e-30, 1e10, -1e20, 3e38], dtype)
    each = jax.jit(jax.vmap(jax.value_and_grad(lambda w, p: ScaleMixture(*p).log_prob(w), (0, 1)), (0, None)))
    for scales in ((1.0, 1e-30), (1e-30, 1.0), (2.0, 2.0)):
        values, gradients = each(w, tuple(map(np.float32, (0.3, *scales))))
        assert values.dtype == jnp.float32
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves((values, gradients)))


def test_equal_scales_are_one_normal_with_a_gradient_for_each():
    def log_prob(pi, a, b):
        return ScaleMixture(pi, a, b).log_prob(np.float32(0.7))

    value, slopes = jax.jit(jax.value_and_grad(log_prob, (0, 1, 2)))(0.3, 0.5, 0.5)
    normal = stats.norm(0.0, 0.5).logpdf(0.7)
    slope = 0.7**2 / 0.5**3 - 1 / 0.5
    np.testing.assert_allclose(value, normal, rtol=1e-6)
    np.testing.assert_allclose(slopes, [0.0, 0.3 * slope, 0.7 * slope], rtol=1e-5, atol=1e-6)


def test_its_kl_is_sampled_and_unbiased():
    """Against quadrature; as one object, and in a tree of priors with one for each row of a kernel."""
    rho = np.log(np.expm1(0.1))
    q = {"w": illia_fn.Gaussian(array(np.full((2, 3), 0.05)), array(np.full((2, 3), rho)))}
    prior = ScaleMixture(0.25, array([[1.0], [0.5]]), 0.01)
    with pytest.raises(ValueError, match=r"kl_loss at params\['w'\]: .*ScaleMixture.* pass key="):
        illia_fn.kl_loss(q, prior)
    w = np.linspace(-0.75, 0.85, 20_001)  # eight scales to each side
    log_q = -0.5 * ((w - 0.05) / 0.1) ** 2 - np.log(0.1 * np.sqrt(2 * np.pi))
    parts = [(0.25, 1.0), (0.25, 0.5), (0.75, 0.01)]
    wide, less_wide, narrow = (pi * stats.norm(0.0, scale).pdf(w) for pi, scale in parts)
    log_p = np.log([wide + narrow, less_wide + narrow])
    exact = 3 * sum(np.trapezoid(np.exp(log_q) * (log_q - each), w) for each in log_p)
    keys = jax.random.split(jax.random.key(0), 500)
    kl = lambda key: illia_fn.kl_loss(q, {"w": prior}, reduction="sum", key=key, num_samples=40)  # noqa: E731
    values = np.asarray(jax.jit(jax.vmap(kl))(keys))
    error = values.std() / np.sqrt(len(keys))
    assert abs(values.mean() - exact) < 5 * error < 0.02 * exact


@pytest.mark.parametrize("pi", [0.0, 1.0, -0.5, 2, np.nan])
def test_a_weight_that_leaves_one_component_is_refused(pi):
    with pytest.raises(ValueError, match=r"ScaleMixture: pi, .* between 0 and 1, got .*illia_fn\.Normal"):
        ScaleMixture(pi, 1.0, 0.1)


@pytest.mark.parametrize("scales", [(0.0, 1.0), (1.0, -1.0), (np.inf, 1.0)])
def test_bad_scales_are_refused(scales):
    with pytest.raises(
        ValueError, match=r"ScaleMixture: scale_[12], a standard deviation, must be positive and finite"
    ):
        ScaleMixture(0.5, *scales)
