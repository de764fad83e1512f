"""What constructors of posterior trees ask of the leaves of the parameters, with errors in the name of the caller."""

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale, concrete, describe
from illia_fn._base.numerics import softplus_inverse, widest_dtype
from illia_fn._base.trees import PyTree, broadcast_prefix, leaves_with_path
from illia_fn.posteriors._flat import ravel
from illia_fn.posteriors.posterior import is_posterior

Mask = PyTree | Callable[[PyTree], PyTree] | None


def each_leaf(
    caller: str, params: PyTree, scale: ArrayLike | PyTree, mask: Mask, node_at: Callable[[str, jax.Array, Any], Any]
) -> PyTree:
    """`params` with node_at(path, leaf, scale) for every floating-point leaf that the mask selects."""
    leaves = _plain_leaves(caller, params)
    if mask is None:
        mask = True
    elif _is_mask_function(mask):
        mask = _of_params(caller, mask)(params)
    statistics = statistics_of(params)
    masks = broadcast_prefix(caller, "mask", mask, params, is_posterior, _is_none)
    scales = broadcast_prefix(caller, "scale", scale, params, is_posterior, _is_none)
    nodes = [
        node_at(path, strong(leaf), _checked_scale(caller, path, leaf, leaf_scale))
        if _is_selected(caller, path, leaf, leaf_mask, statistics)
        else copied(leaf)
        for (path, leaf), leaf_scale, leaf_mask in zip(leaves, scales, masks, strict=True)
    ]
    if not any(map(is_posterior, nodes)):
        raise ValueError(
            f"{caller}: no floating-point leaf of params is selected by the mask, so nothing would be Bayesian."
        )
    return jax.tree.unflatten(jax.tree.structure(params), nodes)


def whole(caller: str, params: PyTree, scale: ArrayLike | PyTree) -> tuple[PyTree, jax.Array]:
    """A copy of `params`, all of which are real numbers, and the scale of each of them, (P,)."""
    leaves = _plain_leaves(caller, params)
    statistics = statistics_of(params)
    for path, leaf in leaves:
        if not _is_selected(caller, path, leaf, mask=True, statistics=statistics):
            raise TypeError(
                f"{caller}: params{path} must hold floating-point numbers, as one node stands for all of params, got "
                f"{describe(leaf)}. Split it off, or pass the subtrees without it."
            )
    loc = jax.tree.map(strong, params)
    if sum(leaf.size for leaf in jax.tree.leaves(loc)) == 0:
        raise ValueError(f"{caller}: params has no numbers, got {params!r}.")
    scales = broadcast_prefix(caller, "scale", scale, params, is_posterior, _is_none)
    scales = [_checked_scale(caller, path, leaf, one) for (path, leaf), one in zip(leaves, scales, strict=True)]
    dtype = widest_dtype(loc)
    full = [
        jnp.broadcast_to(jnp.asarray(one, dtype), leaf.shape)
        for one, leaf in zip(scales, jax.tree.leaves(loc), strict=True)
    ]
    return loc, ravel(full)


def raw_scale(caller: str, path: str, scale: ArrayLike, dtype: Any) -> jax.Array:
    """rho with softplus(rho) = scale, which must be finite in this dtype."""
    rho = softplus_inverse(jnp.asarray(scale, widest_dtype(jnp.zeros((), dtype)))).astype(dtype)
    finite = concrete(jnp.isfinite(rho))
    if finite is not None and not finite.all():
        raise ValueError(f"{caller}: scale at params{path} must be finite in {dtype}, got {describe(scale)}.")
    return rho


def strong(x: ArrayLike) -> jax.Array:
    """A copy, so that donating the posterior does not delete the parameters; a weak type would trace a step twice."""
    return jnp.array(x, jnp.result_type(float(x) if isinstance(x, int) else x))


def copied(leaf: Any) -> Any:
    """What stays deterministic: a copy of an array, and anything else as it is."""
    return strong(leaf) if isinstance(leaf, jax.Array) else leaf


