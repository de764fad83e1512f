"""Distributions of numpyro, distrax and TFP, known by the name of their type: none of these libraries is imported."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import concrete
from illia_fn.priors.normal import Normal

_LIBRARIES = ("numpyro.distributions", "distrax", "tensorflow_probability.substrates.jax")


def foreign_name(p: Any) -> str | None:
    """The name of its type if that is of one of these libraries."""
    module = f"{type(p).__module__}."
    return type(p).__name__ if any(module.startswith(f"{library}.") for library in _LIBRARIES) else None


def foreign_fields(p: Any, name: str, *fields: str) -> tuple[Any, ...] | None:
    """The fields of the element-wise distribution of that name, which may be expanded, or be the joint one of an event.

    In the shape of what it is a distribution of, or as they are if it was neither expanded nor made an event.
    """
    base = _base(p)
    if foreign_name(base) != name:
        return None
    if any(getattr(base, field, None) is None for field in fields):  # parameterised otherwise
        return None
    values = tuple(getattr(base, field) for field in fields)
    if base is p:
        return values
    shape = (*p.batch_shape, *p.event_shape)
    return tuple(jnp.broadcast_to(value, shape) for value in values)


def _base(p: Any) -> Any:
    """What is expanded, or the joint distribution of an event."""
    while foreign_name(p) in ("ExpandedDistribution", "Independent"):
        p = p.base_dist if hasattr(p, "base_dist") else p.distribution  # the latter in distrax and TFP
    return p


def normal_of(p: Any) -> Normal | None:
    """A Normal of another library as ours."""
    fields = foreign_fields(p, "Normal", "loc", "scale")
    return None if fields is None else Normal(*fields)


def has_density(p: Any, points: Sequence[float]) -> list[np.ndarray | None]:
    """Whether the numbers of w may have each of these values; None where the distribution does not tell."""
    support = getattr(p, "support", None)
    if not callable(support):  # distrax and TFP do not tell
        low, high = _BOUNDS.get(foreign_name(_base(p)), (None, None))
        return [None if low is None or high is None else np.asarray(low < at < high) for at in points]
    shape = (*getattr(p, "batch_shape", ()), *getattr(p, "event_shape", ()))
    with jax.ensure_compile_time_eval():
        return [concrete(support(jnp.full(shape, at, jnp.float32))) for at in points]


_POSITIVE = "Chi2 Exponential Gamma HalfCauchy HalfNormal HalfStudentT InverseGamma LogNormal Pareto Weibull"
_BOUNDS = {"Beta": (0.0, 1.0)} | dict.fromkeys(_POSITIVE.split(), (0.0, float("inf")))
