"""Independent Gaussians in the place of an output: drawn, added, and scaled so that squares stay in range."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import spread
from illia_fn.coupling._values import PerExample, Site

Array = jax.Array


class Moments(NamedTuple):
    """Independent Gaussians, given all that was computed before; drawn when something that is not linear reads them.

    Attributes:
        mean: their means.
        variance: their variances in units of unit^2, in float32 or wider.
        unit: powers of two, constant to every gradient; thin, as the arrays of a `View` are.
        site: the place of their noise.
    """

    mean: Array
    variance: Array
    unit: Array
    site: Site


def magnitude(x: Array, *, along: Sequence[int] = ()) -> Array:
    """A power of two near the largest |x|, for each place along some axes; a constant to every gradient.

    To divide by it before squares are taken, and to multiply their root by it, is exact. Its inverse is no subnormal.
    """
    x = jax.lax.optimization_barrier(jax.lax.stop_gradient(x))  # or XLA computes x once more, for the maximum alone
    others = [axis for axis in range(x.ndim) if axis not in along]
    largest = jnp.max(jnp.abs(x), axis=others, keepdims=True, initial=jnp.finfo(x.dtype).tiny)
    # of the bits of a positive number, those of the exponent are the power of two below it
    finfo = jnp.finfo(x.dtype)
    bits = jax.lax.bitcast_convert_type(largest, jnp.dtype(f"uint{finfo.bits}"))
    exponent = np.asarray((2**finfo.nexp - 1) << finfo.nmant, bits.dtype)
    power = jax.lax.bitcast_convert_type(bits & exponent, x.dtype)
    last = 2.0 ** (finfo.maxexp - 3)
    return jnp.clip(power, 1.0 / last, last)


def scaled_square(x: Array) -> tuple[Array, Array]:
    """x^2 / unit^2, and the unit."""
    unit = magnitude(x)
    return jnp.square(x * (1.0 / unit)), unit


def total_variance(terms: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The sum of variances, each with a unit of its own, in the largest of the units."""
    if len(terms) == 1:
        return terms[0]
    unit = functools.reduce(jnp.maximum, [unit for _, unit in terms])
    variances = [variance * jnp.square(own / unit) for variance, own in terms]
    return sum(variances[1:], start=variances[0]), unit


def draw(moments: Moments, noise: Array) -> PerExample:
    """mean + unit * sqrt(variance) * noise."""
    positive = moments.variance > 0  # the root has no finite derivative at 0: neither branch may see it
    stddev = jnp.where(positive, jnp.sqrt(jnp.where(positive, moments.variance, 1.0)), 0.0) * moments.unit
    return PerExample(_of_example(noise, stddev, moments.mean))


def _scale_and_shift(noise: Array, stddev: Array, mean: Array) -> Array:
    return mean + (stddev * noise).astype(mean.dtype)


# Mapped over examples, and then over samples: what all of these share is copied, as the transpose of a broadcast is a
# sum that is slow on a CPU (see `spread`).
_of_sample = jax.custom_batching.custom_vmap(_scale_and_shift)
_of_example = jax.custom_batching.custom_vmap(_scale_and_shift)


@_of_sample.def_vmap
def _over_samples(count: int, batched: list[bool], *operands: Array) -> tuple[Array, bool]:
    return _scale_and_shift(*_all_batched(count, batched, operands)), True


@_of_example.def_vmap
def _over_examples(count: int, batched: list[bool], *operands: Array) -> tuple[Array, bool]:
    return _of_sample(*_all_batched(count, batched, operands)), True


def _all_batched(count: int, batched: list[bool], operands: Sequence[Array]) -> list[Array]:
    return [x if is_batched else spread(x, count) for x, is_batched in zip(operands, batched, strict=True)]
