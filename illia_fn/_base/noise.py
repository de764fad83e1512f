"""What draws share: every call of a generator is some kernels more for XLA to compile, so there are few of them."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def subkeys(key: jax.Array, count: int) -> list[jax.Array]:
    """As many independent keys as are needed, where `key` is for nothing else: a single one is the key itself."""
    return [key] if count == 1 else list(jax.random.split(key, count))


def cut(flat: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Arrays of all shapes from the last axis of `flat`."""
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=int)
    pieces = jnp.split(flat[..., : ends[-1]], ends[:-1], axis=-1) if shapes else []
    return [piece.reshape(*flat.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
