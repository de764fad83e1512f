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
    WIDE,
    Q,
    assert_mean,
    by_quadrature,
    many,
    many_of,
    mean_over_pairs,
    orthogonal_regression,
    q_of,
    scalar,
    together,
)
from scipy import special

from illia_fn import Normal, elbo_loss, kl_loss, mean_field, predictive_loss, renyi_loss
from illia_fn.objectives import DataTerm, Draws, Regulariser

ESTIMATORS = ("reparameterised", "doubly_reparameterised", "score_function")
KEY = jax.random.key(0)


def kl_to_prior(loc, scale):
    """KL(N(loc, scale^2) || N(0, 1)) and its gradient to (loc, rho)."""
    value = 0.5 * (loc**2 + scale**2 - 1) - np.log(scale)
    return value, np.array([loc, (scale - 1 / scale) * (1 - np.exp(-scale))])


@cache
def of_the_elbo():
    return together({name: partial(elbo_loss, estimator=name) for name in ESTIMATORS}, 3)


@pytest.mark.parametrize(("kl_weight", "temperature"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5)])
def test_elbo_against_the_closed_form(kl_weight, temperature):
    loc, scale = Q
    slope = 1 - np.exp(-scale)
    kl, kl_grads = kl_to_prior(loc, scale)
    kl += (1 - temperature) * (np.log(scale) + 0.5 * np.log(2 * np.pi * np.e))
    kl_grads[1] += (1 - temperature) * slope / scale
    nll = 0.5 * ((5 - loc) ** 2 + scale**2) + 0.5 * np.log(2 * np.pi)
    found = many_of(of_the_elbo(), kl_weight=kl_weight, temperature=temperature)
    of_plain = found["reparameterised"][0]
    for values, gradients in found.values():
        np.testing.assert_allclose(values, of_plain, rtol=1e-5)  # the value does not depend on the estimator
        assert_mean(values, nll + kl_weight * kl)
        assert_mean(gradients, np.array([loc - 5, scale * slope]) + kl_weight * kl_grads)


def test_sticking_the_landing_vanishes_draw_by_draw_at_the_posterior():
    loss = loss_at(elbo_loss, 4, estimator="doubly_reparameterised", chunk_size=1, antithetic=True)

    with jax.enable_x64(True):
        temperatures = np.repeat([1.0, 0.3], 200)
        (x, y, hot, log_z), (_, _, cold, cold_log_z) = orthogonal_regression(1.0), orthogonal_regression(0.3)
        q = jax.tree.map(lambda a, b: np.repeat([a, b], 200, axis=0), hot, cold)
        run = jax.jit(jax.vmap(jax.value_and_grad(loss), (0, None, None, 0, 0)))
        values, grads = jax.tree.map(np.asarray, run(q, x, y, jax.random.split(KEY, 400), temperatures))
    assert np.abs(grads["w"].loc).max() < 1e-10
    assert np.abs(grads["w"].rho).max() < 1e-10
    # the ELBO of the exact posterior is its evidence: log Z to the power T
    assert_mean(-20 * values[:200], log_z)
    assert_mean(-20 * values[200:], 0.3 * cold_log_z)


def test_sticking_the_landing_is_quieter_near_the_optimum_and_so_is_a_baseline():
    loc, scale = near = (2.4, 0.68)
    found = many_of(of_the_elbo(), q=near, kl_weight=1.0, temperature=1.0)
    variances = {name: gradients.var(axis=0) for name, (_, gradients) in found.items()}
    assert (variances["doubly_reparameterised"] < 0.1 * variances["reparameterised"]).all()
    noise = np.random.default_rng(0).normal(size=(20_000, 3))
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
    # d/dloc 3 P(w < 2.5) = -3 density(z) / scale, and through the draws 0
    of_loss = np.array([-3 * density / scale, -3 * z * density / scale * slope])
    assert abs(of_loss[0]) > 0.5
    _, gradients = many(elbo_loss, 8, loss_fn=wrong, estimator="score_function")
    assert_mean(gradients, of_loss + kl_to_prior(loc, scale)[1])


def test_the_score_function_takes_a_simulator():
    """A model that JAX cannot look into."""

    def simulate(w, x):
        return jax.pure_callback(
            lambda w, x: np.asarray(x + w, np.float32), jax.ShapeDtypeStruct((1,), np.float32), w, x
        )

    def run(q, loss, estimator):
        args = q, np.zeros(1, np.float32), np.full(1, 5.0, np.float32), KEY, 4
        return loss(simulate, *args, num_data=1, prior=Normal(0.0, 1.0), estimator=estimator)

    for loss in (predictive_loss, partial(renyi_loss, alpha=0.5)):  # by its values, and by log weights
        gradient = lambda estimator: jax.eval_shape(jax.grad(lambda q: run(q, loss, estimator)), q_of(*Q))  # noqa: B023, E731
        gradient("score_function")
        with pytest.raises(ValueError, match="callbacks do not support JVP"):
            gradient("reparameterised")


