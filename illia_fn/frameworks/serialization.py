"""The edges towards other libraries."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from illia_fn._base.trees import NODES, PyTree, child_names, unchecked
from illia_fn.posteriors import Eigenbasis, FullCovariance, Gaussian, KTied, LowRank, MatrixNormal, Mixture


def register_flax_serialization() -> None:
    """Teach `flax.serialization` our nodes, so that `to_bytes` and `from_bytes` take posterior trees.

    These are all classes that `frozen_pytree` has made so far, ours and yours; static fields are those of the target.
    Orbax needs no such call.

    >>> from flax import serialization
    >>> import illia_fn, jax.numpy as jnp
    >>> register_flax_serialization()
    >>> q = illia_fn.mean_field({"w": jnp.ones(2)}, scale=0.1)
    >>> print(serialization.from_bytes(q, serialization.to_bytes(q))["w"].loc)
    [1. 1.]
    """
    from flax import serialization

    for node in NODES:
        serialization.register_serialization_state(node, _to_state_dict, _from_state_dict, override=True)


def _to_state_dict(node: Any) -> dict[str, Any]:
    from flax import serialization

    return {name: serialization.to_state_dict(getattr(node, name)) for name in child_names(type(node))}


def _from_state_dict(node: Any, state: dict[str, Any]) -> Any:
    from flax import serialization

    restored = copy.copy(node)
    for name in child_names(type(node)):
        field = serialization.from_state_dict(getattr(node, name), state[name], name=name)
        object.__setattr__(restored, name, field)
    return restored


FAMILIES = (Gaussian, KTied, LowRank, MatrixNormal, Eigenbasis, FullCovariance, Mixture)


def restore_nodes(tree: PyTree, families: Sequence[type[Any]] = FAMILIES) -> PyTree:
    """The tree with posterior nodes again, where a checkpoint that was restored without a target has dictionaries.

    A dictionary whose names are the fields of a family, such as {"loc", "rho"}, becomes a node of it, also in the state
    of an optimizer. Other containers come back as the checkpoint has them, mostly as dictionaries; with a target, such
    as the tree that `mean_field` made, all do.

    Args:
        tree: what was restored.
        families: the families of its nodes, all of ours unless told, without static fields, which a checkpoint does not
            have: a `ForeignPosterior` needs a target.

    Raises:
        ValueError: for a tree without any such dictionary, or families with static fields or the same names.

    >>> import jax.numpy as jnp
    >>> restored = {"w": {"loc": jnp.zeros(2), "rho": jnp.ones(2)}, "b": jnp.zeros(2)}
    >>> print(type(restore_nodes(restored)["w"]).__name__)
    Gaussian
    """
    by_names = {frozenset(child_names(family)): family for family in families}
    if len(by_names) < len(families) or any(len(child_names(f)) < len(dataclasses.fields(f)) for f in families):
        raise ValueError(
            "restore_nodes: families must differ in the names of their fields and have no static ones, got "
            f"{', '.join(family.__name__ for family in families)}. Restore with a target, a tree like the one saved."
        )

    def family_of(node: Any) -> type[Any] | None:
        family = by_names.get(frozenset(node)) if isinstance(node, dict) else None
        if family is Mixture:  # whose field has a name that parameters may have, too
            inside = jax.tree.leaves(node["components"], is_leaf=is_lost)
            return family if inside and all(map(is_lost, inside)) else None
        return family

    def is_lost(node: Any) -> bool:
        return family_of(node) is not None

    def restored(node: Any) -> Any:
        if (family := family_of(node)) is None:
            return node
        if family is Mixture:
            node = {"components": jax.tree.map(restored, node["components"], is_leaf=is_lost)}
        return unchecked(family, node)

    leaves, structure = jax.tree.flatten(tree, is_leaf=is_lost)
    if not any(map(family_of, leaves)):
        names = " or ".join(str(sorted(names)) for names in by_names)
        raise ValueError(f"restore_nodes: tree has no dictionary of {names}, the fields of a posterior node.")
    return structure.unflatten(map(restored, leaves))
