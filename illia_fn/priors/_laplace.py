"""The Laplace prior in the form of the table of closed forms: users take that of another library."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.numerics import at_least_float32
from illia_fn._base.trees import frozen_pytree


@frozen_pytree
class Laplace:
    """Independent on every element, w ~ Laplace(loc, scale)."""

    elementwise: ClassVar[bool] = True

    loc: ArrayLike
    scale: ArrayLike

    def log_prob(self, w: ArrayLike) -> jax.Array:
        """-|w - loc| / scale - log(2 scale), element-wise, in nats."""
        w, loc, scale = map(at_least_float32, (w, self.loc, self.scale))
        return -jnp.abs(w - loc) / scale - jnp.log(2.0 * scale)
