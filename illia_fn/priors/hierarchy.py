"""Priors whose scales have a posterior of their own, non-centred: parameters as products of independent latent ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_callable, check_scale, describe
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.trees import PyTree, is_floating, is_node
from illia_fn.priors._transformed import LogHalfCauchy
from illia_fn.priors.bijections import Constrained
from illia_fn.priors.normal import Normal


class Hierarchy(NamedTuple):
    """A model's parameters as a function of latent ones, which are independent under the prior.

    Give the latent ones a posterior, q = mean_field(hierarchy.params), and the loss the model as a function of them,
    elbo_loss(hierarchy.wrap(apply_fn), q, ..., prior=hierarchy.prior); likewise `predict`.

    Attributes:
        params: the latent parameters, at which `to_params` returns the ones that this was made from.
        prior: theirs, for `prior=`.
        to_params: from a draw of the latent parameters to the model's.
    """

    params: dict[str, PyTree]
    prior: dict[str, Any]
    to_params: Callable[[PyTree], PyTree]

    def wrap(self, apply_fn: Callable[..., Any]) -> Callable[..., Any]:
        """apply_fn as a function of the latent parameters: wrap(apply_fn)(latent, x).

        Of a `FunctionalModel` it is model.reparameterise(hierarchy.params, hierarchy.to_params).
        """
        check_callable("Hierarchy.wrap", "apply_fn", apply_fn)
        return lambda latent, *inputs: apply_fn(self.to_params(latent), *inputs)


def hierarchical_normal(params: PyTree, scale: Any) -> Hierarchy:
    """w = tau z with z ~ N(0, 1) and one tau ~ HalfCauchy(scale) for each leaf: a Normal prior whose scale is inferred.

    Gelman 2006, https://doi.org/10.1214/06-BA117A. Non-centred, as tau and w depend on each other under the posterior,
    and tau and z hardly do where the data say little (Papaspiliopoulos et al. 2007,
    https://doi.org/10.1214/088342307000000014). The latent parameters are "standard", z, and "log_global", log(tau).

    Args:
        params: the model's parameters, or a subtree of them: floating-point arrays. Other leaves stay as they are.
        scale: that of the half-Cauchy prior, positive; or `constrained(prior, to="positive")`, another prior of tau.
            The KL of a half-Cauchy is sampled, as objectives do; that of a half-normal or gamma prior is exact.

    Returns:
        A `Hierarchy`.

    Raises:
        ValueError: for a scale that is neither, or a tree without floating-point arrays.
        TypeError: if the tree holds posterior nodes.

    >>> hierarchy = hierarchical_normal({"w": jnp.array([3.0, -3.0])}, scale=1.0)
    >>> print(hierarchy.params["standard"]["w"].round(2), f"{jnp.exp(hierarchy.params['log_global']['w']):.2f}")
    [ 1. -1.] 3.00
    >>> print(hierarchy.to_params(hierarchy.params)["w"].round(2))
    [ 3. -3.]
    """
    return _hierarchy("hierarchical_normal", params, scale, has_local=False)


def horseshoe(params: PyTree, scale: Any) -> Hierarchy:
    """w_i = tau lambda_i z_i with z_i ~ N(0, 1), lambda_i ~ HalfCauchy(1), one tau ~ HalfCauchy(scale) for each leaf.

    Carvalho et al. 2010, https://doi.org/10.1093/biomet/asq017: most weights are shrunk to nearly 0, by tau, and those
    that the data ask for hardly at all, by their lambda. For p0 weights of p that matter, noise of scale sigma and n
    examples try a scale of p0 / (p - p0) sigma / sqrt(n) (Piironen & Vehtari 2017, https://doi.org/10.1214/17-EJS1337SI).
    The latent parameters are those of `hierarchical_normal` and "log_local", log(lambda).

    Args, errors and what it returns are those of `hierarchical_normal`.

    >>> hierarchy = horseshoe({"w": jnp.ones(3)}, scale=0.1)
    >>> print({name: tree["w"].shape for name, tree in hierarchy.params.items()})
    {'log_global': (), 'log_local': (3,), 'standard': (3,)}
    """
    return _hierarchy("horseshoe", params, scale, has_local=True)


def _hierarchy(caller: str, params: PyTree, scale: Any, *, has_local: bool) -> Hierarchy:
    if not isinstance(scale, Constrained):
        check_scale(caller, scale, "scale, that of a half-Cauchy prior,")
        if np.shape(scale) != ():
            raise ValueError(f"{caller}: scale must be a number, got {describe(scale)}.")
        scale = LogHalfCauchy(jnp.log(at_least_float32(scale)))
    elif scale.to != "positive":
        raise ValueError(f'{caller}: a prior of the scale must be constrained to "positive", got {scale.to!r}.')
    leaves, structure = jax.tree.flatten(params, is_leaf=is_node)
    if any(map(is_node, leaves)):
        raise TypeError(f"{caller}: params must be plain parameters, without posterior nodes. Pass illia_fn.mean(q).")
    if not any(map(is_floating, leaves)):
        raise ValueError(f"{caller}: params has no floating-point array, got {describe(params)}.")

    log_global = [_log_size(w) if is_floating(w) else None for w in leaves]
    latent = {"log_global": log_global}
    if has_local:
        latent["log_local"] = [
            None if t is None else jnp.zeros(w.shape, t.dtype) for w, t in zip(leaves, log_global, strict=True)
        ]
    latent["standard"] = [w if t is None else _times(w, -t) for w, t in zip(leaves, log_global, strict=True)]
    prior = {"log_global": scale, "log_local": LogHalfCauchy(0.0), "standard": Normal(0.0, 1.0)}

    def to_params(latent: PyTree) -> PyTree:
        standard, *log_scales = (structure.flatten_up_to(latent[name]) for name in names)
        products = [
            z if logs[0] is None else _times(z, sum(logs[1:], start=logs[0]))
            for z, *logs in zip(standard, *log_scales, strict=True)
        ]
        return structure.unflatten(products)

    names = sorted(latent, reverse=True)  # "standard" first
    trees = {name: structure.unflatten(some) for name, some in latent.items()}
    return Hierarchy(trees, {name: prior[name] for name in latent}, to_params)


def _log_size(w: jax.Array) -> jax.Array:
    """log of the root mean square, which starts z at the size of its prior; 0 where all are 0."""
    mean_square = jnp.mean(jnp.square(at_least_float32(w)))
    return jnp.where(mean_square > 0, 0.5 * jnp.log(jnp.where(mean_square > 0, mean_square, 1.0)), 0.0)


def _times(w: jax.Array, log_scale: jax.Array) -> jax.Array:
    """w exp(log_scale), in the dtype of w."""
    return (at_least_float32(w) * jnp.exp(log_scale)).astype(w.dtype)
