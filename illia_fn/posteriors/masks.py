"""Which parameters become posteriors."""

from collections.abc import Callable

import jax

from illia_fn._base.trees import PyTree, path_of
from illia_fn.posteriors.patterns import compiled, refuse_unmatched


def by_path(pattern: str) -> Callable[[PyTree], PyTree]:
    """A mask for `mean_field`: the leaves whose whole path matches a regular expression.

    A path is the names on the way to the leaf, with slashes in between, as in the tables of this library and of
    `jax.tree_util.keystr(path, simple=True, separator="/")`: "head/kernel" in linen, "head/kernel/value" in flax.nnx,
    "layers/2/weight" in equinox.

    Args:
        pattern: a regular expression, such as "head/.*" or ".*(kernel|weight).*".

    Returns:
        A function from the parameters to a tree of booleans, as in optax.

    Raises:
        TypeError: for a pattern that is no string.
        ValueError: for one that is no regular expression or, from the function, one that matches no path.

    >>> from illia_fn import mean_field, num_params
    >>> params = {"body": {"kernel": jax.numpy.ones((3, 4))}, "head": {"kernel": jax.numpy.ones((4, 2))}}
    >>> num_params(mean_field(params, scale=0.1, mask=by_path("head/.*")))
    8
    """
    expression = compiled("by_path", pattern)

    def mask(params: PyTree) -> PyTree:
        leaves, structure = jax.tree_util.tree_flatten_with_path(params)
        paths = [path_of(keys) for keys, _ in leaves]
        matches = [expression.fullmatch(path) is not None for path in paths]
        if not any(matches):
            refuse_unmatched("by_path", pattern, paths)
        return structure.unflatten(matches)

    return mask
