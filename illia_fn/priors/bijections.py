"""Priors of positive and of bounded parameters, as priors of a number on the whole line."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32, softplus
from illia_fn._base.trees import frozen_pytree
from illia_fn.priors._foreign import foreign_fields, has_density, normal_of
from illia_fn.priors._transformed import ExpGamma, LogHalfCauchy, LogitBeta
from illia_fn.priors.mixture import ScaleMixture
from illia_fn.priors.normal import Normal

Support = Literal["positive", "softplus"] | tuple[float, float]


def constrained(prior: Any, to: Support) -> "Constrained":
    """A prior of a positive or bounded parameter w = T(u), as that of u, on the whole line, which has the posterior.

        log p(u) = log p(T(u)) + log |T'(u)|

    T is `forward` of what this returns: call it in `apply_fn`. The posterior of w is that of T(u) with u ~ q.

    | to | T(u) |
    |---|---|
    | "positive" | exp(u), so that a Gaussian u is a log-normal w |
    | "softplus" | log(1 + exp(u)), positive, too, and nearly u itself where that is large |
    | (low, high) | low + (high - low) sigmoid(u) |

    With "positive" numpyro's LogNormal is a Normal of u, and Gamma, Chi2, Exponential, InverseGamma, HalfNormal and
    Weibull have closed forms likewise: their KL from a Gaussian is exact. The densities of these and of HalfCauchy, and
    of Beta and Uniform between their bounds, are right for any u. Another prior is evaluated at T(u), as it is nearest
    to the end of the range or to a bound where T(u) would leave it.

    Args:
        prior: the prior of w, such as a distribution of numpyro; its log_prob is element-wise or the joint density.
        to: "positive", "softplus", or the bounds, two finite numbers.

    Returns:
        A prior, for `prior=`.

    Raises:
        ValueError: for another `to`, or a prior that has mass outside of it, or none in a part of it.

    >>> from numpyro.distributions import HalfNormal
    >>> prior = constrained(HalfNormal(2.0), to="positive")
    >>> print(prior.forward(0.0), prior.log_prob(0.0))  # log HalfNormal(1), as exp'(0) is 1
    1.0 -1.0439385
    """
    is_bounds = isinstance(to, tuple) and len(to) == 2 and all(isinstance(end, (int, float)) for end in to)
    if is_bounds:
        to = float(to[0]), float(to[1])
    if to not in ("positive", "softplus") and not (is_bounds and -math.inf < to[0] < to[1] < math.inf):
        raise ValueError(
            f'constrained: to must be "positive", "softplus", or bounds (low, high), two finite numbers, got {to!r}.'
        )
    if not hasattr(type(prior), "log_prob") or isinstance(prior, type):
        raise TypeError(
            f"constrained: prior must have a log_prob, such as a distribution of numpyro, got {describe(prior)}."
        )
    if isinstance(prior, (Normal, ScaleMixture, Constrained)) or normal_of(prior) is not None:
        raise ValueError(
            f"constrained: the prior {type(prior).__name__} has mass outside of {to!r}. Take a prior of w in there."
        )
    _check_support(prior, to)
    return Constrained(prior, to)


@frozen_pytree
class Constrained:
    """The prior of u, where T(u) has that of a positive or bounded parameter. Made by `constrained`.

    Attributes:
        prior: that of w = T(u).
        to: what T maps to.

    >>> from numpyro.distributions import Uniform
    >>> print(constrained(Uniform(-1.0, 3.0), to=(-1.0, 3.0)).forward(jnp.array([-1000.0, 0.0, 1000.0])))
    [-1.  1.  3.]
    """

    prior: Any
    to: Support = dataclasses.field(metadata={"static": True})

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """That of the prior, against which the shape of a parameter is checked."""
        return tuple(getattr(self.prior, "batch_shape", ()))

    def forward(self, u: ArrayLike) -> jax.Array:
        """w = T(u), element-wise, in the dtype of u."""
        u = jnp.asarray(u)
        return self._forward(at_least_float32(u)).astype(u.dtype)

    def _forward(self, u: jax.Array) -> jax.Array:
        if self.to == "positive":
            return jnp.exp(u)
        if self.to == "softplus":
            return softplus(u)
        low, high = self.to
        # from the nearer end, so that it is reached, and not passed
        width = high - low
        return jnp.where(u < 0, low + width * jax.nn.sigmoid(u), high - width * jax.nn.sigmoid(-u))

    def log_prob(self, u: ArrayLike) -> jax.Array:
        """log p(T(u)) + log |T'(u)| in nats: element-wise, or for a joint density a scalar."""
        known = self.on_the_line()
        u = at_least_float32(u)
        if known is not None:
            return known.log_prob(u)
        if isinstance(self.to, tuple):
            low, high = self.to
            ends = [np.nextafter(np.asarray(a, u.dtype), np.asarray(b, u.dtype)) for a, b in (self.to, self.to[::-1])]
            w = _within(self._forward(u), *ends)
            slope = math.log(high - low) - softplus(u) - softplus(-u)
        else:
            info = jnp.finfo(u.dtype)
            u = _within(u, math.log(info.tiny) + 3.0, math.log(info.max) - 3.0 if self.to == "positive" else math.inf)
            w, slope = self._forward(u), u if self.to == "positive" else -softplus(-u)
        log_p = self.prior.log_prob(w)
        return log_p + (slope if np.shape(log_p) == np.shape(w) else jnp.sum(slope))

    def on_the_line(self) -> Any:
        """The law of u in a form of its own, if it has one."""
        if self.to == "positive":
            return _law_of_log(self.prior)
        return _law_of_logit(self.prior, self.to) if isinstance(self.to, tuple) else None


