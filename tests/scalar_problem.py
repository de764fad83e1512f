"""One weight, w ~ N(0, 1), and one observation y = 5 of w with unit noise: everything about it is known."""

from functools import cache, partial

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
    return Gaussian(jnp.asarray(loc), jnp.asarray(np.log(np.expm1(np.asarray(scale)))))


def scalar(loss, q, key, num_samples, **options):
    """An objective, per data set."""
    data = jnp.zeros(1), jnp.full(1, 5.0)
    return loss(lambda w, x: x + w, q, *data, key, num_samples, num_data=1, prior=Normal(0.0, 1.0), **options)


def together(cases, num_samples):
    """Value and gradient of each case, for many keys: one program, in which all have the same draws.

    What tempers the KL is an argument, so that all of its values share this.
    """

    def run(q, key, tempering):
        def of(loss):
            return jax.value_and_grad(lambda q: scalar(loss, q, key, num_samples, chunk_size=None, **tempering))(q)

        return {name: of(loss) for name, loss in cases.items()}

    return jax.jit(jax.vmap(run, (None, 0, None)))


def many_of(step, count=20_000, seed=0, q=Q, **tempering):
    """Values and gradients of each case from many keys: (count,), and (count, 2) for loc and rho."""
    found = step(q_of(*q), keys(seed, count), {name: np.float32(value) for name, value in tempering.items()})
    return {
        name: (np.asarray(values), np.stack([grads.loc, grads.rho], axis=1)) for name, (values, grads) in found.items()
    }


@cache
def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


@cache
def compiled(loss, num_samples, **options):
    return together({"": partial(loss, **options)}, num_samples)


def many(loss, num_samples, count=20_000, seed=0, q=Q, **options):
    """`many_of` one case."""
    tempering = {name: options.pop(name) for name in ("temperature", "kl_weight") if name in options}
    return many_of(compiled(loss, num_samples, **options), count, seed, q, **tempering)[""]


def by_quadrature(f, q=Q):
    """f(w, log weights, log p(y | w)), numbers made of these at the nodes, and of each its gradient to (loc, rho)."""

    def value(both):
        scale = jax.nn.softplus(both[1])
        w = both[0] + scale * NODES
        log_q = -0.5 * NODES**2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)
        log_likelihood = -0.5 * (5.0 - w) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
        log_weights = log_likelihood - 0.5 * w**2 - 0.5 * jnp.log(2 * jnp.pi) - log_q
        return f(w, log_weights, log_likelihood)

    with jax.enable_x64(True):
        loc, scale = q
        both = np.array([loc, np.log(np.expm1(scale))])
        found = jax.jit(lambda both: (value(both), jax.jacfwd(value)(both)))(both)
    return jax.tree.map(np.asarray, found)


def mean_over_pairs(f):
    """E[f(values of two draws)], from the values at the nodes."""

    def mean(values):
        pairs = jnp.stack(jnp.meshgrid(values, values), axis=-1)
        return jnp.einsum("i,j,ij...->...", MASS, MASS, jax.vmap(jax.vmap(f))(pairs))

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
