"""Pytree plumbing shared by the public functions: node registration and prefix trees."""

import ast
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.export
import jax.numpy as jnp

PyTree = Any
T = TypeVar("T")


NODES: list[type] = []  # that `frozen_pytree` made


@dataclass_transform(frozen_default=True, eq_default=False)
def frozen_pytree(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose fields are its pytree children.

    A field of `dataclasses.field(metadata={"static": True})` is no child, but hashable and part of the structure, as in
    `jax.tree_util.register_dataclass`. Unlike there, unflattening does not run `__post_init__`: a node's arguments are
    checked when a user builds it, and the node may still carry gradients, masks, labels or shardings in its fields.
    Trees with such nodes may be arguments of what `jax.export` serialises.

    >>> @frozen_pytree
    ... class Point:
    ...     x: float
    ...     y: float
    >>> jax.tree.map(lambda leaf: 2 * leaf, Point(1.0, 3.0))
    Point(x=2.0, y=6.0)
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    names, static_names = child_names(cls), _static_names(cls)

    def flatten_with_keys(node):
        return [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in names], statics(node)

    def flatten(node):
        return [getattr(node, name) for name in names], statics(node)

    def statics(node):
        return tuple(getattr(node, name) for name in static_names)

    def unflatten(statics, children):
        return unchecked(cls, dict(zip([*names, *static_names], [*children, *statics], strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    _register_for_export(cls)
    NODES.append(cls)
    return cls


def is_node(leaf: Any) -> bool:
    """Whether it is of a class that `frozen_pytree` made: a posterior node or a prior, and no module of a framework."""
    return isinstance(leaf, tuple(NODES))


def unchecked(cls: type[T], fields: dict[str, Any]) -> T:
    """A node that may hold anything in its fields, such as a part of an optimizer's state."""
    node = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(node, name, value)
    return node


def child_names(cls: Any) -> list[str]:
    """The fields of a class made by `frozen_pytree` that are its children."""
    return [field.name for field in dataclasses.fields(cls) if field.name not in _static_names(cls)]


def _static_names(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get("static", False)]


def _register_for_export(cls: type) -> None:
    def serialize(statics: tuple[Any, ...]) -> bytes:
        try:
            same = ast.literal_eval(repr(statics)) == statics
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise ValueError(
                f"{cls.__name__}: to export it, its static fields must be numbers, strings, booleans, None or tuples "
                f"of these, got {statics}."
            )
        return repr(statics).encode()

    name = f"{cls.__module__}.{cls.__qualname__}"
    again = sum(name == f"{node.__module__}.{node.__qualname__}" for node in NODES)  # a cell of a notebook
    jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=name + f"-{again}" * (again > 0),
        serialize_auxdata=serialize,
        deserialize_auxdata=lambda data: ast.literal_eval(data.decode()),
    )


def is_floating(leaf: Any) -> bool:
    """Whether it is an array of floating-point numbers."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def leaves_with_path(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of `tree`, each with its path as JAX writes it in error messages."""
    return [
        (jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    ]


def path_of(keys: Any) -> str:
    """The names on the way to a leaf or a subtree, with slashes in between."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def leaves_by_path(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of `tree`, each with its path as tables show it and as patterns match it.

    Paths that are alike, as of {"a/b": ..., "a": {"b": ...}}, are written as in error messages, which tell them apart.
    """
    ways = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    count = Counter(path_of(keys) for keys, _ in ways)
    return [(path_of(keys) if count[path_of(keys)] == 1 else jax.tree_util.keystr(keys), leaf) for keys, leaf in ways]


def broadcast_prefix(
    caller: str,
    name: str,
    prefix: PyTree,
    tree: PyTree,
    is_leaf: Callable[[Any], bool] | None,
    is_prefix_leaf: Callable[[Any], bool],
) -> list[Any]:
    """One leaf of `prefix` for each leaf of `tree`, in the order of `jax.tree.leaves(tree, is_leaf=is_leaf)`."""
    leaves, structure = jax.tree.flatten(prefix, is_leaf=is_prefix_leaf)
    try:
        subtrees = structure.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(
            f"{caller}: {name} must be a single value or a prefix tree of the parameters, but its structure does not "
            f"match theirs: {_first_words(error)} Build it with jax.tree.map over the parameters, which keeps their "
            "containers, or give one value for all."
        ) from error
    counts = [len(jax.tree.leaves(subtree, is_leaf=is_leaf)) for subtree in subtrees]
    return [leaf for leaf, count in zip(leaves, counts, strict=True) for _ in range(count)]


def _first_words(error: Exception) -> str:
    """The beginning of an error of JAX, which goes on to print whole trees of parameters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else f"{text[:160]} ..."
