"""Rank-1 factors: kernels that stay deterministic, times the outer product of two vectors that have a posterior."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from illia_fn._base.checks import check_count, check_scale, describe
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.trees import PyTree
from illia_fn.posteriors._kernels import check_out_axis
from illia_fn.posteriors._leaves import Mask, copied, each_leaf
from illia_fn.posteriors.gaussian import Gaussian, mean_field
from illia_fn.posteriors.mixtures import mixture
from illia_fn.posteriors.posterior import is_posterior


def rank_one(
    params: PyTree,
    *,
    num_components: int = 1,
    scale: float = 0.1,
    mask: Mask = None,
    out_axis: int = -1,
    key: jax.Array | None = None,
) -> dict[str, PyTree]:
    """Kernels W' = W o (r s^T), of deterministic W and of vectors r and s that have a posterior, around 1.

    Dusenberry et al. 2020, Efficient and scalable Bayesian neural nets with rank-1 factors,
    https://arxiv.org/abs/2005.07186: a mixture of them rivals an ensemble at a few more parameters than one network. A
    law of W' would have no density, so that q is one of r and s alone, and the model a function of both:

        q = rank_one(params, num_components=4, key=key)
        loss = partial(elbo_loss, lambda w, x: apply_fn(rank_one_weights(w), x), prior=prior, num_data=N)
        prior = {"params": None, "factors": Normal(1.0, 0.1)}

    W and all that is no kernel are trained as they are: W has no prior, unless your loss adds a penalty.

    Args:
        params: the model's parameters. Kernels are its floating-point arrays of two axes or more.
        num_components: K. Of one, the factors are a mean field; of more, one `Mixture` of K mean fields over all
            factors, so that each component is a member of an ensemble of networks.
        scale: the standard deviation of the factors at the start, and how far the components then are apart.
        mask: which kernels have factors, as in `mean_field`. What else it selects has none.
        out_axis: the axis of the outputs: -1 in flax and haiku, with that of the inputs before it, or 0 in equinox,
            with that of the inputs after it.
        key: a PRNG key, for several components.

    Returns:
        {"params": the parameters, "factors": {"rows": r, "columns": s}}: a posterior tree, in which rows and columns
        are trees like params with None for what has no factors. Both have the axes of their kernel, of size 1 but for
        that of its inputs, in rows, and of its outputs, in columns.

    Raises:
        ValueError: as `mean_field`; if no kernel is selected, for an `out_axis` other than -1 and 0, or for several
            components without a key.
        TypeError: as `mean_field`.

    >>> q = rank_one({"kernel": jnp.full((3, 2), 5.0), "bias": jnp.zeros(2)})
    >>> print(q["factors"]["columns"]["kernel"].mean, q["factors"]["rows"]["kernel"].stddev.shape, q["params"]["bias"])
    [[1. 1.]] (3, 1) [0. 0.]
    """
    check_out_axis("rank_one", out_axis)
    check_count("rank_one", "num_components", num_components)
    check_scale("rank_one", scale)
    if jnp.shape(scale):
        raise ValueError(f"rank_one: scale must be one number, got {describe(scale)}.")
    marked = each_leaf("rank_one", params, 1.0, mask, lambda _path, leaf, _scale: Gaussian(leaf, leaf))
    leaves, structure = jax.tree.flatten(marked, is_leaf=is_posterior)
    kernels = [leaf.loc if is_posterior(leaf) and leaf.loc.ndim > 1 else None for leaf in leaves]
    if all(kernel is None for kernel in kernels):
        raise ValueError("rank_one: params has no kernel, an array of two axes or more, that the mask selects.")
    axes = {"rows": -2, "columns": -1} if out_axis == -1 else {"rows": 1, "columns": 0}
    ones = {
        name: structure.unflatten([None if w is None else _along(axis, w) for w in kernels])
        for name, axis in axes.items()
    }
    factors = _posterior(ones, num_components, scale, key)
    return {"params": jax.tree.map(copied, params), "factors": factors}


def _along(axis: int, kernel: jax.Array) -> jax.Array:
    """Ones along an axis, in a shape that broadcasts against the kernel."""
    shape = [1] * kernel.ndim
    shape[axis] = kernel.shape[axis]
    return jnp.ones(shape, kernel.dtype)


def _posterior(ones: PyTree, num_components: int, scale: float, key: jax.Array | None) -> PyTree:
    family = partial(mean_field, scale=scale)
    if num_components == 1:
        return family(ones)
    if key is None:
        raise ValueError("rank_one: several components start apart, at random: pass key=jax.random.key(...).")
    return mixture(ones, num_components, family, spread=scale, key=key)


def rank_one_weights(w: PyTree) -> PyTree:
    """The model's parameters, W' = W o (r s^T), of a draw from a tree of `rank_one`, or of its mean.

    Args:
        w: {"params": ..., "factors": {"rows": ..., "columns": ...}}, as the model of such a posterior gets it.

    Returns:
        A tree of the structure, shapes and dtypes of the parameters.

    Raises:
        ValueError: for anything else.

    >>> w = {"params": {"kernel": jnp.full((2, 2), 5.0), "bias": jnp.zeros(2)}}
    >>> rows, columns = ({"kernel": jnp.array(x), "bias": None} for x in ([[1.0], [2.0]], [[1.0, 10.0]]))
    >>> print(rank_one_weights(w | {"factors": {"rows": rows, "columns": columns}})["kernel"])
    [[  5.  50.]
     [ 10. 100.]]
    """
    if not isinstance(w, dict) or set(w) != {"params", "factors"} or set(w["factors"]) != {"rows", "columns"}:
        raise ValueError(
            "rank_one_weights: w must be a draw from a tree that rank_one made, with params and factors, got "
            f"{describe(w)}. Use it within the model: lambda w, x: apply_fn(rank_one_weights(w), x)."
        )
    kernels, structure = jax.tree.flatten(w["params"])
    rows, columns = (structure.flatten_up_to(w["factors"][name]) for name in ("rows", "columns"))
    return structure.unflatten([_product(*each) for each in zip(kernels, rows, columns, strict=True)])


def _product(kernel: Any, rows: jax.Array | None, columns: jax.Array | None) -> Any:
    if rows is None or columns is None:
        return kernel
    product = at_least_float32(rows) * at_least_float32(columns)
    return (at_least_float32(kernel) * product).astype(kernel.dtype)
