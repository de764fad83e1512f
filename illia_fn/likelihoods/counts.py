"""Likelihoods of counts."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.numerics import HALF_LOG_2PI, at_least_float32, one_program, softplus
from illia_fn._base.special import digamma_error, minus_log, stirling_error
from illia_fn.likelihoods._shared import (
    as_numbers,
    at_least_tiny,
    chain,
    check_shapes,
    check_support,
    is_count,
    per_example,
    with_positive,
)


def poisson_nll(outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Poisson negative log-likelihood, sum_d exp(f_d) - y_d f_d + log(y_d!), with the rate exp(f).

    Args:
        outputs: log rates f, (B, ...).
        targets: counts, of the same shape.

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes differ, or targets are no counts.

    >>> [f"{nll:.4f}" for nll in poisson_nll(jnp.zeros(2), jnp.array([0, 3]))]  # 1, 1 + log(6)
    ['1.0000', '2.7918']
    """
    check_support("poisson_nll", targets, is_count, "counts, 0, 1, 2, ...")
    log_rate = at_least_float32(outputs)
    counts = as_numbers(targets, log_rate)
    check_shapes("poisson_nll", "log rates", log_rate.shape, counts.shape)
    return per_example(_poisson(log_rate, counts))


def negative_binomial_nll(
    outputs: ArrayLike | tuple[ArrayLike, ArrayLike], targets: ArrayLike, *, total_count: ArrayLike | None = None
) -> jax.Array:
    """Negative binomial negative log-likelihood: counts that vary more than Poisson's, by mean and total count.

    -sum_d [log(Gamma(y + r) / (Gamma(r) y!)) - r log(1 + mean / r) - y log(1 + r / mean)], with mean = exp(f) and
    variance mean + mean^2 / r; r -> inf is Poisson. Hilbe 2011, https://doi.org/10.1017/CBO9780511973420.

    Args:
        outputs: log means f, (B, ...), or a pair (f, rho) with r = softplus(rho), rho in the shape of f or a scalar.
        targets: counts, in the shape of f.
        total_count: r, fixed, a positive number or an array in the shape of f; 1 if not given.

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes differ, targets are no counts, or r is not positive or given twice.

    >>> [f"{nll:.4f}" for nll in negative_binomial_nll(jnp.zeros(2), jnp.array([0, 1]))]  # geometric: 1/2, 1/4
    ['0.6931', '1.3863']
    """
    check_support("negative_binomial_nll", targets, is_count, "counts, 0, 1, 2, ...")
    log_mean, r, log_r, counts = with_positive(
        "negative_binomial_nll", outputs, targets, total_count, names=("log mean", "total_count")
    )
    return per_example(_negative_binomial(log_mean, r, log_r, counts))


def poisson_log_mass(log_rate: jax.Array, counts: jax.Array) -> jax.Array:
    """log p(y) of each count, exact where rate and count are large."""
    return -_poisson(log_rate, counts)


@jax.custom_jvp
@one_program
def _poisson(f: jax.Array, y: jax.Array) -> jax.Array:
    # Loader 2000, Fast and accurate computation of binomial probabilities: the deviance, and Stirling's formula for
    # log(y!). With mean = exp(f): near mean = y the three terms of the definition leave a millionth of each.
    mean = jnp.exp(f)
    some = jnp.where(y > 0, y, 1.0)
    log_y = jnp.log(some)
    deviance = some * minus_log((mean - some) / some, f - log_y)
    return jnp.where(y > 0, deviance + HALF_LOG_2PI + 0.5 * log_y + stirling_error(some, log_y), mean)


@partial(_poisson.defjvp, symbolic_zeros=True)
def _poisson_jvp(primals, tangents):
    f, y = primals
    by_y = lambda: jnp.log1p(y) - 0.5 / (y + 1.0) - digamma_error(y + 1.0) - f  # noqa: E731
    return _poisson(f, y), chain((tangents[0], lambda: jnp.exp(f) - y), (tangents[1], by_y))


