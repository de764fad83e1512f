"""Every likelihood against scipy.stats, crossed with jit, x64 and half precision; at both ends; its errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

import illia_fn as fn
from illia_fn.objectives import DataTerm

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
    return jax.tree.map(lambda x: np.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else jnp.int32), tree)


@cases
def test_against_scipy(loss, outputs, targets, exact):
    both = jax.jit(lambda every, targets: [loss(outputs, targets) for outputs in every])
    value, halved = both([cast(outputs, dtype) for dtype in (jnp.float32, jnp.bfloat16)], cast(targets, jnp.float32))
    assert value.shape == (B,)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=2e-5, atol=1e-6)
    assert halved.dtype == jnp.float32
    np.testing.assert_allclose(halved, exact, rtol=0.1)
    with jax.enable_x64(True):
        with_an_axis = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), (outputs, targets))
        wide = jax.jit(loss)(*cast(with_an_axis, jnp.float64))  # it is summed
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide, exact.reshape(2, 3).sum(1), rtol=1e-10)


@pytest.mark.parametrize("name", ["gaussian", "mixture", "categorical", "poisson"])
def test_as_the_loss_of_an_objective(name):
    """Outputs of one array, two and three, and of two axes; targets that are real and that are whole numbers."""
    loss, outputs, targets, exact = CASES[name]
    outputs, targets = cast(outputs, jnp.float32), cast(targets, jnp.float32)
    data = DataTerm("elbo_loss", lambda w, x: jax.tree.map(lambda leaf: leaf + w, x), outputs, targets, loss_fn=loss)
    np.testing.assert_allclose(jax.jit(lambda w: data.losses(w)[0])(np.float32(0.0)), exact, rtol=2e-5, atol=1e-6)


LOCATION_SCALE = [fn.gaussian_nll, fn.laplace_nll, fn.student_t_nll, partial(fn.asymmetric_laplace_nll, quantile=0.2)]


@pytest.mark.parametrize("loss", LOCATION_SCALE)
def test_any_scale_has_finite_gradients_at_the_mode(loss):
    rho = jnp.array([-1e4, -90.0, 89.0, 1e4])
    one = jnp.ones(1)
    value, grads = jax.jit(jax.vmap(jax.value_and_grad(lambda loc, rho: loss((loc, rho), one)[0], (0, 1)), (None, 0)))(
        one, rho
    )
    assert np.isfinite(value).all()
    np.testing.assert_allclose(grads[1], jnp.where(rho > 0, 1 / rho, 1.0), rtol=1e-5)
    assert np.isfinite(grads[0]).all()


def finite(loss, outputs, targets):
    value, grads = jax.jit(jax.value_and_grad(lambda outputs: loss(outputs, targets).sum()))(outputs)
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
    finite(fn.von_mises_nll, (jnp.zeros(3), jnp.array([-80.0, 1e8, 1e30])), jnp.array([1.0, 1e-3, 0.0]))
    f, ends = jnp.array([-100.0, -100.0, -100.0, 80.0, 80.0, 80.0]), jnp.array([0, 1, 2, 0, 1, 2])
    finite(fn.poisson_nll, f, 7 * (ends % 2))
    finite(fn.bernoulli_nll, f, ends % 2)
    finite(fn.ordinal_nll, (f, jnp.broadcast_to(jnp.array([0.0, -60.0]), (6, 2))), ends)
    f = jnp.array([-100.0, 80.0])
    finite(fn.mixture_density_nll, (jnp.stack([f, -f], 1), jnp.zeros((2, 2)), jnp.full((2, 2), -50.0)), f - f)
    finite(fn.mixture_density_nll, (jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.full((1, 2), -50.0)), jnp.ones(1))


def test_negative_binomial_beyond_the_range_of_the_mean_and_of_the_total_count():
    """Where exp(f), exp(log r) or both leave float32, which their value and its slopes do not."""
    cases = {  # f, log r, y: value, slope by f
        (200.0, 0.0, 0): (200.0, 1.0),  # r log(1 + mean / r), by f and by log r
        (200.0, 0.0, 3): (200.0, 1.0),
        (-100.0, -200.0, 1): (200.0 + np.log1p(np.exp(-100.0)), 0.0),
        (-200.0, -100.0, 1): (200.0, -1.0),
        (-200.0, 18.0, 1): (200.0, -1.0),
        (0.0, -1e4, 5): (1e4 + np.log(5), 0.0),  # p(y) -> r / y
        (0.0, -1e4, 0): (0.0, 0.0),
        (-60.0, 18.0, 0): (np.exp(-60.0), np.exp(-60.0)),  # mean
    }
    f, rho, y = map(jnp.array, zip(*cases, strict=True))
    rho = jnp.where(rho > 1, jnp.exp(rho), jnp.where(rho == 0, np.log(np.expm1(1.0)), rho))
    nll = lambda f, rho, y: fn.negative_binomial_nll((f[None], rho[None]), y[None])[0]  # noqa: E731
    value, slopes = jax.jit(jax.vmap(jax.value_and_grad(nll, (0, 1))))(f, rho, y)
    np.testing.assert_allclose(value, [value for value, _ in cases.values()], rtol=1e-6, atol=1e-35)
    np.testing.assert_allclose(slopes[0], [slope for _, slope in cases.values()], rtol=1e-6, atol=1e-35)
    by_log_r = slopes[1][jnp.array([2, 3, 5, 6])]
    np.testing.assert_allclose(by_log_r, [-1.0, 0.0, -1.0, 0.0], atol=1e-6)


def test_negative_binomial_tends_to_poisson():
    counts = jnp.array([0, 1, 5, 40])
    expected = fn.poisson_nll(jnp.full(4, 2.0), counts)
    np.testing.assert_allclose(
        fn.negative_binomial_nll(jnp.full(4, 2.0), counts, total_count=1e12), expected, rtol=1e-6
    )


PAIRS = [fn.student_t_nll, fn.von_mises_nll, fn.negative_binomial_nll, fn.gaussian_nll]


@pytest.mark.parametrize("loss", [*PAIRS, fn.poisson_nll])
def test_second_derivatives_are_those_of_the_value(loss):
    """The slopes are formulas of their own; their derivatives are compared with their differences."""
    with jax.enable_x64(True):
        targets = jnp.array([3.0, 3.0, 0.0, 40.0])

        def total(x):
            return loss(jnp.exp(x[0]) if loss is fn.poisson_nll else (x[0], x[1]), targets).sum()

        x = np.array([[1.0, -2.0, 0.3, 3.5], [0.5, 40.0, -3.0, 5.0]])
        direction = np.cos(x)
        both = jax.jit(lambda x: jax.jvp(jax.grad(total), (x,), (direction,)))
        (above, _), (below, _), (_, curve) = [both(x + step * direction) for step in (1e-6, -1e-6, 0.0)]
        np.testing.assert_allclose(curve, (np.asarray(above) - below) / 2e-6, rtol=1e-6, atol=1e-8)


def test_of_one_class_and_of_masked_classes():
    run = jax.jit(jax.vmap(jax.value_and_grad(lambda f, y: fn.categorical_nll(f[None], y[None])[0])))
    assert [float(number) for number in map(jnp.sum, run(jnp.array([[3.0]]), jnp.array([0])))] == [0.0, 0.0]
    masked = jnp.array([[1.0, -jnp.inf, 1.0], [1.0, 1.0, -jnp.inf], [1.0, 1.0, -jnp.inf]])
    value, slopes = run(masked, jnp.array([0, 0, 2]))
    np.testing.assert_allclose(value, [np.log(2.0), np.log(2.0), np.inf], rtol=1e-6)
    np.testing.assert_allclose(slopes[:2], [[-0.5, 0.0, 0.5], [-0.5, 0.5, 0.0]], rtol=1e-6)


def test_optax_agrees():
    logits, labels = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(fn.categorical_nll(logits, labels), expected, rtol=1e-6)


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
    logits = jnp.zeros((3, 4))
    for wrong in (-1, 4):
        labels = jnp.array([0, wrong, 3])
        nll = jax.jit(fn.categorical_nll)(logits, labels)
        np.testing.assert_array_equal(np.isnan(nll), [False, True, False])
        slope = jax.jit(jax.grad(lambda logits, labels: fn.categorical_nll(logits, labels).sum()))(logits, labels)
        np.testing.assert_array_equal(np.isnan(slope[:, 0]), [False, True, False])
        nll = jax.jit(fn.ordinal_nll)((logits[:, 0], logits[:, 1:]), labels)
        np.testing.assert_array_equal(np.isnan(nll), [False, True, False])
