"""What the type of an array tells of the devices that it lies on."""

from typing import Any

import jax

from illia_fn._base.trees import PyTree


def is_sharded(x: Any) -> bool:
    """Whether it is sharded over an explicit axis of a mesh, along which JAX does not concatenate."""
    return any(axis is not None for axis in getattr(getattr(jax.typeof(x), "sharding", None), "spec", ()))


def varying_axes(tree: PyTree) -> frozenset[str]:
    """The axes of the mesh of a `jax.shard_map` along which the arrays of a tree, or some of them, vary."""
    types = [leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]
    kinds = [getattr(kind, "manual_axis_type", None) for kind in types]
    return frozenset().union(*[kind.varying for kind in kinds if kind is not None])


def vary_along(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The arrays of a tree, varying along these axes, too: its gradient is then one of each device's own."""

    def one(leaf: Any) -> Any:
        missing = axes - varying_axes(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(one, tree)
