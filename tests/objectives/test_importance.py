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
    keys,
    many,
    many_of,
    mean_over_pairs,
    orthogonal_regression,
    q_of,
    scalar,
    together,
)
from scipy import special, stats

from illia_fn import Normal, cubo_loss, divergences, f_divergence_loss, iwae_loss, renyi_loss
from illia_fn.objectives._importance import log_power_mean

ESTIMATORS = ("reparameterised", "doubly_reparameterised", "score_function")
BOUNDS = {
    "iwae": (iwae_loss, 1.0, -1),
    "renyi 1": (partial(renyi_loss, alpha=1.0), 0.0, -1),
    "renyi 3": (partial(renyi_loss, alpha=3.0), -2.0, -1),
    "cubo": (cubo_loss, 2.0, 1),
}
ELSEWHERE = q_of(*Q)
# Every estimator with a power mean, the plain mean, and a mean of negative order. The plain mean with the score
# function is below: against what needs it.
CASES = {
    (name, estimator): partial(BOUNDS[name][0], estimator=estimator)
    for name, estimators in {"iwae": ESTIMATORS, "renyi 1": ESTIMATORS[1:2], "renyi 3": ESTIMATORS[1:2]}.items()
    for estimator in estimators
}


def test_all_weights_are_the_evidence_at_the_exact_posterior():
    losses = {
        name: loss_at(loss, 5, return_log_weights=True, chunk_size=None)
        for name, loss in {"iwae": iwae_loss, "cubo": cubo_loss}.items()
    }

    def run(q, key, temperature):
        given = x, y, key, temperature
        return {case: jax.value_and_grad(loss, has_aux=True)(q, *given) for case, loss in losses.items()}

    with jax.enable_x64(True):
        temperatures = np.array([1.0, 0.3])
        x, y, qs, log_z = zip(*map(orthogonal_regression, temperatures), strict=True)
        x, y, q = x[0], y[0], jax.tree.map(lambda *leaves: np.stack(leaves), *qs)
        log_z = temperatures * log_z
        found = jax.jit(jax.vmap(run))(q, jax.random.split(jax.random.key(0), 2), temperatures)
    found = jax.tree.map(np.asarray, found)
    for name, ((value, log_weights), grads) in found.items():
        np.testing.assert_allclose(BOUNDS[name][2] * 20 * value, log_z, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(log_weights, np.tile(log_z[:, None], 5), atol=1e-9, err_msg=name)
        # sticking the landing: it vanishes draw by draw
        assert all(np.abs(leaf).max() < 1e-9 for leaf in jax.tree.leaves(grads)), name


def test_the_power_mean_of_tempered_weights():
    options = {"num_samples": 5, "temperature": 0.3, "kl_weight": 0.5, "return_log_weights": True, "chunk_size": None}
    names = "renyi 1", "cubo"  # for that of iwae_loss see below, of a tree
    run = jax.jit(lambda q, key: {name: scalar(BOUNDS[name][0], q, key, **options) for name in names})
    for name, (value, log_weights) in run(ELSEWHERE, jax.random.key(0)).items():
        _, order, sign = BOUNDS[name]
        scaled = np.asarray(log_weights, np.float64) * order / 0.3
        mean = special.logsumexp(scaled, b=0.2) * 0.3 / order if order else log_weights.mean()
        np.testing.assert_allclose(sign * value, mean, rtol=1e-5, err_msg=name)


ORDERS = (0.5, 1.0, 2.0, -2.0)


@cache
def expected():
    """Value and gradient of the expectation of two samples for each order, and of CUBO for many."""

    def powers(w, log_weights, _):
        means = mean_over_pairs(lambda pair: jax.vmap(partial(log_power_mean, pair))(np.array(ORDERS)))(log_weights)
        return means, mean_over_pairs(jnp.mean)(log_weights), upper(log_weights)

    (means, *others), (slopes, *their_slopes) = by_quadrature(powers)
    pairs = zip((*means, *others), (*slopes, *their_slopes), strict=True)
    return dict(zip((*ORDERS, 0.0, "cubo"), pairs, strict=True))


def upper(log_weights):
    """The bound of order 2 of many samples."""
    return jax.nn.logsumexp(2 * log_weights, b=MASS) / 2


@cache
def of_two_samples():
    return together(CASES, 2)


@cache
def of_cubo():
    return together({name: partial(cubo_loss, estimator=name) for name in ESTIMATORS}, 5)


def test_value_and_gradient_against_quadrature():
    found = many_of(of_two_samples(), temperature=1.0, kl_weight=1.0)
    for (name, _), (values, gradients) in found.items():
        _, order, sign = BOUNDS[name]
        value, grads = expected()[order]
        assert_mean(sign * values, value)
        assert_mean(sign * gradients, grads)


def test_the_gradient_of_cubo_is_that_of_its_limit():
    """Times the mean of the squared weights it is unbiased, for any number of samples: the gradient of E[w^2] / 2."""
    value, grads = by_quadrature(lambda w, log_weights, _: upper(log_weights), WIDE)
    for values, gradients in many_of(of_cubo(), q=WIDE, temperature=1.0, kl_weight=1.0).values():
        squares = np.exp(2 * (values - value))
        assert_mean(squares, 1.0)
        assert_mean(squares[:, None] * gradients, grads)


def test_the_order_of_the_bounds():
    exact = {order: value for order, (value, _) in expected().items()}
    above = exact.pop("cubo")
    assert exact[-2.0] < exact[0.0] < exact[0.5] < exact[1.0] < LOG_Z < above
    of_more = jax.jit(jax.vmap(lambda key: scalar(iwae_loss, ELSEWHERE, key, 32, chunk_size=None)))(keys(0, 4000))
    assert exact[1.0] < -of_more.mean() < LOG_Z


def test_the_signal_of_dreg_does_not_drown():
    """It grows with the number of samples, where that of the plain gradient falls."""
    name = "iwae", "doubly_reparameterised"
    options = {"q": WIDE, "temperature": 1.0, "kl_weight": 1.0}

    def signal_to_noise(gradients):
        return np.abs(gradients.mean(axis=0)) / gradients.std(axis=0)

    of_two, of_more = many_of(of_two_samples(), **options), many_of(together({name: CASES[name]}, 64), 2000, **options)
    # as the root of the number of samples, which is 5.7 times as much
    assert (signal_to_noise(of_more[name][1]) > 2 * signal_to_noise(of_two[name][1])).all()


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
    blind = [loc, (scale - 1 / scale) * slope]  # through the draws the loss has the gradient 0
    assert abs(blind[0] - expected[0]) > 0.5


@pytest.mark.parametrize(("kl_weight", "temperature"), [(0.5, 1.0), (1.0, 0.5), (0.5, 0.5)])
def test_every_estimator_is_tempered_alike(kl_weight, temperature):
    options = {"q": WIDE, "kl_weight": kl_weight, "temperature": temperature}
    of_iwae, of_upper = many_of(of_two_samples(), **options), many_of(of_cubo(), **options)
    for found in ({name: of_iwae["iwae", name] for name in ESTIMATORS}, of_upper):
        (values, plain), *others = (found[name] for name in ESTIMATORS)
        # up to this factor the gradient of the upper bound is unbiased
        factor = np.exp(2 / temperature * (values - LOG_Z)) if found is of_upper else np.ones_like(values)
        for _, other in others:
            assert_mean(factor[:, None] * (other - plain), 0.0)


def test_chunks_weights_aux_and_learned_priors():
    params = {"w": q_of([0.1, -0.2], [0.3, 0.2]), "b": jnp.array(0.5)}
    x, y = np.arange(8.0, dtype=np.float32).reshape(4, 2) / 4, np.float32([0.3, 1.0, -0.2, 0.0])
    padded = np.concatenate([x, np.ones((2, 2), np.float32)]), np.concatenate([y, np.full(2, np.nan, np.float32)])

    def run(trainable, chunk_size, x=x, y=y, weights=None):
        params, log_scale = trainable
        return iwae_loss(
            lambda w, x, key: (x @ w["w"] + w["b"], jax.random.key_data(key)),
            params,
            x,
            y,
            jax.random.key(1),
            8,
            num_data=40,
            prior={"w": Normal(0.0, jnp.exp(log_scale)), "b": None},
            weights=weights,
            chunk_size=chunk_size,
            needs_key=True,
            has_aux=True,
        )

    step = jax.value_and_grad(run, has_aux=True)
    both = jax.jit(lambda given: [step(given, None), step(given, 4, *padded, np.float32([1, 1, 1, 1, 0, 0]))])
    found, other = both((params, jnp.array(-0.5)))
    (_, aux), grads = found
    assert len(np.unique(aux, axis=0)) == 8
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    chex.assert_trees_all_close(other, found, rtol=2e-4, atol=1e-5)


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


NOT_Q = {  # of a bound, its own gradient; of what is none, that of iwae_loss
    "renyi": (partial(renyi_loss, alpha=0.5), 0.5),
    "renyi, plain": (partial(renyi_loss, alpha=0.5, estimator="reparameterised"), 0.5),
    "cubo, plain": (partial(cubo_loss, estimator="reparameterised"), 1.0),
    "cubo, score": (partial(cubo_loss, estimator="score_function"), 1.0),
    "f": (partial(f_divergence_loss, generator=divergences.jensen_shannon), 1.0),
}


def test_what_is_not_q_raises_a_lower_bound():
    """Of a lower bound its own gradient; an upper bound, or a divergence, would unlearn the data: that of iwae_loss.

    At a temperature, as the one of iwae_loss depends on it.
    """
    temperature = 0.7

    def run(trainable, key, loss):
        leaf, log_scale, shift = trainable
        data = jnp.zeros(1), jnp.full(1, 5.0)
        options = {"num_data": 1, "prior": {"w": Normal(0.0, jnp.exp(log_scale)), "b": None}, "chunk_size": None}
        params = {"w": q_of(*WIDE), "b": leaf}
        apply_fn = lambda w, x: x + w["w"] + w["b"] + shift  # noqa: E731
        return loss(apply_fn, params, *data, key, 3, temperature=temperature, **options)

    def every(trainable, key):
        return {case: jax.grad(run)(trainable, key, loss) for case, (loss, _) in NOT_Q.items()}

    def value(both, order):
        b, log_scale = both
        scale = jnp.exp(log_scale)
        noise = jnp.asarray(NODES)
        w = WIDE[0] + WIDE[1] * noise
        log_joint = -0.5 * (5.0 - w - b) ** 2 - 0.5 * (w / scale) ** 2 - log_scale
        log_weights = log_joint + temperature * 0.5 * noise**2
        return mean_over_triples(partial(log_power_mean, order=order / temperature), log_weights)

    found = jax.jit(jax.vmap(every, (None, 0)))((np.float32(0.0),) * 3, keys(0, 4000))
    with jax.enable_x64(True):
        exact = jax.jit(jax.vmap(jax.jacfwd(value), (None, 0)))(np.zeros(2), np.array([0.5, 1.0]))
    for case, grads in found.items():
        of_b, of_scale = exact[0 if NOT_Q[case][1] == 0.5 else 1]
        assert_mean(-np.stack(grads, axis=1), [of_b, of_scale, of_b])


def mean_over_triples(f, values):
    keep = MASS > 1e-9
    values, mass = values[keep], MASS[keep]
    triples = jnp.stack(jnp.meshgrid(values, values, values), axis=-1)
    means = jax.vmap(jax.vmap(jax.vmap(f)))(triples)
    return jnp.sum(means * mass[:, None, None] * mass[None, :, None] * mass[None, None, :])


def test_the_power_mean_near_order_zero():
    log_weights = np.float32([-1000.0, -1003.0, -1001.0, -1010.0])
    orders = (1e-3, 1e-5, 1e-7, -1e-7, 1e-9)
    run = jax.jit(lambda x: [jax.value_and_grad(log_power_mean)(x, order) for order in orders])
    for order, (value, share) in zip(orders, run(log_weights), strict=True):
        np.testing.assert_allclose(value, -1003.5 + order * np.var(log_weights) / 2, rtol=1e-6)
        np.testing.assert_allclose(share, 0.25, rtol=0.01)


def test_a_float32_temperature_goes_with_float64_weights(x64):
    for loss in (iwae_loss, cubo_loss, partial(f_divergence_loss, generator=divergences.pearson)):
        run = partial(scalar, loss, key=jax.random.key(0), num_samples=3, chunk_size=None)
        found = jax.eval_shape(lambda q, value: run(q, temperature=value), q_of(*Q), np.float32(0.5))  # noqa: B023
        assert found.dtype == jnp.float64


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
