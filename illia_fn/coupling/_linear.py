"""Operations that are linear in a weight and meet data: to add one, add a rule to LINEAR.

A rule says what flipout and local reparameterisation need to know of one equation. Flipout (Wen et al. 2018,
https://arxiv.org/abs/1803.04386) needs signs in front of and behind the operation,

    f(x, W) = f(x, mean) + s_out * f(s_in * x, dev),        dev = scale * noise, the same for all examples

which is exact where the sign of an axis can be moved to the data or to the output. Local reparameterisation (Kingma et
al. 2015, https://arxiv.org/abs/1506.02557) draws the output,

    f(x, W) ~ N(f(x, mean), f(x^2, dev^2)),                 dev = scale

which is exact where each element of W reaches one element of the output. The squares are those of x and of dev in units
of their largest elements, as they would leave the range of the dtype where the result does not.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import at_least_float32
from illia_fn.coupling._layout import UNKNOWN
from illia_fn.coupling._moments import Variance, in_units, magnitude, root
from illia_fn.coupling._values import Directions, View, along, weighted_sum

Array = jax.Array


class LinearMap(NamedTuple):
    """One equation as a function of data and of a weight.

    Attributes:
        apply: (data, weight) -> output, linear in the weight.
        variance: (data, scale of the weight) -> variance of the output, if no output reads an element twice.
        data: the other operand.
        to_data: for the axes of the weight whose sign may be moved to the data, their axis there.
        to_output: the same for the output.
        reads: how many outputs an element of the weight reaches at most.
        free: axes of the weight that only go to the output; `apply` takes them in any size.
    """

    apply: Callable[[Any, Array], Array]
    variance: Callable[[Any, Array], Variance]
    data: Any
    to_data: Mapping[int, int]
    to_output: Mapping[int, int]
    reads: int
    free: frozenset[int] = frozenset()


def _dot_general(view: View, position: int, operands: list[Any], eqn: Any) -> LinearMap:
    """Contracted and free axes, on either side."""
    data = operands[1 - position]
    contracted, batch = eqn.params["dimension_numbers"]
    free = _free_axes(view.shape, contracted[position], batch[position])
    data_free = _free_axes(jnp.shape(data), contracted[1 - position], batch[1 - position])
    mine, theirs = ([*contracted[side], *batch[side]] for side in (position, 1 - position))
    to_output = {axis: index for index, axis in enumerate([*batch[position], *free])}
    through = {axis: index for index, axis in enumerate([*batch[1 - position], *data_free])}
    later, count = (to_output, len(data_free)) if position == 1 else (through, len(free))
    later |= {axis: index + count for axis, index in later.items() if index >= len(batch[0])}  # batch, lhs, rhs
    reads = math.prod(jnp.shape(data)[axis] for axis in data_free)
    linear = _bilinear(data, position, eqn, dict(zip(mine, theirs, strict=True)), to_output, through, reads)
    return linear._replace(free=frozenset(free))


def _conv_general_dilated(_: View, position: int, operands: list[Any], eqn: Any) -> LinearMap | None:
    """A kernel's channels; its spatial axes carry no signs."""
    if position != 1 or eqn.params["batch_group_count"] != 1:
        return None
    data_spec, kernel_spec, out_spec = eqn.params["dimension_numbers"]
    out_channels, in_channels = kernel_spec[:2]
    shape = eqn.outvars[0].aval.shape
    reads = math.prod(size for axis, size in enumerate(shape) if axis != out_spec[1])
    linear = _bilinear(operands[0], 1, eqn, {in_channels: data_spec[1]}, {out_channels: out_spec[1]}, {}, reads)
    return linear._replace(free=frozenset([out_channels] if eqn.params["feature_group_count"] == 1 else []))


