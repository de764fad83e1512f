"""Quantiles and intervals of predictive draws."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32, one_program
from illia_fn.predictions.metrics.intervals import between_draws


class Interval(NamedTuple):
    """The ends of an interval for each example, (B, ...); both belong to it."""

    low: jax.Array
    high: jax.Array


def quantiles(draws: ArrayLike, levels: ArrayLike) -> jax.Array:
    """The quantiles of N draws, linear between the order statistics, as `jnp.quantile`.

    Args:
        draws: (N, B, ...), such as those of `predictive_draws`; also those of several networks, (S, B, ...).
        levels: numbers in [0, 1], (L,).

    Returns:
        (L, B, ...), NaN where a draw is; float32 or wider.

    Raises:
        ValueError: if the draws have no axis of examples, or levels are none.

    >>> print(quantiles(jnp.arange(101.0)[:, None], jnp.array([0.05, 0.5])))
    [[ 5.]
     [50.]]
    """
    draws = _draws("quantiles", draws)
    value = concrete(levels)
    if np.ndim(levels) != 1 or (value is not None and not np.all((value >= 0) & (value <= 1))):
        raise ValueError(f"quantiles: levels must be numbers in [0, 1], of shape (L,), got {describe(levels)}.")
    return _quantiles(draws, jnp.asarray(levels) if value is None else value)


def central_interval(draws: ArrayLike, level: float) -> Interval:
    """The interval from the (1 - level) / 2 to the (1 + level) / 2 quantile: as many draws lie below it as above.

    Args:
        draws: as in `quantiles`. Of angles, turn them so that their mean direction is 0 first.
        level: the share of the draws in it, a number in (0, 1).

    Returns:
        An `Interval`, NaN where a draw is. Of one draw both ends are that draw.

    Raises:
        ValueError: if the draws have no axis of examples, or level is not in (0, 1).

    >>> print(*central_interval(jnp.arange(101.0)[:, None], 0.9))
    [5.] [95.]
    """
    check_level("central_interval", level)
    draws = _draws("central_interval", draws)
    return Interval(*_quantiles(draws, np.array([0.5 - level / 2, 0.5 + level / 2])))


def highest_density_interval(draws: ArrayLike, level: float) -> Interval:
    """The shortest interval that holds `level` of the draws: at least ceil(level N) of the N, between two of them.

    It follows a skewed distribution where `central_interval` may leave its mode out; of several modes it may hold the
    valleys between. Of intervals that are equally short, as counts have, it is the lowest. Chen & Shao 1999,
    https://doi.org/10.1080/10618600.1999.10474802.

    Args, returns and errors are those of `central_interval`.

    >>> draws = jnp.array([0.0, 1.0, 1.1, 1.2, 9.0])[:, None]
    >>> print(*highest_density_interval(draws, 0.6))
    [1.] [1.2]
    """
    check_level("highest_density_interval", level)
    draws = _draws("highest_density_interval", draws)
    # the product of the level and N rounds: 0.55 * 100 > 55
    return Interval(*_shortest(draws, max(1, math.ceil(round(level * len(draws), 6)))))


@partial(one_program, static_argnums=1)
def _shortest(draws: jax.Array, inside: int) -> list[jax.Array]:
    """The ends of the shortest interval between two draws that holds so many of them."""
    draws = jnp.sort(draws, axis=0)
    low, high = draws[: len(draws) - inside + 1], draws[inside - 1 :]
    width = jnp.where(low == high, 0.0, high - low)  # of two that are infinite it would be NaN
    shortest = jnp.argmin(width, axis=0)[None]
    ends = (jnp.take_along_axis(x, shortest, axis=0)[0] for x in (low, high))
    missing = jnp.isnan(draws[-1])  # where sorting puts them
    return [jnp.where(missing, jnp.nan, end) for end in ends]


def _quantiles(draws: jax.Array, levels: np.ndarray | jax.Array) -> jax.Array:
    values = between_draws(draws.reshape(len(draws), -1), levels)
    return values.reshape(-1, *draws.shape[1:])


def check_level(caller: str, level: float) -> None:
    """The level of an interval is a number in (0, 1), known at trace time."""
    if not (isinstance(level, (int, float, np.floating)) and 0.0 < level < 1.0):
        raise ValueError(
            f"{caller}: level must be a number in (0, 1), such as 0.9, known at trace time, got {describe(level)}."
        )


def _draws(caller: str, draws: ArrayLike) -> jax.Array:
    draws = at_least_float32(draws)
    if draws.ndim < 2 or not len(draws):
        raise ValueError(
            f"{caller}: draws must have shape (N, B, ...), got {draws.shape}. Of one example pass draws[:, None]."
        )
    return draws
