"""The binary KL is inverted exactly, the bounds are their formulas, and certificates hold at the promised rate."""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hundred_digits import DTYPES
from scalar_problem import q_of
from scipy import stats

from illia_fn import Normal, kl_loss, mean_field, pac_bayes, pac_bayes_certificate, pac_bayes_loss
from illia_fn.objectives.pac_bayes import kl_inverse

KEY = jax.random.key(0)


@cache
def exact_inverse(q, c):
    """p, dp/dq and dp/dc, by bisection with a hundred digits of v = log(s / (1 - s)), where p - q = s (1 - q)."""
    with mpmath.workdps(100):
        q, c = mpmath.mpf(float(q)), mpmath.mpf(float(c))
        if c == 0 or q == 1:
            return float(q), float(c == 0), float("inf") if q < 1 else 0.0
        low, high = mpmath.mpf(-200), c / (1 - q) + 50
        for _ in range(80):
            v = (low + high) / 2
            growth = (1 - q) / (q * (1 + mpmath.exp(-v))) if q else 0
            kl = (1 - q) * mpmath.log1p(mpmath.exp(v)) - q * mpmath.log1p(growth)
            low, high = (v, high) if kl <= c else (low, v)
        left, distance = (1 - q) / (1 + mpmath.exp(v)), (1 - q) / (1 + mpmath.exp(-v))
        by_c = (q + distance) * left / distance
        by_q = by_c * (mpmath.log1p(distance / q) + mpmath.log1p(mpmath.exp(v))) if q else mpmath.inf
        return float(q + distance), float(by_q), float(by_c)


PROBABILITIES = (0.0, 2e-38, 1e-20, 1e-8, 1e-4, 0.02, 0.5, 0.9, 1 - 2.0**-20, 1.0)
NATS = (0.0, 1e-8, 1e-3, 0.1, 1.0, 5.0, 100.0)


@DTYPES
def test_kl_inverse_and_its_slopes_against_a_hundred_digits(dtype):
    points = [(q, c) for q in PROBABILITIES for c in NATS]  # the same for each dtype, so that they are known
    q, c = np.array(points, np.float32).astype(dtype).T
    p, by_q, by_c = (np.array(column) for column in zip(*map(exact_inverse, q.tolist(), c.tolist()), strict=True))
    with jax.enable_x64(dtype == np.float64):
        value, slopes = jax.jit(jax.vmap(jax.value_and_grad(kl_inverse, (0, 1))))(jnp.asarray(q), jnp.asarray(c))
    value, slopes, eps, tiny = np.asarray(value), np.asarray(slopes), np.finfo(dtype).eps, np.finfo(dtype).tiny
    np.testing.assert_allclose(value, p, rtol=8 * eps, atol=0)
    assert (value[c == 0] == q[c == 0]).all()  # to the last bit
    # of an exponential in c / (1 - q) a rounding of c alone makes so many last places
    room = 8 * eps * (1 + c / np.maximum(1 - q.astype(float), eps))
    for slope, right in zip(slopes, (by_q, by_c), strict=True):
        slope, right, near = (x[np.isfinite(right)] for x in (slope, right, room))
        assert (np.abs(slope - right) <= near * right + 200 * tiny).all()  # 1 - p may underflow
    np.testing.assert_array_equal(slopes[1][np.isinf(by_c)], np.inf)
    assert np.isfinite(slopes[0]).all()  # infinite at q = 0, but as a logarithm
    assert slopes[0][(q == 0) & (c == np.float32(0.1))] > 50


@pytest.mark.optimised
def test_the_second_derivatives_of_kl_inverse():
    with jax.enable_x64(True):
        slope, step = jax.jit(jax.grad(kl_inverse, (0, 1))), 1e-6
        second = jax.jit(jax.jacfwd(slope, (0, 1)))(0.2, 0.3)
        for i, moved in enumerate([((0.2 + s, 0.3) for s in (step, -step)), ((0.2, 0.3 + s) for s in (step, -step))]):
            above, below = (slope(*point) for point in moved)
            for j in range(2):
                np.testing.assert_allclose(second[j][i], (above[j] - below[j]) / (2 * step), rtol=1e-6)


