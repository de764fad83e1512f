"""Whether the examples of a batch interact, which a model traced on one example does not show."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_callable
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.posteriors.posterior import mean, sample


def check_separable(apply_fn: Callable[..., Any], params: PyTree, x: PyTree, *, tolerance: float | None = None) -> None:
    """Refuse a model whose output for an example depends on the rest of the batch, as under batch normalisation.

    Compares apply_fn(params, x) with apply_fn(params, x_i) of each example by itself. A coupling (see `decorrelate`)
    takes the two to be the same: call this once, with real inputs, before you train with one. The model should run as
    it does in training, but without dropout, whose masks differ.

    Args:
        apply_fn: the model, apply_fn(params, x) -> outputs with a leading batch axis.
        params: parameters, or a posterior tree, of which the mean and a draw are taken.
        x: a batch of at least two examples, known now: not under jit.
        tolerance: the largest difference that counts as rounding, relative to the largest output; by default the square
            root of the machine epsilon of its dtype.

    Raises:
        ValueError: if an output differs by more, if there are fewer than two examples, or if an output has no leading
            batch axis.

    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> check_separable(lambda w, x: x * w, jnp.ones(()), x)
    >>> check_separable(lambda w, x: (x - x.mean(axis=0)) * w, jnp.ones(()), x)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: check_separable: the examples interact: the output of example 0 is off by 2 without the others...
    """
    check_callable("check_separable", "apply_fn", apply_fn)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or max(sizes) < (2,):
        raise ValueError("check_separable: the arrays of x must share a leading batch axis of size at least 2.")
    # at a draw, too, as a last layer of zeros would hide what the others do
    for w in (mean(params), sample(jax.random.key(0), params)):
        _compare_outputs(apply_fn, w, x, tolerance)


def _compare_outputs(apply_fn: Callable[..., Any], w: PyTree, x: PyTree, tolerance: float | None) -> None:
    whole = apply_fn(w, x)
    alone = jax.lax.map(lambda one: apply_fn(w, jax.tree.map(lambda leaf: leaf[None], one)), x)
    for (path, together), apart in zip(leaves_with_path(whole, lambda _: False), jax.tree.leaves(alone), strict=True):
        if apart.shape != (len(apart), 1, *together.shape[1:]) or len(apart) != len(together):
            raise ValueError(
                f"check_separable: output{path} has shape {together.shape} for a batch of {len(apart)} and "
                f"{apart.shape[1:]} for a batch of 1. Its first axis must be the batch."
            )
        _compare(path, np.asarray(together), np.asarray(apart[:, 0]), tolerance)


def _compare(path: str, together: np.ndarray, apart: np.ndarray, tolerance: float | None) -> None:
    is_float = jnp.issubdtype(together.dtype, jnp.floating)
    relative = tolerance if tolerance is not None else float(jnp.finfo(together.dtype).eps) ** 0.5 if is_float else 0.0
    together, apart = (array.astype(np.float64).reshape(len(array), -1) for array in (together, apart))
    if not np.all(np.isfinite(together)):
        raise ValueError(
            f"check_separable: the output{path} is not finite. Pass parameters and inputs for which it is."
        )
    difference = np.abs(together - apart).max(axis=1, initial=0.0)
    worst = int(np.argmax(difference))
    if not difference[worst] <= relative * np.abs(together).max(initial=0.0):
        raise ValueError(
            f"check_separable: the examples interact: the output{path} of example {worst} is off by "
            f"{difference[worst]:.3g} without the others. Normalise with fixed statistics, leave out random numbers "
            'that are not those of the example (dropout), or pass coupling="shared".'
        )
