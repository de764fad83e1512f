"""A mixture of two zero-mean Gaussians: a spike, which switches weights off, and a slab."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale, concrete, describe
from illia_fn._base.numerics import at_least_float32, normal_log_prob, softplus
from illia_fn._base.trees import frozen_pytree


@frozen_pytree
class ScaleMixture:
    """Scale mixture prior on every element, p(w) = pi N(w; 0, scale_1^2) + (1 - pi) N(w; 0, scale_2^2).

    Blundell et al. 2015, Weight uncertainty in neural networks, https://arxiv.org/abs/1505.05424, who choose pi of 1/4,
    1/2 or 3/4, scale_1 = exp(0) to exp(-2), and scale_2 = exp(-6) to exp(-8). Computed in log space: each density
    underflows in float32 at 14 scales. A pytree, differentiable in all fields. Its KL is sampled, which takes a key.

    Args:
        pi: the weight of the first component, between 0 and 1: a number, or an array of the rank of the parameter
            whose axes equal the parameter's or are 1.
        scale_1, scale_2: standard deviations, positive, in the same form, in either order.

    Raises:
        ValueError: for a weight that is not inside (0, 1) or a scale that is not positive and finite, where that is
            known before tracing.

    >>> prior = ScaleMixture(0.5, 1.0, 0.0025)
    >>> print(prior.log_prob(jnp.array([0.0, 1.0, 100.0])))
    [ 4.3818755e+00 -2.1120858e+00 -5.0016123e+03]
    """

    elementwise: ClassVar[bool] = True

    pi: ArrayLike
    scale_1: ArrayLike
    scale_2: ArrayLike

    def __post_init__(self):
        pi = concrete(self.pi)
        if pi is not None and (pi.dtype.kind in "bSUO" or not ((pi > 0) & (pi < 1)).all()):
            raise ValueError(
                f"ScaleMixture: pi, the weight of the first component, must be between 0 and 1, got "
                f"{describe(self.pi)}. A single component is illia_fn.Normal(0.0, scale)."
            )
        check_scale("ScaleMixture", self.scale_1, "scale_1, a standard deviation,")
        check_scale("ScaleMixture", self.scale_2, "scale_2, a standard deviation,")

    def log_prob(self, w: ArrayLike) -> jax.Array:
        """log p(w), element-wise, in nats."""
        w, pi, scale_1, scale_2 = map(at_least_float32, (w, self.pi, self.scale_1, self.scale_2))
        first, log_1, log_2 = scale_1 <= scale_2, jnp.log(scale_1), jnp.log(scale_2)
        narrow, wide = jnp.where(first, log_1, log_2), jnp.where(first, log_2, log_1)
        log_pi, log_rest = jnp.log(pi), jnp.log1p(-pi)
        of_narrow, of_wide = jnp.where(first, log_pi, log_rest), jnp.where(first, log_rest, log_pi)
        # Far out even the logarithms of the densities overflow. The logarithm of their ratio falls without bound there,
        # so for it w may stop where the ratio is 0 for certain.
        limit = jax.lax.stop_gradient(_FAR * jnp.exp(narrow))
        near, zero = jnp.clip(w, -limit, limit), jnp.zeros_like(w)
        z, z_wide = near * jnp.exp(-narrow), near * jnp.exp(-wide)
        log_ratio = of_narrow - of_wide + (wide - narrow) - 0.5 * (z - z_wide) * (z + z_wide)
        a, b = of_narrow + normal_log_prob(near, zero, narrow), of_wide + normal_log_prob(w, zero, wide)
        return _log_sum(*jnp.broadcast_arrays(a, b, log_ratio))


_FAR = 1e18  # its square is a float32


@jax.custom_jvp
def _log_sum(a: jax.Array, b: jax.Array, log_ratio: jax.Array) -> jax.Array:  # noqa: ARG001
    """log(exp(a) + exp(b)), where log_ratio is a - b."""
    return b + softplus(log_ratio)


@_log_sum.defjvp
def _log_sum_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    # the share of each, as their difference from 1 would cancel
    log_ratio = primals[2]
    slope = jax.nn.sigmoid(log_ratio) * tangents[0] + jax.nn.sigmoid(-log_ratio) * tangents[1]
    return _log_sum(*primals), slope
