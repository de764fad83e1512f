"""Empirical Bayes: a Normal prior whose scale is fitted to q, in closed form, under a hyperprior."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale, describe
from illia_fn._base.numerics import at_least_float32, total
from illia_fn._base.trees import PyTree, frozen_pytree, unchecked
from illia_fn.priors.normal import Normal


@frozen_pytree
class EmpiricalBayes:
    """N(0, s) on every group of weights, with the variance s ~ InverseGamma(concentration, rate) that is best for q.

    Wu et al. 2019, Deterministic variational inference for robust Bayesian neural networks,
    https://arxiv.org/abs/1810.03958, who take a concentration a of 4.4798 and a rate b of 10. A group is what one
    posterior node stands for: of its n weights, with means m and variances v under q,

        s = (sum_i (m_i^2 + v_i) + 2 b) / (n + 2 a + 2)    minimises    KL(q || N(0, s)) - log InverseGamma(s; a, b).

    Both terms are part of the loss: `elbo_loss` and `predictive_loss` return the second as `terms.hyperprior`, and
    `kl_loss` adds it; `kl_tree` and `kl_divergence` are KL(q || N(0, s)) alone. In derivatives s is a constant, which
    gives the exact gradient of their sum (the envelope theorem); a second derivative is that of a fixed prior.

    The hyperprior has no default: by maximum likelihood alone, a = b = 0, networks collapse, as weights and scale of a
    layer shrink together. The prior depends on the data, so bounds that need one that does not refuse it.

    Args:
        concentration: a, positive: a number.
        rate: b, positive: a number, of the units of s. The mode of the hyperprior is b / (a + 1).

    Raises:
        ValueError: if one is not positive and finite, where that is known before tracing, or no number.

    >>> prior = EmpiricalBayes(concentration=4.4798, rate=10.0)
    >>> normal, hyperprior = prior.fit(mean=jnp.full(1000, 0.3), stddev=jnp.full(1000, 0.4))
    >>> print(normal.scale.round(3), hyperprior.round(2))  # nearly the root of 0.3^2 + 0.4^2
    0.517 22.32
    """

    concentration: ArrayLike
    rate: ArrayLike

    def __post_init__(self):
        for name in ("concentration", "rate"):
            value = getattr(self, name)
            check_scale("EmpiricalBayes", value, name)
            if np.shape(value) != ():
                raise ValueError(f"EmpiricalBayes: {name} must be a number, got {describe(value)}.")

    def fit(self, mean: PyTree, stddev: PyTree) -> tuple[Normal, jax.Array]:
        """The prior of a group of weights with these moments under q, and -log InverseGamma(s; a, b) in nats."""
        squares = total([jnp.square(at_least_float32(x)) for x in jax.tree.leaves((mean, stddev))])
        a, b = (jnp.asarray(x, squares.dtype) for x in (self.concentration, self.rate))
        count = sum(map(np.size, jax.tree.leaves(mean)))
        s = jax.lax.stop_gradient((squares + 2.0 * b) / (count + 2.0 * a + 2.0))
        hyperprior = gammaln(a) - a * jnp.log(b) + (a + 1.0) * jnp.log(s) + b / s
        return unchecked(Normal, {"loc": 0.0, "scale": jnp.sqrt(s)}), hyperprior
