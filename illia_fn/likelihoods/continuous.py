"""Likelihoods of numbers and of angles."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.numerics import HALF_LOG_2PI, at_least_float32, log_softplus, one_program, softplus
from illia_fn._base.special import log_gamma_half_step, log_i0e, minus_log
from illia_fn.likelihoods._shared import (
    as_numbers,
    at_least_tiny,
    chain,
    check_shapes,
    per_example,
    standardise,
    surprise,
    with_positive,
)

Outputs = ArrayLike | tuple[ArrayLike, ArrayLike]


def gaussian_nll(outputs: Outputs, targets: ArrayLike, *, scale: ArrayLike | None = None) -> jax.Array:
    """Gaussian negative log-likelihood, sum_d (y_d - loc_d)^2 / (2 scale_d^2) + log(scale_d) + log(2 pi) / 2.

    The noise scale is
    - fixed: `outputs` is loc, and `scale` a number (1 if not given), as in `partial(gaussian_nll, scale=0.5)`;
    - learned: `outputs` is a pair (loc, rho), rho a scalar parameter that the model returns along with its prediction;
    - predicted (heteroscedastic; Nix & Weigend 1994): `outputs` is a pair (loc, rho), rho in the shape of loc.
    In a pair, scale = softplus(rho), exact in both tails.

    Args:
        outputs: loc, (B, ...), or the pair (loc, rho).
        targets: y, in the shape of loc.
        scale: fixed standard deviation, a positive number or an array in the shape of loc; only if `outputs` is not a
            pair.

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if shapes differ (nothing is broadcast but scalars), `scale` is not positive, or both rho and
            `scale` are given.

    >>> print(gaussian_nll(jnp.zeros(2), jnp.array([0.0, 1.0])))
    [0.9189385 1.4189385]
    >>> print(gaussian_nll((jnp.zeros(2), jnp.full(2, -100.0)), jnp.zeros(2)))  # scale = exp(-100)
    [-99.08106 -99.08106]
    """
    loc, scale, log_scale, targets = with_positive("gaussian_nll", outputs, targets, scale)
    return _gaussian_of_examples(targets, loc, scale, log_scale)


def laplace_nll(outputs: Outputs, targets: ArrayLike, *, scale: ArrayLike | None = None) -> jax.Array:
    """Laplace negative log-likelihood, sum_d |y_d - loc_d| / scale_d + log(2 scale_d): robust, its mode the median.

    Args, returns and errors are those of `gaussian_nll`; here scale is the mean absolute deviation.

    >>> print(laplace_nll(jnp.zeros(2), jnp.array([0.0, 1.0])))
    [0.6931472 1.6931472]
    """
    loc, scale, log_scale, targets = with_positive("laplace_nll", outputs, targets, scale)
    return per_example(jnp.abs(standardise(targets, loc, scale, log_scale)) + log_scale + math.log(2.0))


def student_t_nll(
    outputs: Outputs, targets: ArrayLike, *, df: ArrayLike = 4.0, scale: ArrayLike | None = None
) -> jax.Array:
    """Student-t negative log-likelihood: robust, with tails as heavy as its degrees of freedom are few.

    sum_d (df + 1) / 2 log(1 + z_d^2 / df) + log(scale_d) + log B(df / 2, 1 / 2) + log(df) / 2,
    with z = (y - loc) / scale. Lange, Little & Taylor 1989, https://doi.org/10.1080/01621459.1989.10478852.

    Args:
        outputs: loc or (loc, rho), as in `gaussian_nll`.
        targets: y, in the shape of loc.
        df: degrees of freedom, a positive number; may be traced (learned).
        scale: as in `gaussian_nll`.

    Returns and errors are those of `gaussian_nll`.

    >>> [f"{nll:.3f}" for nll in student_t_nll(jnp.zeros(2), jnp.array([0.0, 1e30]), df=1.0)]  # Cauchy
    ['1.145', '139.300']
    """
    check_df(df)
    loc, scale, log_scale, targets = with_positive("student_t_nll", outputs, targets, scale)
    df = jnp.asarray(df, loc.dtype)
    # log B(df / 2, 1 / 2) + log(df) / 2 is log(2 pi) / 2 and a step of log Gamma that vanishes for large df
    constant = HALF_LOG_2PI - log_gamma_half_step(df / 2.0)
    return per_example(_student_t(targets - loc, scale, log_scale, df) + constant)


def asymmetric_laplace_nll(
    outputs: Outputs, targets: ArrayLike, *, quantile: float, scale: ArrayLike | None = None
) -> jax.Array:
    """Asymmetric Laplace negative log-likelihood, whose mode is a quantile: the pinball loss as a likelihood.

    sum_d (y_d - loc_d) (q - [y_d < loc_d]) / scale_d + log(scale_d) - log(q (1 - q)).
    Yu & Moyeed 2001, Bayesian quantile regression, https://doi.org/10.1016/S0167-7152(01)00124-9.

    Args:
        outputs: the quantile, or (quantile, rho), as in `gaussian_nll`.
        targets: y, in the shape of the quantile.
        quantile: q, its level, a number in (0, 1).
        scale: as in `gaussian_nll`.

    Returns and errors are those of `gaussian_nll`.

    >>> [f"{nll:.4f}" for nll in asymmetric_laplace_nll(jnp.zeros(2), jnp.array([-1.0, 1.0]), quantile=0.9)]
    ['2.5079', '3.3079']
    """
    check_quantile(quantile)
    loc, scale, log_scale, targets = with_positive("asymmetric_laplace_nll", outputs, targets, scale)
    z = standardise(targets, loc, scale, log_scale)
    return per_example(
        jnp.maximum(quantile * z, (quantile - 1.0) * z) + log_scale - math.log(quantile * (1 - quantile))
    )


def von_mises_nll(outputs: Outputs, targets: ArrayLike, *, concentration: ArrayLike | None = None) -> jax.Array:
    """Von Mises negative log-likelihood of angles in radians, the Gaussian of the circle.

    sum_d kappa_d (1 - cos(y_d - loc_d)) + log(2 pi) + log(exp(-kappa_d) I_0(kappa_d)).
    Mardia & Jupp 2000, Directional statistics, https://doi.org/10.1002/9780470316979.

    Args:
        outputs: loc, (B, ...), or a pair (loc, rho) with concentration kappa = softplus(rho), as in `gaussian_nll`.
        targets: angles of any winding, in the shape of loc.
        concentration: kappa, fixed, 1 if not given.

    Returns and errors are those of `gaussian_nll`.

    >>> [f"{nll:.3f}" for nll in von_mises_nll(jnp.zeros(2), jnp.array([0.0, 2 * jnp.pi]), concentration=10.0)]
    ['-0.219', '-0.219']
    """
    loc, kappa, _, angles = with_positive(
        "von_mises_nll", outputs, targets, concentration, names=("loc", "concentration")
    )
    # 1 - cos(d) = 2 sin(d / 2)^2 does not cancel near d = 0, where kappa may be large.
    bend = 2.0 * kappa * jnp.square(jnp.sin((angles - loc) / 2.0))
    return per_example(bend + math.log(2.0 * math.pi) + log_i0e(kappa))


def mixture_density_nll(outputs: tuple[ArrayLike, ArrayLike, ArrayLike], targets: ArrayLike) -> jax.Array:
    """Mixture density network: -log sum_k pi_k N(y; loc_k, softplus(rho_k)^2), summed over trailing axes.

    Bishop 1994, Mixture density networks, https://publications.aston.ac.uk/id/eprint/373/.

    Args:
        outputs: (logits, loc, rho), each (B, ..., K); pi = softmax(logits).
        targets: y, (B, ...).

    Returns:
        One value per example, (B,), in nats; float32 or wider.

    Raises:
        ValueError: if outputs are not three arrays of the shape of targets with one more axis.

    >>> logits, loc, rho = jnp.zeros((1, 2)), jnp.array([[-5.0, 5.0]]), jnp.full((1, 2), 0.5413249)
    >>> print(mixture_density_nll((logits, loc, rho), jnp.array([5.0])).round(4))  # 0.9189 + log(2)
    [1.6121]
    """
    logits, loc, rho = mixture_parts(outputs)
    targets = as_numbers(targets, loc)
    check_shapes("mixture_density_nll", "outputs without their last axis", logits.shape[:-1], targets.shape)
    return _mixture_density(logits, loc, rho, targets)


@one_program
def _mixture_density(logits: jax.Array, loc: jax.Array, rho: jax.Array, targets: jax.Array) -> jax.Array:
    z = standardise(targets[..., None], loc, softplus(rho), log_softplus(rho))
    # A density that underflows so far that its square overflows would have no gradient; it is held where it is finite.
    log_prob = jnp.maximum(-_gaussian(z, log_softplus(rho)), -0.1 * jnp.finfo(z.dtype).max)
    # From the component that explains y best: as a difference of log-sum-exps, a slope by its logit would cancel.
    joint = logits + log_prob
    best = jnp.argmax(joint, axis=-1)
    log_best = jnp.take_along_axis(log_prob, best[..., None], axis=-1)[..., 0]
    return per_example(surprise(logits, best) - log_best - surprise(joint, best))


def mixture_parts(outputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The outputs that `mixture_density_nll` takes: (logits, loc, rho), of one shape."""
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 3:
        raise ValueError(
            f"mixture_density_nll: outputs must be (logits, loc, rho), got {describe(outputs)}. apply_fn returns three."
        )
    logits, loc, rho = map(at_least_float32, outputs)
    if not logits.ndim or not logits.shape == loc.shape == rho.shape:
        raise ValueError(
            f"mixture_density_nll: logits, loc and rho must have one shape (B, ..., K), got {logits.shape}, "
            f"{loc.shape} and {rho.shape}."
        )
    return logits, loc, rho