EVERYWHERE = {  # the doubly reparameterised KL is that of elbo_loss, and the score function the same for both
    "elbo": [(elbo_loss, estimator) for estimator in ESTIMATORS[:2]],
    "predictive": [(predictive_loss, "reparameterised"), (predictive_loss, "score_function")],
}


@cache
def gradients_to_everything():
    """To q, a deterministic leaf, the scale of the prior and what apply_fn closes over, of both losses."""
    params = {"w": q_of([0.1, -0.2], [0.3, 0.2]), "b": jnp.array([0.5])}
    x, y = np.arange(8.0, dtype=np.float32).reshape(4, 2) / 4, np.float32([0.3, 1.0, -0.2, 0.0])

    def run(trainable, key, loss, estimator):
        params, log_scale, shift = trainable
        prior = {"w": Normal(0.0, jnp.exp(log_scale)), "b": None}
        apply_fn = lambda w, x: x @ w["w"] + w["b"] + shift  # noqa: E731
        options = {"num_data": 8, "prior": prior, "estimator": estimator, "chunk_size": None}
        return loss(apply_fn, params, x, y, key, 4, **options)

    def every(key):
        trainable = params, jnp.array(-0.5), jnp.array([0.1])
        return {name: [jax.grad(run)(trainable, key, *case) for case in cases] for name, cases in EVERYWHERE.items()}

    def flat(grads):
        return np.concatenate([leaf.reshape(2000, -1) for leaf in jax.tree.leaves(grads)], axis=1)

    found = jax.jit(jax.vmap(every))(jax.random.split(KEY, 2000))
    return {name: [flat(grads) for grads in cases] for name, cases in found.items()}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_gradients_reach_everything_that_is_not_q(name):
    plain, *others = gradients_to_everything()[name]
    for gradients in (plain, *others):
        assert np.abs(gradients.mean(axis=0)).min() > 1e-3  # none is cut off
    for gradients in others:
        error = (gradients - plain).std(axis=0) / np.sqrt(len(plain))
        np.testing.assert_array_less(np.abs((gradients - plain).mean(axis=0)), 5 * error + 1e-6)


# --- the predictive loss ----------------------------------------------------------------------------------------------


def log_mean_exp(values):
    return jax.nn.logsumexp(values) - jnp.log(len(values))


def test_the_predictive_loss_of_two_samples_against_quadrature():
    value, grads = by_quadrature(lambda w, _, log_likelihood: -mean_over_pairs(log_mean_exp)(log_likelihood))
    kl, kl_grads = kl_to_prior(*Q)
    step = together({name: partial(predictive_loss, estimator=name) for name in ESTIMATORS}, 2)
    for values, gradients in many_of(step).values():
        assert_mean(values, value + kl)
        assert_mean(gradients, grads + kl_grads)


X = np.float32(np.random.default_rng(0).normal(size=(6, 3)))
LABELS = np.int32([0, 1, 2, 1, 0, 2])
PARAMS = {"kernel": np.arange(9.0, dtype=np.float32).reshape(3, 3) / 9, "bias": np.zeros((1, 3), np.float32)}
WIDE_Q, NARROW_Q = (mean_field(PARAMS, scale=scale) for scale in (0.5, 0.1))


def linear(w, x):
    return x @ w["kernel"] + w["bias"]


def test_the_mean_is_inside_the_logarithm_of_each_example():
    def apply_fn(w, x):
        return linear(w, x), linear(w, x)

    weights, labels = np.float32([1.0, 2.0, 0.0, 1.0, 0.5, 1.0]), np.where(np.arange(6) == 2, -1, LABELS)  # padded
    options = {"num_data": 60, "has_aux": True, "weights": weights, "return_terms": True, "chunk_size": None}
    losses = predictive_loss, elbo_loss
    both = jax.jit(lambda q: [loss(apply_fn, q, X, labels, KEY, 5, **options) for loss in losses])
    (value, (terms, logits)), (of_elbo, _) = jax.tree.map(np.asarray, both(WIDE_Q))
    probs = special.softmax(logits, axis=-1)[:, np.arange(6), LABELS]  # (samples, examples)
    np.testing.assert_allclose(terms.nll, np.average(-np.log(probs.mean(axis=0)), weights=weights), rtol=1e-5)
    assert value == terms.nll + terms.weight * terms.kl
    assert value < of_elbo


