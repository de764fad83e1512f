"""Scores of predicted values, of draws and of mixtures of Gaussians, in the units of the targets.

Each is a mean over the examples, sum_i weights_i score_i / sum_i weights_i. Under jit, where values cannot be refused,
a NaN makes it NaN. The score of each example is that of a batch of one, by `jax.vmap`.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import describe
from illia_fn.predictions.metrics._shared import (
    as_draws,
    as_floats,
    check_values,
    counted,
    fill_masked,
    mean_over_examples,
)


def crps(draws: ArrayLike, targets: ArrayLike, *, fair: bool = False, weights: ArrayLike | None = None) -> jax.Array:
    """Continuous ranked probability score of draws x_1, ..., x_S, by sorting, O(S log S) for each example.

        CRPS = (1/S) sum_s |x_s - y| - (1 / (2 S^2)) sum_{s,t} |x_s - x_t| = integral of (F(z) - 1[z >= y])^2 dz

    with F the empirical distribution of the draws: strictly proper for F, the absolute error of one draw. It favours an
    F narrower than what few draws come from; the fair score, with 1 / (2 S (S - 1)), has the expectation of infinitely
    many draws. Gneiting & Raftery 2007, https://doi.org/10.1198/016214506000001437; Ferro 2014,
    https://doi.org/10.1002/qj.2270.

    Args:
        draws: S draws from the predictive distribution of each example, noise of the likelihood included, (S, B).
        targets: true values, (B,).
        fair: whether to score what the draws come from; it takes two draws or more, which are independent: one for each
            of independent networks, not several.
        weights: how much each example counts, (B,); a 0/1 mask, say. What has weight 0 may hold anything.

    Returns:
        A scalar, at least 0 unless it is fair.

    Raises:
        ValueError: if the shapes are not (S, B) and (B,), values are not finite, a fair score has one draw, or
            `weights` are negative, not finite or all zero.
        TypeError: if `fair` is not True or False, or the others are not real numbers.

    >>> draws, targets = jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([0.0, 3.0])
    >>> print(crps(draws, targets), crps(draws, targets, fair=True))
    0.75 0.0
    """
    if not isinstance(fair, bool):
        raise TypeError(f"crps: fair must be True or False, got {describe(fair)}.")
    draws, targets, weights = as_draws("crps", draws, targets, weights)
    if fair and len(draws) == 1:
        raise ValueError("crps: a fair score needs two draws or more, got one. The spread of one draw is unknown.")
    return mean_over_examples(_crps(draws, targets, fair=fair), weights)


@partial(jax.jit, static_argnames="fair")
def _crps(draws: jax.Array, targets: jax.Array, *, fair: bool) -> jax.Array:
    # The integral, gap by gap between sorted draws: a sum of lengths, where the means of distances would cancel.
    x, num_draws = jnp.sort(draws, axis=0), len(draws)
    y = jnp.clip(targets[None], x[:-1], x[1:])
    cdf = jnp.asarray(np.arange(1, num_draws)[:, None] / num_draws, x.dtype)
    gaps = jnp.square(cdf) * (y - x[:-1]) + jnp.square(1.0 - cdf) * (x[1:] - y)
    if fair:
        gaps -= cdf * (1.0 - cdf) / (num_draws - 1) * (x[1:] - x[:-1])
    outside = jnp.maximum(x[0] - targets, 0.0) + jnp.maximum(targets - x[-1], 0.0)
    return outside + jnp.sum(gaps, axis=0)


def crps_gaussian_mixture(
    locs: ArrayLike, scales: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> jax.Array:
    """Continuous ranked probability score of (1/S) sum_s N(loc_s, scale_s^2), in closed form.

        CRPS = (1/S) sum_s A(y - loc_s, scale_s) - (1 / (2 S^2)) sum_{s,t} A(loc_s - loc_t, hypot(scale_s, scale_t))

    with A(m, s) = E|N(m, s^2)| = m (2 Phi(m / s) - 1) + 2 s phi(m / s): the score of infinitely many draws, of S
    networks with Gaussian noise, say. It takes O(S^2) for each example, in the memory of a few arrays like `locs`.
    Grimit, Gneiting, Berrocal & Johnson 2006, https://doi.org/10.1256/qj.05.235.

    Args:
        locs: means of the components of each example, (S, B).
        scales: their standard deviations, (S, B), or one for all, a scalar.
        targets: true values, (B,).
        weights: how much each example counts, (B,); a 0/1 mask, say. What has weight 0 may hold anything.

    Returns:
        A scalar.

    Raises:
        ValueError: as in `crps`; if `scales` are not positive or of another shape.
        TypeError: if the arguments are not real numbers.

    >>> print(f"{crps_gaussian_mixture(jnp.zeros((1, 1)), 1.0, jnp.zeros(1)):.4f}")  # (sqrt(2) - 1) / sqrt(pi)
    0.2337
    """
    caller = "crps_gaussian_mixture"
    locs, targets, weights = as_draws(caller, locs, targets, weights, name="locs")
    scales = as_floats(caller, scales=scales)[0].astype(locs.dtype)
    if scales.shape == ():
        scales = jnp.broadcast_to(scales, locs.shape)
    if scales.shape != locs.shape:
        raise ValueError(
            f"{caller}: scales must have the shape of locs, {locs.shape}, or (), got {scales.shape}. Nothing else is "
            "broadcast: reshape them."
        )
    known, tiny = counted(scales, weights, axis=1), float(jnp.finfo(scales.dtype).tiny)
    check_values(caller, "scales", known, lambda x: (x >= tiny) & (x < np.inf), "positive and finite")
    scales = fill_masked(scales, weights, 1.0, axis=1)
    return mean_over_examples(_crps_gaussian_mixture(locs, scales, targets), weights)


@jax.jit
def _crps_gaussian_mixture(locs: jax.Array, scales: jax.Array, targets: jax.Array) -> jax.Array:
    @jax.checkpoint  # the backward pass would keep all pairs
    def mean_distance(component):
        loc, scale = component
        return jnp.mean(_mean_abs(locs - loc[None], _hypot(scales, scale[None])), axis=0)

    spread = jnp.mean(jax.lax.map(mean_distance, (locs, scales)), axis=0)
    return jnp.mean(_mean_abs(targets[None] - locs, scales), axis=0) - 0.5 * spread


@jax.custom_jvp
def _mean_abs(mean: jax.Array, scale: jax.Array) -> jax.Array:
    """E|N(mean, scale^2)|."""
    return mean * _sign(mean, scale) + scale * _density(mean, scale)


def _sign(mean: jax.Array, scale: jax.Array) -> jax.Array:
    return jax.lax.erf(mean / scale * math.sqrt(0.5))


def _density(mean: jax.Array, scale: jax.Array) -> jax.Array:
    return math.sqrt(2.0 / math.pi) * jnp.exp(-0.5 * jnp.square(mean / scale))


@jax.custom_jvp
def _hypot(a: jax.Array, b: jax.Array) -> jax.Array:
    """sqrt(a^2 + b^2), for positive a and b."""
    return jnp.hypot(a, b)


# The slopes in closed form: those of quotients leave the range where the square of the scale does, and they cancel.
_mean_abs.defjvps(
    lambda tangent, _, mean, scale: _sign(mean, scale) * tangent,
    lambda tangent, _, mean, scale: _density(mean, scale) * tangent,
)
_hypot.defjvps(lambda tangent, out, a, _: a / out * tangent, lambda tangent, out, _, b: b / out * tangent)
