"""q: posterior nodes that replace leaves of a parameter tree, and functions on the trees that hold them."""

import abc
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_key
from illia_fn._base.noise import cut, normal
from illia_fn._base.numerics import at_least_float32, total, widest_dtype
from illia_fn._base.trees import NODES, PyTree, child_names, leaves_with_path
from illia_fn.posteriors._flat import independent
from illia_fn.posteriors._join import Joined


class Posterior(abc.ABC):
    """q(w): a distribution over one array of parameters, or jointly over a subtree of them.

    A node stands in a parameter tree in the place of that array or subtree. Its fields may have any shapes. A family of
    your own subclasses this and is decorated with `frozen_pytree`; the chapter of this package builds one.

    Attributes:
        elementwise: whether the parameter is one array, all fields have its shape, and its elements are independent,
            each given by its elements of the fields and of the noise. Small nodes of such a family are drawn, and
            regularised, as one.
        has_entropy: whether `entropy` is exact. Without it a KL without closed form is estimated from draws of
            log q(w) - log p(w), which needs none.
    """

    elementwise: ClassVar[bool] = False
    has_entropy: ClassVar[bool] = True

    @property
    def like(self) -> PyTree:
        """Arrays of the structure, shapes and dtypes of what the node stands for; by default its mean."""
        return self.mean

    def widened(self) -> "Posterior":
        """The same in float32 or wider, so that a draw is not rounded before its density is told."""
        return jax.tree.map(at_least_float32, self)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of the standard normal noise that makes one draw.

        By default that of the parameter, or (P,) for a subtree of P numbers.
        """
        leaves, structure = jax.tree.flatten(self.like)
        is_array = jax.tree_util.treedef_is_leaf(structure)
        return jnp.shape(leaves[0]) if is_array else (sum(map(np.size, leaves)),)

    @abc.abstractmethod
    def reparameterise(self) -> Callable[[jax.Array], PyTree]:
        """The map from noise ~ N(0, I), float32 or wider, to a draw w ~ q; differentiable in the node's fields.

        What does not depend on the noise is computed here, once for all draws.
        """

    def sample(self, key: jax.Array) -> PyTree:
        """One reparameterised draw."""
        return self.reparameterise()(normal(key, self.noise_shape, widest_dtype(self.like)))

    @abc.abstractmethod
    def log_prob(self, w: PyTree) -> jax.Array:
        """log q(w) in nats, a scalar: the joint density of all that the node stands for."""

    @abc.abstractmethod
    def entropy(self) -> jax.Array:
        """H(q) = -E_q[log q(w)] in nats, a scalar; with `Posterior.has_entropy` False a lower bound of it, or an error.

        A KL that is made of a lower bound is an upper bound, and so is a negative ELBO, of any temperature.
        """

    @property
    @abc.abstractmethod
    def mean(self) -> PyTree:
        """E_q[w], of the structure, shapes and dtypes of what the node stands for."""

    @property
    @abc.abstractmethod
    def stddev(self) -> PyTree:
        """The standard deviation of each number of w."""

    def bhattacharyya_form(self) -> PyTree:
        """What `bhattacharyya` takes of a node, computed once for all others that it is compared with."""
        return self

    @staticmethod
    def bhattacharyya(q: Any, p: Any) -> jax.Array:  # noqa: ARG004
        """-log of the integral of sqrt(q(w) p(w)), of the forms of two nodes of this family, or less: by default 0.

        It is for `Mixture`, whose entropy is bounded by the distances between its components.
        """
        return jnp.zeros(())

    def covariance(self, places: np.ndarray) -> jax.Array:
        """Cov[w_a, w_b] of the numbers at these places among all of w, in the order of its leaves: (n,) to (n, n)."""
        if not self.elementwise:
            raise NotImplementedError("which does not say how its numbers vary together: give it a method covariance.")
        return independent(jnp.square(at_least_float32(self.stddev)), places)


def is_posterior(node: Any) -> bool:
    """Whether `node` is a posterior node: pass it to `jax.tree.map` as `is_leaf` to walk nodes instead of arrays.

    >>> from illia_fn import Gaussian
    >>> is_posterior(Gaussian(jnp.zeros(3), jnp.zeros(3))), is_posterior(jnp.zeros(3))
    (True, False)
    """
    return isinstance(node, Posterior)


def sample(key: jax.Array, q: PyTree) -> PyTree:
    """One draw w ~ q: the tree that the model expects, every posterior node replaced by a reparameterised sample.

    Args:
        key: a PRNG key.
        q: a posterior tree; its deterministic leaves come back as they are.

    Returns:
        A tree of the structure, shapes and dtypes of the model's parameters, differentiable in q.

    Raises:
        TypeError: if `key` is not a PRNG key.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.zeros(2)}, scale=1e-9)
    >>> print(abs(sample(jax.random.key(0), q)["w"]).round(3))
    [0. 0.]
    """
    check_key("sample", key)
    joined = Joined.of(q, is_posterior)
    sampler = Sampler.of(joined.nodes)
    return joined.tree(sampler.draws(sampler.noise(key)))


class Sampler(NamedTuple):
    """What it takes to draw from posterior nodes, in two steps: w = draws(noise(key)).

    Attributes:
        noise: key -> standard normal noise, one array for each node.
        draws: noise -> one draw for each node.
    """

    noise: Callable[[jax.Array], list[jax.Array]]
    draws: Callable[[list[jax.Array]], list[PyTree]]

    @staticmethod
    def of(nodes: Sequence[Posterior]) -> "Sampler":
        maps = [node.reparameterise() for node in nodes]

        def draws(noise: list[jax.Array]) -> list[PyTree]:
            return [f(array) for f, array in zip(maps, noise, strict=True)]

        return Sampler(partial(_noise, nodes), draws)


_LARGE = 2**16  # numbers: smaller nodes may be joined, or not, and must have the same draws
_SHARE = 1 / 8  # of all numbers: a flat draw saves compilation, and costs those who read a large piece of it


def _noise(nodes: Sequence[Posterior], key: jax.Array) -> list[jax.Array]:
    """Standard normal noise for every node, cut from one flat draw for each dtype but for the largest pieces."""
    groups: dict[Any, list[int]] = {}
    for index, node in enumerate(nodes):
        groups.setdefault(widest_dtype(node.like), []).append(index)
    shapes = [node.noise_shape for node in nodes]
    sizes = list(map(math.prod, shapes))
    keys = iter(range(len(groups), len(groups) + len(nodes)))
    noise = {}
    for number, (dtype, group) in enumerate(groups.items()):
        # XLA's CPU backend draws an odd number many times slower
        least = max(_LARGE + 1, _SHARE * sum(sizes[index] for index in group))
        large = [index for index in group if sizes[index] >= least and sizes[index] % 2 == 0]
        for index in large:
            noise[index] = normal(jax.random.fold_in(key, next(keys)), shapes[index], dtype)
        if small := [index for index in group if index not in large]:
            size = sum(sizes[index] for index in small)
            flat = normal(jax.random.fold_in(key, number), (size + size % 2,), dtype)
            noise |= zip(small, cut(flat, [shapes[index] for index in small]), strict=True)
    return [noise[index] for index in range(len(nodes))]


def mean(q: PyTree) -> PyTree:
    """E_q[w]: the tree that the model expects, every posterior node replaced by its mean.

    >>> from illia_fn import mean_field
    >>> print(mean(mean_field({"w": jnp.ones(2)}, scale=0.1))["w"])
    [1. 1.]
    """
    return jax.tree.map(lambda leaf: leaf.mean if is_posterior(leaf) else leaf, q, is_leaf=is_posterior)


def like(q: PyTree) -> PyTree:
    """Arrays of the structure, shapes and dtypes that the model expects; the numbers mean nothing."""
    return jax.tree.map(lambda leaf: leaf.like if is_posterior(leaf) else leaf, q, is_leaf=is_posterior)


def stddev(q: PyTree) -> PyTree:
    """The standard deviation of every parameter: 0 for deterministic numbers; leaves that are no numbers stay.

    >>> from illia_fn import Gaussian
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

    >>> from illia_fn import mean_field
    >>> q = mean_field(jnp.zeros(2), scale=1.0)
    >>> print(log_prob(q, jnp.zeros(2)))  # -log(2 pi)
    -1.837877
    """
    nodes, structure = jax.tree.flatten(q, is_leaf=is_posterior)
    expected = like(q)
    if jax.tree.structure(w) != jax.tree.structure(expected):
        raise ValueError(
            f"log_prob: w must have the structure of mean(q), {jax.tree.structure(expected)}, got "
            f"{jax.tree.structure(w)}."
        )
    for (path, leaf), array in zip(leaves_with_path(w), jax.tree.leaves(expected), strict=True):
        if np.shape(leaf) != np.shape(array):
            raise ValueError(
                f"log_prob: w{path} has shape {np.shape(leaf)}, but its posterior has shape {np.shape(array)}."
            )
    draws = structure.flatten_up_to(w)
    return total([node.log_prob(draw) for node, draw in zip(nodes, draws, strict=True) if is_posterior(node)])


def num_params(q: PyTree) -> int:
    """The number of variational parameters: scalar weights that have a posterior. Deterministic leaves do not count.

    >>> from illia_fn import mean_field
    >>> num_params({"w": mean_field(jnp.ones((2, 3)), scale=0.1), "b": jnp.ones(3)})
    6
    """
    nodes = [node for node in jax.tree.leaves(q, is_leaf=is_posterior) if is_posterior(node)]
    return sum(np.size(leaf) for node in nodes for leaf in jax.tree.leaves(node.like))


def check_nodes(caller: str, q: PyTree) -> None:
    """Refuse a tree whose nodes have all become dictionaries: a checkpoint that was restored without a target."""
    families = [cls for cls in NODES if issubclass(cls, Posterior) and child_names(cls) != ["components"]]
    # of equal fields the first; the components of a mixture are found by themselves
    kinds = {frozenset(child_names(cls)): cls.__name__ for cls in reversed(families)}

    def is_lost(node: Any) -> bool:
        return isinstance(node, dict) and frozenset(node) in kinds

    leaves = leaves_with_path(q, lambda node: is_posterior(node) or is_lost(node))
    lost = [(path, node) for path, node in leaves if is_lost(node)]
    if lost and not any(is_posterior(node) for node in jax.tree.leaves(q, is_leaf=is_posterior)):
        path, node = lost[0]
        raise ValueError(
            f"{caller}: params has no posterior node, and params{path} is a dict of {', '.join(sorted(node))}, the "
            f"fields of a {kinds[frozenset(node)]} that has lost its type. Restore a checkpoint with a target, such as "
            "the tree that mean_field made, or pass it through illia_fn.frameworks.restore_nodes."
        )
