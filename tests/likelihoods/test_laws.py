"""Mean, variance and draws of every likelihood: against quadrature of exp(-nll), and the laws of scipy.stats."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

import illia_fn as fn
from illia_fn.likelihoods._samplers import exponential
from illia_fn.likelihoods.table import law_of

F = np.array([-1.2, 0.0, 2.3])
RHO = np.array([-1.5, 0.2, 2.0])
SCALE = np.log1p(np.exp(RHO))
LOGITS = np.array([[0.0, 1.0, -2.0], [3.0, 0.0, 0.0], [-1.0, -1.0, 4.0]])
LOCS = np.array([[-2.0, 0.0, 2.0], [0.0, 0.1, 5.0], [1.0, -3.0, 0.5]])
RHOS = np.array([[-1.0, 0.0, 1.0], [-0.5, 2.0, 0.3], [0.0, 0.0, -1.0]])
GAPS = np.array([[-1.0, 0.5, -2.0], [-3.0, 1.0, 1.0], [0.0, -1.0, 3.0]])


def line(loc):
    """Nodes and weights on the real line about each loc, which is between two panels: piecewise Gauss-Legendre."""
    x, w = np.polynomial.legendre.leggauss(10)
    edges = np.linspace(-16.0, 16.0, 241)
    half = np.diff(edges)[:, None] / 2
    t = (edges[:-1, None] + half * (1 + x)).ravel()
    return loc[:, None] + np.sinh(t), (half * w).ravel() * np.cosh(t)


COUNTS = np.broadcast_to(np.arange(6000), (3, 6000)), 1.0
TWO, THREE, FOUR = (np.broadcast_to(np.arange(k), (3, k)) for k in (2, 3, 4))
CASES = {  # loss, outputs, (values of y, weights)
    "gaussian": (fn.gaussian_nll, (F, RHO), line(F)),
    "gaussian, one rho": (fn.gaussian_nll, (F, np.array(0.3)), line(F)),
    "gaussian, fixed": (partial(fn.gaussian_nll, scale=SCALE), F, line(F)),
    "laplace": (fn.laplace_nll, (F, RHO), line(F)),
    "student t": (partial(partial(fn.student_t_nll, df=1.0), df=7.5), (F, RHO), line(F)),
    "quantile": (partial(fn.asymmetric_laplace_nll, quantile=0.9), (F, RHO), line(F)),
    "quantile, fixed": (partial(fn.asymmetric_laplace_nll, quantile=0.25, scale=2.0), F, line(F)),
    "mixture": (fn.mixture_density_nll, (LOGITS, LOCS, RHOS), line(F)),
    "bernoulli": (fn.bernoulli_nll, F, (TWO, 1.0)),
    "ordinal": (fn.ordinal_nll, (F, GAPS), (FOUR, 1.0)),
    "poisson": (fn.poisson_nll, F, COUNTS),
    "negative binomial": (fn.negative_binomial_nll, (F, RHO), COUNTS),
    "negative binomial, fixed": (partial(fn.negative_binomial_nll, total_count=0.7), F, COUNTS),
}


def density(loss, outputs, y):
    """exp(-nll) at the values of y of each example, (B, n)."""
    every = jax.tree.map(lambda x: np.repeat(x, y.shape[1], axis=0) if np.ndim(x) else x, outputs)
    if getattr(loss, "keywords", {}).get("scale") is SCALE:
        loss = partial(loss, scale=np.repeat(SCALE, y.shape[1]))
    return np.exp(-np.asarray(jax.jit(loss)(every, y.ravel()))).reshape(y.shape)


def of_one_network(tree):
    return jax.tree.map(lambda x: np.asarray(x)[None], tree)


@pytest.mark.parametrize(("loss", "outputs", "grid"), CASES.values(), ids=CASES)
def test_moments_are_those_of_the_density(loss, outputs, grid, x64):
    y, weights = grid
    mass = weights * density(loss, outputs, y)
    np.testing.assert_allclose(mass.sum(axis=1), 1.0, rtol=1e-9)
    mean = (mass * y).sum(axis=1)
    moments = jax.jit(partial(fn.predictive_moments, loss))(of_one_network(outputs))
    assert moments.mean.dtype == jnp.float64
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(moments.variance, (mass * (y - mean[:, None]) ** 2).sum(axis=1), rtol=1e-7)
    np.testing.assert_array_equal(moments.epistemic, 0.0)


def test_one_hot_moments_of_classes(x64):
    probs = density(fn.categorical_nll, LOGITS, THREE)
    moments = jax.jit(partial(fn.predictive_moments, fn.categorical_nll))(of_one_network(LOGITS))
    np.testing.assert_allclose(moments.mean, probs, rtol=1e-12)
    np.testing.assert_allclose(moments.variance, probs * (1 - probs), rtol=1e-12)


@pytest.mark.parametrize("loss", [fn.von_mises_nll, partial(fn.von_mises_nll, concentration=SCALE)])
def test_circular_moments(loss, x64):
    outputs = (F, RHO) if loss is fn.von_mises_nll else F
    y = np.broadcast_to(np.linspace(-np.pi, np.pi, 4001)[:-1], (3, 4000))
    resultant = (density(fn.von_mises_nll, (F, RHO), y) * np.exp(1j * y)).sum(axis=1) * 2 * np.pi / 4000
    moments = jax.jit(partial(fn.predictive_moments, loss))(of_one_network(outputs))
    np.testing.assert_allclose(moments.mean, np.angle(resultant), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.variance, 1 - np.abs(resultant), rtol=1e-10)


def test_what_student_t_has_none_of():
    for df, mean, variance in ((0.9, np.nan, np.nan), (1.0, np.nan, np.nan), (1.5, 2.0, np.inf), (2.0, 2.0, np.inf)):
        moments = fn.predictive_moments(partial(fn.student_t_nll, df=df), jnp.full((1, 1), 2.0))
        np.testing.assert_array_equal([moments.mean[0], moments.variance[0]], [mean, variance])
        np.testing.assert_array_equal(moments.aleatoric[0], stats.t.stats(df, 2.0)[1])


def test_certain_classes_keep_their_variance():
    f, logits = np.float32([[-60.0, 60.0, -20.0]]), np.float32([[[50.0, 0.0, 0.0]]])
    cases = (fn.bernoulli_nll, f), (fn.categorical_nll, logits)
    of_bits, of_classes = jax.jit(lambda: [fn.predictive_moments(*case).variance for case in cases])()
    np.testing.assert_allclose(of_bits, np.exp([-60.0, -60.0, -20.0]), rtol=1e-5)
    np.testing.assert_allclose(of_classes, np.exp(-50.0) * np.array([[2.0, 1.0, 1.0]]), rtol=1e-5)


def mixture_cdf(y, b):
    return (special.softmax(LOGITS[b]) * stats.norm.cdf(y[:, None], LOCS[b], np.log1p(np.exp(RHOS[b])))).sum(axis=1)


def frozen(law, *params):
    """The cdf of example b, of the parameters that are there for each."""
    return lambda y, b: law.cdf(y, *(p if np.ndim(p) == 0 else p[b] for p in params))


def of_classes(probs):
    return lambda y, b: np.concatenate([[0.0], np.cumsum(probs[b])])[y.astype(int) + 1]


LOG_RATES = np.log([1e-2, 3.0, 9.99, 10.01, 300.0, 1e7]).astype(np.float32).astype(float)
KAPPAS = np.array([1e-8, 0.49, 0.51, 3.0, 1e3])
KAPPA_RHO = KAPPAS + np.log(-np.expm1(-KAPPAS))
NEGATIVE = np.array([[1.0, 1e-2], [5.0, 0.7], [200.0, 40.0], [1e5, 3e3]]).T
NB_RHO = NEGATIVE[1] + np.log(-np.expm1(-NEGATIVE[1]))
CUTPOINTS = np.cumsum(np.concatenate([GAPS[:, :1], np.log1p(np.exp(GAPS[:, 1:]))], axis=1), axis=1)
BELOW = special.expit(np.concatenate([CUTPOINTS, np.full((3, 1), np.inf)], axis=1) - F[:, None])
SKEW = 3.0  # sqrt(q / (1 - q)) of q = 0.9
LARGE = np.log([30.0, 1e9, 1e11]).astype(np.float32)
ENDS = {"von mises": 4, "bernoulli": 2, "categorical": 1, "poisson": 6, "negative binomial": 3}


def more(x, *ends):
    """x, and then numbers at the ends of the range, whose draws have no cdf here."""
    return np.concatenate([x, np.asarray(ends, float)])


def student_t(outputs, targets):
    """Of degrees of freedom that are traced, for one compilation of all of them."""
    loc, rho, df = outputs
    return fn.student_t_nll((loc, rho), targets, df=df)


@fn.register_law(student_t)
def _(outputs):
    loc, rho, df = outputs
    return law_of("student_t", partial(fn.student_t_nll, df=df))((loc, rho))


SAMPLERS = {  # loss, outputs, cdf, whether y are whole numbers
    "gaussian": (fn.gaussian_nll, (F, RHO), frozen(stats.norm, F, SCALE), False),
    "laplace": (partial(fn.laplace_nll, scale=0.3), F, frozen(stats.laplace, F, 0.3), False),
    "student t": (student_t, (F, RHO, 3.0), frozen(stats.t, 3.0, F, SCALE), False),
    "student t, few": (student_t, (F, RHO, 0.1), frozen(stats.t, 0.1, F, SCALE), False),
    "student t, many": (student_t, (F, RHO, 1e8), frozen(stats.norm, F, SCALE), False),
    "quantile": (
        partial(fn.asymmetric_laplace_nll, quantile=0.9),
        (F, RHO),
        frozen(stats.laplace_asymmetric, SKEW, F, SCALE / 0.3),
        False,
    ),
    "von mises": (
        fn.von_mises_nll,
        (more(0.0 * KAPPAS, 7, 1, 3.14159, 0), more(KAPPA_RHO, 1e30, np.nan, 5, -1e4)),
        frozen(stats.vonmises, KAPPAS),
        False,
    ),
    "mixture": (fn.mixture_density_nll, (LOGITS, LOCS, RHOS), mixture_cdf, False),
    "bernoulli": (fn.bernoulli_nll, more(F, 60, -60), frozen(stats.bernoulli, special.expit(F)), True),
    "categorical": (
        fn.categorical_nll,
        more(LOGITS, [0, -np.inf, -100]),
        of_classes(special.softmax(LOGITS, axis=1)),
        True,
    ),
    "ordinal": (fn.ordinal_nll, (F, GAPS), of_classes(np.diff(BELOW, prepend=0.0, axis=1)), True),
    "poisson": (
        fn.poisson_nll,
        more(LOG_RATES, *LARGE, np.nan, -np.inf, 100),
        frozen(stats.poisson, np.exp(LOG_RATES)),
        True,
    ),
    "negative binomial": (
        fn.negative_binomial_nll,
        (more(np.log(NEGATIVE[0]), 0, 2, -200), more(NB_RHO, -100, -1e4, 0)),
        frozen(stats.nbinom, NEGATIVE[1], NEGATIVE[1] / NEGATIVE.sum(axis=0)),
        True,
    ),
}


@cache
def sampler(loss):
    return jax.jit(partial(fn.predictive_draws, loss, num_draws=20_000))


@cache
def draws_of(name):
    loss, outputs, *_ = SAMPLERS[name]
    outputs = jax.tree.map(lambda x: np.asarray(x, np.float32)[None], outputs)
    return np.asarray(sampler(loss)(outputs, jax.random.key(1)), float)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_have_the_law(name):
    """Their cdf at them is uniform; of whole numbers, at a uniform point of the step. Kolmogorov and Smirnov's test."""
    _, _, cdf, whole = SAMPLERS[name]
    draws = draws_of(name)
    for b in range(draws.shape[1] - ENDS.get(name, 0)):
        y = draws[:, b]
        below, at = cdf(y - 1, b) if whole else 0.0, cdf(y, b)
        u = below + np.random.default_rng(b).uniform(size=len(y)) * (at - below) if whole else at
        assert stats.kstest(u, "uniform").pvalue > 1e-3, b


