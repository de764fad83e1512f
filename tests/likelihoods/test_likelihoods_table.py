"""Every likelihood against scipy.stats, crossed with jit, grad, x64 and half precision, and at both ends."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

import illia_fn as fn
_log_rise = None

RNG = np.random.default_rng(0)
B, K = 6, 4
F, RHO = RNG.normal(size=(2, B))
Y = RNG.normal(size=B)
COUNTS, LABELS = RNG.poisson(3.0, B), RNG.integers(K, size=B)
LOGITS, LOCS, RHOS = RNG.normal(size=(3, B, K))
GAPS = np.linspace(-1.0, 1.0, B * (K - 1)).reshape(B, K - 1)
SCALE = np.log1p(np.exp(RHO))


def ordinal(f, gaps, labels):
    cutpoints = np.cumsum(np.concatenate([gaps[:, :1], np.log1p(np.exp(gaps[:, 1:]))], axis=1), axis=1)
    below = special.expit(np.concatenate([cutpoints - f[:, None], np.full((len(f), 1), np.inf)], axis=1))
    return -np.log(np.diff(below, prepend=0.0, axis=1)[np.arange(len(f)), labels])


def mixture(logits, loc, rho, y):
    density = special.softmax(logits, axis=1) * stats.norm.pdf(y[:, None], loc, np.log1p(np.exp(rho)))
    return -np.log(density.sum(axis=1))


def asymmetric_laplace(y, loc, scale, quantile):
    skew = np.sqrt(quantile / (1 - quantile))
    return -stats.laplace_asymmetric.logpdf(y, skew, loc, scale / np.sqrt(quantile * (1 - quantile)))


CASES = {  # loss, outputs, targets, exact values
    "gaussian": (fn.gaussian_nll, (F, RHO), Y, -stats.norm.logpdf(Y, F, SCALE)),
    "laplace": (fn.laplace_nll, (F, RHO), Y, -stats.laplace.logpdf(Y, F, SCALE)),
    "laplace, fixed": (partial(fn.laplace_nll, scale=0.3), F, Y, -stats.laplace.logpdf(Y, F, 0.3)),
    "student t": (partial(fn.student_t_nll, df=3.5), (F, RHO), Y, -stats.t.logpdf(Y, 3.5, F, SCALE)),
    "student t, far": (partial(fn.student_t_nll, df=2.0), F, 50 * Y, -stats.t.logpdf(50 * Y, 2.0, F)),
    "quantile": (
        partial(fn.asymmetric_laplace_nll, quantile=0.9),
        (F, RHO),
        Y,
        asymmetric_laplace(Y, F, SCALE, 0.9),
    ),
    "von mises": (fn.von_mises_nll, (F, RHO), Y, -stats.vonmises.logpdf(Y, SCALE, F)),
    "mixture": (fn.mixture_density_nll, (LOGITS, LOCS, RHOS), Y, mixture(LOGITS, LOCS, RHOS, Y)),
    "bernoulli": (fn.bernoulli_nll, F, LABELS % 2, -stats.bernoulli.logpmf(LABELS % 2, special.expit(F))),
    "categorical": (
        fn.categorical_nll,
        LOGITS,
        LABELS,
        -special.log_softmax(LOGITS, axis=1)[np.arange(B), LABELS],
    ),
    "ordinal": (fn.ordinal_nll, (F, GAPS), LABELS, ordinal(F, GAPS, LABELS)),
    "poisson": (fn.poisson_nll, F, COUNTS, -stats.poisson.logpmf(COUNTS, np.exp(F))),
    "negative binomial": (
        fn.negative_binomial_nll,
        (F, RHO),
        COUNTS,
        -stats.nbinom.logpmf(COUNTS, SCALE, SCALE / (SCALE + np.exp(F))),
    ),
}
cases = pytest.mark.parametrize(("loss", "outputs", "targets", "exact"), CASES.values(), ids=CASES)


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else jnp.int32), tree)


@cases
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_against_scipy(loss, outputs, targets, exact, wrap):
    value = wrap(loss)(cast(outputs, jnp.float32), cast(targets, jnp.float32))
    assert value.shape == (B,)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=2e-5, atol=1e-6)
    halved = loss(cast(outputs, jnp.bfloat16), cast(targets, jnp.float32))
    assert halved.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = loss(cast(outputs, jnp.float64), cast(targets, jnp.float64))
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide, exact, rtol=1e-10)


@cases
def test_gradients_against_differences(loss, outputs, targets, exact):
    with jax.enable_x64(True):
        outputs, targets = cast(outputs, jnp.float64), cast(targets, jnp.float64)
        total = lambda outputs: loss(outputs, targets).sum()  # noqa: E731
        direction = jax.tree.map(jnp.cos, outputs)
        slope = jax.jvp(total, (outputs,), (direction,))[1]
        step = jax.tree.map(lambda x, d: 1e-6 * d, outputs, direction)
        ends = [total(jax.tree.map(lambda x, d: x + sign * d, outputs, step)) for sign in (1, -1)]  # noqa: B023
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


@cases
def test_as_the_loss_of_an_elbo(loss, outputs, targets, exact):
    outputs, targets = cast(outputs, jnp.float32), cast(targets, jnp.float32)
    q = fn.mean_field({"w": jnp.zeros(1)}, scale=1e-6)
    apply_fn = lambda w, x: jax.tree.map(lambda leaf: leaf + w["w"][0], x)  # noqa: E731
    value, terms = fn.elbo_loss(
        apply_fn, q, outputs, targets, jax.random.key(0), loss_fn=loss, num_data=B, return_terms=True
    )
    np.testing.assert_allclose(terms.nll, exact.mean(), rtol=1e-4)
    assert np.isfinite(value)


LOCATION_SCALE = [fn.gaussian_nll, fn.laplace_nll, fn.student_t_nll, partial(fn.asymmetric_laplace_nll, quantile=0.2)]


@pytest.mark.parametrize("loss", LOCATION_SCALE)
@pytest.mark.parametrize("rho", [-1e4, -90.0, 89.0, 1e4])
def test_any_scale_has_finite_gradients_at_the_mode(loss, rho):
    value, grads = jax.value_and_grad(lambda loc, rho: loss((loc, rho), jnp.ones(1))[0], (0, 1))(
        jnp.ones(1), jnp.full(1, rho)
    )
    assert np.isfinite(value)
    np.testing.assert_allclose(grads[1], 1 / rho if rho > 0 else 1.0, rtol=1e-5)
    assert np.isfinite(grads[0])


def finite(loss, outputs, targets):
    value, grads = jax.value_and_grad(lambda outputs: loss(outputs, targets).sum())(outputs)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    return value


def test_both_ends():
    far = jnp.array([0.0, 1e-30, 1e15, -1e30])
    np.testing.assert_allclose(
        fn.student_t_nll(far, jnp.zeros(4), df=1.0),
        [np.log(np.pi), np.log(np.pi), 30 * np.log(10) + np.log(np.pi), 60 * np.log(10) + np.log(np.pi)],
        rtol=1e-6,
    )
    finite(fn.student_t_nll, far, jnp.zeros(4))
    # log I_0(kappa) - kappa -> -log(2 pi kappa) / 2
    peaked = finite(fn.von_mises_nll, (jnp.zeros(1), jnp.full(1, 1e6)), jnp.full(1, 1e-3))
    np.testing.assert_allclose(peaked, 0.5 + 0.5 * np.log(2 * np.pi / 1e6), rtol=1e-4)
    finite(fn.von_mises_nll, (jnp.zeros(1), jnp.full(1, -80.0)), jnp.ones(1))
    for f in (-100.0, 80.0):
        finite(fn.poisson_nll, jnp.full(2, f), jnp.array([0, 7]))
        finite(fn.negative_binomial_nll, (jnp.full(2, f), jnp.full(2, -20.0)), jnp.array([0, 7]))
        finite(fn.bernoulli_nll, jnp.full(2, f), jnp.array([0, 1]))
        finite(fn.ordinal_nll, (jnp.full(3, f), jnp.broadcast_to(jnp.array([0.0, -60.0]), (3, 2))), jnp.arange(3))
        finite(fn.mixture_density_nll, (jnp.array([[f, -f]]), jnp.zeros((1, 2)), jnp.full((1, 2), -50.0)), jnp.zeros(1))


def test_negative_binomial_tends_to_poisson():
    counts = jnp.array([0, 1, 5, 40])
    expected = fn.poisson_nll(jnp.full(4, 2.0), counts)
    np.testing.assert_allclose(
        fn.negative_binomial_nll(jnp.full(4, 2.0), counts, total_count=1e12), expected, rtol=1e-5
    )


@pytest.mark.parametrize("log_r", [-200.0, -88.0, -7.0, -0.7, 2.76, 2.78, 7.0, 16.0])
def test_log_rise(log_r):
    y, r = np.array([0.0, 1.0, 7.0, 300.0]), np.exp(log_r)
    exact = [sum(np.log1p(r / k) + np.log(k) - log_r for k in range(1, int(n))) + 0.0 for n in y]
    value = _log_rise(jnp.full(4, log_r, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(value, exact, rtol=3e-5, atol=1e-5)


def test_negative_binomial_at_both_ends_of_the_total_count():
    counts = jnp.array([0, 1, 5])
    value, grads = jax.value_and_grad(lambda rho: fn.negative_binomial_nll((jnp.zeros(3), rho), counts).sum())(
        jnp.full(3, -1e4)
    )
    np.testing.assert_allclose(value, 2e4 + np.log(5), rtol=1e-5)  # p(y) -> r / y for y > 0
    np.testing.assert_allclose(grads, [0.0, -1.0, -1.0], atol=1e-5)
    for mean in (40.0, 1000.0):
        for r in (1e6, 1e12):
            exact = -stats.nbinom.logpmf(mean, r, r / (r + mean))
            value = fn.negative_binomial_nll(jnp.log(jnp.full(1, mean)), jnp.full(1, mean), total_count=r)
            np.testing.assert_allclose(value, exact, rtol=1e-4 if r == 1e6 else 1e-3)


def test_gradients_where_formulas_meet():
    slope = jax.vmap(jax.grad(lambda loc: fn.student_t_nll(loc[None], jnp.zeros(1))[0]))(jnp.array([1.99, 2.0, 2.01]))
    np.testing.assert_allclose(slope, [1.25 * 1.0, 1.25, 1.25], rtol=1e-2)
    for log_r in (np.log(np.float32(16.0)), np.float32(2.7)):
        near = jax.vmap(jax.grad(lambda x: _log_rise(x[None], jnp.array([7.0]))[0]))(
            jnp.float32(log_r) + jnp.array([-1e-3, 0.0, 1e-3], jnp.float32)
        )
        np.testing.assert_allclose(near, near[0], rtol=1e-2)
    kappa = jnp.array([30.0, 49.9, 50.1, 1e4, 1e7])
    slope = jax.vmap(jax.grad(lambda k: fn.von_mises_nll(jnp.zeros(1), jnp.zeros(1), concentration=k)[0]))(kappa)
    wide = np.asarray(kappa, np.float64)
    np.testing.assert_allclose(slope, special.i1e(wide) / special.i0e(wide) - 1.0, rtol=1e-3)
    gap = jnp.array([-200.0, -100.0, -7.5, -6.5])
    value, slope = jax.vmap(
        jax.value_and_grad(lambda g: fn.ordinal_nll((jnp.zeros(1), jnp.array([[0.0, g]])), jnp.array([1]))[0])
    )(gap)
    width = np.log1p(np.exp(np.asarray(gap, float)))
    np.testing.assert_allclose(value, np.log(4.0) - np.log(width), atol=1e-3)  # a quarter of a small width
    np.testing.assert_allclose(slope, -1.0, rtol=1e-2)
    finite(fn.mixture_density_nll, (jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.full((1, 2), -50.0)), jnp.ones(1))


def test_optax_is_what_the_thin_ones_call():
    logits, labels = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    np.testing.assert_array_equal(
        fn.categorical_nll(logits, labels), optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    )


ERRORS = {
    "counts": (
        fn.poisson_nll,
        jnp.zeros(2),
        np.array([0.5, 1.0]),
        ValueError,
        "poisson_nll: targets must be counts.*0.5",
    ),
    "negative counts": (fn.negative_binomial_nll, jnp.zeros(1), np.array([-1]), ValueError, "must be counts"),
    "a probability": (fn.bernoulli_nll, jnp.zeros(1), np.array([1.5]), ValueError, r"must be in \[0, 1\], got 1.5"),
    "a nan": (fn.bernoulli_nll, jnp.zeros(1), np.array([np.nan]), ValueError, "got nan"),
    "a class": (fn.categorical_nll, jnp.zeros((1, 3)), np.array([3]), ValueError, "classes from 0 to 2, got 3 to 3"),
    "float classes": (fn.categorical_nll, jnp.zeros((1, 3)), np.array([1.0]), TypeError, "must be integers"),
    "shapes": (fn.poisson_nll, jnp.zeros((2, 1)), np.array([0, 1]), ValueError, r"\(2, 1\) and \(2,\)"),
    "gaps": (
        fn.ordinal_nll,
        (jnp.zeros(2), jnp.zeros(3)),
        np.array([0, 1]),
        ValueError,
        "gaps must have the shape of f",
    ),
    "an ordinal class": (fn.ordinal_nll, (jnp.zeros(1), jnp.zeros((1, 2))), np.array([3]), ValueError, "from 0 to 2"),
    "a pair": (fn.ordinal_nll, jnp.zeros(2), np.array([0, 1]), ValueError, "must be a pair"),
    "three": (fn.mixture_density_nll, jnp.zeros(2), jnp.zeros(2), ValueError, "must be .logits, loc, rho."),
    "mixture shapes": (fn.mixture_density_nll, (jnp.zeros((2, 3)),) * 3, jnp.zeros((2, 1)), ValueError, "same shape"),
    "df": (partial(fn.student_t_nll, df=0.0), jnp.zeros(1), jnp.zeros(1), ValueError, "df must be a positive number"),
    "quantile": (
        partial(fn.asymmetric_laplace_nll, quantile=1.0),
        jnp.zeros(1),
        jnp.zeros(1),
        ValueError,
        r"quantile must be a number in \(0, 1\), got 1.0",
    ),
    "total_count": (
        partial(fn.negative_binomial_nll, total_count=0.0),
        jnp.zeros(1),
        np.ones(1),
        ValueError,
        "total_count",
    ),
    "twice": (partial(fn.laplace_nll, scale=1.0), (jnp.zeros(1),) * 2, jnp.zeros(1), ValueError, "given as well"),
    "scale shape": (
        partial(fn.laplace_nll, scale=np.ones(3)),
        jnp.zeros(2),
        jnp.zeros(2),
        ValueError,
        "scale must have the shape of loc",
    ),
}


@pytest.mark.parametrize(("loss", "outputs", "targets", "error", "match"), ERRORS.values(), ids=ERRORS)
def test_errors(loss, outputs, targets, error, match):
    with pytest.raises(error, match=match):
        loss(outputs, targets)


def test_a_label_that_is_no_class_is_nan_under_jit():
    """optax takes -1 for the last class."""
    logits = jnp.zeros((3, 4))
    for wrong in (-1, 4):
        labels = jnp.array([0, wrong, 3])
        nll = jax.jit(fn.categorical_nll)(logits, labels)
        np.testing.assert_array_equal(np.isnan(nll), [False, True, False])
        slope = jax.jit(jax.grad(lambda logits, labels: fn.categorical_nll(logits, labels).sum()))(logits, labels)
        np.testing.assert_array_equal(np.isnan(slope[:, 0]), [False, True, False])
        nll = jax.jit(fn.ordinal_nll)((logits[:, 0], logits[:, 1:]), labels)
        np.testing.assert_array_equal(np.isnan(nll), [False, True, False])