def _gather(view: View, position: int, operands: list[Any], eqn: Any) -> LinearMap | None:
    """Look-ups: whole axes, such as the features of an embedding, carry signs."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    fill = eqn.params.get("fill_value")
    fills = fill not in (None, 0) and not np.isnan(fill)  # with a number, which is not linear
    if position != 0 or fills or getattr(numbers, "operand_batching_dims", ()):
        return None
    kept = [axis for axis in range(len(sizes)) if axis not in numbers.collapsed_slice_dims]
    to_output = {a: out for a, out in zip(kept, numbers.offset_dims, strict=True) if sizes[a] == view.shape[a]}

    def apply(indices: Array, w: Array) -> Array:
        return eqn.primitive.bind(w, indices, **eqn.params)

    def variance(indices: Array, dev: Array) -> Variance:
        unit = magnitude(dev)
        output = apply(indices, jnp.square(dev * (1.0 / unit)))
        return in_units(output, unit.reshape((1,) * output.ndim))

    reads = math.prod(eqn.outvars[0].aval.shape) // max(1, math.prod(sizes))
    return LinearMap(apply, variance, operands[1], {}, to_output, reads)


def _bilinear(
    data: Array,
    position: int,
    eqn: Any,
    to_data: Mapping[int, int],
    to_output: Mapping[int, int],
    through: Mapping[int, int],
    reads: int,
) -> LinearMap:
    """An operation that is linear in the data, too, some of whose axes go through to the output."""

    def apply(x: Array, w: Array, **params: Any) -> Array:
        return eqn.primitive.bind(*((x, w) if position == 1 else (w, x)), **{**eqn.params, **params})

    def variance(x: Array, dev: Array) -> Variance:
        x = at_least_float32(x).astype(dev.dtype)
        size, unit = magnitude(x, along=list(through)), magnitude(dev)
        rank, back = eqn.outvars[0].aval.ndim, {place: axis for axis, place in through.items()}

        def times(factor: Array | None) -> tuple[Array, Array | None]:
            scaled = x * (1.0 / size)
            if factor is not None and all(n == 1 or axis in back for axis, n in enumerate(factor.shape)):
                scaled, factor = scaled * _moved(factor, back, x.ndim), None
            squares = apply(jnp.square(scaled), jnp.square(dev * (1.0 / unit)), preferred_element_type=None)
            return squares, factor

        return Variance(unit.reshape((1,) * rank) * _moved(size, through, rank), times)

    return LinearMap(apply, variance, data, to_data, to_output, reads)


def _free_axes(shape: tuple[int, ...], *others: tuple[int, ...]) -> list[int]:
    taken = {axis for axes in others for axis in axes}
    return [axis for axis in range(len(shape)) if axis not in taken]


LINEAR: dict[str, Callable[[View, int, list[Any], Any], LinearMap | None]] = {
    "conv_general_dilated": _conv_general_dilated,
    "dot_general": _dot_general,
    "gather": _gather,
}


def movable(linear: LinearMap, view: View) -> set[int]:
    """The axes of the leaf whose sign may be moved to the data or to the output."""
    return {
        axis for axis in view.signs if any(view.spans(axis) <= to.keys() for to in (linear.to_data, linear.to_output))
    }


def flipout(linear: LinearMap, view: View) -> Array:
    """f(x, mean) + s_out * f(s_in * x, dev), and along the directions."""
    if view.dev is None:
        return centre(linear, view)
    output = None if view.is_pure else centre(linear, view)
    flipped, behind = linear.data, []
    for axis, sign in view.signs.items():
        if view.spans(axis) and view.spans(axis) <= linear.to_data.keys():
            flipped = _times(flipped, axis, sign, linear.to_data, _common(flipped.dtype, view.dtype))
        else:  # what is the same for all of it, too, as the data may be indices
            behind.append((axis, sign))
    noise = linear.apply(flipped, view.dense(view.dev))
    for axis, sign in behind:
        noise = _times(noise, axis, sign, linear.to_output, noise.dtype)
    return noise if output is None else output + noise


def moments(linear: LinearMap, view: View) -> tuple[Array, Variance]:
    """f(x, mean), and along the directions; and f(x^2, dev^2)."""
    assert view.dev is not None
    return centre(linear, view), linear.variance(linear.data, view.dense(view.dev, view.dev.dtype))


def centre(linear: LinearMap, view: View) -> Array:
    """f(x, mean) + sum_k c_k f(x, D_k)."""
    output = linear.apply(linear.data, view.dense(view.mean))
    for number, moves in view.directions.items():
        output = output + _along(linear, view, moves, one_by_one=number in separable(linear, view))
    return output


def _along(linear: LinearMap, view: View, moves: Directions, *, one_by_one: bool) -> Array:
    """sum_k c_k f(x, D_k), or with D_k = a_k b_k and b_k of the outputs sum_k c_k f(x, a_k) b_k, which takes less."""
    if not one_by_one:
        dense = moves.dense(view.shape).astype(view.dtype)
        if len(dense) == 1:
            return weighted_sum(moves.coefficients, linear.apply(linear.data, dense[0])[None])
        return weighted_sum(moves.coefficients, jax.vmap(partial(linear.apply, linear.data))(dense))
    a, b = sorted(moves.factors, key=lambda factor: _spans(factor) <= linear.free)
    free, count = sorted(linear.free), len(moves.coefficients)
    a = jnp.broadcast_to(a, (len(a), *[1 if axis in free else size for axis, size in enumerate(view.shape)]))
    each = jax.vmap(partial(linear.apply, linear.data))(a.astype(view.dtype))
    if moves.scale is not None:
        each = _root_mean(each, moves.scale)
    each = each * along(moves.coefficients.astype(each.dtype), 0, each.ndim)
    places = tuple(linear.to_output[axis] for axis in free)
    b = jnp.broadcast_to(b, (count, *[size if axis in free else 1 for axis, size in enumerate(view.shape)]))
    b = b.reshape(count, *[view.shape[axis] for axis in free]).astype(each.dtype)
    output = jnp.tensordot(each.squeeze(tuple(1 + place for place in places)), b, (0, 0))
    return jnp.moveaxis(output, range(output.ndim - len(places), output.ndim), places)


def _root_mean(each: Array, scale: Array) -> Array:
    """sqrt(sum_j scale_jk^2 each_j^2), (K, ...)."""
    wide = each.astype(scale.dtype)
    unit, of_scale = magnitude(wide), magnitude(scale, along=[1])
    variance = jnp.tensordot(jnp.square(scale * (1.0 / of_scale)), jnp.square(wide * (1.0 / unit)), (0, 0))
    return (root(variance) * along(of_scale, 0, each.ndim) * unit).astype(each.dtype)


def separable(linear: LinearMap, view: View) -> dict[int, int]:
    """The directions D = a b in which the operation takes a, b being of the outputs alone; which of them is a."""
    found = {}
    for number, moves in view.directions.items():
        spans = list(map(_spans, moves.factors))
        first = min(range(len(spans)), key=lambda index: spans[index] <= linear.free)
        if len(spans) == 2 and spans[1 - first] <= linear.free and not spans[first] & linear.free:
            found[number] = first
    return found


def _spans(factor: Array) -> frozenset[int]:
    """The axes along which the factor of a direction varies."""
    return frozenset(axis for axis, size in enumerate(factor.shape[1:]) if size > 1)


def owner(view: View, places: Mapping[int, int], rank: int) -> tuple[tuple[int, np.ndarray], ...]:
    """The leaf, and numbers of outputs, a thin array: outputs of different numbers share no element of the leaf.

    They are the positions along those axes of the leaf that have places among the axes of the output.
    """
    known = [
        positions for axis, positions in view.signs.items() if view.spans(axis) and view.spans(axis) <= places.keys()
    ]
    if not all(isinstance(positions, np.ndarray) for positions in view.signs.values()):
        return ()
    numbers, stride = np.zeros((1,) * rank, int), 1
    for positions in known:
        if UNKNOWN not in positions:
            numbers = numbers + stride * _moved(positions, places, rank)
            stride *= int(positions.max()) + 1
    assert isinstance(view.leaf, int)
    return ((view.leaf, numbers),)


def _common(data: Any, weight: Any) -> Any:
    """The dtype of data that have met a weight, whatever promotion is allowed."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(data, weight)


def _times(x: Array, axis: Any, sign: Array, places: Mapping[int, int], dtype: Any) -> Array:
    """x * sign, each axis of the sign that is not of size 1 at its place among the axes of x."""
    wide = _common(dtype, sign.dtype) if isinstance(axis, tuple) else dtype  # a factor is not rounded to the data
    sign = _moved(sign, places, x.ndim)
    groups = [x.shape[axis] // size if size > 1 else 1 for axis, size in enumerate(sign.shape)]  # of a convolution
    return (x.astype(wide) * jnp.tile(sign, groups).astype(wide)).astype(dtype)


def _moved(thin: Any, places: Mapping[int, int], rank: int) -> Any:
    """A thin array of another rank, its axes that are not of size 1 at their places."""
    axes = sorted((axis for axis, size in enumerate(thin.shape) if size > 1), key=places.__getitem__)
    shape = [1] * rank
    for axis in axes:
        shape[places[axis]] = thin.shape[axis]
    thin = thin.squeeze(tuple(axis for axis, size in enumerate(thin.shape) if size == 1))
    return thin.transpose([sum(other < axis for other in axes) for axis in axes]).reshape(shape)