def _plain_leaves(caller: str, params: PyTree) -> list[tuple[str, Any]]:
    leaves = leaves_with_path(params, is_posterior)
    if not leaves:
        raise ValueError(f"{caller}: params has no leaves, got {params!r}. Pass the model's parameter tree.")
    for path, leaf in leaves:
        if is_posterior(leaf):
            raise ValueError(
                f"{caller}: params{path} is already a posterior node ({type(leaf).__name__}). "
                "Pass the plain parameters."
            )
    return leaves


def _is_none(x: Any) -> bool:
    return x is None


def _is_mask_function(mask: Any) -> bool:
    # A mask in the form of a callable module (equinox) is a tree of booleans, and not a function of params.
    return callable(mask) and not all(isinstance(leaf, bool) for leaf in jax.tree.leaves(mask))


def _of_params(caller: str, mask: Callable[..., PyTree]) -> Callable[[PyTree], PyTree]:
    try:
        inspect.signature(mask).bind(None)
    except TypeError as error:
        raise TypeError(
            f"{caller}: mask must be a function of one argument, the params, that returns a tree of booleans, as in "
            f"optax, got {describe(mask)}. For a function f(path, leaf) pass lambda params: jax.tree.map_with_path(f, "
            "params)."
        ) from error
    except ValueError:  # some callables tell no signature
        pass
    return mask


_STATISTICS = {"BatchStat", "Cache", "Intermediate", "StateIndex"}  # types of flax.nnx and equinox


def statistics_of(params: PyTree) -> dict[str, str]:
    """Paths of what a framework's type or name tells to be no parameter, and that type or name."""

    def kind(node: Any) -> str | None:
        of_framework = type(node).__module__.partition(".")[0] in ("flax", "equinox")
        return next((cls.__name__ for cls in type(node).__mro__ if of_framework and cls.__name__ in _STATISTICS), None)

    nodes = leaves_with_path(params, lambda node: kind(node) is not None)
    found = {path + end: name for path, node in nodes if (name := kind(node)) for end, _ in leaves_with_path(node)}
    return found | {path: "batch_stats" for path, _ in nodes if "['batch_stats']" in path}


def refuse_statistic(caller: str, path: str, kind: str) -> NoReturn:
    """The error of a statistic that would get a posterior."""
    raise ValueError(
        f"{caller}: params{path} is a statistic of the model ({kind}) and no parameter, so it has no posterior. Split "
        "it off (flax.nnx: nnx.split(model, nnx.Param, ...); linen: variables['params']; equinox: "
        "eqx.nn.make_with_state), or mask it out."
    )


def _is_selected(caller: str, path: str, leaf: Any, mask: Any, statistics: dict[str, str]) -> bool:
    value = concrete(mask)
    if value is None or value.dtype != bool or value.ndim:
        raise TypeError(f"{caller}: mask must hold booleans, got {describe(mask)} at params{path}.")
    dtype = getattr(leaf, "dtype", type(leaf) if isinstance(leaf, (float, complex)) else None)
    if dtype is None or not value:
        return False
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{caller}: params{path} is complex, and a Gaussian posterior is over real numbers. "
            "Mask it out, or split it."
        )
    is_parameter = jnp.issubdtype(dtype, jnp.floating)
    if is_parameter and path in statistics:
        refuse_statistic(caller, path, statistics[path])
    return is_parameter


def _checked_scale(caller: str, path: str, leaf: ArrayLike, scale: Any) -> Any:
    if not isinstance(scale, (int, float, jax.Array)) and not hasattr(scale, "__array__"):
        raise TypeError(f"{caller}: scale must hold numbers, got {describe(scale)} at params{path}.")
    if jnp.shape(scale) not in ((), jnp.shape(leaf)):
        raise ValueError(
            f"{caller}: scale at params{path} must be a number or have the leaf's shape {jnp.shape(leaf)}, "
            f"got shape {jnp.shape(scale)}."
        )
    check_scale(caller, scale)
    return scale