RISK, KL, N, DELTA = 0.13, 20.0, 800, 0.05
C = (KL + np.log(2 * np.sqrt(N) / DELTA)) / N


def test_each_bound_is_its_formula():
    bounds = {
        pac_bayes.maurer_bound: exact_inverse(RISK, C)[0],
        pac_bayes.mcallester_bound: RISK + np.sqrt(C / 2),
        pac_bayes.quadratic_bound: (np.sqrt(RISK + C / 2) + np.sqrt(C / 2)) ** 2,
        pac_bayes.lambda_bound: (np.sqrt(RISK + C / 2) + np.sqrt(C / 2)) ** 2,
        partial(pac_bayes.lambda_bound, lam=0.7): RISK / 0.65 + C / (0.7 * 0.65),
        partial(pac_bayes.catoni_bound, beta=0.7): (1 - np.exp(-0.7 * RISK - (KL - np.log(DELTA)) / N))
        / (1 - np.exp(-0.7)),
    }
    slopes = jax.jit(lambda risk, kl: [jax.value_and_grad(f, (0, 1))(risk, kl, N, DELTA) for f in bounds])(RISK, KL)
    for exact, (value, (by_risk, by_kl)) in zip(bounds.values(), slopes, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-5)
        assert by_risk >= 1.0
        assert by_kl > 0


def test_the_ends_of_what_a_bound_is_made_of():
    for risk in (0.0, 1.0, 1.0 + 1e-7):
        np.testing.assert_allclose(
            pac_bayes.mcallester_bound(risk, 0.0, 1, DELTA), risk + np.sqrt(np.log(2 / DELTA) / 2), rtol=1e-6
        )
    with pytest.raises(ValueError, match="the risk must lie in"):
        pac_bayes.mcallester_bound(1.01, 0.0, 1, DELTA)
    for lam in (-0.5, 0.0):
        with pytest.raises(ValueError, match="lambda_bound: lam must lie in"):
            pac_bayes.lambda_bound(RISK, KL, N, DELTA, lam=lam)
    half = jnp.bfloat16(0.5)
    np.testing.assert_allclose(pac_bayes.maurer_bound(half, half, N, DELTA), pac_bayes.maurer_bound(0.5, 0.5, N, DELTA))
    default = inspect.signature(pac_bayes_loss).parameters["delta"].default
    assert inspect.signature(pac_bayes_certificate).parameters["delta"].default == default == DELTA


def test_how_the_bounds_compare():
    """The kl-inverse is the tightest in c, the best lambda is the quadratic bound, the best beta is the kl-inverse."""
    risk, kl = (axis.ravel() for axis in np.meshgrid([0.0, 0.01, 0.2, 0.6], [0.0, 3.0, 300.0]))

    @jax.jit
    def every(risk, kl, lams):
        def of(bound):
            return bound(risk, kl, N, DELTA)

        known = [of(bound) for bound in (pac_bayes.maurer_bound, pac_bayes.quadratic_bound, pac_bayes.mcallester_bound)]
        best = kl_inverse(risk, (kl + np.log(1 / DELTA)) / N)
        of_lams = jax.vmap(lambda lam: of(partial(pac_bayes.lambda_bound, lam=lam)))(lams)
        return *known, of(pac_bayes.lambda_bound), of_lams, best

    with jax.enable_x64(True):
        found = every(risk, kl, np.linspace(0.1, 1.9, 10))
        betas = [partial(pac_bayes.catoni_bound, beta=float(beta)) for beta in np.geomspace(1e-2, 30, 80)]
        catoni = np.min([of_beta(risk, kl, N, DELTA) for of_beta in betas], axis=0)
    maurer, quadratic, mcallester, of_best, of_lams, best = map(np.asarray, found)
    assert (maurer <= quadratic + 1e-12).all()
    assert (maurer <= mcallester + 1e-12).all()
    np.testing.assert_allclose(of_best, quadratic, rtol=1e-12)
    assert (of_lams.min(axis=0) >= quadratic - 1e-12).all()
    assert (best - 1e-12 <= catoni).all()
    assert (catoni <= best + 2e-3).all()


