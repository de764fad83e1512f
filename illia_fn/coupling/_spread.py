"""Standard normal noise whose samples are spread evenly over its law, instead of being independent of each other.

A mean over samples needs no independence between them, just as one over examples does not: every sample has to have the
right law, and no more. So the S values that one number takes in the S samples are one of each part of its law, a Latin
hypercube (McKay, Beckman & Conover 1979, https://doi.org/10.1080/00401706.1979.10489755), in pairs that mirror each
other. What a function has of terms in one number each then averages out almost entirely, and what is odd in the noise
entirely (Stein 1987, https://doi.org/10.1080/00401706.1987.10488205); the other terms keep about the variance that
independent samples give them, as the parts come in another order for each number.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 2**16  # numbers; larger draws leave the cache between the rounds of threefry
_ORDERS = 2039  # a prime, so that neighbours along an axis of a usual size have different orders


def spread_normals(
    key: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct], batch_size: int, samples: jax.Array, count: int
) -> list[jax.Array]:
    """Noise of all shapes for some of the `count` samples that are spread together, (len(samples), B, *shape) each.

    All numbers of one sample are independent and standard normal. They are cut from one draw for each dtype.
    """
    groups: dict[np.dtype, list[int]] = {}
    for index, like in enumerate(shapes):
        groups.setdefault(like.dtype, []).append(index)
    noise = {}
    for number, (dtype, group) in enumerate(groups.items()):
        size = sum(shapes[index].size for index in group)
        drawn = _normals(jax.random.fold_in(key, number), batch_size, size, dtype, samples, count)
        noise |= zip(group, cut(drawn, [shapes[index].shape for index in group]), strict=True)
    return [noise[index] for index in range(len(shapes))]


def cut(flat: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Arrays of all shapes from the last axis of `flat`."""
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=int)
    pieces = jnp.split(flat[..., : ends[-1]], ends[:-1], axis=-1) if shapes else []
    return [piece.reshape(*flat.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _normals(key: jax.Array, batch_size: int, size: int, dtype: np.dtype, samples: jax.Array, count: int) -> jax.Array:
    """z_s = +-sqrt(2) erfinv(|u| + j / h modulo 1), with one u ~ U(-1, 1) and j < h = ceil(S / 2): (samples, B, size).

    For each s, that has the law of sqrt(2) erfinv(u) whatever its j and sign are, so that these need not be random.
    """
    columns = max(1, min(_ORDERS, size))
    rows = batch_size * -(-size // columns)
    shifts, signs = (jnp.asarray(table, dtype)[samples][:, None] for table in _points(count, columns))

    def of_uniform(uniform: jax.Array) -> jax.Array:
        places = jnp.abs(uniform) + shifts
        noise = math.sqrt(2.0) * jax.lax.erf_inv(places - jnp.floor(places))
        return signs * jnp.copysign(noise, uniform)

    if len(samples) == 1:  # while it is in the cache
        noise = _in_blocks(lambda *args: of_uniform(_uniform(*args, dtype))[0], key, rows, columns)[None]
    else:
        noise = of_uniform(_in_blocks(lambda *args: _uniform(*args, dtype), key, rows, columns))
    return noise.reshape(len(samples), batch_size, -1)[..., :size]


@functools.lru_cache
def _points(count: int, num_orders: int) -> tuple[np.ndarray, np.ndarray]:
    """For each sample and order: the shift j / h and the sign, in all combinations over the samples."""
    half = -(-count // 2)
    points = np.tile(np.arange(2 * half), (num_orders, 1))
    points = np.random.default_rng(0).permuted(points, axis=1)[:, :count].T
    return points // 2 / half, 1.0 - 2.0 * (points % 2)


def _in_blocks(draw: Callable[..., jax.Array], key: jax.Array, rows: int, columns: int) -> jax.Array:
    """draw(key, shape) -> (rows, columns), a block of rows after another."""
    count = max(1, -(-rows * columns // _BLOCK))
    block = -(-rows // count)
    if count == 1:
        return draw(key, (rows, columns))
    blocks = jax.lax.map(lambda key: draw(key, (block, columns)), jax.random.split(key, count))
    return blocks.reshape(-1, columns)[:rows]


def _uniform(key: jax.Array, shape: tuple[int, int], dtype: np.dtype) -> jax.Array:
    """Uniform on (-1, 1)."""
    rows, columns = shape
    even = rows + rows * columns % 2  # XLA's CPU backend draws an odd number many times slower
    return jax.random.uniform(key, (even, columns), dtype, -1.0, 1.0)[:rows]
