"""q: posterior nodes that replace leaves of a parameter tree, and functions on the trees that hold them."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._checks import check_key, check_scale, concrete, describe
from illia_fn._numerics import HALF_LOG_2PI, at_least_float32, log_softplus, normal_log_prob, softplus_inverse, total
from illia_fn._trees import PyTree, broadcast_prefix, frozen_pytree, leaves_with_path


class Posterior(abc.ABC):
    """A distribution over one array of parameters. A new variational family subclasses it and registers as a pytree."""

    @abc.abstractmethod
    def sample(self, key: jax.Array) -> jax.Array:
        """One reparameterised draw, differentiable in the node's fields."""

    @abc.abstractmethod
    def log_prob(self, w: jax.Array) -> jax.Array:
        """log q(w) in nats, element-wise."""

    @abc.abstractmethod
    def entropy(self) -> jax.Array:
        """-E_q[log q(w)] in nats, element-wise."""

    @property
    @abc.abstractmethod
    def mean(self) -> jax.Array:
        """E_q[w]."""

    @property
    @abc.abstractmethod
    def stddev(self) -> jax.Array:
        """The standard deviation of each element of w."""


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

    loc: jax.Array
    rho: jax.Array

    def __post_init__(self):
        if jnp.shape(self.loc) != jnp.shape(self.rho):
            raise ValueError(
                f"Gaussian: loc and rho must have the same shape, got {jnp.shape(self.loc)} and {jnp.shape(self.rho)}. "
                "Broadcast one of them yourself, or build the node with mean_field."
            )

    @property
    def mean(self) -> jax.Array:
        return self.loc

    @property
    def stddev(self) -> jax.Array:
        return self.scale.astype(self.rho.dtype)

    @property
    def scale(self) -> jax.Array:
        """softplus(rho), in float32 or wider."""
        return jax.nn.softplus(at_least_float32(self.rho))

    @property
    def log_scale(self) -> jax.Array:
        """log softplus(rho), in float32 or wider, finite however small the scale."""
        return log_softplus(at_least_float32(self.rho))

    def sample(self, key: jax.Array) -> jax.Array:
        loc = at_least_float32(self.loc)
        # A bfloat16 normal draw takes only some hundred values; draw and add in float32, then round once.
        return (loc + self.scale * jax.random.normal(key, loc.shape, loc.dtype)).astype(self.loc.dtype)

    def log_prob(self, w: jax.Array) -> jax.Array:
        if jnp.shape(w) != jnp.shape(self.loc):
            raise ValueError(f"Gaussian.log_prob: w must have shape {jnp.shape(self.loc)}, got {jnp.shape(w)}.")
        return normal_log_prob(at_least_float32(w), at_least_float32(self.loc), self.log_scale)

    def entropy(self) -> jax.Array:
        return self.log_scale + (HALF_LOG_2PI + 0.5)


def is_posterior(node: Any) -> bool:
    """Whether `node` is a posterior node: pass it to `jax.tree.map` as `is_leaf` to walk nodes instead of arrays.

    >>> is_posterior(Gaussian(jnp.zeros(3), jnp.zeros(3))), is_posterior(jnp.zeros(3))
    (True, False)
    """
    return isinstance(node, Posterior)


