"""Pytree plumbing shared by the public functions: node registration and prefix trees."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax

PyTree = Any
T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False)
def frozen_pytree(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose fields are its pytree children.

    Unlike `jax.tree_util.register_dataclass`, unflattening does not run `__post_init__`: a node's arguments are checked
    when a user builds it, and the node may still carry gradients, masks, labels or shardings in its fields.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    names = [field.name for field in dataclasses.fields(cls)]

    def flatten_with_keys(node):
        return [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in names], None

    def flatten(node):
        return [getattr(node, name) for name in names], None

    def unflatten(_, children):
        node = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(node, name, child)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def leaves_with_path(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of `tree`, each with its path as JAX writes it in error messages."""
    return [
        (jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    ]


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
