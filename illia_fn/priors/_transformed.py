"""Laws of u on the whole line where exp(u) or sigmoid(u) has a well-known one: exact where these leave the range."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln
from jax.typing import ArrayLike

from illia_fn._base.numerics import HALF_LOG_2PI, at_least_float32, one_program, softplus
from illia_fn._base.special import minus_log, stirling_error
from illia_fn._base.trees import frozen_pytree

LOG_2_OVER_PI = -0.4515827052894548


@frozen_pytree
class ExpGamma:
    """The law of u where exp(t) ~ Gamma(concentration, 1), with t = power u + log_rate.

    exp(u) is then gamma with a power of 1, half-normal with 2 and a concentration of 1/2, inverse-gamma with -1, and
    Weibull with any power and a concentration of 1.
    """

    elementwise: ClassVar[bool] = True

    concentration: ArrayLike
    log_rate: ArrayLike
    power: ArrayLike

    @one_program
    def log_prob(self, u: ArrayLike) -> jax.Array:
        """log |k| + a t - exp(t) - log Gamma(a), element-wise, in nats."""
        # Around the mode of t, log(a): all that would cancel for a large a is left out.
        bending = at_least_float32(self.concentration) * bend(self.beyond_mode(at_least_float32(u)))
        return self.log_power - bending + self.log_mode

    def beyond_mode(self, u: jax.Array) -> jax.Array:
        """t - log(a)."""
        k, log_rate, a = map(at_least_float32, (self.power, self.log_rate, self.concentration))
        return k * u + log_rate - jnp.log(a)

    @property
    def log_power(self) -> jax.Array:
        """log |k|."""
        return jnp.log(jnp.abs(at_least_float32(self.power)))

    @property
    def log_mode(self) -> jax.Array:
        """log of the density of t at its mode: a log(a) - a - log Gamma(a)."""
        a = at_least_float32(self.concentration)
        return 0.5 * jnp.log(a) - HALF_LOG_2PI - stirling_error(a, jnp.log(a))


@jax.custom_jvp
def bend(x: jax.Array) -> jax.Array:
    """exp(x) - 1 - x >= 0."""
    return minus_log(jnp.expm1(x), jnp.minimum(x, 1e30))  # the difference of two infinities is none


bend.defjvps(lambda tangent, _, x: jnp.expm1(x) * tangent)


@frozen_pytree
class LogHalfCauchy:
    """The law of u where exp(u) ~ HalfCauchy(exp(log_scale))."""

    elementwise: ClassVar[bool] = True

    log_scale: ArrayLike

    @one_program
    def log_prob(self, u: ArrayLike) -> jax.Array:
        """log(2 / pi) + t - log(1 + exp(2 t)), with t = u - log_scale, element-wise, in nats."""
        t = at_least_float32(u) - at_least_float32(self.log_scale)
        return LOG_2_OVER_PI + t - softplus(2.0 * t)


@frozen_pytree
class LogitBeta:
    """The law of u where sigmoid(u) ~ Beta(concentration_1, concentration_0)."""

    elementwise: ClassVar[bool] = True

    concentration_1: ArrayLike
    concentration_0: ArrayLike

    @one_program
    def log_prob(self, u: ArrayLike) -> jax.Array:
        """a log sigmoid(u) + b log sigmoid(-u) - log B(a, b), element-wise, in nats."""
        u, a, b = map(at_least_float32, (u, self.concentration_1, self.concentration_0))
        return -a * softplus(-u) - b * softplus(u) - betaln(a, b)
