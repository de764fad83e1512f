"""KL from a Gaussian to a Laplace prior."""

import math

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import HALF_LOG_2PI, at_least_float32
from illia_fn.kl.table import register_kl
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.priors._laplace import Laplace


@register_kl(Gaussian, Laplace)
@jax.jit
def kl_gaussian_laplace(q: Gaussian, p: Laplace) -> jax.Array:
    """KL = sum E|w - loc_p| / b + log(2 b) - log(s) - log(2 pi e) / 2, with b the scale of p and s that of q."""
    loc, p_loc, b = (at_least_float32(x) for x in (q.loc, p.loc, p.scale))
    distance = mean_magnitude(*jnp.broadcast_arrays(loc - p_loc, q.scale))
    return jnp.sum(distance / b + (jnp.log(2.0 * b) - q.log_scale) - (HALF_LOG_2PI + 0.5))


@jax.custom_jvp
def mean_magnitude(m: jax.Array, s: jax.Array) -> jax.Array:
    """E|x| of x ~ N(m, s^2): s sqrt(2 / pi) exp(-z^2 / 2) + m erf(z / sqrt(2)), with z = m / s."""
    z = _standardised(m, s)
    return s * _density(z) + m * jax.lax.erf(z * math.sqrt(0.5))


@mean_magnitude.defjvp
def _mean_magnitude_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    # what comes of the derivatives of z cancels
    z = _standardised(*primals)
    return mean_magnitude(*primals), jax.lax.erf(z * math.sqrt(0.5)) * tangents[0] + _density(z) * tangents[1]


def _standardised(m: jax.Array, s: jax.Array) -> jax.Array:
    """m / s, also where s underflows; beyond 40 |x| is |m|."""
    return jnp.clip(m / jnp.maximum(s, jnp.finfo(s.dtype).tiny), -40.0, 40.0)


def _density(z: jax.Array) -> jax.Array:
    return math.sqrt(2.0 / math.pi) * jnp.exp(-0.5 * jnp.square(z))
