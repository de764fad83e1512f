"""What the scores share: arguments of one shape and dtype, the examples that count, and a mean over them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32, one_program, weighted_mean, widest_dtype

ONE_VALUE = "Drop an axis of size 1, as in x[..., 0]; of several values for each example score each."

mean_over_examples = jax.jit(weighted_mean)


@one_program
def indicator(condition: jax.Array, *values: jax.Array) -> jax.Array:
    """1 where the condition holds and 0 where not; NaN where one of the values is, which no comparison would show."""
    dtype = values[0].dtype
    unknown = jnp.any(jnp.stack([jnp.isnan(value) for value in values]), axis=0)
    return jnp.where(unknown, jnp.asarray(jnp.nan, dtype), condition.astype(dtype))


def as_floats(caller: str, **arrays: ArrayLike) -> list[jax.Array]:
    """The arrays in one dtype, the widest of theirs and at least float32."""
    floats = [at_least_float32(_real(caller, name, x)) for name, x in arrays.items()]
    dtype = widest_dtype(floats)
    return [x.astype(dtype) for x in floats]


def _real(caller: str, name: str, x: ArrayLike) -> jax.Array:
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{caller}: {name} must be an array of real numbers, got {describe(x)}.") from error
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"{caller}: {name} must be an array of real numbers, got {describe(x)}.")
    return array


def as_weights(caller: str, weights: ArrayLike | None, num_examples: int, dtype: Any) -> jax.Array | None:
    """The weights (B,) in the dtype of what they weigh; finite, not negative and not all zero as far as is known."""
    if weights is None:
        return None
    weights = _real(caller, "weights", weights).astype(dtype)
    if weights.shape != (num_examples,):
        raise ValueError(
            f"{caller}: weights must have shape ({num_examples},), one per example, got {weights.shape}. Nothing is "
            "broadcast: reshape them."
        )
    value = concrete(weights)
    if value is not None and not (np.all(value >= 0) and 0 < np.sum(value) < np.inf):
        raise ValueError(
            f"{caller}: weights must be finite, not negative and not all zero, got {describe(weights)} from "
            f"{value.min()} to {value.max()}. Skip batches in which no example counts."
        )
    return weights


def counted(x: ArrayLike, weights: jax.Array | None, axis: int = 0) -> np.ndarray | None:
    """Of `x` the examples whose weight is not zero, where they are known now; None under a trace."""
    value, mask = concrete(x), None if weights is None else concrete(weights)
    if value is None or weights is None:
        return value
    return None if mask is None else np.compress(mask > 0, value, axis=axis)


def fill_masked(x: jax.Array, weights: jax.Array | None, fill: float, axis: int = 0) -> jax.Array:
    """`x` with `fill` in examples of weight zero: 0 times their NaN would be NaN, in the value or its gradient."""
    return x if weights is None else _fill(x, weights, fill, axis)


@partial(jax.jit, static_argnums=(2, 3))
def _fill(x: jax.Array, weights: jax.Array, fill: float, axis: int) -> jax.Array:
    shape = [1] * x.ndim
    shape[axis] = -1
    return jnp.where((weights > 0).reshape(shape), x, jnp.asarray(fill, x.dtype))


def check_values(caller: str, name: str, value: np.ndarray | None, inside: Callable[..., Any], what: str) -> None:
    """All values are inside, where they are known."""
    if value is not None and not np.all(inside(value)):
        outside = value[~inside(value)]
        raise ValueError(
            f"{caller}: {name} must be {what}, got {outside[0]} and {outside.size - 1} more. Leave out examples that "
            "are missing by a weight of 0."
        )


def check_level(caller: str, level: Any) -> None:
    """A level is a number in (0, 1), known at trace time."""
    if not (isinstance(level, (int, float, np.floating)) and 0.0 < level < 1.0):
        raise ValueError(f"{caller}: level must be a number in (0, 1), such as 0.9, got {describe(level)}.")


def check_probabilities(caller: str, value: np.ndarray | None, dtype: Any) -> None:
    """Rows of probabilities are not negative and sum to one, within what their dtype can hold, where they are known."""
    if value is None or not value.size:
        return
    # Means over networks in float32 are often held in float64, so that its own rounding would be too strict.
    eps = max(float(jnp.finfo(kind).eps) for kind in (dtype, np.float32) if jnp.issubdtype(kind, jnp.floating))
    totals, tolerance = value.sum(axis=-1, dtype=np.float64), eps**0.5
    if not np.all(np.min(value, axis=-1) >= 0):  # or NaN
        fault = "one that is NaN" if np.isnan(value).any() else f"{value.min():.4g}"
    elif not np.all(np.abs(totals - 1) <= tolerance):
        fault = f"a row of sum {totals.flat[np.argmax(np.abs(totals - 1))]:.4g}"
    else:
        return
    raise ValueError(
        f"{caller}: probs must be probabilities, not negative and of sum 1 over the last axis within {tolerance:.1g}, "
        f"got {fault}. Apply jax.nn.softmax to logits first; of two classes pass both probabilities."
    )


def as_labels(caller: str, labels: ArrayLike, weights: jax.Array | None, num_classes: int) -> jax.Array:
    """Labels that are integers, and classes where they are known."""
    array = _real(caller, "labels", labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{caller}: labels must be integers, the classes, got {describe(labels)}.")
    # as they came: of an int64 without x64, JAX keeps the lower half
    value = None if concrete(array) is None else counted(np.asarray(labels), weights)
    if value is not None and ((value < 0) | (value >= num_classes)).any():
        raise ValueError(
            f"{caller}: labels must be classes from 0 to {num_classes - 1}, got {value.min()} to {value.max()}."
        )
    return array.astype(jnp.result_type(int))


def as_predicted_classes(
    caller: str, probs: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Probabilities (B, C), labels (B,) and weights, checked. Under a trace a label that is no class makes its row
    NaN, and so do numbers that are no probabilities.

    Examples of weight zero have equal probabilities and label 0.
    """
    (floats,) = as_floats(caller, probs=probs)
    shape = _real(caller, "labels", labels).shape
    if floats.ndim != 2 or shape != floats.shape[:1] or floats.size == 0:
        raise ValueError(
            f"{caller}: probs must have shape (B, C) and labels (B,), got {floats.shape} and {shape}. "
            "Average the probabilities over Monte Carlo samples first."
        )
    num_examples, num_classes = floats.shape
    checked = as_weights(caller, weights, num_examples, floats.dtype)
    check_probabilities(caller, counted(floats, checked), jnp.asarray(probs).dtype)
    classes = as_labels(caller, labels, checked, num_classes)
    return *_clean_classes(floats, classes, checked), checked


