"""KL from a Gaussian u to the law that makes exp(u) gamma, half-normal, inverse-gamma or Weibull."""

import jax
import jax.numpy as jnp

from illia_fn._base.numerics import at_least_float32
from illia_fn._base.special import stirling_error
from illia_fn.kl.table import register_kl
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.priors._transformed import ExpGamma, bend


@register_kl(Gaussian, ExpGamma)
@jax.jit
def kl_gaussian_exp_gamma(q: Gaussian, p: ExpGamma) -> jax.Array:
    """KL = sum a b(m - log(a) + v / 2) + b(log(a v)) / 2 + err(a), with b(x) = exp(x) - 1 - x: no term is negative.

    t = k u + log_rate ~ N(m, v) under q, where exp(t) ~ Gamma(a, 1) under p; err is the error of Stirling's formula.
    """
    a = at_least_float32(p.concentration)
    log_a, log_v = jnp.log(a), 2.0 * (q.log_scale + p.log_power)
    of_mean = bend(p.beyond_mode(at_least_float32(q.loc)) + 0.5 * jnp.exp(log_v))
    return jnp.sum(a * of_mean + 0.5 * bend(log_a + log_v) + stirling_error(a, log_a))
