"""The diagonal Gaussian, and `mean_field`, which puts one in the place of every leaf."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.numerics import HALF_LOG_2PI, at_least_float32, log_softplus, normal_log_prob, softplus
from illia_fn._base.trees import PyTree, frozen_pytree
from illia_fn.posteriors._distances import Independent, between_independent
from illia_fn.posteriors._leaves import Mask, each_leaf, raw_scale, strong
from illia_fn.posteriors.posterior import Posterior


@frozen_pytree
class Gaussian(Posterior):
    """Diagonal Gaussian posterior, w ~ N(loc, softplus(rho)^2).

    Blundell et al. 2015, Weight uncertainty in neural networks, https://arxiv.org/abs/1505.05424. Draws are computed in
    float32 or wider and rounded to the dtype of `loc`, which in half precision swallows a scale far below loc.

    Args:
        loc: means, in the shape of the parameter.
        rho: unconstrained scales, of the same shape; scale = softplus(rho) = log(1 + exp(rho)).

    Raises:
        ValueError: if `loc` and `rho` have different shapes.

    >>> q = Gaussian(loc=jnp.zeros(3), rho=jnp.full(3, -7.0))
    >>> print(q.stddev.round(6))
    [0.000911 0.000911 0.000911]
    """

    elementwise: ClassVar[bool] = True

    loc: jax.Array
    rho: jax.Array

    def __post_init__(self):
        if jnp.shape(self.loc) != jnp.shape(self.rho):
            raise ValueError(
                f"Gaussian: loc and rho must have the same shape, got {jnp.shape(self.loc)} and {jnp.shape(self.rho)}. "
                "Broadcast one of them yourself, or build the node with mean_field."
            )
        for name in ("loc", "rho"):
            field = getattr(self, name)
            if isinstance(field, (int, float)) or getattr(field, "weak_type", False):
                object.__setattr__(self, name, strong(field))

    @property
    def mean(self) -> jax.Array:
        return self.loc

    @property
    def stddev(self) -> jax.Array:
        return self.scale.astype(self.rho.dtype)

    @property
    def scale(self) -> jax.Array:
        """softplus(rho), in float32 or wider."""
        return softplus(at_least_float32(self.rho))

    @property
    def log_scale(self) -> jax.Array:
        """log softplus(rho), in float32 or wider, finite however small the scale."""
        return log_softplus(at_least_float32(self.rho))

    def reparameterise(self) -> Callable[[jax.Array], jax.Array]:
        # A bfloat16 normal draw takes only some hundred values; draw and add in float32, then round once.
        loc, scale, dtype = at_least_float32(self.loc), self.scale, self.loc.dtype
        return lambda noise: (loc + scale * noise).astype(dtype)

    def log_prob(self, w: jax.Array) -> jax.Array:
        if jnp.shape(w) != jnp.shape(self.loc):
            raise ValueError(f"Gaussian.log_prob: w must have shape {jnp.shape(self.loc)}, got {jnp.shape(w)}.")
        return jnp.sum(normal_log_prob(at_least_float32(w), at_least_float32(self.loc), self.log_scale))

    def entropy(self) -> jax.Array:
        return jnp.sum(self.log_scale + (HALF_LOG_2PI + 0.5))

    def bhattacharyya_form(self) -> Independent:
        return Independent.of(self)

    bhattacharyya = staticmethod(between_independent)


def mean_field(params: PyTree, *, scale: ArrayLike | PyTree = 0.05, mask: Mask = None) -> PyTree:
    """The params tree with every floating-point leaf w replaced by `Gaussian(loc=w, rho)`, softplus(rho) = scale.

    Args:
        params: the model's parameters, any pytree. Leaves that are not floating-point arrays (integers, booleans, PRNG
            keys, functions) stay as they are: they are deterministic. `jax.grad` does not take them, so keep them
            out of `params` (`nnx.split`, `eqx.partition`) if you differentiate with respect to the whole tree.
        scale: the initial standard deviation, a positive number, or a prefix tree of numbers or of arrays in the shape
            of their leaf. Start small: noise of the size of the weights drowns what they are to learn first.
        mask: which leaves become posteriors, as in optax: a prefix tree of booleans, or a callable
            from `params` to one.

    Returns:
        A posterior tree, of the dtype of `params`.

    Raises:
        ValueError: for a scale that is not positive and finite, a prefix tree that does not match, a tree without
            leaves, a tree that already holds posterior nodes, a mask that selects no leaf.
        TypeError: for complex parameters, or a mask that is not made of booleans.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> q = mean_field(params, scale=0.05, mask={"kernel": True, "bias": False})
    >>> print(q["kernel"].stddev[0].round(6), q["bias"])
    [0.05 0.05 0.05] [0. 0. 0.]
    """
    return each_leaf("mean_field", params, scale, mask, _gaussian_at)


def _gaussian_at(path: str, loc: jax.Array, scale: ArrayLike) -> Gaussian:
    return Gaussian(loc, jnp.full_like(loc, raw_scale("mean_field", path, scale, loc.dtype)))