def test_waiting_times_near_zero_are_no_multiples_of_the_spacing_of_uniform_numbers():
    """Of 400 below 1e-3, ten pairs would be equal at a spacing of 2^-23; a Poisson rate of 1e-8 needs a finer one."""
    times = np.asarray(exponential(jax.random.key(0), (400_000,), jnp.float32))
    small = times[times < 1e-3]
    assert abs(len(small) - 400) < 5 * 20
    assert len(np.unique(small)) >= len(small) - 1


def test_poisson_counts():
    """Chi-square's test at 30; above, mean and variance, which is 60 % off in jax.random."""
    draws, rates = draws_of("poisson")[:, 6:9], np.exp(LARGE.astype(float))
    assert (np.abs(draws.mean(axis=0) - rates) < 5 * np.sqrt(rates / len(draws))).all()
    np.testing.assert_allclose(draws.var(axis=0) / rates, 1.0, atol=5 * np.sqrt((2 + 1 / 30) / len(draws)))
    expected = len(draws) * stats.poisson.pmf(np.arange(100), rates[0])
    seen, often = np.bincount(draws[:, 0].astype(int), minlength=100)[:100], expected > 20
    assert stats.chi2.sf((np.square(seen - expected)[often] / expected[often]).sum(), often.sum()) > 1e-3


