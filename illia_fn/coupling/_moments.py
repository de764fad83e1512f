"""Independent Gaussians in the place of an output: drawn, added, and scaled so that squares stay in range."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import spread
from illia_fn.coupling._values import PerExample, Site

Array = jax.Array


class Variance(NamedTuple):
    """Variances of independent Gaussians, of which the unit is known before they are.

    Attributes:
        unit: powers of two, or 0, constant to every gradient; thin, as the arrays of a `View` are.
        times: of a thin factor f, or None for 1, the variances in units of unit^2, times f^2, in float32 or wider. They
            come as v and g of v * g^2: None for g, with f taken into what is squared, saves an array of the output's
            shape, and another in the gradient.
    """

    unit: Array
    times: Callable[[Array | None], tuple[Array, Array | None]]


class Moments(NamedTuple):
    """Independent Gaussians, given all that was computed before; drawn when something that is not linear reads them.

    Attributes:
        mean: their means.
        variances: terms of their variances; one at least.
        site: the place of their noise.
        owners: for each leaf in them, see `owner`; none where positions are not known.
    """

    mean: Array
    variances: tuple[Variance, ...]
    site: Site
    owners: tuple[tuple[int, np.ndarray], ...] = ()


def magnitude(x: Array, *, along: Sequence[int] = ()) -> Array:
    """A power of two near the largest |x|, for each place along some axes; a constant to every gradient.

    To divide by it before squares are taken, and to multiply their root by it, is exact. Its inverse is no subnormal.
    """
    x = jax.lax.optimization_barrier(jax.lax.stop_gradient(x))  # or XLA computes x once more, for the maximum alone
    others = [axis for axis in range(x.ndim) if axis not in along]
    # Of the bits of a positive number, those of the exponent are the power of two below it. The maximum comes last, as
    # XLA repeats what follows it for every element that is then divided by it.
    finfo = jnp.finfo(x.dtype)
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.dtype(f"uint{finfo.bits}"))
    exponent = np.asarray((2**finfo.nexp - 1) << finfo.nmant, bits.dtype)
    powers = jax.lax.bitcast_convert_type(bits & exponent, x.dtype)
    last = 2.0 ** (finfo.maxexp - 3)
    return jnp.max(jnp.minimum(powers, last), axis=others, keepdims=True, initial=1.0 / last)


def square(x: Array) -> Variance:
    """x^2."""
    unit = magnitude(x)
    return in_units(jnp.square(x * (1.0 / unit)), unit)


def in_units(variance: Array, unit: Array) -> Variance:
    """A variance that is known, in units of unit^2."""
    return Variance(unit, lambda factor: (variance, factor))


def added(terms: Sequence[Variance]) -> tuple[list[tuple[Array, Array | None]], Array]:
    """Of each term v and g in the largest of their units (see `Variance`), and that unit."""
    if len(terms) == 1:
        return [terms[0].times(None)], terms[0].unit
    unit = functools.reduce(jnp.maximum, [term.unit for term in terms])
    divisor = jnp.maximum(unit, jnp.finfo(unit.dtype).tiny)  # a product of two units may be 0
    return [term.times(term.unit / divisor) for term in terms], unit


def scaled(terms: Sequence[Variance], name: str, others: Sequence[Array]) -> Variance:
    """The variance of Gaussians that are multiplied or divided by something; other operations leave it as it is."""
    parts, unit = added(terms)
    variance = total(parts)
    if name not in ("mul", "div"):
        return in_units(variance, unit)
    factor = jnp.asarray(others[0]).astype(variance.dtype)
    factor = 1.0 / factor if name == "div" else factor
    size = magnitude(factor)
    return in_units(variance * jnp.square(factor * (1.0 / size)), unit * size.reshape((1,) * unit.ndim))


def total(parts: Sequence[tuple[Array, Array | None]]) -> Array:
    """The sum of v * g^2, g being 1 where it is None."""
    return functools.reduce(jnp.add, [v if g is None else _times_square(v, g) for v, g in parts])


def _times_square(variance: Array, factor: Array) -> Array:
    """v * g^2, as a product of matrices if g is one number.

    So, too, is its gradient, if v is shared by all examples: a sum over them that is fast on a CPU.
    """
    if factor.size > 1:
        return variance * jnp.square(factor)
    one = jnp.square(factor).reshape(1)
    return jnp.tensordot(one, variance[None], 1, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def root(variance: Array) -> Array:
    """sqrt(variance), with the derivative 0 at 0."""
    return jnp.sqrt(variance)


@root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (variance,), (tangent,) = primals, tangents
    stddev = root(variance)
    # a division comes last, as XLA does that once for all that read the gradient, and repeats what is cheap for each
    return stddev, tangent / jnp.where(variance > 0, 2.0 * stddev, jnp.inf)


def draw(moments: Moments, noise: Array) -> PerExample:
    """mean + unit * sqrt(variance) * noise."""
    parts, unit = added(moments.variances)
    stddev = root(total(parts)) * unit
    return PerExample(_of_example(noise, jnp.broadcast_to(stddev, moments.mean.shape), moments.mean))


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
