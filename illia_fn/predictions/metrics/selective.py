"""Selective prediction: if only the most confident examples are answered, how large is the loss on them?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn.predictions.metrics._shared import (
    as_floats,
    as_weights,
    check_values,
    counted,
    fill_masked,
)


class RiskCoverage(NamedTuple):
    """A risk-coverage curve, from the most confident example to all of them, and its area.

    Attributes:
        coverage: the share of examples that are answered at each threshold, (B,), increasing to 1; equal for examples
            of equal confidence.
        risk: the mean loss of these examples, (B,).
        area: the area under the curve (AURC), a scalar; the smaller the better.
    """

    coverage: jax.Array
    risk: jax.Array
    area: jax.Array


def risk_coverage(confidence: ArrayLike, losses: ArrayLike, *, weights: ArrayLike | None = None) -> RiskCoverage:
    """The loss on the examples that are answered against their share, for every threshold of confidence.

    With the thresholds t_i = confidence_i and E the weighted mean over all examples,

        coverage_i = E[confidence >= t_i],   risk_i = E[loss 1(confidence >= t_i)] / coverage_i,   area = E_i[risk_i].

    Examples of equal confidence are answered together and form one step, so the order of the examples is of no
    matter. Points come by falling confidence; examples of weight 0 repeat the last one. El-Yaniv & Wiener 2010,
    https://jmlr.org/papers/v11/el-yaniv10a.html; the area: Geifman, Uziel & El-Yaniv 2019,
    https://arxiv.org/abs/1805.08206.

    Args:
        confidence: how sure each prediction is, (B,), in any units, such as the largest probability or minus the
            entropy.
        losses: what each prediction costs, (B,), such as 1 where it is wrong and 0 where it is right.
        weights: how much each example counts, (B,); a 0/1 mask, say. What has weight 0 may hold anything.

    Returns:
        A `RiskCoverage`.

    Raises:
        ValueError: if the shapes are not (B,), values are NaN, or `weights` are negative, not finite or all zero.
        TypeError: if the arguments are not real numbers.

    >>> curve = risk_coverage(jnp.array([0.9, 0.6, 0.6, 0.5]), jnp.array([0.0, 0.0, 1.0, 0.5]))
    >>> print(curve.coverage, curve.risk)  # two are tied
    [0.25 0.75 0.75 1.  ] [0.         0.33333334 0.33333334 0.375     ]
    >>> print(f"{curve.area:.4f}")
    0.2604
    """
    confidence, losses = as_floats("risk_coverage", confidence=confidence, losses=losses)
    if confidence.ndim != 1 or losses.shape != confidence.shape or losses.size == 0:
        raise ValueError(
            f"risk_coverage: confidence and losses must have shape (B,), got {confidence.shape} and {losses.shape}."
        )
    weights = as_weights("risk_coverage", weights, len(losses), losses.dtype)
    for name, values in (("confidence", confidence), ("losses", losses)):
        check_values("risk_coverage", name, counted(values, weights), lambda x: ~np.isnan(x), "no NaN")
    confidence, losses = fill_masked(confidence, weights, -jnp.inf), fill_masked(losses, weights, 0.0)
    return _curve(confidence, losses, jnp.ones_like(losses) if weights is None else weights)


@jax.jit
def _curve(confidence: jax.Array, losses: jax.Array, weights: jax.Array) -> RiskCoverage:
    losses = jnp.where(jnp.isnan(confidence), jnp.nan, losses)  # it would be sorted to the end in silence
    order = jnp.argsort(-confidence)
    ranked, weights, losses = -confidence[order], weights[order], losses[order]
    last = jnp.searchsorted(ranked, ranked, side="right") - 1  # of those that are tied
    mass = jnp.cumsum(weights)
    risk = jnp.cumsum(weights * losses)[last] / mass[last]
    return RiskCoverage(mass[last] / mass[-1], risk, jnp.sum(weights * risk) / mass[-1])
