"""One weight, w ~ N(0, 1), and one observation y = 5 of w with unit noise: everything about it is known."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn import Gaussian, Normal

LOG_Z = -7.515512  # y ~ N(0, 2)
Q = (2.2, 0.6)  # the posterior is N(2.5, 1/2)
WIDE = (2.0, 0.9)  # wider than the posterior, so that the weights have all their moments

NODES, MASS = np.polynomial.hermite_e.hermegauss(80)
MASS = MASS / MASS.sum()


def q_of(loc, scale):
    return Gaussian(jnp.asarray(loc), jnp.log(jnp.expm1(jnp.asarray(scale))))


def scalar(loss, q, key, num_samples, **options):
    """An objective, per data set."""
    data = jnp.zeros(1), jnp.full(1, 5.0)
    return loss(lambda w, x: x + w, q, *data, key, num_samples, num_data=1, prior=Normal(0.0, 1.0), **options)


@cache
def compiled(loss, num_samples, **options):
    """Value and gradient for many keys; what tempers the KL is an argument, so that all of its values share this."""

    def run(q, key, tempering):
        return scalar(loss, q, key, num_samples, chunk_size=None, **options, **tempering)

    return jax.jit(jax.vmap(jax.value_and_grad(run), (None, 0, None)))


def many(loss, num_samples, count=20_000, seed=0, q=Q, **options):
    """Values and gradients from many keys: (count,), and (count, 2) for loc and rho."""
    tempering = {name: jnp.float32(options.pop(name)) for name in ("temperature", "kl_weight") if name in options}
    keys = jax.random.split(jax.random.key(seed), count)
    values, grads = compiled(loss, num_samples, **options)(q_of(*q), keys, tempering)
    return np.asarray(values), np.stack([grads.loc, grads.rho], axis=1)


def by_quadrature(f, q=Q):
    """f(w, log weights, log p(y | w)), a number made of these at the nodes, and its gradient to (loc, rho)."""

    def value(loc, rho):
        scale = jax.nn.softplus(rho)
        w = loc + scale * NODES
        log_q = -0.5 * NODES**2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)
        log_likelihood = -0.5 * (5.0 - w) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
        log_weights = log_likelihood - 0.5 * w**2 - 0.5 * jnp.log(2 * jnp.pi) - log_q
        return f(w, log_weights, log_likelihood)

    with jax.enable_x64(True):
        loc, scale = q
        rho = jnp.log(jnp.expm1(jnp.float64(scale)))
        value, grads = jax.jit(jax.value_and_grad(value, (0, 1)))(jnp.float64(loc), rho)
        return float(value), [float(leaf) for leaf in grads]


def mean_over_pairs(f):
    """E[f(values of two draws)], from the values at the nodes."""

    def mean(values):
        pairs = jnp.stack(jnp.meshgrid(values, values), axis=-1)
        return jnp.sum(MASS[:, None] * MASS[None, :] * jax.vmap(jax.vmap(f))(pairs))

    return mean


def assert_mean(samples, expected):
    """Within five standard errors."""
    error = samples.std(axis=0) / np.sqrt(len(samples))
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - np.asarray(expected)), 5 * error)


def orthogonal_regression(temperature=1.0):
    """Linear regression of uncorrelated inputs: q is the posterior at that temperature, and log of its evidence.

    Noise variance 1/4, prior N(0, 1), 20 examples; in float64. The posterior of temperature T is that of joint^(1 / T).
    """
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(20, 3)))[0] * np.array([2.0, 5.0, 1.0])
    y = rng.normal(size=20)
    precision = np.diag(x.T @ x) / 0.25 + 1.0
    mean = x.T @ y / 0.25 / precision
    log_joint = -0.5 * np.sum((y - x @ mean) ** 2) / 0.25 - 10 * np.log(2 * np.pi * 0.25) - 0.5 * np.sum(mean**2)
    log_joint -= 1.5 * np.log(2 * np.pi)
    # log of the integral of exp(joint / T), which is a Gaussian of precision / T around the mean
    log_z = log_joint / temperature + 0.5 * np.sum(np.log(2 * np.pi * temperature / precision))
    return jnp.asarray(x), jnp.asarray(y), {"w": q_of(mean, np.sqrt(temperature / precision))}, log_z
