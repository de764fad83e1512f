"""p(w): priors. Any object with an element-wise `log_prob`, such as a numpyro distribution, also serves."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale
from illia_fn._base.numerics import at_least_float32, normal_log_prob
from illia_fn._base.trees import frozen_pytree


@frozen_pytree
class Normal:
    """Independent Gaussian prior on every element, w ~ N(loc, scale^2).

    A pytree, differentiable in both fields: build it inside the loss from trainable values for empirical Bayes.

    Args:
        loc: the mean: a number, or an array of the rank of the parameter whose axes equal the parameter's or are 1.
        scale: the standard deviation, positive, in the same form.

    Raises:
        ValueError: if `scale` is not finite and at least 1e-33 (float32), where that is known before tracing.

    >>> print(Normal(0.0, 0.1).log_prob(0.0))
    1.3836466
    """

    elementwise: ClassVar[bool] = True  # each number of w has its number of every field, or shares it

    loc: ArrayLike
    scale: ArrayLike

    def __post_init__(self):
        check_scale("Normal", self.scale)
        for name in ("loc", "scale"):
            if isinstance(getattr(self, name), int):  # an integer would not promote to the dtype of the posterior
                object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def log_scale(self) -> jax.Array:
        """log(scale), in float32 or wider."""
        return jnp.log(at_least_float32(self.scale))

    def log_prob(self, w: ArrayLike) -> jax.Array:
        """log N(w; loc, scale^2), element-wise, in nats."""
        return normal_log_prob(at_least_float32(w), at_least_float32(self.loc), self.log_scale)
