"""Operations that a view of a weight passes through: to add one, add a line to a table.

LAYOUT moves elements. Its rules take one thin array (see `View`), its full shape, other operands and the parameters of
the primitive; they serve means, scales and signs alike, and NumPy arrays of positions.

AFFINE maps elements one by one, W -> a W + b with a and b the same for all examples: it acts on the scale as its
derivative does. Its functions take the mean, and the other operand if there is one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from illia_fn._base.sharding import vary_along

Shape = tuple[int, ...]


def _transpose(x: Any, _: Shape, *, permutation: Sequence[int]) -> Any:
    return x.transpose(permutation)


def _squeeze(x: Any, _: Shape, *, dimensions: Sequence[int]) -> Any:
    return x.squeeze(tuple(dimensions))


def _rev(x: Any, _: Shape, *, dimensions: Sequence[int]) -> Any:
    return x[tuple(slice(None, None, -1 if axis in dimensions else 1) for axis in range(x.ndim))]


def _slice(x: Any, full: Shape, *, start_indices: Shape, limit_indices: Shape, strides: Shape | None = None) -> Any:
    windows = map(slice, start_indices, limit_indices, strides or (1,) * len(full))
    return x[tuple(_or_thin(x, full, axis, window) for axis, window in enumerate(windows))]


def _split(x: Any, full: Shape, *, sizes: Sequence[int], axis: int) -> list[Any]:
    starts = [0, *accumulate(sizes)]
    windows = [_or_thin(x, full, axis, slice(start, start + size)) for start, size in zip(starts, sizes, strict=False)]
    return [x[(slice(None),) * axis + (window,)] for window in windows]


def _unstack(x: Any, full: Shape, *, axis: int) -> list[Any]:
    return [x.take(index if x.shape[axis] > 1 else 0, axis=axis) for index in range(full[axis])]


def _tile(x: Any, full: Shape, *, reps: Sequence[int]) -> Any:
    thin = [size != x_size for size, x_size in zip(full, x.shape, strict=True)]
    numpy = np if isinstance(x, np.ndarray) else jnp
    return numpy.tile(x, [1 if skip else count for skip, count in zip(thin, reps, strict=True)])


def _dynamic_slice(x: Any, full: Shape, *starts: jax.Array, slice_sizes: Shape) -> Any:
    thin = [size != x_size for size, x_size in zip(full, x.shape, strict=True)]
    if isinstance(x, np.ndarray):  # positions, in a window that is not known now
        shape = tuple(1 if skip else size for skip, size in zip(thin, slice_sizes, strict=True))
        return x if shape == x.shape else np.full(shape, UNKNOWN)
    at = [jnp.zeros_like(start) if skip else start for skip, start in zip(thin, starts, strict=True)]
    return jax.lax.dynamic_slice(x, at, [1 if skip else size for skip, size in zip(thin, slice_sizes, strict=True)])


def _broadcast_in_dim(x: Any, _: Shape, *, shape: Shape, broadcast_dimensions: Sequence[int]) -> Any:
    thin = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        thin[axis] = size
    return x.reshape(thin)


def _reshape(x: Any, full: Shape, *, new_sizes: Shape, dimensions: None = None) -> Any:  # noqa: ARG001
    """Axes that are merged or split together are spelt out if x varies along one of them, and stay thin if not."""
    before, after = list(x.shape), list(new_sizes)
    for old_axes, new_axes in _reshape_groups(full, new_sizes):
        if all(x.shape[axis] == 1 for axis in old_axes):
            after[new_axes] = [1] * len(after[new_axes])
        else:
            before[old_axes.start : old_axes.stop] = full[old_axes.start : old_axes.stop]
    numpy = np if isinstance(x, np.ndarray) else jnp
    return numpy.broadcast_to(x, before).reshape(after)


def _reshape_groups(old: Shape, new: Shape) -> Iterator[tuple[range, slice]]:
    """The smallest runs of axes of equal total size."""
    i = j = 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while math.prod(old[first_i:i]) != math.prod(new[first_j:j]):
            if math.prod(old[first_i:i]) < math.prod(new[first_j:j]):
                i += 1
            else:
                j += 1
        yield range(first_i, i), slice(first_j, j)


def _or_thin(x: Any, full: Shape, axis: int, window: slice) -> slice:
    return window if x.shape[axis] == full[axis] else slice(None)


def _stop_gradient(x: Any, _: Shape) -> Any:
    return x if isinstance(x, np.ndarray) else jax.lax.stop_gradient(x)


def _pvary(x: Any, _: Shape, *, axes: Sequence[str]) -> Any:
    return x if isinstance(x, np.ndarray) else vary_along(x, frozenset(axes))


def _reshard(x: Any, _: Shape, *, dst_sharding: NamedSharding, concrete_mesh: Any) -> Any:  # noqa: ARG001
    if isinstance(x, np.ndarray):
        return x
    spec = P(*[None if size == 1 else axis for size, axis in zip(x.shape, dst_sharding.spec, strict=True)])
    return jax.sharding.reshard(x, dst_sharding.update(spec=spec))


def _same(w: jax.Array) -> jax.Array:
    return w  # in float32: the view knows the dtype that the model sees


UNKNOWN = -1  # a position that may be any

LAYOUT: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "dynamic_slice": _dynamic_slice,
    "pvary": _pvary,
    "reshape": _reshape,
    "reshard": _reshard,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stop_gradient": _stop_gradient,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}

AFFINE: dict[str, Callable[..., jax.Array]] = {
    "add": jnp.add,
    "convert_element_type": _same,
    "copy": _same,
    "copy_p": _same,
    "div": jnp.divide,
    "mul": jnp.multiply,
    "name": _same,
    "neg": jnp.negative,
    "reduce_precision": _same,
    "sharding_constraint": _same,
    "sub": jnp.subtract,
}
