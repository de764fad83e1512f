"""Many small posterior nodes as one: a tree of many leaves then compiles and runs as one of its large leaves."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import one_program
from illia_fn._base.sharding import is_sharded, mesh_of, varying_axes
from illia_fn._base.trees import PyTree

_SMALL = 2**16  # numbers; copying this many is cheap

Shapes = tuple[tuple[int, ...], ...]


class Joined(NamedTuple):
    """A posterior tree whose small nodes are joined into few.

    Attributes:
        nodes: the posterior nodes.
        groups: for each of them, the indices of those that it was made of, among the nodes of the tree.
        tree: from one array for each of them to the tree, with the deterministic leaves as they are.
    """

    nodes: list[Any]
    groups: list[list[int]]
    tree: Callable[[Sequence[jax.Array]], PyTree]

    @staticmethod
    def of(q: PyTree, is_node: Callable[[Any], bool]) -> "Joined":
        """Joins small nodes of one type and structure, with one dtype of each field, on the same devices."""
        leaves, structure = jax.tree.flatten(q, is_leaf=is_node)
        nodes = [leaf for leaf in leaves if is_node(leaf)]
        groups = _groups(nodes)

        def tree(arrays: Sequence[jax.Array]) -> PyTree:
            pieces = {}
            for group, array in zip(groups, arrays, strict=True):
                shapes = tuple(np.shape(nodes[index].mean) for index in group) if len(group) > 1 else ()
                pieces |= zip(group, split(array, shapes), strict=True)
            remaining = iter(pieces[index] for index in range(len(nodes)))
            return structure.unflatten([next(remaining) if is_node(leaf) else leaf for leaf in leaves])

        return Joined([join([nodes[index] for index in group]) for group in groups], groups, tree)


def _groups(nodes: Sequence[Any]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for index, node in enumerate(nodes):
        fields = jax.tree.leaves(node)
        joins = node.elementwise and all(np.size(field) <= _SMALL and not is_sharded(field) for field in fields)
        kind = (jax.tree.structure(node), *map(_type, fields)) if joins else index
        groups.setdefault(kind, []).append(index)
    return list(groups.values())


def _type(x: Any) -> Hashable:
    return jnp.result_type(x), varying_axes(x)


def join(nodes: Sequence[PyTree]) -> PyTree:
    """One node whose fields are those of all `nodes`, flat; a single node stays as it is."""
    if len(nodes) == 1:
        return nodes[0]
    fields = list(zip(*map(jax.tree.leaves, nodes), strict=True))
    return jax.tree.unflatten(jax.tree.structure(nodes[0]), _concatenate(fields))


def split(array: jax.Array, shapes: Shapes) -> list[jax.Array]:
    """The pieces of an array of joined nodes, in their shapes; the draw of a node by itself stays as it is."""
    return _split(array, shapes) if len(shapes) > 1 else [array]


@jax.custom_jvp
@one_program
def _concatenate(fields: Sequence[Sequence[jax.Array]]) -> list[jax.Array]:
    return [jnp.concatenate([jnp.ravel(piece) for piece in pieces]) for pieces in fields]


@_concatenate.defjvp
def _concatenate_jvp(primals, tangents):
    flat, shapes = _concatenate(*primals), tuple(jnp.shape(piece) for piece in primals[0][0])
    return flat, _transposed_slices(*tangents, flat, shapes)


@partial(jax.jit, static_argnums=2)
def _transposed_slices(fields: list[Any], flat: list[jax.Array], shapes: Shapes) -> list[jax.Array]:
    """The concatenation once more, which transposes to `_slices`, and not to those of XLA."""
    with mesh_of(flat):
        return jax.linear_transpose(partial(_slices, shapes=shapes), flat)(list(map(list, fields)))[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _split(flat: jax.Array, shapes: Shapes) -> list[jax.Array]:
    return _slices([flat], shapes)[0]


@_split.defjvp
def _split_jvp(shapes, primals, tangents):
    (flat,), (dot,) = primals, tangents
    ends = list(accumulate(map(math.prod, shapes)))
    pieces = jnp.split(dot, ends[:-1])  # which transposes to a concatenation
    return _split(flat, shapes), [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


@partial(one_program, static_argnames="shapes")
def _slices(arrays: list[jax.Array], shapes: Shapes) -> list[list[jax.Array]]:
    """The pieces of flat arrays, cut so that XLA compiles one kernel for each shape, where it would one for each piece.

    XLA fuses an offset that it knows into the kernel, and all that made the array, too. It does not look into loops:
    out of one of two rounds come the offsets, reversed twice, and both halves of each array, in memory.
    """
    sizes = list(map(math.prod, shapes))
    ends = list(accumulate(sizes))
    offsets = [np.uint32(end - size) for end, size in zip(ends, sizes, strict=True)]
    halves = [jnp.pad(-array, (0, ends[-1] % 2)).reshape(2, -1) for array in arrays]
    offsets, halves = jax.lax.scan(_reversed_and_negated, offsets, halves)
    arrays = [half.reshape(-1)[: ends[-1]] for half in halves]
    places = list(zip(offsets, sizes, shapes, strict=True))
    return [[jax.lax.dynamic_slice(x, (at,), (size,)).reshape(shape) for at, size, shape in places] for x in arrays]


def _reversed_and_negated(offsets: list[Any], half: list[jax.Array]) -> tuple[list[Any], list[jax.Array]]:
    return offsets[::-1], [-x for x in half]