# --- the certificate --------------------------------------------------------------------------------------------------


def step_classifier(w, x):
    """Class 1 above the threshold w."""
    return jnp.stack([jnp.zeros_like(x), 100.0 * (x - w)], axis=1)


def step_data(key, count):
    """Inputs uniform on [-1, 1], class 1 above 0, and one label in ten wrong."""
    x_key, flip_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (count,), minval=-1.0, maxval=1.0)
    return x, ((x > 0) ^ jax.random.bernoulli(flip_key, 0.1, (count,))).astype(jnp.int32)


def true_risk(loc, scale):
    """E_w[0.1 + 0.8 |w| / 2], clipped to the ends of the inputs."""
    noise = np.linspace(-6, 6, 2001)
    mass = np.exp(-0.5 * noise**2)
    w = np.clip(loc[:, None] + scale * noise, -1, 1)
    return 0.1 + 0.4 * np.sum(np.abs(w) * mass, axis=1) / mass.sum()


def test_certificates_hold_at_the_promised_rate():
    delta, count, trials = 0.2, 40, 500

    def certify(key):
        data_key, key = jax.random.split(key)
        x, y = step_data(data_key, count)
        grid = jnp.linspace(-0.9, 0.9, 37)  # the threshold with the fewest errors: overfitted
        errors = jnp.mean((x[None] > grid[:, None]).astype(jnp.int32) != y[None], axis=1)
        loc = grid[jnp.argmin(errors)]
        q = q_of(loc, 0.05)
        prior = q_of(0.0, 0.5)
        return loc, pac_bayes_certificate(step_classifier, q, x, y, key, 40, prior=prior, delta=delta, chunk_size=None)

    loc, certificate = jax.jit(jax.vmap(certify))(jax.random.split(KEY, trials))
    risk = true_risk(np.asarray(loc), 0.05)
    failures = np.mean(risk > certificate.bound)
    assert failures <= delta
    assert np.mean(risk > certificate.empirical_risk) > 2 * delta  # what no certificate would promise
    assert np.mean(certificate.bound) < 0.6  # and it says something
    np.testing.assert_allclose(certificate.kl, kl_loss_of(np.asarray(loc)), rtol=1e-4)
    exact = pac_bayes.maurer_bound(certificate.empirical_bound, certificate.kl, count, delta / 2)
    np.testing.assert_allclose(certificate.bound, exact, rtol=1e-6)


def kl_loss_of(loc):
    return np.log(0.5 / 0.05) + (0.05**2 + loc**2) / (2 * 0.25) - 0.5


@pytest.mark.optimised
def test_the_bound_on_the_sampled_networks_holds_at_its_rate():
    """The number of failures among S networks is binomial, so the rate of failure is known."""
    delta, count = 0.2, 300
    for risk in (0.05, 0.3, 0.8):
        failures = np.arange(count + 1)
        with jax.enable_x64(True):
            bound = kl_inverse(failures / count, np.full(count + 1, np.log(2 / delta) / count))
        rate = np.sum(stats.binom.pmf(failures, count, risk)[np.asarray(bound) < risk])
        assert rate <= delta / 2
        assert rate > delta / 50  # not vacuous


