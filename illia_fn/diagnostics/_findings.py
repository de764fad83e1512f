"""What is wrong with the data, the outputs or a posterior, as far as numbers tell."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.objectives._data import DataTerm
from illia_fn.posteriors.posterior import is_posterior


class Finding(NamedTuple):
    """What is wrong, or likely to be, and what to do."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}\n    {self.remedy}"


def of_data(data: DataTerm) -> Iterator[Finding]:
    """Inputs of a size that networks do not learn from, and targets that do not suit the default likelihood."""
    counts = slice(None) if data.weights is None else np.asarray(data.weights) > 0
    for path, leaf in leaves_with_path(data.x):
        values = np.asarray(leaf)
        is_image = values.dtype.kind in "iu" and values.ndim > 2
        if not (jnp.issubdtype(values.dtype, jnp.floating) or is_image):
            continue
        values = values.astype(np.float64)
        if not np.all(np.isfinite(values)):
            yield Finding(f"x{path} is not finite", "Fill in or drop what is missing.")
            continue
        axes = (0,) if values.ndim == 2 else None  # column by column
        size = float(np.max(np.sqrt(np.mean(np.square(values), axis=axes)), initial=0.0))
        if size > 10.0 or 0 < size < 1e-2:
            what = "has a column with" if values.ndim == 2 else "has"
            yield Finding(
                f"x{path} {what} a root mean square of {size:.3g}",
                "Standardise the inputs: (x - mean) / standard deviation.",
            )
    targets = jax.tree.leaves(data.y)
    if len(targets) == 1 and data.loss_fn is None and jnp.issubdtype(jnp.result_type(targets[0]), jnp.floating):
        yield from _of_numbers(np.asarray(targets[0], np.float64)[counts])


def _of_numbers(y: np.ndarray) -> Iterator[Finding]:
    """Floating-point targets, under the default likelihood."""
    if y.size and np.all((y == 0) | (y == 1)):
        yield Finding(
            "y looks like labels, and floating-point targets are taken for numbers with Gaussian noise",
            "Pass classes as integers (of one-hot labels y.argmax(axis=1)), or loss_fn=illia_fn.bernoulli_nll.",
        )
    elif np.all(np.isfinite(y)) and (not 0.2 < np.std(y) < 5.0 or abs(np.mean(y)) > 10.0):
        yield Finding(
            f"y has a mean of {np.mean(y):.3g} and a standard deviation of {np.std(y):.3g}, and the default likelihood "
            "a scale of 1",
            "Standardise the targets, or predict the scale too: loss_fn=illia_fn.gaussian_nll with outputs (loc, rho).",
        )


def of_outputs(data: DataTerm, outputs: Any) -> Iterator[Finding]:
    """Probabilities in the place of logits; a sum over the batch in the place of a mean."""
    if data.loss_fn is None and jnp.issubdtype(jax.tree.leaves(data.y)[0].dtype, jnp.integer):
        probs = np.asarray(outputs, np.float64)
        if np.all(probs >= 0) and np.allclose(probs.sum(axis=-1), 1.0, atol=1e-3):
            yield Finding("the outputs are probabilities, and the loss takes logits", "Leave out the last softmax.")
    if data.weights is None and data.losses_of_outputs(outputs).ndim == 0:
        twice, y = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, leaf]) if jnp.ndim(leaf) else leaf, (outputs, data.y)
        )
        one = float(data.losses_of_outputs(outputs))
        two = float(dataclasses.replace(data, y=y).losses_of_outputs(twice))
        if abs(two - one) > 0.5 * abs(one):
            yield Finding(
                f"loss_fn returns a scalar that depends on the size of the batch ({one:.3g}, and {two:.3g} for twice "
                "the batch), and a scalar is taken for the mean over examples",
                "Return one value per example, or their mean.",
            )


def _is_half(node: Any) -> bool:
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(node)]
    return any(jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 for dtype in dtypes)


_STATISTIC = re.compile(r"batch_stats|running_(mean|var)|moving_(mean|average|var)|\b(mean|var)\b'?\]?$")


def of_posterior(params: PyTree) -> Iterator[Finding]:
    """Nodes that stand for statistics, scales that no step moves, and noise that is louder than the weights."""
    loud: list[tuple[float, str, float, float]] = []
    half = [path for path, leaf in leaves_with_path(params, is_posterior) if is_posterior(leaf) and _is_half(leaf)]
    if half:
        yield Finding(
            f"params{half[0]} is in half precision" + f", and {len(half) - 1} more" * (len(half) > 1) + ", which "
            "rounds steps of a scale to nothing",
            "Keep q in float32, and make the draws half precision within apply_fn.",
        )
    for path, node in leaves_with_path(params, is_posterior):
        if not is_posterior(node):
            continue
        if _STATISTIC.search(path):
            yield Finding(
                f"params{path} has a posterior and looks like a statistic of the model",
                "Split it off as state, or leave it out with the mask of mean_field.",
            )
        for loc, scale in zip(jax.tree.leaves(node.mean), jax.tree.leaves(node.stddev), strict=True):
            noise, size = float(np.mean(scale)), float(np.sqrt(np.mean(np.square(np.asarray(loc, np.float64)))))
            if np.ndim(loc) > 1 and noise > max(2.0 * size, 0.05) and size > 0:
                loud.append((noise / size, f"params{path}", noise, size))
    if loud:
        ratio, name, noise, size = max(loud)
        gone = ratio > 100.0
        yield Finding(
            f"{name} has noise of {noise:.3g} on weights of {size:.3g}"
            + (f", and {len(loud) - 1} more" * (len(loud) > 1)),
            "Its means have gone to 0: the prior or the noise has won. Warm the KL up (schedules), or train the "
            "network deterministically first, and put the prior around it (priors.centred)."
            if gone
            else "Start with a smaller scale: noise drowns what is learned.",
        )
