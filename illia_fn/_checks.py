"""Argument checks: every error names the public function, what it was given and what to do."""

import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def concrete(x: Any) -> np.ndarray | None:
    """`x` as a NumPy array where its value is known now, None under a trace."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


def check_scale(caller: str, scale: Any) -> None:
    """A scale is positive and finite, as far as that can be known before tracing."""
    value = concrete(scale)
    if value is not None and not (np.all(value > 0) and np.all(np.isfinite(value))):
        raise ValueError(f"{caller}: scale must be positive and finite, got {scale}. It is a standard deviation.")


def check_key(caller: str, key: Any) -> None:
    """`key` is one PRNG key, new style or legacy."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.ndim == 0:
            return
    elif dtype == jnp.uint32 and key.shape in ((2,), (4,)):  # jax.random.PRNGKey
        return
    raise TypeError(f"{caller}: key must be a single PRNG key such as jax.random.key(0), got {describe(key)}.")


def check_num_samples(caller: str, num_samples: Any) -> None:
    """The number of Monte Carlo samples is a Python (or NumPy) integer, at least one."""
    try:
        value = 0 if isinstance(num_samples, (bool, np.bool_)) else operator.index(num_samples)
    except Exception:  # a tracer refuses with an error of JAX's own
        value = 0
    if value < 1:
        raise ValueError(
            f"{caller}: num_samples must be an int of at least 1, known at trace time, got {describe(num_samples)}. "
            "Under jax.jit bind it with functools.partial or mark it static."
        )


def check_num_data(caller: str, num_data: Any) -> None:
    """The size of the training set is a number of at least one, or None."""
    value = None if num_data is None else concrete(num_data)
    if value is not None and (value.ndim or value.dtype.kind not in "iuf" or not 1 <= value < np.inf):
        raise ValueError(
            f"{caller}: num_data must be the number of training examples, at least 1, got {describe(num_data)}."
        )


def describe(x: Any) -> str:
    """What came: shape and dtype of an array, the repr of anything else."""
    if isinstance(x, (jax.Array, np.ndarray)):
        return f"an array of shape {x.shape} and dtype {x.dtype}"
    return f"{x!r} of type {type(x).__name__}"
