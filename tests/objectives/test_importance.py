"""Every bound is exact where q is the posterior, and elsewhere lies where quadrature puts it, with its gradient."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import loss_at
from scalar_problem import (
    LOG_Z,
    MASS,
    NODES,
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
from scipy import special, stats

from illia_fn import Normal, cubo_loss, divergences, elbo_loss, f_divergence_loss, iwae_loss, renyi_loss
from illia_fn.objectives._importance import log_power_mean

ESTIMATORS = ("reparameterised", "doubly_reparameterised", "score_function")
BOUNDS = {
    "iwae": (iwae_loss, 1.0, -1),
    "renyi 0.5": (partial(renyi_loss, alpha=0.5), 0.5, -1),
    "renyi 1": (partial(renyi_loss, alpha=1.0), 0.0, -1),
    "renyi 3": (partial(renyi_loss, alpha=3.0), -2.0, -1),
    "cubo": (cubo_loss, 2.0, 1),
}
bounds = pytest.mark.parametrize(("loss", "order", "sign"), BOUNDS.values(), ids=BOUNDS)
ELSEWHERE = q_of(*Q)


@cache
def at_the_posterior(loss, estimator):
    """Compiled once for all temperatures."""

    run = loss_at(loss, 5, estimator=estimator, return_log_weights=True)
    return jax.jit(jax.value_and_grad(run, has_aux=True))


@bounds
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_all_weights_are_the_evidence_at_the_exact_posterior(loss, order, sign, estimator, temperature):
    with jax.enable_x64(True):
        x, y, q, log_z = orthogonal_regression(temperature)
        step = at_the_posterior(loss, estimator)
        for seed in range(3):
            (value, log_weights), grads = step(q, x, y, jax.random.key(seed), temperature)
            np.testing.assert_allclose(sign * 20 * value, temperature * log_z, atol=1e-9)
            np.testing.assert_allclose(log_weights, temperature * log_z, atol=1e-9)
            if estimator == "doubly_reparameterised":  # sticking the landing: it vanishes draw by draw
                assert all(np.abs(leaf).max() < 1e-9 for leaf in jax.tree.leaves(grads))
            else:
                assert any(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(grads)) or order != 0.0


@bounds
def test_the_power_mean_of_tempered_weights(loss, order, sign):
    run = partial(scalar, loss, num_samples=5, temperature=0.3, kl_weight=0.5, return_log_weights=True)
    value, log_weights = jax.jit(run)(ELSEWHERE, jax.random.key(0))
    scaled = np.asarray(log_weights, np.float64) * order / 0.3
    mean = special.logsumexp(scaled, b=0.2) * 0.3 / order if order else log_weights.mean()
    np.testing.assert_allclose(sign * value, mean, rtol=1e-5)


@cache
def expected(order):
    """Value and gradient of the expectation of two samples."""
    return by_quadrature(lambda w, log_weights, _: mean_over_pairs(partial(log_power_mean, order=order))(log_weights))


@cache
def limit(order, q=Q):
    """Those of many samples."""
    return by_quadrature(lambda w, log_weights, _: jax.nn.logsumexp(order * log_weights, b=MASS) / order, q)


@bounds
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_value_and_gradient_against_quadrature(loss, order, sign, estimator):
    value, grads = expected(order)
    values, gradients = many(loss, 2, estimator=estimator)
    assert_mean(sign * values, value)
    if loss is not cubo_loss:  # whose gradient is not that of the bound of two samples: see below
        assert_mean(sign * gradients, grads)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("num_samples", [2, 5])
def test_the_gradient_of_cubo_is_that_of_its_limit(estimator, num_samples):
    """Times the mean of the squared weights it is unbiased, for any number of samples: the gradient of E[w^2] / 2."""
    value, grads = limit(2.0, WIDE)
    values, gradients = many(cubo_loss, num_samples, q=WIDE, estimator=estimator)
    squares = np.exp(2 * (values - value))
    assert_mean(squares, 1.0)
    assert_mean(squares[:, None] * gradients, grads)


@partial(jax.jit, static_argnums=(0, 1))
def trained(loss, num_samples):
    """By 500 steps of gradient descent."""

    def step(q, key):
        grads = jax.grad(partial(scalar, loss, num_samples=num_samples))(q, key)
        return jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, q, grads), None

    return jax.lax.scan(step, q_of(0.0, 0.5), jax.random.split(jax.random.key(0), 500))[0]


def test_cubo_does_not_run_away_from_the_posterior():
    """The gradient of the value for one sample is that of an ELBO to be minimised; that of the bound is not."""
    q = trained(cubo_loss, 2)
    np.testing.assert_allclose(q.loc, 2.5, atol=0.05)
    np.testing.assert_allclose(jax.nn.softplus(q.rho), 0.5**0.5, atol=0.05)


def test_the_order_of_the_bounds():
    exact = {order: expected(order)[0] for order in (-2.0, 0.0, 0.5, 1.0)}
    above, _ = limit(2.0)
    assert exact[-2.0] < exact[0.0] < exact[0.5] < exact[1.0] < LOG_Z < above
    means = [-many(iwae_loss, k, count=4000)[0].mean() for k in (1, 2, 8, 32)]
    assert means == sorted(means)
    assert means[-1] < LOG_Z
    once = partial(scalar, key=jax.random.key(0), chunk_size=None)
    elbo = -float(jax.jit(partial(once, elbo_loss, num_samples=4000))(ELSEWHERE))
    assert elbo == pytest.approx(exact[0.0], abs=0.05)
    upper = float(jax.jit(partial(once, cubo_loss, num_samples=100_000))(ELSEWHERE))
    assert upper == pytest.approx(above, abs=0.05)


def test_the_signal_of_dreg_does_not_drown():
    @cache
    def signal_to_noise(estimator, num_samples):
        _, gradients = many(iwae_loss, num_samples, count=2000, q=WIDE, estimator=estimator)
        return np.abs(gradients.mean(axis=0)) / gradients.std(axis=0)

    for few, more in ((4, 16), (16, 64)):
        assert (signal_to_noise("doubly_reparameterised", more) > signal_to_noise("doubly_reparameterised", few)).all()
    assert (signal_to_noise("reparameterised", 64)[1]) < 0.9 * signal_to_noise("reparameterised", 4)[1]
    assert (signal_to_noise("doubly_reparameterised", 64) > 2 * signal_to_noise("reparameterised", 64)).all()


def test_sticking_the_landing_is_quieter_near_the_optimum():
    elbo = partial(renyi_loss, alpha=1.0)
    _, sticking = many(elbo, 2, count=4000)
    _, plain = many(elbo, 2, count=4000, estimator="reparameterised")
    assert (sticking.var(axis=0) < 0.5 * plain.var(axis=0)).all()


def test_the_score_function_needs_no_gradient_of_the_loss():
    def wrong(outputs, targets):
        return jnp.where(outputs < targets - 2.5, 3.0, 0.0)  # 3 where w < 2.5, and flat

    _, gradients = many(partial(renyi_loss, alpha=1.0), 8, loss_fn=wrong, estimator="score_function")
    loc, scale = Q
    z = (2.5 - loc) / scale
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    # d/dloc 3 P(w < 2.5) = -3 density(z) / scale; the KL has d/dloc = loc, d/drho = (scale - 1 / scale) sigmoid(rho)
    slope = 1 - np.exp(-scale)
    expected = [loc - 3 * density / scale, (scale - 1 / scale - 3 * z * density / scale) * slope]
    assert_mean(gradients, expected)
    _, blind = many(partial(renyi_loss, alpha=1.0), 8, loss_fn=wrong, estimator="reparameterised")
    assert abs(blind.mean(axis=0)[0] - expected[0]) > 0.5


@pytest.mark.parametrize("loss", [iwae_loss, cubo_loss])
@pytest.mark.parametrize(("kl_weight", "temperature"), [(0.5, 1.0), (1.0, 0.5), (0.5, 0.5)])
def test_every_estimator_is_tempered_alike(loss, kl_weight, temperature):
    options = {"kl_weight": kl_weight, "temperature": temperature}
    means = []
    for seed, estimator in enumerate(ESTIMATORS):
        values, gradients = many(loss, 2, q=WIDE, estimator=estimator, seed=seed, **options)
        if loss is cubo_loss:  # up to this factor it is unbiased
            gradients *= np.exp(2 / temperature * (values - LOG_Z))[:, None]
        means.append(gradients)
    for other in means[1:]:
        error = np.sqrt((means[0].var(axis=0) + other.var(axis=0)) / len(other))
        np.testing.assert_array_less(np.abs(means[0].mean(axis=0) - other.mean(axis=0)), 5 * error)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_chunks_weights_aux_and_learned_priors(estimator):
    params = {"w": q_of([0.1, -0.2], [0.3, 0.2]), "b": jnp.array(0.5)}
    x, y = jnp.arange(8.0).reshape(4, 2) / 4, jnp.array([0.3, 1.0, -0.2, 0.0])

    def run(trainable, chunk_size, x=x, y=y, weights=None):
        params, log_scale = trainable
        return iwae_loss(
            lambda w, x, key: (x @ w["w"] + w["b"], jax.random.key_data(key)),
            params,
            x,
            y,
            jax.random.key(1),
            6,
            num_data=40,
            prior={"w": Normal(0.0, jnp.exp(log_scale)), "b": None},
            weights=weights,
            chunk_size=chunk_size,
            estimator=estimator,
            needs_key=True,
            has_aux=True,
        )

    trainable = params, jnp.array(-0.5)
    step = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    one_by_one = (value, aux), grads = step(trainable, 1)
    assert len(np.unique(aux, axis=0)) == 6
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    for chunk_size in (4, None):
        chex.assert_trees_all_close(step(trainable, chunk_size), one_by_one, rtol=2e-4, atol=1e-5)
    padded_x, padded_y = jnp.concatenate([x, jnp.ones((2, 2))]), jnp.concatenate([y, jnp.full(2, jnp.nan)])
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    padded = jax.jit(partial(run, chunk_size=1))(trainable, x=padded_x, y=padded_y, weights=weights)
    np.testing.assert_allclose(padded[0], value, rtol=1e-5)


def test_it_trains():
    q = trained(iwae_loss, 8)
    np.testing.assert_allclose(q.loc, 2.5, atol=0.05)
    np.testing.assert_allclose(jax.nn.softplus(q.rho), 0.5**0.5, atol=0.05)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda **o: scalar(partial(renyi_loss, alpha=np.inf), **o), ValueError, "renyi_loss: alpha must be a finite"),
        (
            lambda **o: scalar(partial(renyi_loss, alpha=-1.0), **o),
            ValueError,
            r"upper bound, cubo_loss\(order=2\)",
        ),
        (lambda **o: scalar(partial(cubo_loss, order=0.5), **o), ValueError, "cubo_loss: order must be greater than 1"),
        (lambda **o: scalar(iwae_loss, **{**o, "num_samples": 0}), ValueError, "iwae_loss: num_samples must be"),
        (lambda **o: scalar(iwae_loss, **o, antithetic=True), ValueError, "needs independent draws"),
        (lambda **o: scalar(iwae_loss, **o, estimator="stl"), ValueError, "iwae_loss: estimator must be one of"),
        (
            lambda **o: scalar(iwae_loss, **{**o, "num_samples": 1}, estimator="score_function"),
            ValueError,
            "needs num_samples of at least 2",
        ),
        (lambda **o: scalar(iwae_loss, **o, num_sample=3), TypeError, "unexpected keyword argument 'num_sample'"),
        (
            lambda q, key, num_samples: iwae_loss(
                lambda w, x: x @ w,
                q_of(np.zeros((2, 3)), np.ones((2, 3))),
                jnp.ones((3, 2)),
                jnp.ones((3, 3)),
                key,
                num_samples,
                num_data=3,
                prior=Normal(0.0, jnp.ones(3)),
            ),
            ValueError,
            "iwae_loss at params: a prior parameter of shape",
        ),
        (
            lambda q, key, num_samples: iwae_loss(lambda w, x: x + w, q, jnp.ones(1), jnp.ones(1), key, num_samples),
            TypeError,
            r"iwae_loss\(\) missing 1 required keyword-only argument: 'num_data'",
        ),
        (
            lambda q, key, num_samples: iwae_loss(
                lambda w, x: x + w, q, jnp.ones(1), jnp.ones(1), key, num_samples, num_data=None
            ),
            ValueError,
            "iwae_loss: num_data is required",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call(q=ELSEWHERE, key=jax.random.key(0), num_samples=2)


# --- trees of many leaves, and all that is not q ----------------------------------------------------------------------


class Laplace:
    """A prior without a closed form: log p(w) = -|w| - log(2)."""

    def log_prob(self, w):
        return -jnp.abs(w) - jnp.log(2.0).astype(w.dtype)


def test_the_log_weights_of_a_tree_by_hand():
    q = {
        "a": q_of([0.1, -0.2], [0.3, 0.2]),
        "b": q_of([[0.5]], [[0.4]]),
        "c": q_of([0.3], [0.1]),
        "d": jnp.array([0.5]),
    }
    prior = {"a": Normal(0.0, jnp.array([0.5, 2.0])), "b": Laplace(), "c": q_of([0.0], [0.7]), "d": None}
    x, y = jnp.arange(8.0).reshape(4, 2) / 4, jnp.array([0.3, 1.0, -0.2, 0.0])

    def apply_fn(w, x):
        return x @ w["a"] + w["b"][0] + w["c"] + w["d"], w

    options = {"num_data": 40, "prior": prior, "kl_weight": 0.7, "temperature": 1.5, "has_aux": True}
    run = jax.jit(partial(iwae_loss, apply_fn, num_samples=3, return_log_weights=True, **options))
    value, (log_weights, draws) = run(q, x, y, jax.random.key(0))
    w = {name: np.asarray(leaf, np.float64).reshape(3, -1) for name, leaf in draws.items()}
    outputs = w["a"] @ np.asarray(x).T + w["b"] + w["c"] + 0.5
    log_likelihood = stats.norm.logpdf(np.asarray(y), outputs).mean(axis=1)
    log_prior = stats.norm.logpdf(w["a"], 0, [0.5, 2.0]).sum(axis=1) + stats.laplace.logpdf(w["b"])[:, 0]
    log_prior += stats.norm.logpdf(w["c"], 0, 0.7)[:, 0]
    log_q = stats.norm.logpdf(w["a"], [0.1, -0.2], [0.3, 0.2]).sum(axis=1)
    log_q += stats.norm.logpdf(w["b"], 0.5, 0.4)[:, 0] + stats.norm.logpdf(w["c"], 0.3, 0.1)[:, 0]
    expected = 40 * log_likelihood + 0.7 * (log_prior - 1.5 * log_q)
    np.testing.assert_allclose(log_weights, expected, rtol=1e-4)
    mean = 1.5 * np.log(np.mean(np.exp((expected - expected.max()) / 1.5))) + expected.max()
    np.testing.assert_allclose(value, -mean / 40, rtol=1e-4)


def not_q(loss, estimator, sign, q=WIDE):
    """Mean gradient, with its error, to a deterministic leaf, the scale of the prior, and a closed-over shift."""

    def run(trainable, key):
        leaf, log_scale, shift = trainable
        data = jnp.zeros(1), jnp.full(1, 5.0)
        options = {"num_data": 1, "prior": {"w": Normal(0.0, jnp.exp(log_scale)), "b": None}}
        params = {"w": q_of(*q), "b": leaf}
        apply_fn = lambda w, x: x + w["w"] + w["b"] + shift  # noqa: E731
        return loss(apply_fn, params, *data, key, 3, estimator=estimator, chunk_size=None, **options)

    trainable = jnp.float32(0.0), jnp.float32(0.0), jnp.float32(0.0)
    grads = jax.jit(jax.vmap(jax.grad(run), (None, 0)))(trainable, jax.random.split(jax.random.key(0), 4000))
    flat = sign * np.stack(grads, axis=1)
    return flat.mean(axis=0), flat.std(axis=0) / np.sqrt(len(flat))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["renyi 0.5", "cubo", "f"])
def test_what_is_not_q_raises_a_lower_bound(name, estimator):
    """Of a lower bound its own gradient; an upper bound, or a divergence, would unlearn the data: that of iwae_loss."""
    f = partial(f_divergence_loss, generator=divergences.jensen_shannon)
    loss = renyi_loss_half if name == "renyi 0.5" else cubo_loss if name == "cubo" else f
    order = 0.5 if name == "renyi 0.5" else 1.0
    mean, error = not_q(loss, estimator, -1)

    def value(b, log_scale):
        scale = jnp.exp(log_scale)
        noise = jnp.asarray(NODES)
        w = WIDE[0] + WIDE[1] * noise
        log_joint = -0.5 * (5.0 - w - b) ** 2 - 0.5 * (w / scale) ** 2 - log_scale
        log_weights = log_joint + 0.5 * noise**2
        return mean_over_triples(partial(log_power_mean, order=order), log_weights)

    with jax.enable_x64(True):
        exact = jax.jit(jax.grad(value, (0, 1)))(jnp.float64(0.0), jnp.float64(0.0))
    expected = np.array([exact[0], exact[1], exact[0]])
    np.testing.assert_array_less(np.abs(mean - expected), 5 * error)


@pytest.mark.parametrize("loss", [cubo_loss, partial(f_divergence_loss, generator=divergences.jensen_shannon)])
def test_what_is_not_q_has_the_gradient_of_iwae_at_any_temperature(loss):
    def slope(loss):
        def of_shift(shift):
            data = jnp.zeros(1), jnp.full(1, 5.0)
            options = {"num_data": 1, "prior": Normal(0.0, 1.0), "temperature": 0.3}
            return loss(lambda w, x: x + w + shift, q_of(*WIDE), *data, jax.random.key(0), 5, **options)

        return jax.jit(jax.grad(of_shift))(0.1)

    np.testing.assert_allclose(slope(loss), slope(iwae_loss), rtol=1e-4)


renyi_loss_half = partial(renyi_loss, alpha=0.5)


def mean_over_triples(f, values):
    keep = MASS > 1e-9
    values, mass = values[keep], MASS[keep]
    triples = jnp.stack(jnp.meshgrid(values, values, values), axis=-1)
    means = jax.vmap(jax.vmap(jax.vmap(f)))(triples)
    return jnp.sum(means * mass[:, None, None] * mass[None, :, None] * mass[None, None, :])


def test_batches_bias_the_bound_upwards():
    """The noise of a batch is inside of the exponential; the expectation of the ELBO does not change."""
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(1.0, 1.0, 200), jnp.float32)
    q = q_of(np.float32(y.sum() / 201), np.float32(1.3 / np.sqrt(201)))
    covariance_log_det = np.log(201)
    log_z = -0.5 * (float(y @ y) - float(y.sum()) ** 2 / 201) - 0.5 * covariance_log_det - 100 * np.log(2 * np.pi)

    def run(key, size):
        batch_key, key = jax.random.split(key)
        batch = jax.random.choice(batch_key, y, (size,), replace=False)
        options = {"num_data": 200, "prior": Normal(0.0, 1.0), "chunk_size": None}
        return -200 * iwae_loss(lambda w, x: x + w, q, jnp.zeros(size), batch, key, 32, **options)

    keys = jax.random.split(jax.random.key(0), 3000)
    full, batches = (np.asarray(jax.jit(jax.vmap(partial(run, size=size)))(keys)) for size in (200, 20))
    assert full.mean() < log_z
    assert full.mean() == pytest.approx(log_z, abs=0.1)
    assert batches.mean() > log_z + 5 * batches.std() / np.sqrt(3000)


def test_the_power_mean_near_order_zero():
    log_weights = jnp.array([-1000.0, -1003.0, -1001.0, -1010.0])
    for order in (1e-3, 1e-5, 1e-7, -1e-7, 1e-9):
        exact = -1003.5 + order * np.var(log_weights) / 2
        np.testing.assert_allclose(log_power_mean(log_weights, order), exact, rtol=1e-6)
        share = jax.grad(log_power_mean)(log_weights, order)
        np.testing.assert_allclose(share, 0.25, rtol=0.01)


def test_a_float32_temperature_goes_with_float64_weights(x64):
    q = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), q_of(*Q))
    for loss in (iwae_loss, cubo_loss, partial(f_divergence_loss, generator=divergences.pearson)):
        data = jnp.zeros(1, jnp.float64), jnp.full(1, 5.0, jnp.float64)
        args = lambda w, x: x + w, q, *data, jax.random.key(0), 3
        options = {"num_data": 1, "prior": Normal(0.0, 1.0)}
        both = jax.jit(lambda traced: [loss(*args, temperature=value, **options) for value in (traced, 0.5)])  # noqa: B023
        np.testing.assert_allclose(*both(jnp.float32(0.5)), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (iwae_loss, "iwae_loss: params has no posterior node"),
        (
            partial(f_divergence_loss, generator=divergences.kl_forward),
            "f_divergence_loss: params has no posterior node",
        ),
    ],
)
def test_a_tree_without_a_posterior_is_refused(loss, match):
    with pytest.raises(ValueError, match=match):
        scalar(loss, jnp.zeros(()), jax.random.key(0), 2)
