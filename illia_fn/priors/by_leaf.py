"""A Normal for every leaf of a tree of parameters: scaled by its fan-in, or around parameters that are known."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import check_factor, check_scale, describe
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.trees import PyTree, is_floating, is_node
from illia_fn.priors.normal import Normal


def fan_in(params: PyTree, gain: float, *, out_axis: int = -1, rest: Any = Normal(0.0, 1.0)) -> PyTree:
    """N(0, (gain / sqrt(fan-in))^2) for every kernel, so that activations keep their size in a network of any width.

    Neal 1996, Bayesian learning for neural networks, https://doi.org/10.1007/978-1-4612-0745-0. The fan-in is the
    number of inputs of each output: the product of all axes but `out_axis`. Deep networks on little data need a gain
    above 1: try 2 to 4, and see `check_setup`.

    Kernels with several axes of outputs (the queries of flax attention, `DenseGeneral`), stacked layers and embeddings
    have another fan-in: give these their own prior in the tree that this returns.

    Args:
        params: the model's parameters, or a posterior's `mean`. Floating-point arrays of two axes or more that are
            not named "bias" or "scale" are kernels.
        gain: positive.
        out_axis: the axis of the outputs: -1 in flax and haiku, 0 in equinox.
        rest: the prior of all else, such as biases and the scales of normalisation.

    Returns:
        A tree of priors, for `prior=`.

    Raises:
        ValueError: for a gain that is not positive and finite, or a kernel without that axis.

    >>> prior = fan_in({"kernel": jnp.ones((16, 3)), "bias": jnp.zeros(3)}, gain=2.0)
    >>> print(prior["kernel"].scale, prior["bias"].scale)
    0.5 1.0
    """
    check_scale("fan_in", gain, "gain")

    def prior(path: Any, leaf: Any) -> Any:
        *_, name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value").split("/")  # of nnx
        if not _is_number(leaf) or jnp.ndim(leaf) < 2 or name in ("bias", "scale"):
            return rest
        if not -jnp.ndim(leaf) <= out_axis < jnp.ndim(leaf):
            raise ValueError(
                f"fan_in: params{jax.tree_util.keystr(path)} of shape {jnp.shape(leaf)} has no axis {out_axis}, where "
                "out_axis says that its outputs are."
            )
        inputs = math.prod(jnp.shape(leaf)) / max(1, jnp.shape(leaf)[out_axis])
        return Normal(0.0, gain / math.sqrt(max(1.0, inputs)))

    return jax.tree_util.tree_map_with_path(prior, params)


def centred(params: PyTree, scale: ArrayLike, *, relative: ArrayLike = 0.0) -> PyTree:
    """N(w, max(scale, relative |w|)^2) for every parameter w: around a network that is trained already.

    With `relative`, the scale of MOPED (Krishnan et al. 2020, https://arxiv.org/abs/1906.05323), with a floor. For an
    equal start of the posterior, pass the scales to `mean_field`: `mean_field(params, scale=...)` takes a tree.

    Args:
        params: the trained parameters: floating-point arrays. They are constants of the prior.
        scale: the standard deviation, positive, or its floor.
        relative: a share of |w|, not negative.

    Returns:
        A tree of priors, for `prior=`. Leaves that are no floating-point arrays have N(0, 1), which nothing reads.

    Raises:
        ValueError: for a scale that is not positive and finite, or a share that is negative.
        TypeError: if the tree holds posterior nodes.

    >>> prior = centred({"w": jnp.array([3.0, 0.01])}, 0.05, relative=0.1)
    >>> print(prior["w"].loc, prior["w"].scale)
    [3.   0.01] [0.3  0.05]
    """
    check_scale("centred", scale)
    check_factor("centred", "relative", relative)

    def prior(leaf: Any) -> Normal:
        if is_node(leaf):
            raise TypeError(f"centred: params must be plain parameters, got {describe(leaf)}. Pass illia_fn.mean(q).")
        if not _is_number(leaf):
            return Normal(0.0, 1.0)
        w = jax.lax.stop_gradient(at_least_float32(jnp.asarray(leaf)))
        return Normal(w, jnp.maximum(jnp.asarray(scale, w.dtype), jnp.asarray(relative, w.dtype) * jnp.abs(w)))

    return jax.tree.map(prior, params, is_leaf=is_node)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float) or is_floating(leaf)