def test_the_predictive_loss_of_one_sample_is_the_elbo():
    options = {"key": KEY, "num_samples": 1, "temperature": 0.5, "free_nats": 0.1}
    losses = elbo_loss, predictive_loss
    both = jax.jit(lambda q: [jax.value_and_grad(lambda q: scalar(loss, q, **options))(q) for loss in losses])  # noqa: B023
    chex.assert_trees_all_close(*both(q_of(*Q)), rtol=1e-5, atol=1e-7)


def test_the_predictive_loss_takes_pairs_and_chunks():
    @jax.jit
    def both(q):
        def run(q, **options):
            return scalar(predictive_loss, q, KEY, 4, **options)

        chunks = [jax.value_and_grad(partial(run, chunk_size=size))(q) for size in (None, 2)]
        return chunks, run(q, antithetic=True, chunk_size=None)

    ((value, grads), other), of_pairs = both(q_of(*WIDE))
    chex.assert_trees_all_close(other, (value, grads), rtol=1e-5)
    assert abs(of_pairs - value) > 1e-3


# --- temperature and free nats ----------------------------------------------------------------------------------------


def test_terms_hold_what_takes_the_place_of_the_kl():
    def of(q, temperature):
        return elbo_loss(linear, q, X, LABELS, KEY, num_data=60, return_terms=True, temperature=temperature)

    every = jax.jit(lambda q: (kl_loss(q, Normal(0.0, 1.0), reduction="sum"), of(q, 0.25), of(q, np.float32(0.5))))
    kl, *found = jax.tree.map(np.asarray, every(WIDE_Q))
    entropy = 12 * (np.log(0.5) + 0.5 * np.log(2 * np.pi * np.e))
    for temperature, (loss, terms) in zip((0.25, 0.5), found, strict=True):
        np.testing.assert_allclose(terms.kl, kl + (1 - temperature) * entropy, rtol=1e-6)
        assert loss == terms.nll + terms.weight * terms.kl


def test_free_nats_are_free_leaf_by_leaf():
    q = {"far": q_of([3.0, 3.0], [0.5, 0.5]), "near": q_of([0.1, 0.0], [0.9, 1.0]), "b": jnp.zeros(1)}
    prior = {"far": Normal(0.0, 1.0), "near": Normal(0.0, 1.0), "b": None}

    def kl(q, free_nats):
        args = lambda w, x: x + w["far"].sum() + w["near"].sum() + w["b"], q, jnp.zeros(1), jnp.zeros(1), KEY
        return elbo_loss(*args, num_data=1, prior=prior, free_nats=free_nats, return_terms=True)[1].kl

    @jax.jit
    def every(q):
        one_by_one = [kl_loss(q[name], prior[name], reduction="sum") for name in ("far", "near")]
        first = {"far": 100.0, "near": 0.0, "b": None}
        second = {"far": None, "near": jnp.array(3.0), "b": None}
        return one_by_one, [kl(q, first), kl(q, second)], jax.value_and_grad(kl)(q, 2.0)

    (far, near), values, (value, grads) = every(q)
    assert near < 2.0 < far
    np.testing.assert_allclose([*values, value], [100.0 + near, far + 3.0, far + 2.0], rtol=1e-6)
    assert (grads["near"].loc == 0).all()
    assert (grads["near"].rho == 0).all()
    assert (grads["far"].loc > 0).all()


def test_free_nats_of_a_tempered_kl_are_free():
    prior = Normal(0.0, 1.0)

    def kl(q, free_nats):
        args = lambda w, x: 0.0 * w[:1] + x, q, jnp.zeros(1), jnp.zeros(1), KEY
        options = {"prior": prior, "free_nats": free_nats, "temperature": 0.1}
        return elbo_loss(*args, num_data=1, return_terms=True, **options)[1].kl

    @jax.jit
    def every(q):
        tempered = kl_loss(q, prior, reduction="sum") + 0.9 * q.entropy()
        return tempered, [jax.value_and_grad(kl)(q, free_nats) for free_nats in (100.0, 0.0)]

    tempered, ((free, no_slopes), (value, slopes)) = every(q_of([0.0, 0.2], [0.9, 0.5]))
    assert free == 100.0
    assert (no_slopes.rho == 0).all()
    assert value == pytest.approx(tempered)
    assert (slopes.rho != 0).all()


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
        jax.eval_shape(partial(loss, linear, **{"num_samples": 2, "num_data": 6, **options}), NARROW_Q, X, LABELS, KEY)


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
        predictive_loss(linear, NARROW_Q, X, LABELS, KEY, 2, num_data=6, **options)


