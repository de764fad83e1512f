"""The edges towards other libraries."""

import copy
from typing import Any

from illia_fn._base.trees import NODES, child_names


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