def _within(x: jax.Array, low: Any, high: Any) -> jax.Array:
    """`jnp.clip`, whose gradient beyond is 0 even where what comes from above it is infinite."""
    x = jnp.where(x < low, jnp.asarray(low, x.dtype), x)
    return jnp.where(x > high, jnp.asarray(high, x.dtype), x)


def _law_of_log(prior: Any) -> Any:
    """The law of log(w)."""
    for name, (fields, law) in _OF_LOG.items():
        values = foreign_fields(prior, name, *fields)
        if values is not None:
            return law(*map(at_least_float32, values))
    at_zero = foreign_fields(prior, "HalfCauchy", "scale")
    moved = foreign_fields(prior, "HalfCauchy", "loc")  # in TFP
    if at_zero is None or (moved is not None and not np.all(concrete(moved[0]) == 0)):
        return None
    return LogHalfCauchy(jnp.log(at_least_float32(*at_zero)))


_OF_LOG: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "LogNormal": (("loc", "scale"), Normal),
    "Gamma": (("concentration", "rate"), lambda a, b: ExpGamma(a, jnp.log(b), 1.0)),
    "Chi2": (("concentration", "rate"), lambda a, b: ExpGamma(a, jnp.log(b), 1.0)),
    "Exponential": (("rate",), lambda b: ExpGamma(1.0, jnp.log(b), 1.0)),
    "InverseGamma": (("concentration", "rate"), lambda a, b: ExpGamma(a, jnp.log(b), -1.0)),
    "HalfNormal": (("scale",), lambda s: ExpGamma(0.5, -2.0 * jnp.log(s) - math.log(2.0), 2.0)),
    "Weibull": (("scale", "concentration"), lambda s, k: ExpGamma(1.0, -k * jnp.log(s), k)),
}


def _law_of_logit(prior: Any, bounds: tuple[float, float]) -> LogitBeta | None:
    """The law of log((w - low) / (high - w))."""
    values = foreign_fields(prior, "Beta", "concentration1", "concentration0")
    if values is not None and bounds == (0.0, 1.0):
        return LogitBeta(*map(at_least_float32, values))
    ends = foreign_fields(prior, "Uniform", "low", "high")
    if ends is not None and all(np.all(concrete(a) == b) for a, b in zip(ends, bounds, strict=True)):
        shape = np.broadcast_shapes(*map(np.shape, ends))  # against which that of a parameter is checked
        return LogitBeta(jnp.ones(shape, jnp.float32) if shape else 1.0, 1.0)
    return None


def _check_support(prior: Any, to: Support) -> None:
    """The prior has a density in all of what T maps to and nowhere else, as far as it tells."""
    low, high = to if isinstance(to, tuple) else (0.0, math.inf)
    step = 1e-3 * (high - low) if high < math.inf else 1e-3
    within = (low + step, 0.5 * (low + high), high - step) if high < math.inf else (1e-30, 1.0, 1e30)
    beyond = (low - step, high + step) if high < math.inf else (-1e-3, -1e30)
    covered, outside = has_density(prior, within), has_density(prior, beyond)
    if any(flags is not None and not np.all(flags) for flags in covered):
        raise ValueError(
            f"constrained: the prior {type(prior).__name__} has no density on a part of {to!r}, where the posterior "
            "has some, so KL(q || p) is infinite. Pass the bounds of its support."
        )
    if any(flags is not None and np.any(flags) for flags in outside):
        raise ValueError(
            f"constrained: the prior {type(prior).__name__} has mass outside of {to!r}. Take a prior of w in there."
        )