def test_what_a_certificate_is_made_of():
    q = mean_field({"w": jnp.eye(2)}, scale=0.4)
    prior = mean_field({"w": jnp.zeros((2, 2))}, scale=1.0)
    x, y = np.float32(np.random.default_rng(0).normal(size=(300, 2))), np.arange(300) % 2

    def apply_fn(w, x):
        return x @ w["w"]

    @jax.jit
    def certify(q):
        run = partial(pac_bayes_certificate, apply_fn, q, x, y, KEY, 50, prior=prior, chunk_size=None)
        given = {"bound": pac_bayes.mcallester_bound, "loss_fn": pac_bayes.bounded_cross_entropy}
        return kl_loss(q, prior, reduction="sum"), run(), run(**given)

    kl, certificate, surrogate = certify(q)
    np.testing.assert_allclose(certificate.kl, kl, rtol=1e-6)
    assert certificate.empirical_risk < certificate.empirical_bound < certificate.bound < 1.0
    step = kl_inverse(certificate.empirical_risk, np.float32(np.log(2 / 0.05) / 50))
    np.testing.assert_allclose(certificate.empirical_bound, step, rtol=1e-6)
    c = (kl + np.log(2 * np.sqrt(300) / 0.025)) / 300
    np.testing.assert_allclose(surrogate.bound, surrogate.empirical_bound + np.sqrt(c / 2), rtol=1e-6)
    assert surrogate.empirical_risk < certificate.empirical_risk


# --- the training objective -------------------------------------------------------------------------------------------

PARAMS = {"w": jnp.array([[0.5, -0.5], [0.2, 0.1], [-0.4, 0.3]])}
X = np.float32(np.random.default_rng(0).normal(size=(6, 3)))
LABELS = np.int32([0, 1, 1, 1, 0, 0])


def linear(w, x):
    return x @ w["w"]


