"""Argument checks: every error names the public function, what it was given and what to do."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

# Some way above the smallest number, so that what is much smaller than a scale may underflow: see kl.py.
SMALLEST_SCALE = {dtype: float(np.finfo(dtype).tiny) * 2.0**16 for dtype in (np.float32, np.float64)}


def concrete(x: Any) -> np.ndarray | None:
    """`x` as a NumPy array where its value is known now, None under a trace."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


def check_scale(caller: str, scale: Any, name: str = "scale, a standard deviation,") -> None:
    """A scale is positive and finite in the dtype it is used in, as far as that can be known before tracing."""
    value = concrete(scale)
    if value is None:
        return
    if value.dtype.kind in "SUO":
        raise TypeError(f"{caller}: {name.split(',')[0]} must be a number, got {describe(scale)}.")
    dtype = np.float64 if value.dtype != np.float32 and jax.config.read("jax_enable_x64") else np.float32
    with np.errstate(over="ignore"):
        value = value.astype(dtype)
    if not np.all((value >= SMALLEST_SCALE[dtype]) & (value < np.inf)):
        raise ValueError(
            f"{caller}: {name} must be positive and finite in {np.dtype(dtype)}, got {scale}. "
            f"The smallest is {SMALLEST_SCALE[dtype]:.1e}."
        )


def check_factor(caller: str, name: str, factor: Any) -> None:
    """A factor of the KL is a finite scalar that is not negative, as far as that can be known before tracing."""
    if not _is_number(factor) or not _within(factor, lambda value: 0 <= value < np.inf):
        raise ValueError(
            f"{caller}: {name} must be a finite number that is not negative, got {describe(factor)}."
            + (f" Of a schedule pass the weight, {name}=schedule(step)." if callable(factor) else "")
        )


def check_temperature(caller: str, temperature: Any) -> None:
    """A temperature is a positive, finite scalar, as far as that can be known before tracing."""
    if not _is_number(temperature) or not _within(temperature, lambda value: 0 < value < np.inf):
        raise ValueError(f"{caller}: temperature must be a positive, finite number, got {describe(temperature)}.")


def _is_number(x: Any) -> bool:
    """Whether it is one real number, known now or not."""
    is_array = isinstance(x, (jax.Array, np.ndarray, np.generic))
    return np.shape(x) == () and (jnp.isrealobj(x) if is_array else isinstance(x, (int, float)))


def _within(x: Any, inside: Callable[[Any], bool]) -> bool:
    value = concrete(x)
    return value is None or bool(inside(value))


def check_callable(caller: str, name: str, f: Any) -> None:
    """`f` is a function."""
    if not callable(f):
        is_model = hasattr(type(f), "eval_fn")
        remedy = "Pass its train_fn() or eval_fn()" if is_model else "Check the order of the arguments"
        raise TypeError(f"{caller}: {name} must be a function, got {describe(f)}. {remedy}.")


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
    if not _is_count(num_samples):
        raise ValueError(
            f"{caller}: num_samples must be an int of at least 1, known at trace time, got {describe(num_samples)}. "
            "Under jax.jit bind it with functools.partial or mark it static."
        )


def check_draws(caller: str, key: Any, num_samples: Any, chunk_size: Any, antithetic: Any) -> None:
    """How draws are made: from what key, how many, how many at once, in pairs or not."""
    check_key(caller, key)
    check_num_samples(caller, num_samples)
    if chunk_size is not None and not _is_count(chunk_size):
        raise ValueError(
            f"{caller}: chunk_size must be an int of at least 1, known at trace time, or None for all samples at once, "
            f"got {describe(chunk_size)}."
        )
    if not isinstance(antithetic, bool):
        raise TypeError(f"{caller}: antithetic must be True or False, got {describe(antithetic)}.")
    if antithetic and num_samples % 2:
        raise ValueError(f"{caller}: antithetic draws come in pairs, so num_samples must be even, got {num_samples}.")


def check_count(caller: str, name: str, count: Any) -> None:
    """A count is a Python (or NumPy) integer, at least one."""
    if not _is_count(count):
        raise ValueError(f"{caller}: {name} must be an int of at least 1, got {describe(count)}.")


def _is_count(x: Any) -> bool:
    try:
        return not isinstance(x, (bool, np.bool_)) and operator.index(x) >= 1
    except Exception:  # a tracer refuses with an error of JAX's own
        return False


def check_num_data(caller: str, num_data: Any) -> None:
    """The size of the training set is a number of at least one, or None."""
    value = None if num_data is None else concrete(num_data)
    if value is not None and (value.ndim or value.dtype.kind not in "iuf" or not 1 <= value < np.inf or value % 1):
        raise ValueError(
            f"{caller}: num_data must be the number of training examples, at least 1, got {describe(num_data)}."
        )


def check_required_num_data(caller: str, num_data: Any) -> None:
    """The size of the training set, which must be given."""
    if num_data is None:
        raise ValueError(f"{caller}: num_data must be given, as the result is per training example, got None.")
    check_num_data(caller, num_data)


def split_aux(caller: str, name: str, result: Any, *, has_aux: bool) -> tuple[Any, Any]:
    """What a function returned, as a pair (value, aux)."""
    if not has_aux:
        return result, None
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"{caller}: with has_aux=True {name} must return a pair (value, aux), got a {type(result).__name__}."
        )
    return result


def describe(x: Any) -> str:
    """What came: shape and dtype of an array, the repr of anything else."""
    if isinstance(x, (jax.Array, np.ndarray)):
        return f"an array of shape {x.shape} and dtype {x.dtype}"
    text = repr(x)
    return f"{text} of type {type(x).__name__}" if len(text) <= 80 else f"a value of type {type(x).__name__}"
