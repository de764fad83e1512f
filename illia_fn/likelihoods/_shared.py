"""What the likelihoods share: shapes that must agree, a positive parameter, targets inside the support."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale, concrete, describe
from illia_fn._base.numerics import at_least_float32, log_softplus, one_program, softplus


def per_example(values: jax.Array) -> jax.Array:
    """The sum over all axes but the first."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def as_numbers(targets: ArrayLike, outputs: jax.Array) -> jax.Array:
    """The targets in float32 or wider; integers in the dtype of the outputs."""
    integers = jnp.issubdtype(jnp.result_type(targets), jnp.integer)
    return jnp.asarray(targets).astype(outputs.dtype) if integers else at_least_float32(targets)


def positive(
    caller: str, outputs: Any, given: ArrayLike | None, names: tuple[str, str] = ("loc", "scale")
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(first output, positive parameter, its logarithm); the parameter is fixed, learned or predicted."""
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
        value, log_value, positive = softplus(rho), log_softplus(rho), "rho"
    else:
        first_value = at_least_float32(outputs)
        given = 1.0 if given is None else given
        check_scale(caller, given, "scale, a standard deviation," if positive == "scale" else positive)
        value = jnp.asarray(given, first_value.dtype) if isinstance(given, (int, float)) else at_least_float32(given)
        log_value = jnp.log(value)
    if value.shape not in ((), first_value.shape):
        raise ValueError(
            f"{caller}: {positive} must have the shape of {first}, {first_value.shape}, or (), got "
            f"{value.shape}. Nothing is broadcast: reshape one of them."
        )
    return first_value, value, log_value


def with_positive(
    caller: str, outputs: Any, targets: ArrayLike, given: ArrayLike | None, names: tuple[str, str] = ("loc", "scale")
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What `positive` returns, and the targets, in the shape of the first output."""
    first_value, value, log_value = positive(caller, outputs, given, names)
    targets = as_numbers(targets, first_value)
    check_shapes(caller, names[0], first_value.shape, targets.shape)
    return first_value, value, log_value, targets


def at_least_tiny(x: jax.Array) -> jax.Array:
    """x > 0, where it underflows the smallest normal number, whose inverse is finite."""
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def standardise(targets: jax.Array, loc: jax.Array, scale: jax.Array, log_scale: jax.Array) -> jax.Array:
    """(targets - loc) / scale; of a scale that underflows, over the smallest normal number."""
    return _quotient(targets - loc, at_least_tiny(scale), log_scale)


@jax.custom_jvp
def _quotient(distance: jax.Array, scale: jax.Array, log_scale: jax.Array) -> jax.Array:  # noqa: ARG001
    return distance / scale


@partial(_quotient.defjvp, symbolic_zeros=True)
def _quotient_jvp(primals, tangents):
    # The scale's own derivative would square it, which leaves the range; that by its logarithm does not.
    z = _quotient(*primals)
    return z, chain((tangents[0], lambda: 1.0 / primals[1]), (tangents[2], lambda: -z))


def chain(*terms: tuple[Any, Callable[[], jax.Array]]) -> Any:
    """The chain rule, sum of slope() * tangent, over those tangents that are there: of targets, say, there is none."""
    return sum(slope() * tangent for tangent, slope in terms if not isinstance(tangent, SymbolicZero))


@one_program
def surprise(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], over the last axis: softplus of the others' log-sum-exp less the label's logit."""
    # log-sum-exp less the logit would lose both a small loss and the slope by the label's logit, -(1 - probability)
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits)
    info = jnp.finfo(logits.dtype)
    largest = jax.lax.stop_gradient(jnp.max(others, axis=-1, initial=info.min))
    mass = jnp.maximum(jnp.sum(jnp.exp(others - largest[..., None]), axis=-1), info.tiny)
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return softplus(largest - own + jnp.log(mass))


def check_shapes(caller: str, name: str, outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    """Outputs and targets have one shape, with a batch axis."""
    if not targets or outputs != targets:
        raise ValueError(
            f"{caller}: {name} and targets must have the same shape (B, ...), got {outputs} and "
            f"{targets}. Nothing is broadcast: reshape one of them."
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
