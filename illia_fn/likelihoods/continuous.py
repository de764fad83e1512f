"""-log p(y | f): per-example negative log-likelihoods that optax does not have, in nats, constants included."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._checks import check_scale
from illia_fn._numerics import at_least_float32, log_softplus, normal_log_prob


def gaussian_nll(
    outputs: ArrayLike | tuple[ArrayLike, ArrayLike], targets: ArrayLike, *, scale: ArrayLike | None = None
) -> jax.Array:
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
    if isinstance(outputs, (tuple, list)):
        if scale is not None:
            raise ValueError(
                "gaussian_nll: outputs is a pair (loc, rho), so scale must not be given as well. Drop one of the two."
            )
        if len(outputs) != 2:
            raise ValueError(f"gaussian_nll: outputs must be loc or a pair (loc, rho), got {len(outputs)} items.")
        loc, rho = map(at_least_float32, outputs)
        log_scale = log_softplus(rho)
    else:
        scale = 1.0 if scale is None else scale
        check_scale("gaussian_nll", scale)
        loc, log_scale = at_least_float32(outputs), jnp.log(at_least_float32(scale))
    targets = at_least_float32(targets)
    if targets.ndim == 0 or loc.shape != targets.shape or log_scale.shape not in ((), loc.shape):
        raise ValueError(
            "gaussian_nll: loc and targets must have the same shape (B, ...), and the scale that shape or (), got loc "
            f"{loc.shape}, targets {targets.shape}, scale {log_scale.shape}. Nothing is broadcast: reshape one of them."
        )
    return jnp.sum(-normal_log_prob(targets, loc, log_scale), axis=tuple(range(1, targets.ndim)))
