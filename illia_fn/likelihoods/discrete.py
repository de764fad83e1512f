"""Likelihoods of counts and of classes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import at_least_float32, log_softplus
from illia_fn.likelihoods._shared import as_numbers, check_shapes, check_support, is_count, per_example, with_positive


def bernoulli_nll(outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Bernoulli negative log-likelihood, -sum_d [y_d log sigmoid(f_d) + (1 - y_d) log sigmoid(-f_d)].

    `optax.sigmoid_binary_cross_entropy`, with shapes and targets checked.

    Args:
        outputs: logits f, (B, ...).
        targets: y, of the same shape, 0 or 1 or probabilities between them.

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes differ, or targets lie outside of [0, 1].

    >>> print(bernoulli_nll(jnp.array([0.0, 100.0]), jnp.array([1, 0])))
    [  0.6931472 100.       ]
    """
    check_support("bernoulli_nll", targets, lambda y: (y >= 0) & (y <= 1), "in [0, 1]")
    logits = at_least_float32(outputs)
    targets = as_numbers(targets, logits)
    check_shapes("bernoulli_nll", "logits", logits, targets)
    return per_example(optax.sigmoid_binary_cross_entropy(logits, targets))


def categorical_nll(outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Categorical negative log-likelihood, -log softmax(f)[y], summed over trailing axes of the targets.

    `optax.softmax_cross_entropy_with_integer_labels`, with shapes and targets checked. Under jit, where targets cannot
    be refused, a label that is no class makes its example NaN.

    Args:
        outputs: logits f, (B, ..., K).
        targets: class labels, integers (B, ...).

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes do not match, or a label is none of 0, ..., K - 1.
        TypeError: if the labels are not integers.

    >>> print(categorical_nll(jnp.zeros((2, 10)), jnp.array([3, 7])))
    [2.3025851 2.3025851]
    """
    logits, labels = at_least_float32(outputs), jnp.asarray(targets)
    if not logits.ndim:
        raise ValueError(f"categorical_nll: logits must have shape (B, ..., K), got {describe(outputs)}.")
    check_labels("categorical_nll", labels, logits.shape[-1])
    check_shapes("categorical_nll", "logits without their last axis", logits[..., 0], labels)
    # optax takes a label -1 for the last class
    inside = (labels >= 0) & (labels < logits.shape[-1])
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(inside, labels, 0))
    return per_example(nll * _nan_unless(inside, nll.dtype))


def ordinal_nll(outputs: tuple[ArrayLike, ArrayLike], targets: ArrayLike) -> jax.Array:
    """Ordinal (cumulative logit) negative log-likelihood, -log[sigmoid(c_y - f) - sigmoid(c_{y-1} - f)].

    Ordered classes 0, ..., K - 1 are the intervals between cutpoints c_0 < ... < c_{K-2}, with c_{-1} = -inf and
    c_{K-1} = inf. McCullagh 1980, Regression models for ordinal data, https://doi.org/10.1111/j.2517-6161.1980.tb01109.x.

    Args:
        outputs: (f, gaps): f (B, ...), and gaps (B, ..., K - 1), unconstrained, with c_0 = gaps_0 and
            c_k = c_{k-1} + softplus(gaps_k). Cutpoints that all examples share are a parameter (K - 1,) that apply_fn
            broadcasts.
        targets: classes, integers in the shape of f.

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes do not match, or a class is none of 0, ..., K - 1.
        TypeError: if the classes are not integers.

    >>> gaps = jnp.broadcast_to(jnp.array([-1.0, 2.0]), (3, 2))
    >>> [f"{nll:.4f}" for nll in ordinal_nll((jnp.zeros(3), gaps), jnp.array([0, 1, 2]))]
    ['1.3133', '0.7209', '1.4076']
    """
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        raise ValueError(f"ordinal_nll: outputs must be a pair (f, gaps), got {describe(outputs)}.")
    f, gaps = map(at_least_float32, outputs)
    labels = jnp.asarray(targets)
    if gaps.shape[:-1] != f.shape or gaps.ndim != f.ndim + 1:
        raise ValueError(
            f"ordinal_nll: gaps must have the shape of f, {f.shape}, and one more axis, K - 1, got {gaps.shape}. "
            "Broadcast cutpoints that all examples share with jnp.broadcast_to."
        )
    check_labels("ordinal_nll", labels, gaps.shape[-1] + 1)
    check_shapes("ordinal_nll", "f", f, labels)
    widths = jax.nn.softplus(gaps[..., 1:])
    cutpoints = jnp.cumsum(jnp.concatenate([gaps[..., :1], widths], axis=-1), axis=-1)
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)) does not cancel in the tails.
    open_end = jnp.zeros((*f.shape, 1), f.dtype)
    log_below = jnp.concatenate([-jax.nn.softplus(f[..., None] - cutpoints), open_end], axis=-1)
    log_above = jnp.concatenate([open_end, -jax.nn.softplus(cutpoints - f[..., None])], axis=-1)
    # log(1 - exp(-width)); of a small width, by its logarithm, which does not underflow
    narrow = widths < 1e-3
    of_wide = jnp.log(-jnp.expm1(-jnp.where(narrow, 1.0, widths)))
    log_width = jnp.where(narrow, log_softplus(gaps[..., 1:]) - widths / 2.0, of_wide)
    log_prob = log_below + log_above + jnp.concatenate([open_end, log_width, open_end], axis=-1)
    inside = (labels >= 0) & (labels <= gaps.shape[-1])
    nll = -jnp.take_along_axis(log_prob, jnp.where(inside, labels, 0)[..., None], axis=-1)[..., 0]
    return per_example(nll * _nan_unless(inside, nll.dtype))


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
    check_shapes("poisson_nll", "log rates", log_rate, counts)
    return per_example(jnp.exp(log_rate) - counts * log_rate + jax.scipy.special.gammaln(counts + 1.0))


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
    log_mean, log_r, counts = with_positive(
        "negative_binomial_nll", outputs, targets, total_count, names=("log mean", "total_count")
    )
    # p(y) = [Gamma(r + y) / (Gamma(r) r^y)] [mean r / (mean + r)]^y [r / (mean + r)]^r / y!
    log_rise = _log_rise(log_r, counts)
    log_ones = counts * (log_mean - jax.nn.softplus(log_mean - log_r))
    ratio = jnp.exp(jnp.minimum(log_mean - log_r, 0.0))
    # r log(1 + mean / r), which tends to the mean: of mean / r <= 1 by their quotient
    small = jnp.exp(jnp.minimum(log_mean, log_r)) * _log1p_over(ratio)
    log_zeros = -jnp.where(log_mean < log_r, small, jnp.exp(log_r) * jax.nn.softplus(log_mean - log_r))
    return per_example(jax.scipy.special.gammaln(counts + 1.0) - log_rise - log_ones - log_zeros)


def _log_rise(log_r: jax.Array, y: jax.Array) -> jax.Array:
    """log Gamma(r + y) - log Gamma(r) - y log(r), with Stirling's series where r is so large that this cancels."""
    is_large = log_r > math.log(16.0)
    large = jnp.exp(jnp.where(is_large, log_r, math.log(16.0)))
    total = large + y

    def rest(x: jax.Array) -> jax.Array:
        return (1 / 12 - (1 / 360 - 1 / 1260 / x / x) / x / x) / x

    # (r + y - 1/2) log(1 + y / r) - y
    relative = y / large
    stirling = y * (_log1p_over(relative) - 1.0) + (y - 0.5) * jnp.log1p(relative) + rest(total) - rest(large)
    # log Gamma(r) = log Gamma(r + 1) - log(r), which holds however small r is
    log_small = jnp.where(is_large, math.log(16.0), log_r)
    small = jnp.exp(log_small)
    gammaln = jax.scipy.special.gammaln
    direct = gammaln(small + jnp.maximum(y, 1.0)) - gammaln(small + 1.0) - (y - 1.0) * log_small
    return jnp.where(is_large, stirling, jnp.where(y > 0, direct, 0.0))


def _log1p_over(x: jax.Array) -> jax.Array:
    """log(1 + x) / x for x >= 0, and its limit."""
    tiny = x < 1e-4
    safe = jnp.where(tiny, 1.0, x)
    return jnp.where(tiny, 1.0 - x / 2.0 + x * x / 3.0, jnp.log1p(safe) / safe)


def _nan_unless(inside: jax.Array, dtype: Any) -> jax.Array:
    """A factor: a sum would leave the gradient finite, and wrong."""
    return jnp.where(inside, 1.0, jnp.nan).astype(dtype)


def check_labels(caller: str, labels: jax.Array, num_classes: int) -> None:
    """Labels are integers, and classes as far as that can be known before tracing."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{caller}: targets must be integers, the classes, got {describe(labels)}.")
    value = concrete(labels)
    if value is not None and ((value < 0) | (value >= num_classes)).any():
        raise ValueError(
            f"{caller}: targets must be classes from 0 to {num_classes - 1}, got {value.min()} to {value.max()}."
        )
