"""State that a model returns beside its outputs, such as batch statistics: one of all samples."""

from typing import Any

import jax
import jax.numpy as jnp

from illia_fn._base.trees import PyTree


def average_state(aux: PyTree) -> PyTree:
    """One state from those of S samples: the mean of floating-point and complex numbers, the first of all else.

    The samples agree in all else, such as step counters, flags and PRNG keys, of which there is no mean.

    Args:
        aux: what a loss returns with `has_aux=True`: a tree whose leaves have a leading axis of size S.

    Returns:
        The tree without that axis, every leaf of its dtype; half precision is averaged in float32.

    Raises:
        ValueError: for a leaf without a leading axis, or with one of size 0.

    >>> aux = {"mean": jnp.array([[1.0, 2.0], [3.0, 6.0]]), "steps": jnp.array([7, 7])}
    >>> print(average_state(aux))
    {'mean': Array([2., 4.], dtype=float32), 'steps': Array(7, dtype=int32)}
    """
    return jax.tree_util.tree_map_with_path(_average, aux)


def _average(path: Any, leaf: Any) -> jax.Array:
    if not jnp.ndim(leaf) or not len(leaf):
        raise ValueError(
            f"average_state: aux{jax.tree_util.keystr(path)} must have a leading axis of samples, got shape "
            f"{jnp.shape(leaf)}. Pass the aux that a loss returns with has_aux=True."
        )
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf[0]
    wide = jnp.float32 if jnp.finfo(leaf.dtype).bits < 32 else leaf.dtype
    return jnp.mean(leaf, axis=0, dtype=wide).astype(leaf.dtype)