def test_the_loss_is_the_bound_of_its_terms():
    prior = Normal(0.0, 1.0)
    bounds = (pac_bayes.maurer_bound,)

    @jax.jit
    def every(q):
        def of(bound):
            options = {"num_data": 500, "prior": prior, "bound": bound, "delta": 0.1, "return_terms": True}
            step = jax.value_and_grad(lambda q: pac_bayes_loss(linear, q, X, LABELS, KEY, 3, **options), has_aux=True)
            (value, terms), grads = step(q)
            return value, terms, grads, bound(terms.risk, terms.kl, 500, 0.1)

        return kl_loss(q, prior, reduction="sum"), [of(bound) for bound in bounds]

    kl, found = every(mean_field(PARAMS, scale=0.2))
    for value, terms, grads, exact in found:
        np.testing.assert_allclose(value, exact, rtol=1e-6)
        np.testing.assert_allclose(terms.kl, kl, rtol=1e-6)
        assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_the_risk_is_a_bounded_cross_entropy():
    sharp = mean_field(PARAMS, scale=1e-20)
    far = np.float32([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    steep = np.float32([[0.0, -1.0], [100.0, 0.0], [0.0, 100.0]])
    broken = np.float32([[np.nan, 0.0], [0.0, np.nan], [1.0, 1.0]])  # neither NaN nor a tie is right

    @jax.jit
    def every(q):
        bounded, errors = pac_bayes.bounded_cross_entropy, pac_bayes.zero_one_loss
        risk = pac_bayes_loss(linear, q, X, LABELS, KEY, num_data=6, return_terms=True)[1].risk
        ends = bounded(far, np.array([0, 1, 1])), errors(steep, np.array([0, 1, 1])), errors(broken, np.zeros(3, int))
        return risk, ends

    risk, (bounded, errors, of_broken) = every(sharp)
    logits = X @ np.asarray(PARAMS["w"], float)
    nll = np.logaddexp(*logits.T) - logits[np.arange(6), LABELS]
    np.testing.assert_allclose(risk, nll.mean() / np.log(1e5), rtol=1e-5)
    np.testing.assert_allclose(bounded, [np.log(2) / np.log(1e5), 1, 0], rtol=1e-5)
    np.testing.assert_array_equal(errors, [0, 1, 0])
    np.testing.assert_array_equal(of_broken, [1, 1, 1])


def test_the_zero_one_error_is_trained_by_its_score():
    """The gradient of the exact risk of the step classifier on one batch, to (loc, rho)."""
    x, y = map(np.asarray, jax.jit(partial(step_data, count=30))(KEY))
    q = q_of(0.3, 0.2)

    def exact(loc, rho):
        scale = np.logaddexp(0.0, rho)
        # class 1 above w: the probability of an error is that of w below or above x
        above = stats.norm.cdf((x - loc) / scale)
        risk = np.mean(np.where(y == 1, 1 - above, above))
        kl = np.log(1.0 / scale) + (scale**2 + loc**2) / 2 - 0.5
        return risk + np.sqrt((kl + np.log(2 * np.sqrt(300) / 0.05)) / 300 / 2)

    at, step = np.array([0.3, np.log(np.expm1(0.2))]), 1e-5 * np.eye(2)
    expected = np.array([exact(*(at + each)) - exact(*(at - each)) for each in step]) / 2e-5
    loss = partial(
        pac_bayes_loss,
        step_classifier,
        num_samples=8,
        num_data=300,
        prior=Normal(0.0, 1.0),
        bound=pac_bayes.mcallester_bound,  # linear in the risk: unbiased
        loss_fn=pac_bayes.zero_one_loss,
        estimator="score_function",
        chunk_size=None,
    )
    run = jax.jit(jax.vmap(jax.grad(loss), (None, None, None, 0)))
    grads = run(q, x, y, jax.random.split(KEY, 20_000))
    flat = np.stack([grads.loc, grads.rho], axis=1)
    np.testing.assert_array_less(np.abs(flat.mean(axis=0) - expected), 5 * flat.std(axis=0) / np.sqrt(20_000))


LAPLACE = type("Laplace", (), {"log_prob": lambda self, w: -abs(w)})()
OUTSIDE = {"loss_fn": lambda f, y: 2.0 * pac_bayes.zero_one_loss(f, 1 - y)}


def test_a_loss_outside_of_its_range_is_nan_under_jit():
    options = {"num_data": 6, "bound": pac_bayes.mcallester_bound, "estimator": "score_function", "num_samples": 2}
    step = jax.jit(jax.value_and_grad(partial(pac_bayes_loss, linear, **options, **OUTSIDE)))
    value, grads = step(mean_field(PARAMS, scale=0.1), X, LABELS, KEY)
    assert np.isnan(value)
    assert np.isnan(grads["w"].loc).all()


def test_a_loss_may_exceed_its_range_by_its_rounding():
    loss = train(loss_fn=lambda f, y: jnp.full(6, 1.0 + 5e-7), bound=pac_bayes.mcallester_bound)
    assert loss > 1.0


def test_one_draw_outside_of_the_range_is_enough():
    def rarely(f, y):
        return jnp.where(f[:, 0] > 2.0, 1.5, 0.5)

    q = mean_field({"w": jnp.zeros((1, 2))}, scale=1.0)
    # of 300 draws about seven lie above 2, and hardly ever the first and the last
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 0.5 to 1.5"):
        pac_bayes_certificate(linear, q, jnp.ones((1, 1)), LABELS[:1], KEY, 300, prior=q, loss_fn=rarely)


def certificate_of(num_samples=10, params=None, **options):
    q = mean_field(PARAMS, scale=0.1) if params is None else params
    return pac_bayes_certificate(linear, q, X, LABELS, KEY, num_samples, **{"prior": Normal(0.0, 1.0), **options})


def test_a_certificate_of_a_model_with_a_key():
    args = mean_field(PARAMS, scale=0.1), X, LABELS, KEY, 3
    keys_differ = pac_bayes_certificate(
        lambda w, x, key: jnp.where(jax.random.bernoulli(key), 1.0, -1.0) * linear(w, x),
        *args,
        prior=Normal(0.0, 1.0),
        needs_key=True,
    )
    without = certificate_of(num_samples=3)
    assert keys_differ.kl == without.kl
    assert keys_differ.empirical_risk != without.empirical_risk


def train(**options):
    return pac_bayes_loss(linear, mean_field(PARAMS, scale=0.1), X, LABELS, KEY, 2, **{"num_data": 6, **options})


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (partial(train, num_data=None), ValueError, "pac_bayes_loss: num_data is required: it is the n of the bound"),
        (partial(train, delta=0.0), ValueError, r"pac_bayes_loss: delta must be a number in \(0, 1\).*got 0.0"),
        (partial(train, delta=1), ValueError, "pac_bayes_loss: delta must be"),
        (partial(train, **OUTSIDE), ValueError, r"pac_bayes_loss: the losses must lie in \[0, 1\], got 0.0 to 2.0"),
        (partial(train, bound="kl"), TypeError, "pac_bayes_loss: bound must be a function, got 'kl'"),
        (partial(train, kl_weight=0.1), TypeError, "unexpected keyword argument 'kl_weight'"),
        (partial(train, estimator="score"), ValueError, "pac_bayes_loss: estimator must"),
        (partial(train, loss_fn=pac_bayes.zero_one_loss), ValueError, "pac_bayes_loss: zero_one_loss has no gradient"),
        (partial(train, loss_fn=lambda f, y: jnp.float32(0.5)), ValueError, "pac_bayes_loss: .* it returned a scalar"),
        (partial(certificate_of, loss_fn=lambda f, y: jnp.float32(0.5)), ValueError, "it returned a scalar. Drop"),
        (partial(train, prior=LAPLACE), ValueError, "pac_bayes_loss: .* must have a closed form"),
        (lambda: pac_bayes.maurer_bound(1.5, 1.0, 10, 0.1), ValueError, r"maurer_bound: the risk must lie in \[0, 1\]"),
        (lambda: pac_bayes.catoni_bound(0.5, -1.0, 10, 0.1, beta=1.0), ValueError, "catoni_bound: the KL must not be"),
        (
            lambda: pac_bayes.quadratic_bound(0.5, 1.0, 0, 0.1),
            ValueError,
            "quadratic_bound: num_data must be",
        ),
        (lambda: pac_bayes.zero_one_loss(jnp.ones((6, 2)), LABELS + 1), ValueError, "zero_one_loss: targets must be"),
        (partial(certificate_of, delta=2.0), ValueError, "pac_bayes_certificate: delta must be"),
        (partial(certificate_of, num_samples=0), ValueError, "pac_bayes_certificate: num_samples must be"),
        (partial(certificate_of, **OUTSIDE), ValueError, r"pac_bayes_certificate: the losses must lie in \[0, 1\]"),
        (
            partial(certificate_of, params={"w": PARAMS["w"]}),
            ValueError,
            r"pac_bayes_certificate: params\['w'\] is deterministic.*fixed_leaves=True",
        ),
        (
            partial(certificate_of, prior=LAPLACE),
            ValueError,
            "pac_bayes_certificate: .* must have a closed form",
        ),
        (lambda: kl_inverse(1.1, 0.1), ValueError, "kl_inverse: q must be a probability, got 1.1"),
        (lambda: kl_inverse(0.5, -0.1), ValueError, "kl_inverse: c must not be negative, got -0.1"),
        (
            lambda: kl_inverse(jnp.ones(2), 0.1),
            ValueError,
            r"kl_inverse: q and c must have one shape, got \(2,\) and \(\)",
        ),
        (
            lambda: pac_bayes.lambda_bound(0.1, 1.0, 10, 0.1, lam=2.0),
            ValueError,
            r"lambda_bound: lam must lie in \(0, 2\)",
        ),
        (
            lambda: pac_bayes.catoni_bound(0.1, 1.0, 10, 0.1, beta=0.0),
            ValueError,
            "catoni_bound: beta must be a positive",
        ),
        (lambda: pac_bayes.zero_one_loss(jnp.ones(3), LABELS), ValueError, "zero_one_loss: outputs must be logits"),
        (
            lambda: pac_bayes.bounded_cross_entropy(jnp.ones((6, 2)), LABELS, min_prob=0.0),
            ValueError,
            "bounded_cross_entropy: min_prob must be",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
