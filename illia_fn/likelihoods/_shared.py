"""What the likelihoods share: shapes that must agree, a positive parameter, targets inside the support."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale, concrete, describe
from illia_fn._base.numerics import at_least_float32, log_softplus


def per_example(values: jax.Array) -> jax.Array:
    """The sum over all axes but the first."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def as_numbers(targets: ArrayLike, outputs: jax.Array) -> jax.Array:
    """The targets in float32 or wider; integers in the dtype of the outputs."""
    integers = jnp.issubdtype(jnp.result_type(targets), jnp.integer)
    return jnp.asarray(targets).astype(outputs.dtype) if integers else at_least_float32(targets)


def with_positive(
    caller: str, outputs: Any, targets: ArrayLike, given: ArrayLike | None, names: tuple[str, str] = ("loc", "scale")
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(first output, log of the positive parameter, targets) where that parameter is fixed, learned or predicted."""
    first, positive = names
    if isinstance(outputs, (tuple, list)):
        if given is not None:
            raise ValueError(
                f"{caller}: outputs is a pair ({first}, rho), so {positive} must not be given as well. Drop one of the "
                "two."
            )
        if len(outputs) != 2:
            raise ValueError(f"{caller}: outputs must be {first} or a pair ({first}, rho), got {len(outputs)} items.")
        first_value, rho = map(at_least_float32, outputs)
        log_positive, positive = log_softplus(rho), "rho"
    else:
        first_value = at_least_float32(outputs)
        given = 1.0 if given is None else given
        check_scale(caller, given, "scale, a standard deviation," if positive == "scale" else positive)
        wide = jnp.asarray(given, first_value.dtype) if isinstance(given, (int, float)) else at_least_float32(given)
        log_positive = jnp.log(wide)
    targets = as_numbers(targets, first_value)
    check_shapes(caller, first, first_value, targets)
    if log_positive.shape not in ((), first_value.shape):
        raise ValueError(
            f"{caller}: {positive} must have the shape of {first}, {first_value.shape}, or (), got "
            f"{log_positive.shape}. Nothing is broadcast: reshape one of them."
        )
    return first_value, log_positive, targets


def check_shapes(caller: str, name: str, outputs: jax.Array, targets: jax.Array) -> None:
    """Outputs and targets have one shape, with a batch axis."""
    if targets.ndim == 0 or outputs.shape != targets.shape:
        raise ValueError(
            f"{caller}: {name} and targets must have the same shape (B, ...), got {outputs.shape} and "
            f"{targets.shape}. Nothing is broadcast: reshape one of them."
        )


def check_support(caller: str, targets: Any, inside: Callable[[np.ndarray], np.ndarray], support: str) -> None:
    """The targets lie in the support, as far as that can be known before tracing."""
    value = concrete(targets)
    if value is not None and not np.all(inside(value)):
        outside = value[~inside(value)]
        raise ValueError(f"{caller}: targets must be {support}, got {outside.flat[0]} among {describe(targets)}.")


def is_count(value: np.ndarray) -> np.ndarray:
    """Where it is 0, 1, 2, ..."""
    return (value >= 0) & (value == np.floor(value)) & np.isfinite(value)