@one_program
def _gaussian_of_examples(targets: jax.Array, loc: jax.Array, scale: jax.Array, log_scale: jax.Array) -> jax.Array:
    return per_example(_gaussian(standardise(targets, loc, scale, log_scale), log_scale))


def _gaussian(z: jax.Array, log_scale: jax.Array) -> jax.Array:
    return 0.5 * z * z + log_scale + HALF_LOG_2PI


@jax.custom_jvp
@one_program
def _student_t(distance: jax.Array, scale: jax.Array, log_scale: jax.Array, df: jax.Array) -> jax.Array:
    """(df + 1) / 2 log(1 + z^2 / df) + log(scale), with z = distance / scale."""
    root = distance / at_least_tiny(scale) / jnp.sqrt(df)
    far, u = _inner(root)
    log_root = jnp.log(jnp.where(far, jnp.abs(root), 1.0))
    return (df + 1.0) / 2.0 * (2.0 * log_root + jnp.log1p(u * u)) + log_scale


@partial(_student_t.defjvp, symbolic_zeros=True)
def _student_t_jvp(primals, tangents):
    distance, scale, _, df = primals
    scale, width = at_least_tiny(scale), jnp.sqrt(df)
    far, u = _inner(distance / scale / width)
    # of s = z^2 / df, which may overflow: s / (1 + s), 1 / (1 + s), and log(1 + s) - s / (1 + s)
    share, rest = jnp.where(far, 1.0, u * u) / (1.0 + u * u), jnp.where(far, u * u, 1.0) / (1.0 + u * u)
    log_rest = 2.0 * jnp.log(jnp.where(far, jnp.abs(u), 1.0)) - jnp.log1p(u * u)
    by_distance = lambda: (df + 1.0) / width * u / (1.0 + u * u) / scale  # noqa: E731
    by_log_scale = lambda: rest - df * share  # noqa: E731
    by_df = lambda: 0.5 * (minus_log(-share, log_rest) - share / df)  # noqa: E731
    return _student_t(*primals), chain((tangents[0], by_distance), (tangents[2], by_log_scale), (tangents[3], by_df))


def _inner(root: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether |root| > 1, and then its inverse, else itself."""
    far = jnp.abs(root) > 1.0
    return far, jnp.where(far, 1.0 / jnp.where(far, root, 1.0), root)


def check_df(df: ArrayLike) -> None:
    """Degrees of freedom are a positive number, as far as that can be known before tracing."""
    number = concrete(df)
    if np.shape(df) != () or (number is not None and not 0 < number < np.inf):
        raise ValueError(f"student_t_nll: df must be a positive number, got {describe(df)}.")


def check_quantile(quantile: float) -> None:
    """The level of a quantile is a Python number in (0, 1)."""
    if not (isinstance(quantile, (int, float)) and 0.0 < quantile < 1.0):
        raise ValueError(f"asymmetric_laplace_nll: quantile must be a number in (0, 1), got {describe(quantile)}.")