def test_draws_at_the_ends():
    counts = draws_of("poisson")[:, 9:]
    np.testing.assert_array_equal(counts, np.broadcast_to([np.nan, 0.0, np.inf], counts.shape))
    np.testing.assert_array_equal(draws_of("negative binomial")[:, 4:], 0.0)  # P(y > 0) is about r, or the mean
    tight, missing, winding, flat = draws_of("von mises")[:, 5:].T
    np.testing.assert_allclose(tight, 7.0 - 2 * np.pi, rtol=1e-5)
    assert np.isnan(missing).all()
    assert (np.abs(winding) <= np.float32(np.pi)).all()
    assert (winding < -2.0).any()
    assert stats.kstest(flat, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3  # a concentration of 0
    np.testing.assert_array_equal(draws_of("bernoulli")[:, 3:], np.tile([1, 0], (20_000, 1)))
    np.testing.assert_array_equal(draws_of("categorical")[:, 3:], 0)


FIXED = {  # loss, the keyword of the parameter that rho is in a pair
    "gaussian": (fn.gaussian_nll, "scale"),
    "laplace": (fn.laplace_nll, "scale"),
    "student t": (partial(fn.student_t_nll, df=3.0), "scale"),
    "quantile": (partial(fn.asymmetric_laplace_nll, quantile=0.3), "scale"),
    "von mises": (fn.von_mises_nll, "concentration"),
    "negative binomial": (fn.negative_binomial_nll, "total_count"),
}


@pytest.mark.parametrize(("loss", "name"), FIXED.values(), ids=FIXED)
def test_a_parameter_that_is_fixed_is_as_one_that_is_returned(loss, name):
    f, rho = np.asarray(F, jnp.bfloat16)[None], np.log(np.expm1(np.full(1, 2.0, np.float32)))
    of_fixed = [partial(loss, **{name: given}) for given in (2.0, jnp.full(3, 2.0))]
    for fixed in of_fixed:
        draws = jax.eval_shape(partial(fn.predictive_draws, fixed, num_draws=50), f, jax.random.key(3))
        assert (draws.shape, draws.dtype) == ((50, 3), jnp.float32)
    every = jax.jit(
        lambda f: [*(fn.predictive_moments(fixed, f) for fixed in of_fixed), fn.predictive_moments(loss, (f, rho))]
    )
    *found, exact = every(f)
    np.testing.assert_allclose(found, [exact, exact], rtol=1e-5)


def mean_squares(outputs, targets):
    return jnp.square(outputs - targets)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (optax.l2_loss, "the function l2_loss"),
        (lambda f, y: fn.gaussian_nll(f, y, scale=0.5), "the function <lambda>. Bind keywords with functools.partial"),
        (partial(fn.gaussian_nll, jnp.zeros(2)), "functools.partial"),
        (partial(mean_squares), "the function mean_squares"),
        (None, "illia_fn.gaussian_nll for numbers, of unit scale, or illia_fn.categorical_nll"),
    ],
)
def test_a_loss_that_is_no_likelihood_is_refused(loss, match):
    outputs = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match=f"predictive_moments: loss_fn must be a likelihood.*{match}"):
        fn.predictive_moments(loss, outputs)
    with pytest.raises(ValueError, match=f"predictive_draws: loss_fn must be a likelihood.*{match}"):
        fn.predictive_draws(loss, outputs, jax.random.key(0))


