"""Bounds on the risk of networks that are drawn from q, on data they have not seen.

Each is one equation, f(empirical risk, KL(q || prior), num_data, delta) -> risk. It holds with probability at least
1 - delta over n = `num_data` independent examples, for every q at once, for losses in [0, 1] and a prior that was
chosen without these examples. c = (KL + log(2 sqrt(n) / delta)) / n is the `complexity` of the bounds of Maurer's kind.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32
from illia_fn.objectives.pac_bayes._binary_kl import kl_inverse

Bound = Callable[[jax.Array, jax.Array, Any, float], jax.Array]  # of risk, KL, num_data and delta


def complexity(kl: ArrayLike, num_data: ArrayLike, delta: float) -> jax.Array:
    """c = (KL + log(2 sqrt(n) / delta)) / n. Maurer 2004, https://arxiv.org/abs/cs/0411099.

    >>> print(complexity(5.0, 1000, 0.05).round(4))
    0.0121
    """
    kl = at_least_float32(kl)
    num_data = jnp.asarray(num_data, kl.dtype)
    return (kl + 0.5 * jnp.log(num_data) + math.log(2.0 / probability("complexity", "delta", delta))) / num_data


def maurer_bound(risk: ArrayLike, kl: ArrayLike, num_data: ArrayLike, delta: float) -> jax.Array:
    """The largest risk p with kl(empirical risk || p) <= c, by `kl_inverse`: the tightest of the bounds in c.

    Seeger 2002; Maurer 2004, https://arxiv.org/abs/cs/0411099.

    >>> print(maurer_bound(0.1, 5.0, 1000, 0.05).round(4))
    0.1531
    """
    check_terms("maurer_bound", risk, kl, num_data, delta)
    risk, c = jnp.minimum(risk, 1.0), complexity(kl, num_data, delta)
    return kl_inverse(risk, jnp.broadcast_to(c, risk.shape) if c.ndim == 0 else c)


def mcallester_bound(risk: ArrayLike, kl: ArrayLike, num_data: ArrayLike, delta: float) -> jax.Array:
    """risk + sqrt(c / 2), by Pinsker's inequality. McAllester 1999, with the constants of Maurer 2004.

    >>> print(mcallester_bound(0.1, 5.0, 1000, 0.05).round(4))
    0.1779
    """
    check_terms("mcallester_bound", risk, kl, num_data, delta)
    return at_least_float32(risk) + jnp.sqrt(complexity(kl, num_data, delta) / 2.0)


def quadratic_bound(risk: ArrayLike, kl: ArrayLike, num_data: ArrayLike, delta: float) -> jax.Array:
    """(sqrt(risk + c / 2) + sqrt(c / 2))^2. Rivasplata et al. 2019, https://arxiv.org/abs/1908.07380.

    >>> print(quadratic_bound(0.1, 5.0, 1000, 0.05).round(4))
    0.1629
    """
    check_terms("quadratic_bound", risk, kl, num_data, delta)
    half = complexity(kl, num_data, delta) / 2.0
    return jnp.square(jnp.sqrt(at_least_float32(risk) + half) + jnp.sqrt(half))


def lambda_bound(
    risk: ArrayLike, kl: ArrayLike, num_data: ArrayLike, delta: float, *, lam: ArrayLike | None = None
) -> jax.Array:
    """risk / (1 - lambda / 2) + c / (lambda (1 - lambda / 2)), for all lambda in (0, 2) at once.

    Thiemann et al. 2017, https://arxiv.org/abs/1608.05610.

    Args:
        lam: lambda. None takes the best one, 2 / (sqrt(2 risk / c + 1) + 1); the bound is then `quadratic_bound`.

    >>> print(lambda_bound(0.1, 5.0, 1000, 0.05).round(4), lambda_bound(0.1, 5.0, 1000, 0.05, lam=1.0).round(4))
    0.1629 0.2243
    """
    check_terms("lambda_bound", risk, kl, num_data, delta)
    risk, c = at_least_float32(risk), complexity(kl, num_data, delta)
    if lam is None:
        lam = jax.lax.stop_gradient(2.0 / (jnp.sqrt(2.0 * risk / c + 1.0) + 1.0))  # where the derivative is 0
    elif (value := concrete(lam)) is not None and not np.all((value > 0) & (value < 2)):
        raise ValueError(f"lambda_bound: lam must lie in (0, 2), got {describe(lam)}.")
    return (risk + c / lam) / (1.0 - lam / 2.0)


def catoni_bound(risk: ArrayLike, kl: ArrayLike, num_data: ArrayLike, delta: float, *, beta: float) -> jax.Array:
    """(1 - exp(-beta risk - (KL + log(1 / delta)) / n)) / (1 - exp(-beta)), for one beta > 0 chosen beforehand.

    Catoni 2007, theorem 1.2.6, https://arxiv.org/abs/0712.0248.

    >>> print(catoni_bound(0.1, 5.0, 1000, 0.05, beta=0.5).round(4))
    0.1432
    """
    check_terms("catoni_bound", risk, kl, num_data, delta)
    if not (isinstance(beta, (int, float)) and 0.0 < beta < math.inf):
        raise ValueError(f"catoni_bound: beta must be a positive number, got {describe(beta)}.")
    kl = at_least_float32(kl)
    penalty = (kl - math.log(probability("catoni_bound", "delta", delta))) / jnp.asarray(num_data, kl.dtype)
    return jnp.expm1(-beta * at_least_float32(risk) - penalty) / math.expm1(-beta)


def check_terms(caller: str, risk: ArrayLike, kl: ArrayLike, num_data: ArrayLike, delta: float) -> None:
    """What a bound is made of, as far as that can be known before tracing; a risk may exceed 1 by its rounding."""
    probability(caller, "delta", delta)
    for name, given, inside in (
        ("the risk must lie in [0, 1]", risk, lambda risk: (risk >= 0) & (risk <= 1 + 1e-6)),
        ("the KL must not be negative", kl, lambda kl: kl >= 0),
        ("num_data must be at least 1", num_data, lambda count: count >= 1),
    ):
        value = concrete(given)
        if value is not None and not np.all(inside(value) | np.isnan(value)):
            raise ValueError(f"{caller}: {name}, got {describe(given)}.")


def probability(caller: str, name: str, value: Any) -> float:
    """`value`, which must lie in (0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0.0 < value < 1.0:
        raise ValueError(f"{caller}: {name} must be a number in (0, 1), known at trace time, got {describe(value)}.")
    return float(value)