def mean_field(
    params: PyTree, *, scale: ArrayLike | PyTree, mask: PyTree | Callable[[PyTree], PyTree] | None = None
) -> PyTree:
    """The params tree with every floating-point leaf w replaced by `Gaussian(loc=w, rho)`, softplus(rho) = scale.

    Args:
        params: the model's parameters, any pytree. Leaves that are not floating-point arrays (integers, booleans, PRNG
            keys, functions) stay as they are: they are deterministic. `jax.grad` does not take them, so keep them
            out of `params` (`nnx.split`, `eqx.partition`) if you differentiate with respect to the whole tree.
        scale: the initial standard deviation, a positive number, or a prefix tree of numbers or of arrays in the shape
            of their leaf.
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
        mask = mask(params)
    masks = broadcast_prefix("mean_field", "mask", mask, params, is_posterior, _is_none)
    scales = broadcast_prefix("mean_field", "scale", scale, params, is_posterior, _is_none)
    nodes = [
        _gaussian_at(path, leaf, leaf_scale) if _is_selected(path, leaf, leaf_mask) else leaf
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


def _is_selected(path: str, leaf: Any, mask: Any) -> bool:
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
    return jnp.issubdtype(dtype, jnp.floating)


def _gaussian_at(path: str, leaf: ArrayLike, scale: Any) -> Gaussian:
    if not isinstance(scale, (int, float, jax.Array)) and not hasattr(scale, "__array__"):
        raise TypeError(f"mean_field: scale must hold numbers, got {describe(scale)} at params{path}.")
    if jnp.shape(scale) not in ((), jnp.shape(leaf)):
        raise ValueError(
            f"mean_field: scale at params{path} must be a number or have the leaf's shape {jnp.shape(leaf)}, "
            f"got shape {jnp.shape(scale)}."
        )
    check_scale("mean_field", scale)
    loc = jnp.array(leaf)  # a copy, so that donating the posterior does not delete the parameters
    scale = jnp.asarray(scale, at_least_float32(loc).dtype)
    rho = softplus_inverse(scale).astype(loc.dtype)
    finite = concrete(jnp.isfinite(rho))
    if finite is not None and not finite.all():
        raise ValueError(f"mean_field: scale at params{path} must be finite in {loc.dtype}, got {describe(scale)}.")
    return Gaussian(loc, jnp.full_like(loc, rho))


def sample(key: jax.Array, q: PyTree) -> PyTree:
    """One draw w ~ q: the tree that the model expects, every posterior node replaced by a reparameterised sample.

    Args:
        key: a PRNG key.
        q: a posterior tree; its deterministic leaves come back as they are.

    Returns:
        A tree of the structure, shapes and dtypes of the model's parameters, differentiable in q.

    Raises:
        TypeError: if `key` is not a PRNG key.

    >>> q = mean_field({"w": jnp.zeros(2)}, scale=1e-9)
    >>> print(sample(jax.random.key(0), q)["w"].round(3))
    [ 0. -0.]
    """
    check_key("sample", key)
    leaves, structure = jax.tree.flatten(q, is_leaf=is_posterior)
    keys = iter(jax.random.split(key, max(1, sum(map(is_posterior, leaves)))))
    return jax.tree.unflatten(structure, [leaf.sample(next(keys)) if is_posterior(leaf) else leaf for leaf in leaves])


def mean(q: PyTree) -> PyTree:
    """E_q[w]: the tree that the model expects, every posterior node replaced by its mean.

    >>> print(mean(mean_field({"w": jnp.ones(2)}, scale=0.1))["w"])
    [1. 1.]
    """
    return jax.tree.map(lambda leaf: leaf.mean if is_posterior(leaf) else leaf, q, is_leaf=is_posterior)


def stddev(q: PyTree) -> PyTree:
    """The standard deviation of every parameter: 0 for deterministic numbers; leaves that are no numbers stay.

    >>> print(stddev({"w": Gaussian(loc=jnp.ones(2), rho=jnp.full(2, 100.0)), "b": jnp.ones(2)}))
    {'b': Array([0., 0.], dtype=float32), 'w': Array([100., 100.], dtype=float32)}
    """
    return jax.tree.map(_stddev, q, is_leaf=is_posterior)


def _stddev(leaf: Any) -> Any:
    if is_posterior(leaf):
        return leaf.stddev
    is_array = hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return jnp.zeros_like(leaf) if is_array or isinstance(leaf, (bool, int, float, complex)) else leaf


def log_prob(q: PyTree, w: PyTree) -> jax.Array:
    """log q(w) = sum_i log q_i(w_i) over all variational parameters, in nats; deterministic leaves add nothing.

    Args:
        q: a posterior tree.
        w: parameters, of the structure and shapes of `mean(q)`, such as a `sample`.

    Returns:
        A scalar, summed in float32 or wider.

    Raises:
        ValueError: if `w` does not have the structure and shapes of `mean(q)`.

    >>> q = mean_field(jnp.zeros(2), scale=1.0)
    >>> print(log_prob(q, jnp.zeros(2)))  # -log(2 pi)
    -1.837877
    """
    nodes, structure = jax.tree.flatten(q, is_leaf=is_posterior)
    if jax.tree.structure(w) != structure:
        raise ValueError(f"log_prob: w must have the structure of mean(q), {structure}, got {jax.tree.structure(w)}.")
    terms = []
    for (path, leaf), node in zip(leaves_with_path(w, is_posterior), nodes, strict=True):
        if is_posterior(node):
            if jnp.shape(leaf) != node.mean.shape:
                raise ValueError(
                    f"log_prob: w{path} has shape {jnp.shape(leaf)}, but its posterior has shape {node.mean.shape}."
                )
            terms.append(node.log_prob(leaf))
    return total(terms)


def num_params(q: PyTree) -> int:
    """The number of variational parameters: scalar weights that have a posterior. Deterministic leaves do not count.

    >>> num_params({"w": mean_field(jnp.ones((2, 3)), scale=0.1), "b": jnp.ones(3)})
    6
    """
    return sum(np.size(node.mean) for node in jax.tree.leaves(q, is_leaf=is_posterior) if is_posterior(node))
