"""A function of many examples, run on some at a time, with its results on the host."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_count
from illia_fn._base.trees import PyTree
from illia_fn.engine._eager import compiled


def check_batch_size(caller: str, batch_size: Any, x: PyTree, *others: PyTree) -> None:
    """A batch_size goes with arrays of the same number of examples, known now."""
    check_count(caller, "batch_size", batch_size)
    leaves = jax.tree.leaves(x)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((x, others))):
        raise ValueError(
            f"{caller}: batch_size={batch_size} brings every batch to the host, which jit and its like cannot. Call it "
            "outside of them, or leave batch_size out."
        )
    sizes = {np.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        raise ValueError(
            f"{caller}: with a batch_size, the arrays of x must share a leading axis of at least one example, got "
            f"shapes {[np.shape(leaf) for leaf in leaves]}. Close over what is not per example in apply_fn."
        )


def in_batches(
    caller: str,
    outputs: Callable[..., PyTree],
    reduce: Callable[[PyTree], PyTree] | None,
    params: PyTree,
    x: PyTree,
    key: jax.Array,
    batch_size: int,
) -> PyTree:
    """outputs(params, x, key), with leaves (S, B, ...), or what `reduce` makes of it, (B, ...), as NumPy arrays.

    Each is compiled once: the last batch is filled up with copies of the last example.
    """
    count = len(jax.tree.leaves(x)[0])
    batch_size = min(batch_size, count)
    axis = 1 if reduce is None else 0
    whole: list[np.ndarray] = []
    structure = None
    for start in range(0, count, batch_size):
        batch = jax.tree.map(partial(_rows, start=start, size=batch_size), x)
        outputs = outputs if whole else compiled(outputs, params, batch, key)
        made = outputs(params, batch, jax.random.clone(key))
        if reduce is not None:
            reduce = reduce if whole else _compiled_reduction(caller, reduce, made, batch_size)
            made = reduce(made)
        leaves, structure = jax.tree.flatten(made)
        if not whole:
            check_examples(caller, leaves, batch_size, axis)
            whole = [np.empty(_with_size(leaf.shape, axis, count), leaf.dtype) for leaf in leaves]
        stop = min(start + batch_size, count)
        for result, leaf in zip(whole, leaves, strict=True):
            here = (slice(None),) * axis
            result[(*here, slice(start, stop))] = np.asarray(leaf)[(*here, slice(0, stop - start))]
    assert structure is not None
    return structure.unflatten(whole)


def _compiled_reduction(
    caller: str, reduce: Callable[[PyTree], PyTree], stacked: PyTree, batch_size: int
) -> Callable[[PyTree], PyTree]:
    """`reduce`, tried on the numbers of one example, which it may refuse, as it may not where it is traced."""
    if all(jnp.shape(leaf)[1:2] == (batch_size,) for leaf in jax.tree.leaves(stacked)):
        one = jax.tree.map(lambda leaf: leaf[:, :1], stacked)
        check_examples(caller, jax.tree.leaves(reduce(one)), 1, axis=0)
    else:  # `reduce` knows where the examples are
        check_examples(caller, jax.tree.leaves(reduce(stacked)), batch_size, axis=0)
    return compiled(reduce, stacked)


def _rows(x: Any, *, start: int, size: int) -> jax.Array:
    """So many rows of x, or of its last one."""
    rows = jnp.asarray(x[start : start + size])
    missing = size - len(rows)
    return jnp.concatenate([rows, jnp.broadcast_to(rows[-1:], (missing, *rows.shape[1:]))]) if missing else rows


def _with_size(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def check_examples(caller: str, leaves: list[Any], batch_size: int, axis: int) -> None:
    """Results for so many examples have them along an axis."""
    for leaf in leaves:
        if jnp.ndim(leaf) <= axis or leaf.shape[axis] != batch_size:
            what = "apply_fn must return outputs with" if axis else "reduce must return arrays with"
            shape = jnp.shape(leaf)[1:] if axis else jnp.shape(leaf)
            raise ValueError(
                f"{caller}: with a batch_size, {what} a leading axis of examples, got shape {shape} for "
                f"{batch_size} examples."
            )
