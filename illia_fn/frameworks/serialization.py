"""The edges towards other libraries."""

from typing import Any

from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.priors.normal import Normal


def register_flax_serialization() -> None:
    """Teach `flax.serialization` the nodes of this library, so that `to_bytes` and `from_bytes` take posterior trees.

    Orbax needs no such call.

    >>> from flax import serialization
    >>> import illia_fn, jax.numpy as jnp
    >>> register_flax_serialization()
    >>> q = illia_fn.mean_field({"w": jnp.ones(2)}, scale=0.1)
    >>> print(serialization.from_bytes(q, serialization.to_bytes(q))["w"].loc)
    [1. 1.]
    """
    from flax import serialization

    for node in (Gaussian, Normal):
        serialization.register_serialization_state(node, _to_state_dict, _from_state_dict, override=True)


def _to_state_dict(node: Gaussian | Normal) -> dict[str, Any]:
    return dict(vars(node))


def _from_state_dict(node: Gaussian | Normal, state: dict[str, Any]) -> Gaussian | Normal:
    return type(node)(**state)
