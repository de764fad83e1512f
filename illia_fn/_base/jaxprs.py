"""Equations of a jaxpr, for what walks over them."""

from collections.abc import Sequence
from typing import Any


def bind(eqn: Any, operands: Sequence[Any], **params: Any) -> list[Any]:
    """The outputs of one equation at other operands, some of its parameters replaced by `params`."""
    outputs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params({**eqn.params, **params}))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]