def test_what_the_likelihood_refuses_its_law_refuses():
    both = (jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    for loss, outputs, match in (
        (partial(fn.gaussian_nll, scale=1.0), both, "given as well"),
        (partial(fn.gaussian_nll, scale=-1.0), both[0], "must be positive"),
        (partial(fn.gaussian_nll, scale=jnp.ones(4)), both[0], "must have the shape of loc"),
        (partial(fn.student_t_nll, df=-1.0), both[0], "df must be a positive number"),
        (partial(fn.asymmetric_laplace_nll, quantile=2.0), both[0], "quantile must be a number"),
        (fn.ordinal_nll, both[0], "must be a pair"),
        (fn.mixture_density_nll, both, "must be .logits, loc, rho."),
        (fn.categorical_nll, both[0], "the logits of one network must have shape"),
    ):
        with pytest.raises(ValueError, match=match):
            fn.predictive_moments(loss, outputs)


def test_a_law_of_ones_own():
    def exponential_nll(outputs, targets):
        return jnp.exp(outputs) * targets - outputs

    @fn.register_law(exponential_nll)
    def _(log_rate, *, power=1.0):
        scale = jnp.exp(-power * log_rate)
        return fn.Law(scale, scale**2, lambda key: scale * jax.random.exponential(key, scale.shape))

    outputs = np.log(np.float32([[1.0, 2.0], [4.0, 2.0]]))
    moments = fn.predictive_moments(partial(exponential_nll, power=2.0), outputs)
    np.testing.assert_allclose(moments.mean, [(1 + 1 / 16) / 2, 1 / 4], rtol=1e-6)
    draw = partial(fn.predictive_draws, exponential_nll, outputs, num_draws=3)
    assert jax.eval_shape(draw, jax.random.key(0)).shape == (6, 2)
    with pytest.raises(ValueError, match="class_probs: loss_fn must be a likelihood of classes"):
        fn.class_probs(exponential_nll, outputs)

    @fn.register_law(mean_squares)
    def _(loc):
        return fn.Law(loc.sum(), loc, lambda key: loc.sum())

    with pytest.raises(ValueError, match="predictive_moments: loss_fn must have a mean and a variance of one shape"):
        fn.predictive_moments(mean_squares, outputs)
    with pytest.raises(ValueError, match="predictive_draws: loss_fn must have draws of shape"):
        fn.predictive_draws(mean_squares, outputs, jax.random.key(0))
