"""The gradient estimators of the ELBO and of the predictive loss, and what their KL can be tempered with."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_regression import loss_at
from scalar_problem import (
    MASS,
    WIDE,
    Q,
    assert_mean,
    by_quadrature,
    many,
    mean_over_pairs,
    orthogonal_regression,
    q_of,
    scalar,
)

from illia_fn import Normal, cubo_loss, elbo_loss, kl_loss, mean_field, predictive_loss, renyi_loss

ESTIMATORS = ("reparameterised", "doubly_reparameterised", "score_function")
KEY = jax.random.key(0)


def kl_to_prior(loc, scale):
    """KL(N(loc, scale^2) || N(0, 1)) and its gradient to (loc, rho)."""
    value = 0.5 * (loc**2 + scale**2 - 1) - np.log(scale)
    return value, np.array([loc, (scale - 1 / scale) * (1 - np.exp(-scale))])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "options", [{}, {"kl_weight": 0.5, "temperature": 1.0}, {"kl_weight": 1.0, "temperature": 0.5}]
)
def test_elbo_against_the_closed_form(estimator, options):
    values, gradients = many(elbo_loss, 3, estimator=estimator, **options)
    loc, scale = Q
    slope = 1 - np.exp(-scale)
    kl, kl_grads = kl_to_prior(loc, scale)
    cooling = 1 - options.get("temperature", 1.0)
    kl += cooling * (np.log(scale) + 0.5 * np.log(2 * np.pi * np.e))
    kl_grads[1] += cooling * slope / scale
    weight = options.get("kl_weight", 1.0)
    nll = 0.5 * ((5 - loc) ** 2 + scale**2) + 0.5 * np.log(2 * np.pi)
    assert_mean(values, nll + weight * kl)
    assert_mean(gradients, np.array([loc - 5, scale * slope]) + weight * kl_grads)


@cache
def at_the_posterior(estimator, chunk_size, antithetic):
    """For many keys, compiled once for all temperatures."""

    run = loss_at(elbo_loss, 4, estimator=estimator, chunk_size=chunk_size, antithetic=antithetic)
    return jax.jit(jax.vmap(jax.value_and_grad(run), (None, None, None, 0, None)))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_sticking_the_landing_vanishes_draw_by_draw_at_the_posterior(temperature, chunk_size, antithetic):
    with jax.enable_x64(True):
        x, y, q, log_z = orthogonal_regression(temperature)
        arguments = q, x, y, jax.random.split(KEY, 200), temperature
        _, landed = at_the_posterior("doubly_reparameterised", chunk_size, antithetic)(*arguments)
        assert np.abs(landed["w"].loc).max() < 1e-10
        assert np.abs(landed["w"].rho).max() < 1e-10
        values, plain = at_the_posterior("reparameterised", chunk_size, antithetic)(*arguments)
        assert np.abs(plain["w"].rho).max(axis=1).min() > 1e-3
        # the ELBO of the exact posterior is its evidence: log Z to the power T
        assert_mean(-20 * values, temperature * log_z)


def test_the_value_does_not_depend_on_the_estimator():
    run = jax.jit(partial(scalar, elbo_loss, num_samples=4, return_terms=True), static_argnames="estimator")
    plain, *others = (run(q_of(*Q), KEY, estimator=estimator) for estimator in ESTIMATORS)
    for other in others:
        chex.assert_trees_all_close(other, plain, rtol=1e-6)


def test_sticking_the_landing_is_quieter_near_the_optimum_and_so_is_a_baseline():
    near = (2.4, 0.68)
    variances = {name: many(elbo_loss, 4, 4000, q=near, estimator=name)[1].var(axis=0) for name in ESTIMATORS}
    assert (variances["doubly_reparameterised"] < 0.1 * variances["reparameterised"]).all()
    loc, scale = near
    noise = np.random.default_rng(0).normal(size=(4000, 4))
    nll = 0.5 * (5 - loc - scale * noise) ** 2
    without_baseline = np.mean(nll * noise / scale, axis=1).var()
    assert variances["score_function"][0] < 0.5 * without_baseline


def test_the_score_function_needs_no_gradient_of_the_loss():
    def wrong(outputs, targets):
        return jnp.where(outputs < targets - 2.5, 3.0, 0.0)  # 3 where w < 2.5, and flat

    loc, scale = Q
    z = (2.5 - loc) / scale
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    slope = 1 - np.exp(-scale)
    # d/dloc 3 P(w < 2.5) = -3 density(z) / scale
    exact = np.array([-3 * density / scale, -3 * z * density / scale * slope]) + kl_to_prior(loc, scale)[1]
    assert_mean(many(elbo_loss, 8, loss_fn=wrong, estimator="score_function")[1], exact)
    _, blind = many(elbo_loss, 8, 100, loss_fn=wrong)
    assert abs(blind.mean(axis=0)[0] - exact[0]) > 0.5


@pytest.mark.parametrize(
    "loss",
    [elbo_loss, predictive_loss, partial(renyi_loss, alpha=0.5), cubo_loss],
    ids=["elbo", "predictive", "renyi", "cubo"],
)
def test_the_score_function_takes_a_simulator(loss):
    """A model that JAX cannot look into."""

    def simulate(w, x):
        return jax.pure_callback(
            lambda w, x: np.asarray(x + w, np.float32), jax.ShapeDtypeStruct((1,), np.float32), w, x
        )

    def run(apply_fn):
        args = q_of(*Q), jnp.zeros(1), jnp.full(1, 5.0), KEY, 4
        options = {"num_data": 1, "prior": Normal(0.0, 1.0), "estimator": "score_function"}
        return jax.jit(jax.value_and_grad(lambda q: loss(apply_fn, q, *args[1:], **options)))(args[0])

    chex.assert_trees_all_close(run(simulate), run(lambda w, x: x + w), rtol=1e-5)


@cache
def mean_gradient_to_everything(loss, estimator):
    """To q, a deterministic leaf, the scale of the prior and what apply_fn closes over; and its error."""
    params = {"w": q_of([0.1, -0.2], [0.3, 0.2]), "b": jnp.array([0.5])}
    x, y = jnp.arange(8.0).reshape(4, 2) / 4, jnp.array([0.3, 1.0, -0.2, 0.0])

    def run(trainable, key):
        params, log_scale, shift = trainable
        prior = {"w": Normal(0.0, jnp.exp(log_scale)), "b": None}
        apply_fn = lambda w, x: x @ w["w"] + w["b"] + shift  # noqa: E731
        options = {"num_data": 8, "prior": prior, "estimator": estimator, "chunk_size": 2}
        return loss(apply_fn, params, x, y, key, 4, **options)

    keys = jax.random.split(KEY, 2000)
    trainable = params, jnp.array(-0.5), jnp.array([0.1])
    grads = jax.jit(jax.vmap(jax.grad(run), (None, 0)))(trainable, keys)
    flat = np.concatenate([leaf.reshape(len(keys), -1) for leaf in jax.tree.leaves(grads)], axis=1)
    return flat.mean(axis=0), flat.std(axis=0) / np.sqrt(len(keys))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", [elbo_loss, predictive_loss])
def test_gradients_reach_everything_that_is_not_q(loss, estimator):
    mean, error = mean_gradient_to_everything(loss, estimator)
    exact, exact_error = mean_gradient_to_everything(loss, "reparameterised")
    assert np.abs(mean).min() > 1e-3  # none is cut off
    np.testing.assert_array_less(np.abs(mean - exact), 5 * np.hypot(error, exact_error) + 1e-6)


# --- the predictive loss ----------------------------------------------------------------------------------------------


def log_mean_exp(values):
    return jax.nn.logsumexp(values) - jnp.log(len(values))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_predictive_loss_of_two_samples_against_quadrature(estimator):
    value, grads = by_quadrature(lambda w, _, log_likelihood: -mean_over_pairs(log_mean_exp)(log_likelihood))
    kl, kl_grads = kl_to_prior(*Q)
    values, gradients = many(predictive_loss, 2, estimator=estimator)
    assert_mean(values, value + kl)
    assert_mean(gradients, grads + kl_grads)


def test_the_predictive_loss_tends_to_the_predictive_density():
    options = {"num_samples": 200_000, "chunk_size": None, "return_terms": True}
    values = jax.jit(partial(scalar, predictive_loss, **options))(q_of(*WIDE), KEY)[1].nll
    exact, _ = by_quadrature(lambda w, _, log_likelihood: -jax.nn.logsumexp(log_likelihood, b=MASS), WIDE)
    scale = np.sqrt(1 + WIDE[1] ** 2)  # the density of N(loc, 1 + scale^2) at 5
    assert exact == pytest.approx(0.5 * ((5 - WIDE[0]) / scale) ** 2 + np.log(scale) + 0.5 * np.log(2 * np.pi))
    assert values == pytest.approx(exact, rel=0.01)


X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 1, 0, 2])
PARAMS = {"kernel": jnp.arange(9.0).reshape(3, 3) / 9, "bias": jnp.zeros((1, 3))}


def linear(w, x):
    return x @ w["kernel"] + w["bias"]


def test_the_mean_is_inside_the_logarithm_of_each_example():
    q = mean_field(PARAMS, scale=0.5)

    def apply_fn(w, x):
        return linear(w, x), linear(w, x)

    weights = jnp.array([1.0, 2.0, 0.0, 1.0, 0.5, 1.0])
    options = {"num_samples": 5, "num_data": 60, "has_aux": True}
    loss = jax.jit(partial(predictive_loss, apply_fn, return_terms=True, **options))
    value, (terms, logits) = loss(q, X, LABELS, KEY, weights=weights)
    probs = np.asarray(jax.nn.softmax(logits))[:, np.arange(6), LABELS]  # (samples, examples)
    np.testing.assert_allclose(terms.nll, np.average(-np.log(probs.mean(axis=0)), weights=weights), rtol=1e-5)
    assert value == terms.nll + terms.weight * terms.kl
    assert value < jax.jit(partial(elbo_loss, apply_fn, **options))(q, X, LABELS, KEY, weights=weights)[0]


def test_the_predictive_loss_of_one_sample_is_the_elbo():
    q = mean_field(PARAMS, scale=0.5)
    for options in ({}, {"num_data": 60, "temperature": 0.5, "free_nats": 3.0}):
        both = [jax.value_and_grad(partial(loss, linear, **options)) for loss in (elbo_loss, predictive_loss)]
        pair = jax.jit(lambda q: [f(q, X, LABELS, KEY) for f in both])(q)  # noqa: B023
        chex.assert_trees_all_close(*pair, rtol=1e-5, atol=1e-7)


def test_the_predictive_loss_takes_chunks_pairs_and_padding():
    q = mean_field(PARAMS, scale=0.5)
    run = partial(predictive_loss, linear, num_samples=4, num_data=60)
    value, grads = jax.jit(jax.value_and_grad(run))(q, X, LABELS, KEY)
    for chunk_size in (3, None):
        other, other_grads = jax.jit(jax.value_and_grad(partial(run, chunk_size=chunk_size)))(q, X, LABELS, KEY)
        np.testing.assert_allclose(other, value, rtol=1e-6)
        chex.assert_trees_all_close(other_grads, grads, rtol=1e-4, atol=1e-6)
    x, labels = jnp.concatenate([X, X[:2]]), jnp.concatenate([LABELS, -LABELS[1:3]])
    padded = jax.jit(run)(q, x, labels, KEY, weights=jnp.arange(8) < 6)
    np.testing.assert_allclose(padded, value, rtol=1e-6)
    assert jax.jit(partial(run, antithetic=True))(q, X, LABELS, KEY) != value


# --- temperature and free nats ----------------------------------------------------------------------------------------


def test_terms_hold_what_takes_the_place_of_the_kl():
    q = mean_field(PARAMS, scale=0.5)
    kl = kl_loss(q, Normal(0.0, 1.0), reduction="sum")
    entropy = 12 * (np.log(0.5) + 0.5 * np.log(2 * np.pi * np.e))
    for temperature in (0.25, 2, jnp.float32(0.5)):
        options = {"prior": Normal(0.0, 1.0), "num_data": 60, "temperature": temperature, "return_terms": True}
        loss, terms = elbo_loss(linear, q, X, LABELS, KEY, **options)
        np.testing.assert_allclose(terms.kl, kl + (1 - float(temperature)) * entropy, rtol=1e-6)
        assert loss == terms.nll + terms.weight * terms.kl


def test_free_nats_are_free_leaf_by_leaf():
    q = {"far": q_of([3.0, 3.0], [0.5, 0.5]), "near": q_of([0.1, 0.0], [0.9, 1.0]), "b": jnp.zeros(1)}
    prior = {"far": Normal(0.0, 1.0), "near": Normal(0.0, 1.0), "b": None}
    far, near = (float(kl_loss(q[name], prior[name], reduction="sum")) for name in ("far", "near"))
    assert near < 2.0 < far

    def kl(q, free_nats):
        args = lambda w, x: x + w["far"].sum() + w["near"].sum() + w["b"], q, jnp.zeros(1), jnp.zeros(1), KEY
        return elbo_loss(*args, num_data=1, prior=prior, free_nats=free_nats, return_terms=True)[1].kl

    for free_nats, exact in (
        ({"far": 100.0, "near": 0.0, "b": None}, 100.0 + near),
        ({"far": None, "near": jnp.array(3.0), "b": None}, far + 3.0),
        (2.0, far + 2.0),
    ):
        value, grads = jax.jit(jax.value_and_grad(partial(kl, free_nats=free_nats)))(q)
        assert value == pytest.approx(exact)
    assert (grads["near"].loc == 0).all()
    assert (grads["near"].rho == 0).all()
    assert (grads["far"].loc > 0).all()


def test_free_nats_of_a_tempered_kl_are_free():
    q, prior = q_of([0.0, 0.2], [0.9, 0.5]), Normal(0.0, 1.0)

    def kl(q, free_nats, temperature):
        args = lambda w, x: 0.0 * w[:1] + x, q, jnp.zeros(1), jnp.zeros(1), KEY
        options = {"prior": prior, "free_nats": free_nats, "temperature": temperature}
        return elbo_loss(*args, num_data=1, return_terms=True, **options)[1].kl

    tempered = kl_loss(q, prior, reduction="sum") + 0.9 * q.entropy()
    for free_nats in (100.0, 0.0):
        value, grads = jax.value_and_grad(kl)(q, free_nats, 0.1)
        assert value == pytest.approx(max(float(tempered), free_nats))
        assert (grads.rho == 0).all() == (free_nats > 0)


@pytest.mark.parametrize("loss", [elbo_loss, predictive_loss])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"estimator": "stl"}, ValueError, "estimator must be one of .*sticking the landing"),
        ({"estimator": "score_function", "num_samples": 1}, ValueError, "needs num_samples of at least 2, got 1"),
        ({"estimator": "score_function", "antithetic": True}, ValueError, "needs independent draws"),
        ({"temperature": 0.0}, ValueError, "temperature must be a positive, finite number, got 0.0"),
        ({"temperature": jnp.ones(2)}, ValueError, "temperature must be a positive"),
        ({"free_nats": -1.0}, ValueError, "free_nats must be a finite number that is not negative, got -1.0"),
        ({"free_nats": {"w": 1.0}}, ValueError, "free_nats must be a single value or a prefix tree"),
        ({"free_nats": 1.0, "estimator": "doubly_reparameterised"}, ValueError, "free_nats need the exact gradient"),
    ],
)
def test_errors(loss, options, error, match):
    with pytest.raises(error, match=f"{loss.__name__}: .*{match}"):
        loss(linear, mean_field(PARAMS, scale=0.1), X, LABELS, KEY, **{"num_samples": 2, "num_data": 6, **options})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"loss_fn": lambda f, y: optax.softmax_cross_entropy_with_integer_labels(f, y).mean()},
            ValueError,
            "predictive_loss: loss_fn must return one value per example, but it returned a scalar",
        ),
        (
            {"num_sample": 3},
            TypeError,
            r"predictive_loss\(\) got an unexpected keyword argument 'num_sample'",
        ),
        ({"coupling": "shared"}, TypeError, r"predictive_loss\(\) got an unexpected keyword argument 'coupling'"),
    ],
)
def test_errors_of_the_predictive_loss(options, error, match):
    with pytest.raises(error, match=match):
        predictive_loss(linear, mean_field(PARAMS, scale=0.1), X, LABELS, KEY, 2, num_data=6, **options)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", [elbo_loss, partial(renyi_loss, alpha=1.0)])
def test_half_precision_does_not_round_the_density_of_q(loss, estimator):
    """The scale lies below the spacing of bfloat16 around loc; the gradient to rho is that of -log(scale)."""
    q = mean_field(jnp.ones(500, jnp.bfloat16), scale=1e-3)

    def run(q, key):
        outputs = lambda w, x: 0.0 * w[:1].astype(jnp.float32)  # noqa: E731
        options = {"num_data": 1, "prior": Normal(0.0, 1.0), "estimator": estimator, "chunk_size": None}
        return loss(outputs, q, jnp.zeros(1), jnp.zeros(1), key, 4, loss_fn=lambda f, y: 0.0 * f, **options)

    keys = jax.random.split(KEY, 200)
    slopes = jax.jit(jax.vmap(lambda key: jax.grad(run)(q, key).rho.astype(jnp.float32).mean()))(keys)
    assert slopes.mean() == pytest.approx(-1.0, abs=0.01 + 5 * float(slopes.std()) / np.sqrt(len(keys)))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("chunk_size", [1, None])
@pytest.mark.parametrize(
    "loss", [elbo_loss, predictive_loss, partial(renyi_loss, alpha=0.5)], ids=["elbo", "predictive", "renyi"]
)
def test_with_a_fixed_key_the_reparameterised_gradient_is_that_of_the_value(loss, chunk_size, antithetic):
    """As optax.lbfgs needs it; so the coefficients of the second pass meet the draws that they were made from."""
    with jax.enable_x64(True):
        x, y, q, _ = orthogonal_regression()
        options = {"chunk_size": chunk_size, "antithetic": antithetic, "estimator": "reparameterised"}

        def value(loc, rho):
            node = type(q["w"])(loc, rho)
            model = lambda w, x: x @ w["w"] + jnp.sin(w["w"].sum())  # noqa: E731
            return loss(model, {"w": node}, x, y, KEY, 4, num_data=20, prior=Normal(0.0, 1.0), **options)

        at = jnp.concatenate([q["w"].loc + 0.1, q["w"].rho + 0.2])
        step = 1e-5 * jnp.eye(6)
        run = jax.value_and_grad(lambda both: value(*jnp.split(both, 2)))
        values, slopes = jax.jit(jax.vmap(run))(jnp.concatenate([at[None], at[None] + step, at[None] - step]))
        np.testing.assert_allclose(slopes[0], (values[1:7] - values[7:]) / 2e-5, rtol=1e-5, atol=1e-8)