def test_half_precision_does_not_round_the_density_of_q():
    """The scale lies below the spacing of bfloat16 around loc; the gradient to rho is that of -log(scale)."""
    q = mean_field(jnp.ones(500, jnp.bfloat16), scale=1e-3)
    cases = {
        "elbo": partial(elbo_loss, estimator="doubly_reparameterised"),
        "renyi": partial(renyi_loss, alpha=1.0, estimator="reparameterised"),
    }

    def run(q, key, loss):
        outputs = lambda w, x: 0.0 * w[:1].astype(jnp.float32)  # noqa: E731
        options = {"num_data": 1, "prior": Normal(0.0, 1.0), "chunk_size": None, "loss_fn": lambda f, y: 0.0 * f}
        return loss(outputs, q, jnp.zeros(1), jnp.zeros(1), key, 4, **options)

    def slopes(key):
        return {name: jax.grad(run)(q, key, loss).rho.astype(jnp.float32).mean() for name, loss in cases.items()}

    for name, slope in jax.jit(jax.vmap(slopes))(jax.random.split(KEY, 200)).items():
        slope = np.asarray(slope)
        assert slope.mean() == pytest.approx(-1.0, abs=0.01 + 5 * slope.std() / np.sqrt(200)), name


def test_with_a_fixed_key_the_reparameterised_gradient_is_that_of_the_value():
    """As optax.lbfgs needs it; so the coefficients of the second pass meet the draws that they were made from."""
    losses = {"renyi": partial(renyi_loss, alpha=0.5), "predictive": predictive_loss}
    with jax.enable_x64(True):
        x, y, q, _ = orthogonal_regression()
        options = {"chunk_size": 1, "antithetic": True, "estimator": "reparameterised"}

        def value(both, loss):
            node = type(q["w"])(*jnp.split(both, 2))
            model = lambda w, x: x @ w["w"] + jnp.sin(w["w"].sum())  # noqa: E731
            return loss(model, {"w": node}, x, y, KEY, 4, num_data=20, prior=Normal(0.0, 1.0), **options)

        def every(both):
            return {name: jax.value_and_grad(value)(both, loss) for name, loss in losses.items()}

        at = np.concatenate([q["w"].loc + 0.1, q["w"].rho + 0.2])
        step = 1e-5 * np.eye(6)
        found = jax.jit(jax.vmap(every))(np.concatenate([at[None], at + step, at - step]))
    for name, (values, slopes) in jax.tree.map(np.asarray, found).items():
        differences = (values[1:7] - values[7:]) / 2e-5
        np.testing.assert_allclose(slopes[0], differences, rtol=1e-5, atol=1e-8, err_msg=name)


def test_an_objective_of_ones_own_says_which_log_q_it_differentiates():
    def ratio(estimator, *, directly=False, **of_q):
        data = DataTerm("own_loss", lambda w, x: x * w, jnp.ones(2), jnp.zeros(2))
        draws = Draws(data, mean_field(jnp.ones(()), scale=0.5), KEY, 2, estimator=estimator)
        regulariser = Regulariser(draws, num_data=2)
        w = [node.mean for node in draws.joined.nodes]
        if directly:
            return draws.log_q(w)
        return regulariser.log_ratio(w, draws.log_q(w, **of_q) if of_q else None)

    for directly in (False, True):
        with pytest.raises(ValueError, match=r"own_loss: estimator=.*of_draw_alone=True"):
            ratio("doubly_reparameterised", directly=directly)
    assert ratio("doubly_reparameterised", of_draw_alone=True) == ratio("reparameterised")


def test_a_sum_along_the_draws_is_not_of_the_score_function():
    data = DataTerm("own_loss", lambda w, x: jnp.sign(x * w - 1.0), jnp.ones(2), jnp.ones(2))

    def gradient(estimator, total):
        draws = partial(Draws, data, key=KEY, num_samples=8, estimator=estimator, chunk_size=None)
        return jax.grad(lambda q: total(draws(q)))(mean_field(jnp.ones(()), scale=0.5)).loc

    def nll(draws):
        return lambda w, *_: draws.nll(w)

    with pytest.raises(ValueError, match=r"own_loss: Draws.sum .*score_function.*Draws.reduce"):
        gradient("score_function", lambda draws: draws.sum(nll(draws))[0])
    totals = (
        lambda draws: draws.reduce(nll(draws), jnp.mean)[0],
        lambda draws: draws.mean_nll()[0],
        lambda draws: draws.sum(nll(draws), constant=True)[0],
    )
    reduced, mean, constant = jax.jit(lambda: [gradient("score_function", total) for total in totals])()
    assert reduced == mean != 0.0
    assert constant == 0.0
