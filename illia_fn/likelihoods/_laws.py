"""The distributions of y that our likelihoods mean, with exactly their parameters."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.numerics import at_least_float32, softplus
from illia_fn._base.special import mean_bend
from illia_fn.likelihoods._samplers import poisson, von_mises
from illia_fn.likelihoods._shared import at_least_tiny, positive
from illia_fn.likelihoods.classes import bernoulli_nll, categorical_nll, ordinal_log_probs, ordinal_nll
from illia_fn.likelihoods.continuous import (
    Outputs,
    asymmetric_laplace_nll,
    check_df,
    check_quantile,
    gaussian_nll,
    laplace_nll,
    mixture_density_nll,
    mixture_parts,
    student_t_nll,
    von_mises_nll,
)
from illia_fn.likelihoods.counts import negative_binomial_nll, poisson_nll
from illia_fn.likelihoods.table import Law, register_law


@register_law(gaussian_nll)
def _gaussian(outputs: Outputs, *, scale: ArrayLike | None = None) -> Law:
    loc, scale, _ = positive("gaussian_nll", outputs, scale)
    variance = jnp.broadcast_to(jnp.square(scale), loc.shape)
    return Law(loc, variance, lambda key: loc + scale * jax.random.normal(key, loc.shape, loc.dtype))


@register_law(laplace_nll)
def _laplace(outputs: Outputs, *, scale: ArrayLike | None = None) -> Law:
    loc, scale, _ = positive("laplace_nll", outputs, scale)
    variance = jnp.broadcast_to(2.0 * jnp.square(scale), loc.shape)
    return Law(loc, variance, lambda key: loc + scale * jax.random.laplace(key, loc.shape, loc.dtype))


@register_law(student_t_nll)
def _student_t(outputs: Outputs, *, df: ArrayLike = 4.0, scale: ArrayLike | None = None) -> Law:
    check_df(df)
    loc, scale, _ = positive("student_t_nll", outputs, scale)
    df = jnp.asarray(df, loc.dtype)
    ratio = df / jnp.where(df > 2.0, df - 2.0, 1.0)
    ratio = jnp.where(df > 2.0, ratio, jnp.where(df > 1.0, jnp.inf, jnp.nan))
    variance = jnp.broadcast_to(jnp.square(scale) * ratio, loc.shape)

    def sample(key: jax.Array) -> jax.Array:
        # a gamma variate of a small shape underflows; its logarithm does not
        key_normal, key_gamma = jax.random.split(key)
        log_gamma = jax.random.loggamma(key_gamma, df / 2.0, loc.shape, loc.dtype)
        stretch = jnp.exp(0.5 * (jnp.log(df / 2.0) - log_gamma))
        return loc + scale * stretch * jax.random.normal(key_normal, loc.shape, loc.dtype)

    return Law(jnp.where(df > 1.0, loc, jnp.nan), variance, sample)


@register_law(asymmetric_laplace_nll)
def _asymmetric_laplace(outputs: Outputs, *, quantile: float, scale: ArrayLike | None = None) -> Law:
    check_quantile(quantile)
    loc, scale, _ = positive("asymmetric_laplace_nll", outputs, scale)
    above, below = 1.0 / quantile, 1.0 / (1.0 - quantile)

    def sample(key: jax.Array) -> jax.Array:
        up, down = jax.random.exponential(key, (2, *loc.shape), loc.dtype)
        return loc + scale * (above * up - below * down)

    variance = jnp.broadcast_to((above**2 + below**2) * jnp.square(scale), loc.shape)
    return Law(loc + (above - below) * scale, variance, sample)


@register_law(von_mises_nll)
def _von_mises(outputs: Outputs, *, concentration: ArrayLike | None = None) -> Law:
    loc, kappa, _ = positive("von_mises_nll", outputs, concentration, names=("loc", "concentration"))
    kappa = jnp.broadcast_to(kappa, loc.shape)
    return Law(loc, mean_bend(kappa), lambda key: wrap(loc + von_mises(key, kappa)), circular=True)


def wrap(angle: jax.Array) -> jax.Array:
    """The angle in [-pi, pi], unchanged where it lies there."""
    return angle - 2.0 * math.pi * jnp.round(angle / (2.0 * math.pi))


@register_law(mixture_density_nll)
def _mixture(outputs: tuple[ArrayLike, ArrayLike, ArrayLike]) -> Law:
    logits, loc, rho = mixture_parts(outputs)
    scale, share = softplus(rho), jax.nn.softmax(logits)
    mean = jnp.sum(share * loc, axis=-1)
    variance = jnp.sum(share * (jnp.square(scale) + jnp.square(loc - mean[..., None])), axis=-1)

    def sample(key: jax.Array) -> jax.Array:
        key_component, key_normal = jax.random.split(key)
        component = jax.random.categorical(key_component, logits, mode="high")[..., None]
        own_loc, own_scale = (jnp.take_along_axis(x, component, axis=-1)[..., 0] for x in (loc, scale))
        draws = own_loc + own_scale * jax.random.normal(key_normal, mean.shape, mean.dtype)
        return jnp.where(jnp.isnan(mean), jnp.nan, draws)  # no component of it may be drawn

    return Law(mean, variance, sample)


@register_law(bernoulli_nll)
def _bernoulli(outputs: ArrayLike) -> Law:
    logits = at_least_float32(outputs)
    probs = jnp.stack([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=-1)

    def sample(key: jax.Array) -> jax.Array:
        # whether it is the less likely outcome, whose probability does not round to 1
        rare = jax.random.bernoulli(key, jax.nn.sigmoid(-jnp.abs(logits)), mode="high")
        return (rare ^ (logits > 0)).astype(int)

    return Law(probs[..., 1], probs[..., 0] * probs[..., 1], sample, probs)


@register_law(categorical_nll)
def _categorical(outputs: ArrayLike) -> Law:
    """The mean and the variance are those of the one-hot labels."""
    logits = at_least_float32(outputs)
    if logits.ndim < 2:
        raise ValueError(
            f"categorical_nll: the logits of one network must have shape (B, ..., K), got {logits.shape}. Outputs have "
            "a leading axis of networks: of one network pass outputs[None]."
        )
    probs = jax.nn.softmax(logits)
    return Law(probs, probs * one_less(probs), lambda key: jax.random.categorical(key, logits, mode="high"), probs)


def one_less(probs: jax.Array) -> jax.Array:
    """1 - p of each class; of a class that is all but certain the sum of the others, which does not cancel."""
    likely = jax.nn.one_hot(jnp.argmax(probs, axis=-1), probs.shape[-1], dtype=bool)
    others = jnp.sum(jnp.where(likely, 0.0, probs), axis=-1, keepdims=True)
    return jnp.where(likely & (probs > 0.5), jnp.broadcast_to(others, probs.shape), 1.0 - probs)


@register_law(ordinal_nll)
def _ordinal(outputs: tuple[ArrayLike, ArrayLike]) -> Law:
    """The mean and the variance are those of the number of the class, 0, ..., K - 1."""
    log_probs = ordinal_log_probs(outputs)
    probs = jnp.exp(log_probs)
    numbers = jnp.arange(probs.shape[-1], dtype=probs.dtype).reshape(*[1] * (probs.ndim - 1), -1)
    mean = jnp.sum(probs * numbers, axis=-1)
    variance = jnp.sum(probs * jnp.square(numbers - mean[..., None]), axis=-1)
    return Law(mean, variance, lambda key: jax.random.categorical(key, log_probs, mode="high"), probs)


@register_law(poisson_nll)
def _poisson(outputs: ArrayLike) -> Law:
    log_rate = at_least_float32(outputs)
    rate = jnp.exp(log_rate)
    return Law(rate, rate, lambda key: poisson(key, log_rate))


@register_law(negative_binomial_nll)
def _negative_binomial(
    outputs: ArrayLike | tuple[ArrayLike, ArrayLike], *, total_count: ArrayLike | None = None
) -> Law:
    """Poisson counts whose rate is a gamma variate of shape r and mean exp(f)."""
    log_mean, r, log_r = positive("negative_binomial_nll", outputs, total_count, names=("log mean", "total_count"))
    mean = jnp.exp(log_mean)

    def sample(key: jax.Array) -> jax.Array:
        key_gamma, key_poisson = jax.random.split(key)
        log_gamma = jax.random.loggamma(key_gamma, at_least_tiny(r), log_mean.shape, log_mean.dtype)
        return poisson(key_poisson, log_mean + (log_gamma - log_r))

    return Law(mean, mean * (1.0 + mean / at_least_tiny(r)), sample)