@jax.jit
def _clean_classes(probs: jax.Array, labels: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    num_classes = probs.shape[1]
    labels = fill_masked(labels, weights, 0)
    valid = (labels >= 0) & (labels < num_classes)
    probs = only_probabilities(fill_masked(probs, weights, 1.0 / num_classes))
    return jnp.where(valid[:, None], probs, jnp.nan), jnp.where(valid, labels, 0)


@one_program
def only_probabilities(probs: jax.Array) -> jax.Array:
    """Rows that are negative or of another sum than about one are NaN: under a trace nothing can be refused."""
    is_one = jnp.abs(jnp.sum(probs, axis=-1, keepdims=True) - 1.0) < 0.1
    return jnp.where(is_one & jnp.all(probs >= 0, axis=-1, keepdims=True), probs, jnp.nan)


def as_draws(
    caller: str, draws: ArrayLike, targets: ArrayLike, weights: ArrayLike | None, name: str = "draws"
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Draws (S, B), targets (B,) and weights, checked; 0 in examples of weight zero."""
    arrays = as_floats(caller, **{name: draws, "targets": targets})
    if arrays[0].ndim != 2 or arrays[1].shape != arrays[0].shape[1:] or arrays[0].size == 0:
        raise ValueError(
            f"{caller}: {name} must have shape (S, B) and targets (B,), got {arrays[0].shape} and {arrays[1].shape}. "
            f"The samples come first. {ONE_VALUE}"
        )
    checked = as_weights(caller, weights, len(arrays[1]), arrays[1].dtype)
    for label, values in zip((name, "targets"), arrays, strict=True):
        check_values(caller, label, counted(values, checked, axis=-1), np.isfinite, "finite")
    draws, targets = (fill_masked(x, checked, 0.0, axis=-1) for x in arrays)
    return draws, targets, checked
