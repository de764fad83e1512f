"""The diagonal Gaussian, and `mean_field`, which puts one in the place of every leaf."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale, concrete, describe
from illia_fn._base.numerics import (
    HALF_LOG_2PI,
    at_least_float32,
    log_softplus,
    normal_log_prob,
    softplus,
    softplus_inverse,
)
from illia_fn._base.trees import PyTree, broadcast_prefix, frozen_pytree, leaves_with_path
from illia_fn.posteriors.posterior import Posterior, is_posterior


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
                object.__setattr__(self, name, _strong(field))

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


def mean_field(
    params: PyTree, *, scale: ArrayLike | PyTree = 0.05, mask: PyTree | Callable[[PyTree], PyTree] | None = None
) -> PyTree:
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
    leaves = leaves_with_path(params, is_posterior)
    if not leaves:
        raise ValueError(f"mean_field: params has no leaves, got {params!r}. Pass the model's parameter tree.")
    for path, leaf in leaves:
        if is_posterior(leaf):
            raise ValueError(
                f"mean_field: params{path} is already a posterior node ({type(leaf).__name__}). "
                "Pass the plain parameters."
            )
    if mask is None:
        mask = True
    elif _is_mask_function(mask):
        mask = _of_params(mask)(params)
    statistics = _statistics(params)
    masks = broadcast_prefix("mean_field", "mask", mask, params, is_posterior, _is_none)
    scales = broadcast_prefix("mean_field", "scale", scale, params, is_posterior, _is_none)
    nodes = [
        _gaussian_at(path, leaf, leaf_scale) if _is_selected(path, leaf, leaf_mask, statistics) else _copied(leaf)
        for (path, leaf), leaf_scale, leaf_mask in zip(leaves, scales, masks, strict=True)
    ]
    if not any(map(is_posterior, nodes)):
        raise ValueError(
            "mean_field: no floating-point leaf of params is selected by the mask, so nothing would be Bayesian."
        )
    return jax.tree.unflatten(jax.tree.structure(params), nodes)


def _is_none(x: Any) -> bool:
    return x is None


def _is_mask_function(mask: Any) -> bool:
    # A mask in the form of a callable module (equinox) is a tree of booleans, and not a function of params.
    return callable(mask) and not all(isinstance(leaf, bool) for leaf in jax.tree.leaves(mask))


def _of_params(mask: Callable[..., PyTree]) -> Callable[[PyTree], PyTree]:
    try:
        inspect.signature(mask).bind(None)
    except TypeError as error:
        raise TypeError(
            "mean_field: mask must be a function of one argument, the params, that returns a tree of booleans, as in "
            f"optax, got {describe(mask)}. For a function f(path, leaf) pass lambda params: jax.tree.map_with_path(f, "
            "params)."
        ) from error
    except ValueError:  # some callables tell no signature
        pass
    return mask


_STATISTICS = {"BatchStat", "Cache", "Intermediate", "StateIndex"}  # types of flax.nnx and equinox


def _statistics(params: PyTree) -> dict[str, str]:
    """Paths of what a framework's type or name tells to be no parameter, and that type or name."""

    def kind(node: Any) -> str | None:
        of_framework = type(node).__module__.partition(".")[0] in ("flax", "equinox")
        return next((cls.__name__ for cls in type(node).__mro__ if of_framework and cls.__name__ in _STATISTICS), None)

    nodes = leaves_with_path(params, lambda node: kind(node) is not None)
    found = {path + end: name for path, node in nodes if (name := kind(node)) for end, _ in leaves_with_path(node)}
    return found | {path: "batch_stats" for path, _ in nodes if "['batch_stats']" in path}


def _is_selected(path: str, leaf: Any, mask: Any, statistics: dict[str, str]) -> bool:
    value = concrete(mask)
    if value is None or value.dtype != bool or value.ndim:
        raise TypeError(f"mean_field: mask must hold booleans, got {describe(mask)} at params{path}.")
    dtype = getattr(leaf, "dtype", type(leaf) if isinstance(leaf, (float, complex)) else None)
    if dtype is None or not value:
        return False
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"mean_field: params{path} is complex, and a Gaussian posterior is over real numbers. "
            "Mask it out, or split it."
        )
    is_parameter = jnp.issubdtype(dtype, jnp.floating)
    if is_parameter and path in statistics:
        raise ValueError(
            f"mean_field: params{path} is a statistic of the model ({statistics[path]}) and no parameter, so it has no "
            "posterior. Split it off (flax.nnx: nnx.split(model, nnx.Param, ...); linen: variables['params']; equinox: "
            "eqx.nn.make_with_state), or mask it out."
        )
    return is_parameter


def _strong(x: ArrayLike) -> jax.Array:
    # a copy, so that donating the posterior does not delete the parameters; a weak type would trace a step twice
    return jnp.array(x, jnp.result_type(float(x) if isinstance(x, int) else x))


def _copied(leaf: Any) -> Any:
    return _strong(leaf) if isinstance(leaf, jax.Array) else leaf


def _gaussian_at(path: str, leaf: ArrayLike, scale: Any) -> Gaussian:
    if not isinstance(scale, (int, float, jax.Array)) and not hasattr(scale, "__array__"):
        raise TypeError(f"mean_field: scale must hold numbers, got {describe(scale)} at params{path}.")
    if jnp.shape(scale) not in ((), jnp.shape(leaf)):
        raise ValueError(
            f"mean_field: scale at params{path} must be a number or have the leaf's shape {jnp.shape(leaf)}, "
            f"got shape {jnp.shape(scale)}."
        )
    check_scale("mean_field", scale)
    loc = _strong(leaf)
    scale = jnp.asarray(scale, at_least_float32(loc).dtype)
    rho = softplus_inverse(scale).astype(loc.dtype)
    finite = concrete(jnp.isfinite(rho))
    if finite is not None and not finite.all():
        raise ValueError(f"mean_field: scale at params{path} must be finite in {loc.dtype}, got {describe(scale)}.")
    return Gaussian(loc, jnp.full_like(loc, rho))
