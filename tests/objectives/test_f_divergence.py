"""Generators against their formulas in u, and the loss against quadrature, other bounds, and 0 at the posterior."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scalar_problem import LOG_Z, MASS, WIDE, assert_mean, by_quadrature, many, orthogonal_regression, q_of, scalar
from scipy import special

from illia_fn import Normal, cubo_loss, divergences, f_divergence_loss, gaussian_nll, renyi_loss

GENERATORS = {  # the textbook form, in u
    "kl_reverse": (divergences.kl_reverse, lambda u: -np.log(u)),
    "kl_forward": (divergences.kl_forward, lambda u: u * np.log(u)),
    "jeffreys": (divergences.jeffreys, lambda u: (u * np.log(u) - np.log(u)) / 2),
    "jensen_shannon": (
        divergences.jensen_shannon,
        lambda u: u * np.log(2 * u / (1 + u)) + np.log(2 / (1 + u)),
    ),
    "arithmetic_geometric": (
        divergences.arithmetic_geometric,
        lambda u: (1 + u) * np.log((1 + u) / (2 * np.sqrt(u))),
    ),
    "total_variation": (divergences.total_variation, lambda u: np.abs(u - 1) / 2),
    "pearson": (divergences.pearson, lambda u: (u - 1) ** 2),
    "chi_square": (divergences.chi_square, lambda u: u**2 - 1),
    "squared_hellinger": (divergences.squared_hellinger, lambda u: (np.sqrt(u) - 1) ** 2),
    "triangular": (divergences.triangular, lambda u: (u - 1) ** 2 / (u + 1)),
    "modified_gan": (divergences.modified_gan, lambda u: np.log(1 + u) - np.log(u) - np.log(2)),
    "log1p_abs": (divergences.log1p_abs, lambda u: np.maximum(u, 1 / u) - 1),
    "amari 3": (divergences.amari_alpha(3.0), lambda u: (u**3 - 1) / 6),
    "amari -1": (divergences.amari_alpha(-1.0), lambda u: (1 / u - 1) / 2),
    "t 1/2": (divergences.t_power(0.5), lambda u: 1 - np.sqrt(u)),
    "t 2": (divergences.t_power(2.0), lambda u: u**2 - 1),
    "dual of pearson": (divergences.dual(divergences.pearson), lambda u: u * (1 / u - 1) ** 2),
    "symmetrized pearson": (
        divergences.symmetrized(divergences.pearson),
        lambda u: ((u - 1) ** 2 + u * (1 / u - 1) ** 2) / 2,
    ),
    "centred gan": (
        divergences.centred(divergences.modified_gan),
        lambda u: np.log(1 + u) - np.log(u) - np.log(2) + (u - 1) / 2,
    ),
}
KINKED = ("total_variation", "log1p_abs")
ESTIMATORS = ("reparameterised", "doubly_reparameterised", "score_function")
generators = pytest.mark.parametrize("name", GENERATORS)


@generators
def test_the_formula_in_u(name):
    generator, formula = GENERATORS[name]
    u = np.concatenate([np.geomspace(1e-3, 1e3, 41), [1 - 1e-3, 1 + 1e-3]])
    with jax.enable_x64(True):
        np.testing.assert_allclose(generator(jnp.log(u)), formula(u), rtol=1e-9, atol=1e-14)
    values = generator(jnp.log(jnp.asarray(u, jnp.float32)))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, formula(u), rtol=1e-5, atol=2e-6)


@generators
def test_convex_zero_at_one_and_finite_far_out(name):
    generator, _ = GENERATORS[name]
    assert abs(generator(jnp.zeros(()))) < 1e-6
    with jax.enable_x64(True):
        log_u = jnp.linspace(-10.0, 10.0, 11)
        slopes = jax.vmap(jax.grad(generator))(log_u) / jnp.exp(log_u)  # f'(u)
        assert (np.diff(slopes) > -1e-9 * np.abs(slopes[1:])).all()
    far = jnp.array([-25.0, 0.0, 25.0])
    for derivative in (generator, jax.grad(generator), jax.grad(jax.grad(generator))):
        values = jax.vmap(derivative)(far)
        assert values.dtype == jnp.float32
        assert np.isfinite(values).all()


def test_special_cases_and_combinators():
    log_u = jnp.linspace(-3.0, 3.0, 7)
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    same(divergences.amari_alpha(0.0)(log_u), divergences.kl_reverse(log_u))
    same(divergences.amari_alpha(1)(log_u), divergences.kl_forward(log_u))
    same(divergences.dual(divergences.dual(divergences.pearson))(log_u), divergences.pearson(log_u))
    same(divergences.centred(divergences.chi_square)(log_u), divergences.pearson(log_u))
    same(jax.grad(divergences.centred(divergences.kl_forward))(0.0), 0.0)
    far = jnp.array([-300.0, -100.0, -1.0])  # the log weights of a network
    same(divergences.dual(divergences.kl_forward)(far), -far)
    same(divergences.symmetrized(divergences.kl_forward)(far), divergences.jeffreys(far))
    for t, sign in ((-0.01, 1), (0.01, -1), (0.99, -1), (1.01, 1)):
        same(divergences.t_power(t)(np.log(2.0)), sign * (2**t - 1))
    for symmetric in ("jeffreys", "jensen_shannon", "arithmetic_geometric", "squared_hellinger", "triangular"):
        f = getattr(divergences, symmetric)
        same(divergences.dual(f)(log_u), f(log_u))


CHECKED = ("kl_forward", "jensen_shannon", "pearson", "total_variation")


@cache
def exact(name):
    """The divergence and its gradient; the nodes of the quadrature do not see a kink."""
    generator, _ = GENERATORS[name]
    if name in KINKED:
        return fine_quadrature(generator)
    return by_quadrature(lambda w, log_weights, _: jnp.sum(MASS * generator(log_weights - LOG_Z)), WIDE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", CHECKED)
def test_with_the_evidence_it_is_unbiased(name, estimator):
    if name in KINKED and estimator == "doubly_reparameterised":
        with pytest.raises(ValueError, match=r"f_divergence_loss: generator has a kink at u = 1.*reparameterised"):
            many(f_divergence_loss, 2, 3, generator=GENERATORS[name][0])
        return
    generator, _ = GENERATORS[name]
    options = {"generator": generator, "log_evidence": LOG_Z, "estimator": estimator}
    value, grads = exact(name)
    values, gradients = many(f_divergence_loss, 3, q=WIDE, **options)
    assert_mean(values, value)
    assert_mean(gradients, grads)


def fine_quadrature(generator):
    """On a fine grid of noise."""
    noise = np.linspace(-8, 8, 200_001)
    mass = np.exp(-0.5 * noise**2)
    mass /= mass.sum()

    def value(loc, rho):
        scale = jax.nn.softplus(rho)
        w = loc + scale * noise
        log_joint = -0.5 * ((5.0 - w) ** 2 + w**2) - jnp.log(2 * jnp.pi)
        log_q = -0.5 * noise**2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.sum(mass * generator(log_joint - log_q - LOG_Z))

    with jax.enable_x64(True):
        loc, scale = jnp.float64(WIDE[0]), jnp.float64(WIDE[1])
        value, grads = jax.jit(jax.value_and_grad(value, (0, 1)))(loc, jnp.log(jnp.expm1(scale)))
        return float(value), [float(leaf) for leaf in grads]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_the_evidence_it_is_consistent(estimator):
    options = {"generator": divergences.jensen_shannon, "estimator": estimator}
    value, grads = exact("jensen_shannon")
    values, gradients = many(f_divergence_loss, 64, 2000, q=WIDE, **options)
    np.testing.assert_allclose(values.mean(axis=0), value, rtol=0.02)
    np.testing.assert_allclose(gradients.mean(axis=0), grads, rtol=0.05)


@jax.jit
@jax.value_and_grad
def at_the_posterior(q, x, y, log_evidence, temperature):
    return f_divergence_loss(
        lambda w, x: x @ w["w"],
        q,
        x,
        y,
        jax.random.key(0),
        5,
        num_data=20,
        generator=divergences.jensen_shannon,
        log_evidence=log_evidence,
        loss_fn=partial(gaussian_nll, scale=0.5),
        prior=Normal(0.0, 1.0),
        temperature=temperature,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_at_the_posterior_a_divergence_is_zero_and_so_is_its_gradient(temperature):
    with jax.enable_x64(True):
        x, y, q, log_z = orthogonal_regression(temperature)
        for log_evidence in (None, log_z):
            value_and_grads = at_the_posterior(q, x, y, log_evidence, temperature)
            assert all(np.abs(leaf).max() < 1e-8 for leaf in jax.tree.leaves(value_and_grads))


@pytest.mark.parametrize("log_evidence", [None, LOG_Z])
def test_the_value_of_tempered_weights(log_evidence):
    generator, formula = GENERATORS["jensen_shannon"]
    run = partial(scalar, f_divergence_loss, num_samples=5, generator=generator, log_evidence=log_evidence)
    run = jax.jit(partial(run, temperature=0.3, kl_weight=0.5, return_log_weights=True))
    value, log_weights = run(q_of(*WIDE), jax.random.key(0))
    scaled = np.asarray(log_weights, np.float64) / 0.3
    normaliser = special.logsumexp(scaled, b=0.2) if log_evidence is None else log_evidence
    np.testing.assert_allclose(value, 0.3 * formula(np.exp(scaled - normaliser)).mean(), rtol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_where_it_meets_other_bounds(estimator):
    def run(loss, **options):
        step = jax.jit(
            jax.value_and_grad(lambda q: scalar(loss, q, jax.random.key(0), 4, estimator=estimator, **options))
        )
        value, grads = step(q_of(*WIDE))
        return np.array([value, grads.loc, grads.rho])

    kl = run(f_divergence_loss, generator=divergences.kl_reverse, log_evidence=0.0)
    np.testing.assert_allclose(kl, run(renyi_loss, alpha=1.0), rtol=1e-5)
    bound = run(cubo_loss)  # chi-square, up to the square of the evidence
    chi = run(f_divergence_loss, generator=divergences.chi_square, log_evidence=LOG_Z)
    squares = np.exp(2 * (bound[0] - LOG_Z))
    np.testing.assert_allclose(chi, [squares - 1, *(2 * squares * bound[1:])], rtol=1e-4)


def test_the_centred_generator_lands_without_double_reparameterisation():
    near = (2.45, 0.69)
    options = {"count": 2000, "q": near, "estimator": "reparameterised"}
    f = divergences.kl_reverse
    plain = many(f_divergence_loss, 8, generator=f, **options)[1].var(axis=0)
    centred = many(f_divergence_loss, 8, generator=divergences.centred(f), **options)[1].var(axis=0)
    assert (centred < 0.1 * plain).all()


@pytest.mark.parametrize("name", ["kl_forward", "total_variation"])
def test_it_trains(name):
    q = q_of(1.5, 0.9)
    estimator = "reparameterised" if name in KINKED else "doubly_reparameterised"
    loss = partial(scalar, f_divergence_loss, num_samples=64, generator=GENERATORS[name][0], estimator=estimator)
    step = jax.jit(jax.grad(partial(loss, chunk_size=None)))
    for key in jax.random.split(jax.random.key(0), 600):
        q = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, q, step(q, key))
    np.testing.assert_allclose(q.loc, 2.5, atol=0.1)
    np.testing.assert_allclose(jax.nn.softplus(q.rho), 0.5**0.5, atol=0.1)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"generator": "kl"},
            TypeError,
            "generator must be a function of log u, such .* got 'kl'",
        ),
        ({"generator": jnp.exp}, ValueError, "generator must be 0 at u = 1, got 1.0. It is given log u"),
        (
            {"generator": lambda log_u: -divergences.kl_forward(log_u)},
            ValueError,
            "generator is not convex in u at u = 1",
        ),
        ({"generator": jnp.sum}, ValueError, "generator must be an element-wise function"),
        ({"num_samples": 1}, ValueError, ".* num_samples must be at least 2, got 1. Take more, or pass log_evidence"),
        ({"log_evidence": np.inf}, ValueError, "log_evidence must be a finite number of nats, got inf"),
        ({"free_nats": 1.0}, TypeError, "unexpected keyword argument 'free_nats'"),
    ],
)
def test_errors(options, error, match):
    with pytest.raises(error, match=rf"f_divergence_loss(:|\(\) got an) {match}"):
        scalar(
            f_divergence_loss,
            q_of(*WIDE),
            jax.random.key(0),
            **{"num_samples": 2, "generator": divergences.pearson, **options},
        )


def test_errors_of_generators():
    with pytest.raises(ValueError, match="amari_alpha: alpha must be a finite number"):
        divergences.amari_alpha(np.nan)
    with pytest.raises(ValueError, match="t_power: t must be a finite number"):
        divergences.t_power("1")
    with pytest.raises(TypeError, match="dual: f must be a function"):
        scalar(f_divergence_loss, q_of(*WIDE), jax.random.key(0), 2, generator=divergences.dual)
