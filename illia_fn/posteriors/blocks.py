"""How chosen numbers of a posterior tree vary together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_callable
from illia_fn._base.numerics import widest_dtype
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.posteriors.posterior import is_posterior, like


def covariance(q: PyTree, block: Callable[[PyTree], PyTree]) -> jax.Array:
    """Cov_q[w_a, w_b] for all pairs of chosen numbers: exact, and no larger than the block.

    Numbers of different nodes are independent, and deterministic ones do not vary.

    Args:
        q: a posterior tree.
        block: a function that picks numbers from a tree of parameters, by indexing, slicing, reshaping and
            concatenating alone, such as `lambda w: w["head"]["kernel"][0]`. It is called with arrays of places.

    Returns:
        (n, n), for the n numbers picked, in the order of the leaves of what the function returns; float32 or wider.

    Raises:
        TypeError: if `block` is no function, or returns anything but numbers of the tree.
        NotImplementedError: for a family without a method `covariance`.

    >>> from illia_fn import mean_field
    >>> q = {"a": mean_field(jnp.zeros(3), scale=2.0), "b": jnp.ones(2)}
    >>> print(covariance(q, lambda w: (w["a"][:2], w["b"][0])))
    [[4. 0. 0.]
     [0. 4. 0.]
     [0. 0. 0.]]
    """
    check_callable("covariance", "block", block)
    arrays = jax.eval_shape(like, q)
    count = sum(leaf.size for leaf in jax.tree.leaves(arrays))
    return covariance_at(q, _chosen(block, arrays, count))


def covariance_at(q: PyTree, chosen: np.ndarray) -> jax.Array:
    """That of the numbers at these places, (n,), among all of the tree, in the order of its leaves."""
    arrays = jax.eval_shape(like, q)
    found = jnp.zeros((len(chosen), len(chosen)), widest_dtype(arrays))
    start = 0
    for path, node in leaves_with_path(q, is_posterior):
        size = sum(map(np.size, jax.tree.leaves(node.like if is_posterior(node) else node)))
        (at,) = np.nonzero((chosen >= start) & (chosen < start + size))
        if is_posterior(node) and len(at):
            block_of_node = _of_node(path, node, chosen[at] - start)
            found = found.at[np.ix_(at, at)].set(block_of_node.astype(found.dtype))
        start += size
    return found


def _of_node(path: str, node: PyTree, places: np.ndarray) -> jax.Array:
    try:
        return node.covariance(places)
    except NotImplementedError as error:
        raise NotImplementedError(f"covariance: q{path} is a {type(node).__name__}, {error}") from error


def _chosen(block: Callable[[PyTree], PyTree], like: PyTree, count: int) -> np.ndarray:
    """The places that `block` picks."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])

    def picked(places: np.ndarray) -> np.ndarray:
        pieces = zip(np.split(places, ends[:-1]), leaves, strict=True)
        with jax.ensure_compile_time_eval():
            found = block(structure.unflatten([piece.reshape(leaf.shape) for piece, leaf in pieces]))
            return np.concatenate([np.zeros(0, int), *[np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(found)]])

    places = np.arange(count, dtype=np.int32)
    forward = picked(places)
    orders = places[::-1], np.random.default_rng(0).permutation(places)
    are_places = forward.dtype.kind in "iu" and np.all((forward >= 0) & (forward < count))
    # numbers that are only moved are found where any other order has put them
    if not are_places or not all(np.array_equal(order[forward], picked(order)) for order in orders):
        raise TypeError(
            "covariance: block must pick numbers of the tree, by indexing, slicing, reshaping and concatenating alone, "
            "and it computes with them."
        )
    return forward