@jax.custom_jvp
@one_program
def _negative_binomial(f: jax.Array, r: jax.Array, log_r: jax.Array, y: jax.Array) -> jax.Array:
    # as `_poisson`: the deviances of r and of y, and Stirling's formula for the three Gamma functions
    r = at_least_tiny(r)
    some = jnp.where(y > 0, y, 1.0)
    log_y, total = jnp.log(some), r + some
    errors = stirling_error(r, log_r) + stirling_error(some, log_y) - stirling_error(total, jnp.log(total))
    stirling = HALF_LOG_2PI + 0.5 * (log_y + _log_growth(r, log_r, some)) + errors
    return _deviance(f, r, log_r, y)[0] + jnp.where(y > 0, stirling, 0.0)


@partial(_negative_binomial.defjvp, symbolic_zeros=True)
def _negative_binomial_jvp(primals, tangents):
    """Of r and its logarithm the tangent of the logarithm is taken, which stays right where r underflows."""
    f, r, log_r, y = primals
    r = at_least_tiny(r)
    total = r + y
    _, deviance_of_r, by_f = _deviance(f, r, log_r, y)

    def by_log_r() -> jax.Array:
        # digamma(r + y) - digamma(r), less the logarithm of (r + y) / r
        return deviance_of_r - 0.5 * y / total - r * (digamma_error(r) - digamma_error(total))

    def by_y() -> jax.Array:
        # digamma(y + 1) - digamma(r + y) + log(1 + r / mean): the logarithms, as they cancel least, and the rest
        x = (1.0 - r) / total
        log_ratio = x - minus_log(x, jnp.log((1.0 + y) / total)) + softplus(log_r - f)
        log_quotient = jnp.log1p(y) - f - _log_growth(r, log_r, y) + softplus(f - log_r)
        error = 0.5 * x / (1.0 + y) + digamma_error(total) - digamma_error(y + 1.0)
        return jnp.where((log_r > f) & (r > y), log_quotient, log_ratio) + error

    slopes = (tangents[0], lambda: by_f), (tangents[2], by_log_r), (tangents[3], by_y)
    return _negative_binomial(*primals), chain(*slopes)


@jax.jit
def _deviance(f: jax.Array, r: jax.Array, log_r: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """r [x - log(1 + x)] of 1 + x = rho = (r + y) / (r + mean), plus y [x - log(1 + x)] of 1 + x = rho mean / y.

    Returns that sum, its first term, and its derivative by f.
    """
    limit = 0.6 * jnp.log(jnp.finfo(f.dtype).max)
    far = (f > limit) | ((f < -limit) & (log_r < -limit))
    some = jnp.where(y > 0, y, 1.0)
    mean = jnp.exp(jnp.where(far, 0.0, f))
    share = r / (r + mean)
    log_rho = jnp.log((r + y) / (r + mean))
    x = (y - mean) / (r + mean)
    of_r = r * minus_log(x, log_rho)
    of_y = some * minus_log((mean - some) / some * share, log_rho + f - jnp.log(some))
    near = of_r + jnp.where(y > 0, of_y, -r * x), of_r, (mean - y) * share
    # where the mean overflows, or r + mean underflows, what is left of the sum, whose rational parts cancel
    log_odds, log_growth = f - log_r, _log_growth(r, log_r, y)
    log_rho = log_growth - softplus(log_odds)
    by_f = r * jax.nn.sigmoid(log_odds) - y * jax.nn.sigmoid(-log_odds)
    distant = y * (softplus(-log_odds) - jnp.log1p(r / some)) - r * log_rho, -by_f - r * log_rho, by_f
    return tuple(jnp.where(far, a, b) for a, b in zip(distant, near, strict=True))


def _log_growth(r: jax.Array, log_r: jax.Array, y: jax.Array) -> jax.Array:
    """log((r + y) / r)."""
    return jnp.where(r > y, jnp.log1p(y / jnp.maximum(r, y)), jnp.log(r + y) - log_r)
