"""Standard normal noise whose samples are spread evenly over its law, instead of being independent of each other.

A mean over samples needs no independence between them, just as one over examples does not: every sample has to have the
right law, and no more. So the S values of one number in the S samples are in different strata of its law, a Latin
hypercube (McKay, Beckman & Conover 1979, https://doi.org/10.1080/00401706.1979.10489755), in pairs that mirror each
other. What a function has of terms in one number each averages out: entirely if they are odd, and else better with
every further pair (Stein 1987, https://doi.org/10.1080/00401706.1987.10488205). Terms in several numbers together have
about S / (S - 1) times the variance that independent samples give them, as the parts come in another order for each
number. So two samples are the usual antithetic pair, which gains nothing for what is even in the noise, and more are
better than that.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.noise import cut, once, subkeys, takes_one_pass, uniform

_BLOCK = 2**16  # numbers; larger draws leave the cache between the rounds of threefry
_ORDERS = (
    2039  # the period of the orders: a prime, so that neighbours along an axis of a usual size have different ones
)


class Strata(NamedTuple):
    """The strata of the law of a number that some samples are in: each of S samples has one of its own.

    Attributes:
        samples: the indices of these samples among all of the hypercube.
        count: how many samples the hypercube has.
        mirrored: whether every sample has a mirror image beside it, so that none is to be among the others.
    """

    samples: jax.Array
    count: int
    mirrored: bool = False


def stratified_normals(
    key: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct], batch_size: int, strata: Strata
) -> list[jax.Array]:
    """Noise of all shapes, (S, B, *shape) each: all numbers of one sample are independent and standard normal.

    They are cut from one draw for each dtype.
    """
    groups: dict[np.dtype, list[int]] = {}
    for index, like in enumerate(shapes):
        groups.setdefault(like.dtype, []).append(index)
    noise = {}
    for dtype_key, (dtype, group) in zip(subkeys(key, len(groups)), groups.items(), strict=True):
        size = sum(shapes[index].size for index in group)
        drawn = _normals(dtype_key, batch_size, size, dtype, strata)
        noise |= zip(group, cut(drawn, [shapes[index].shape for index in group]), strict=True)
    return [noise[index] for index in range(len(shapes))]


def _normals(key: jax.Array, batch_size: int, size: int, dtype: np.dtype, strata: Strata) -> jax.Array:
    """z_s = +-sqrt(2) erfinv(u + 2 j / h, wrapped into (-1, 1)), of one u ~ U(-1, 1) and j < h = S / 2: (S, B, size).

    For each s, that has the law of sqrt(2) erfinv(u) whatever its j and sign are, so that these may come from a table
    (Cranley & Patterson 1976, https://doi.org/10.1137/0713071).
    """
    columns = max(1, min(_ORDERS, size))
    rows = batch_size * -(-size // columns)
    keys = jax.random.split(key, 1 + max(2, -(-rows * columns // _BLOCK)))  # XLA makes no loop of a single round
    order_key, keys = keys[0], keys[1:]
    if strata.count == 1:  # which there is nothing to spread with
        noise = _in_blocks(_quantile, keys, rows, columns, dtype)
        return noise.reshape(1, batch_size, -1)[..., :size]
    # The remainder of 32 bits is even to 5e-7. They are a key: `randint` calls the generator four times.
    first = jax.random.key_data(order_key)[0] % np.uint32(_ORDERS - columns + 1)
    tables = [jnp.asarray(table, dtype)[strata.samples] for table in _points(strata.count, strata.mirrored)]
    shifts, signs = (jax.lax.dynamic_slice_in_dim(table, first, columns, axis=1) for table in tables)

    def of_uniform(drawn: jax.Array, shift: jax.Array, sign: jax.Array) -> jax.Array:
        shifted = drawn + shift[None]
        wrapped = shifted - 2.0 * jnp.round(shifted / 2.0)
        return sign[None] * _quantile(wrapped)

    # What comes out of a loop is in memory. XLA may compute all else twice, with other rounding, and the gradient of
    # max, which looks for the maximum among its inputs, loses those that differ.
    if len(shifts) == 1:
        noise = _in_blocks(lambda drawn: of_uniform(drawn, shifts[0], signs[0]), keys, rows, columns, dtype)
    else:
        drawn = _in_blocks(lambda drawn: drawn, keys, rows, columns, dtype)
        noise = jax.lax.map(lambda point: of_uniform(drawn, *point), (shifts, signs))
    return noise.reshape(len(shifts), batch_size, -1)[..., :size]


def _quantile(drawn: jax.Array) -> jax.Array:
    """sqrt(2) erfinv(u), finite at -1 and 1."""
    largest = np.nextafter(np.ones((), drawn.dtype), np.zeros((), drawn.dtype))
    return math.sqrt(2.0) * jax.lax.erf_inv(jnp.clip(drawn, -largest, largest))


@functools.lru_cache(maxsize=8)  # 33 kB for each sample
def _points(count: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:  # noqa: FBT001
    """For each sample and order: the shift 2 j / h, at most 1, and the sign, in all combinations over the samples."""
    rng = np.random.default_rng(0)
    half = count if mirrored else -(-count // 2)
    points = np.arange(2 * half)
    if mirrored:  # one of each two
        points = points[::2] + rng.integers(2, size=(_ORDERS, half))
    points = rng.permuted(np.broadcast_to(points, (_ORDERS, points.shape[-1])), axis=1)[:, :count].T
    shifts = 2 * (points // 2) / half
    return np.where(shifts > 1, shifts - 2, shifts), 1.0 - 2.0 * (points % 2)


def _in_blocks(
    of_uniform: Callable[[jax.Array], jax.Array], keys: jax.Array, rows: int, columns: int, dtype: np.dtype
) -> jax.Array:
    """of_uniform(u), u ~ U(-1, 1), (rows, columns): in blocks of rows, each of a key, which stay in the cache."""
    block = -(-rows // len(keys))
    if takes_one_pass(keys, (block, columns), dtype):
        data = jax.random.key_data(keys)
        at = lambda first: jax.vmap(lambda key: of_uniform(uniform(key, (block, columns), first)))(data)  # noqa: E731
        blocks = once(at, data)
    else:
        even = block + block * columns % 2  # XLA's CPU backend draws an odd number many times slower
        draw = lambda key: jax.random.uniform(key, (even, columns), dtype, -1.0, 1.0)[:block]  # noqa: E731
        blocks = jax.lax.map(lambda key: of_uniform(draw(key)), keys)
    return blocks.reshape(-1, columns)[:rows]
