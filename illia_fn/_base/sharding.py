"""What the type of an array tells of the devices that it lies on."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.core
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from illia_fn._base.trees import PyTree


def is_sharded(x: Any) -> bool:
    """Whether it is sharded over an explicit axis of a mesh, along which JAX does not concatenate."""
    return any(axis is not None for axis in getattr(getattr(jax.typeof(x), "sharding", None), "spec", ()))


def gathered(x: jax.Array, axes: Any) -> jax.Array:
    """`x`, no longer sharded along these explicit axes of its mesh."""
    sharding = jax.typeof(x).sharding
    names = [entry if isinstance(entry, tuple) else (entry,) for entry in (axes, *sharding.spec)]
    spec = P(*[tuple(name for name in entry if name and name not in names[0]) or None for entry in names[1:]])
    return x if spec == sharding.spec else jax.sharding.reshard(x, sharding.update(spec=spec))


def with_whole_examples(tree: PyTree) -> PyTree:
    """The arrays of a tree, no longer sharded along the explicit axes of their leading axis, which is to be cut."""

    def whole(x: Any) -> Any:
        spec = jax.typeof(x).sharding.spec if isinstance(x, jax.Array) else ()
        return gathered(x, spec[0]) if len(spec) and spec[0] else x

    return jax.tree.map(whole, tree)


def mesh_of(tree: PyTree) -> Any:
    """A context with the mesh that arrays of a tree name in their types, where `jax.set_mesh` has not set it."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree)]
    explicit = [mesh for mesh in meshes if mesh.explicit_axes]
    is_set = not explicit or not jax.sharding.get_abstract_mesh().empty
    return contextlib.nullcontext() if is_set else jax.sharding.use_abstract_mesh(explicit[0])


def own_mesh(x: jax.Array) -> Any:
    """A context with the mesh that the type of an array names, if it names one."""
    mesh = jax.typeof(x).sharding.mesh
    return contextlib.nullcontext() if mesh.empty else jax.sharding.use_abstract_mesh(mesh)


def moved_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` as `like` is sharded, if that is on a mesh with axes of other types, as within `jax.sharding.auto_axes`."""
    mine, its = jax.typeof(x).sharding, jax.typeof(like).sharding
    return x if mine.mesh.empty or mine.mesh == its.mesh else jax.sharding.reshard(x, its)


def placed_like(x: jax.Array, like: Any) -> jax.Array:
    """`x`, in a jit, over the devices as an array of its shape outside of it is, if that is on several."""
    sharding = None if isinstance(like, jax.core.Tracer) else getattr(like, "sharding", None)
    is_spread = isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated
    return jax.lax.with_sharding_constraint(x, sharding) if is_spread else x


def type_of_rows(x: jax.Array, count: int) -> Any:
    """The type of so many rows of an array, if all of them are on each device."""
    kind = jax.typeof(x)
    sharding = kind.sharding.update(spec=P(None, *kind.sharding.spec[1:]))
    return kind.update(shape=(count, *x.shape[1:]), sharding=sharding, weak_type=False)


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


def vary_like(f: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """The arrays of a tree, varying along all axes of the mesh of a `jax.shard_map` that f(tree) varies along.

    The derivative of f by them is then that of each device; by what does not vary it is the sum over all devices.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    return vary_along(tree, varying_axes(jax.eval_shape(f, tree)))


def platform() -> str:
    """The one on which JAX computes now: that of `jax.default_device`, a device or a name, or else the default."""
    device = jax.config.jax_default_device  # ty: ignore
    return jax.default_backend() if device is None else getattr(device, "platform", device)
