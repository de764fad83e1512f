"""Generators against their formulas in u, and the loss against quadrature, other bounds, and 0 at the posterior."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import loss_at
from scalar_problem import (
    LOG_Z,
    WIDE,
    assert_mean,
    many,
    many_of,
    orthogonal_regression,
    q_of,
    scalar,
    together,
)
from scipy import special

from illia_fn import divergences, f_divergence_loss

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
EVERY = {name: generator for name, (generator, _) in GENERATORS.items()}


def test_the_formulas_in_u():
    u = np.concatenate([np.geomspace(1e-3, 1e3, 41), [1 - 1e-3, 1 + 1e-3]])
    values_at = jax.jit(lambda u: {name: generator(jnp.log(u)) for name, generator in EVERY.items()})
    with jax.enable_x64(True):
        wide = values_at(u)
    for name, values in values_at(np.float32(u)).items():
        formula = GENERATORS[name][1](u)
        np.testing.assert_allclose(wide[name], formula, rtol=1e-9, atol=1e-14, err_msg=name)
        assert values.dtype == jnp.float32, name
        np.testing.assert_allclose(values, formula, rtol=1e-5, atol=2e-6, err_msg=name)


def test_convex_zero_at_one_and_finite_far_out():
    @jax.jit
    def slopes_at(log_u):
        return {name: jax.vmap(jax.grad(generator))(log_u) for name, generator in EVERY.items()}

    @jax.jit
    def derivatives_at(log_u):
        def of(generator):
            first = jax.grad(generator)
            return [jax.vmap(derivative)(log_u) for derivative in (generator, first, jax.grad(first))]

        return {name: of(generator) for name, generator in EVERY.items()}

    log_u = np.linspace(-10.0, 10.0, 11)
    with jax.enable_x64(True):
        slopes = jax.tree.map(np.asarray, slopes_at(log_u))
    for name, derivatives in derivatives_at(np.float32([-25.0, 0.0, 25.0])).items():
        by_u = slopes[name] / np.exp(log_u)  # f'(u)
        assert (np.diff(by_u) > -1e-9 * np.abs(by_u[1:])).all(), name
        assert abs(derivatives[0][1]) < 1e-6, name
        for values in derivatives:
            assert values.dtype == jnp.float32, name
            assert np.isfinite(values).all(), name


def test_special_cases_and_combinators():
    names = "jeffreys", "jensen_shannon", "arithmetic_geometric", "squared_hellinger", "triangular"
    symmetric = {name: getattr(divergences, name) for name in names}

    def pairs(log_u, far):
        """What is to be the same."""
        d = divergences
        yield d.amari_alpha(0.0)(log_u), d.kl_reverse(log_u)
        yield d.amari_alpha(1)(log_u), d.kl_forward(log_u)
        yield d.dual(d.dual(d.pearson))(log_u), d.pearson(log_u)
        yield d.centred(d.chi_square)(log_u), d.pearson(log_u)
        yield jax.grad(d.centred(d.kl_forward))(0.0), 0.0
        yield d.dual(d.kl_forward)(far), -far
        yield d.symmetrized(d.kl_forward)(far), d.jeffreys(far)
        for t, sign in ((-0.01, 1), (0.01, -1), (0.99, -1), (1.01, 1)):
            yield d.t_power(t)(np.log(2.0)), sign * (2**t - 1)
        yield from ((d.dual(f)(log_u), f(log_u)) for f in symmetric.values())

    far = np.float32([-300.0, -100.0, -1.0])  # the log weights of a network
    for found, expected in jax.jit(lambda *given: list(pairs(*given)))(
        np.linspace(-3.0, 3.0, 7, dtype=np.float32), far
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


CHECKED = {  # every estimator, that of a kinked one without a curvature
    **{("jensen_shannon", name): divergences.jensen_shannon for name in ("doubly_reparameterised", "score_function")},
    ("total_variation", "reparameterised"): divergences.total_variation,
}


@cache
def exact(name):
    """The divergence and its gradient to (loc, rho), on a fine grid of noise, as a kink takes it."""
    noise = np.linspace(-8, 8, 200_001)
    mass = np.exp(-0.5 * noise**2) / np.sum(np.exp(-0.5 * noise**2))

    def value(loc, rho):
        scale = np.logaddexp(0.0, rho)
        w = loc + scale * noise
        log_joint = -0.5 * ((5.0 - w) ** 2 + w**2) - np.log(2 * np.pi)
        log_q = -0.5 * noise**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
        return np.sum(mass * GENERATORS[name][1](np.exp(log_joint - log_q - LOG_Z)))

    at, step = np.array([WIDE[0], np.log(np.expm1(WIDE[1]))]), 1e-4 * np.eye(2)
    return value(*at), np.array([value(*(at + each)) - value(*(at - each)) for each in step]) / 2e-4


def test_with_the_evidence_it_is_unbiased():
    cases = {
        (name, estimator): partial(f_divergence_loss, generator=f, log_evidence=LOG_Z, estimator=estimator)
        for (name, estimator), f in CHECKED.items()
    }
    for (name, _), (values, gradients) in many_of(together(cases, 3), q=WIDE).items():
        value, grads = exact(name)
        assert_mean(values, value)
        assert_mean(gradients, grads)


def test_a_kink_has_no_doubly_reparameterised_gradient():
    with pytest.raises(ValueError, match=r"f_divergence_loss: generator has a kink at u = 1.*reparameterised"):
        scalar(f_divergence_loss, q_of(*WIDE), jax.random.key(0), 2, generator=divergences.total_variation)


def test_without_the_evidence_it_is_consistent():
    value, grads = exact("jensen_shannon")
    loss = partial(f_divergence_loss, generator=divergences.jensen_shannon)
    values, gradients = many(loss, 64, 2000, q=WIDE)
    np.testing.assert_allclose(values.mean(axis=0), value, rtol=0.02)
    np.testing.assert_allclose(gradients.mean(axis=0), grads, rtol=0.05)


CENTRED = divergences.centred(divergences.kl_reverse)  # lands without double reparameterisation


def test_at_the_posterior_a_divergence_is_zero_and_so_is_its_gradient():
    losses = (
        partial(f_divergence_loss, generator=divergences.jensen_shannon),
        partial(f_divergence_loss, generator=CENTRED, estimator="reparameterised"),
    )

    @jax.jit
    def both(x, y, q, log_z, temperature):
        def run(q, loss, **options):
            return loss_at(loss, 5, chunk_size=None, **options)(q, x, y, jax.random.key(0), temperature)

        smooth, centred = losses
        return jax.value_and_grad(run)(q, smooth), jax.value_and_grad(run)(q, centred, log_evidence=log_z)

    with jax.enable_x64(True):
        for temperature in (1.0, 0.3):
            found = both(*orthogonal_regression(temperature), temperature)
            assert all(np.abs(leaf).max() < 1e-8 for leaf in jax.tree.leaves(found))


def test_the_value_of_tempered_weights():
    generator, formula = GENERATORS["jensen_shannon"]
    options = {"temperature": 0.3, "kl_weight": 0.5, "return_log_weights": True, "chunk_size": None}
    run = partial(scalar, f_divergence_loss, num_samples=5, generator=generator, **options)
    every = jax.jit(lambda q, key: [run(q, key, log_evidence=log_evidence) for log_evidence in (None, LOG_Z, 0.0)])
    (value, log_weights), (with_evidence, _), (of_none, _) = every(q_of(*WIDE), jax.random.key(0))
    scaled = np.asarray(log_weights, np.float64) / 0.3
    for found, normaliser in ((value, special.logsumexp(scaled, b=0.2)), (with_evidence, LOG_Z), (of_none, 0.0)):
        np.testing.assert_allclose(found, 0.3 * formula(np.exp(scaled - normaliser)).mean(), rtol=1e-4)


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
