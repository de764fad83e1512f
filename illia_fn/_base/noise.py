"""What draws share: every call of a generator is some kernels more for XLA to compile, so there are few of them.

On a CPU most of the time of large draws goes into JAX's loop over the rounds of threefry (Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405), of which each goes through memory. Here are the same numbers in one pass.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.sharding import platform, vary_along, varying_axes

_FEW = 4  # pieces of equal shapes that it takes more to compile a loop for than to compile them
_LARGE = 2**14  # numbers: fewer are in the cache from round to round, and take longer to compile than to draw


def normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`jax.random.normal`, number for number."""
    if not takes_one_pass(key, shape, dtype):
        return jax.random.normal(key, shape, dtype)
    if jax.config.jax_debug_key_reuse:  # ty: ignore
        jax.random.bits(key, (0,))  # which uses the key up; to read its data does not
    return _normal(jax.random.key_data(key), shape)


def uniform(key: jax.Array, shape: tuple[int, ...], first: jax.Array) -> jax.Array:
    """`jax.random.uniform` on [-1, 1), number for number, of the data of a key and the 0 that `once` passes."""
    return _uniform(_words(key, shape, first), -1.0)


def takes_one_pass(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether such draws are ours: those of threefry on a CPU, of float32, and large; on no mesh with explicit axes."""
    if jax.typeof(key).sharding.mesh.explicit_axes:  # along which `vmap` would split the loop
        return False
    is_threefry = jax.random.key_impl(key) == "threefry2x32" and jax.config.jax_threefry_partitionable  # ty: ignore
    return is_threefry and platform() == "cpu" and dtype == jnp.float32 and _LARGE <= math.prod(shape) < 2**32


def once(draw: Callable[[jax.Array], jax.Array], key: jax.Array) -> jax.Array:
    """draw(0), in a loop of one round: what comes out of a loop is in memory, and else XLA computes it for all readers.

    Args:
        draw: takes a number, of which all that takes time depends.
        key: the data of a key, (..., 2), by which XLA cannot tell how many rounds there are.
    """
    rounds = jnp.minimum(key.ravel()[0] | np.uint32(1), np.uint32(1))

    def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return state[0] + np.uint32(1), draw(state[0])

    like = jax.eval_shape(draw, jax.ShapeDtypeStruct((), jnp.uint32))
    start = jnp.zeros((), jnp.uint32), jnp.zeros(like.shape, like.dtype)
    start = vary_along(start, varying_axes((key, like)))
    return jax.lax.while_loop(lambda state: state[0] < rounds, body, start)[1]


@partial(jax.jit, static_argnums=1, inline=True)
def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    least = float(np.nextafter(np.float32(-1.0), np.float32(0.0)))
    return once(lambda first: math.sqrt(2.0) * jax.lax.erf_inv(_uniform(_words(key, shape, first), least)), key)


def _uniform(words: jax.Array, least: float) -> jax.Array:
    """On [least, 1), of 23 bits of each word."""
    of_one = jax.lax.bitcast_convert_type((words >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32) - 1.0
    return jnp.maximum(least, of_one * (np.float32(1.0) - np.float32(least)) + least)


def _words(key: jax.Array, shape: tuple[int, ...], first: jax.Array) -> jax.Array:
    """Threefry-2x32 of the key (2,) and of the numbers from `first` on, its two words as one, of the shape."""
    keys = key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    low = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) + first
    x, y = jnp.broadcast_to(keys[0], shape), low + keys[1]
    for group in range(5):
        for by in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ (y << np.uint32(by) | y >> np.uint32(32 - by))
        x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x ^ y


def subkeys(key: jax.Array, count: int) -> list[jax.Array]:
    """As many independent keys as are needed, where `key` is for nothing else: a single one is the key itself."""
    return [key] if count == 1 else list(jax.random.split(key, count))


def _unknown(numbers: Sequence[int], beside: jax.Array) -> list[jax.Array]:
    """Numbers out of a loop, into which XLA does not look: of a place that it knows it compiles a kernel of its own."""
    start = vary_along([jnp.asarray(number, jnp.uint32) for number in numbers], varying_axes(beside))
    return jax.lax.scan(lambda numbers, _: (numbers[::-1], None), start, None, length=2)[0]


def cut(flat: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Arrays of all shapes from the last axis of `flat`."""
    sizes = [math.prod(shape) for shape in shapes]
    ends = np.cumsum(sizes, dtype=int)
    if len(shapes) - len(set(shapes)) > _FEW:
        starts = _unknown([end - size for end, size in zip(ends, sizes, strict=True)], flat)
        pieces = [jax.lax.dynamic_slice_in_dim(flat, at, size, axis=-1) for at, size in zip(starts, sizes, strict=True)]
    else:
        pieces = jnp.split(flat[..., : ends[-1]], ends[:-1], axis=-1) if shapes else []
    return [piece.reshape(*flat.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
