"""The loop that small models are trained by, on all of their data at once."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def descend(
    loss: Callable[..., jax.Array], start: Any, optimizer: optax.GradientTransformation, steps: int, key: jax.Array
) -> Any:
    """Minimise loss(q, key) from `start`; under jit, vmap and within a simulation, too."""

    def step(carry: Any, key: jax.Array) -> Any:
        q, state = carry
        updates, state = optimizer.update(jax.grad(loss)(q, key), state, q)
        return (optax.apply_updates(q, updates), state), ()

    return jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, steps))[0][0]
