"""From loss_fn, what a model returned and targets to one loss for each example: shared by all that take a loss_fn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import describe
from illia_fn._base.numerics import at_least_float32
from illia_fn.likelihoods.classes import categorical_nll
from illia_fn.likelihoods.continuous import gaussian_nll

LossFn = Callable[[Any, Any], jax.Array]


def example_losses(caller: str, loss_fn: LossFn | None, outputs: Any, y: Any, weights: ArrayLike | None) -> jax.Array:
    """One loss per example, (B,), in float32 or wider; or the scalar that loss_fn returns."""
    batch_size = _batch_size(caller, outputs, y)
    outputs, y = jax.tree.map(_widen, (outputs, y))
    if weights is not None:
        if jnp.shape(weights) != (batch_size,):
            raise ValueError(
                f"{caller}: weights must have shape ({batch_size},), one per example, got {jnp.shape(weights)}."
            )
        outputs, y = jax.tree.map(partial(_fill_padding, weights), (outputs, y))
    # in a trace, too, what comes from NumPy is known: a likelihood may refuse it
    with jax.ensure_compile_time_eval():
        of_numpy = lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf  # noqa: E731
        outputs, y = jax.tree.map(of_numpy, (outputs, y))
    values = (loss_fn or default_loss(caller, outputs, y))(outputs, y)
    if jax.tree.structure(values) != jax.tree.structure(0):
        raise TypeError(f"{caller}: loss_fn must return one array, got a {type(values).__name__}.")
    values = jnp.asarray(values)
    if values.ndim == 0:
        if weights is not None:
            raise ValueError(
                f"{caller}: weights need a loss_fn with one value per example, but it returned a scalar. Drop its mean."
            )
        return at_least_float32(values)
    _check_values(caller, values, outputs, y)
    return jnp.sum(at_least_float32(values), axis=tuple(range(1, values.ndim)))


def _widen(x: Any) -> jax.Array | np.ndarray:
    """An array, of floats in float32 or wider; one of NumPy stays one."""
    x = x if isinstance(x, np.ndarray) else jnp.asarray(x)
    is_narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return x.astype(np.float32) if is_narrow else x


def _fill_padding(weights: ArrayLike, leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Put a row that counts in the place of each that does not: 0 times the NaN of a missing target would be NaN."""
    if leaf.ndim == 0:
        return leaf
    is_known = _is_known(weights) and _is_known(leaf)  # in a trace it stays so in NumPy alone
    xp = np if is_known else jnp
    weights, leaf = xp.asarray(weights), xp.asarray(leaf)
    counts = weights.astype(bool).reshape(-1, *[1] * (leaf.ndim - 1))
    return xp.where(counts, leaf, leaf[xp.argmax(weights)][None])


def _is_known(x: Any) -> bool:
    """Whether its numbers are known now, and on one device at the most."""
    if not isinstance(x, jax.Array):
        return True
    return (
        not isinstance(x, jax.core.Tracer)
        and len(x.devices()) == 1
        and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    )


def _batch_size(caller: str, outputs: Any, y: Any) -> int:
    output_shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(outputs)]
    target_shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(y)]
    if not target_shapes or not all(target_shapes):
        raise ValueError(f"{caller}: targets y must be arrays with a leading batch axis, got {describe(y)}.")
    batch_sizes = {shape[0] for shape in output_shapes + target_shapes if shape}
    if not output_shapes or len(batch_sizes) != 1 or batch_sizes == {0}:
        raise ValueError(
            f"{caller}: outputs and targets must have the same batch size, at least 1, got outputs of shape "
            f"{_join(output_shapes)} and targets of shape {_join(target_shapes)}. The batch axis comes first."
            + (" If apply_fn returns (outputs, aux), pass has_aux=True." if isinstance(outputs, tuple) else "")
        )
    if len(output_shapes) == len(target_shapes) == 1:
        (output,), (target,) = output_shapes, target_shapes
        stretched = len(output) == len(target) and any(
            a != b and 1 in (a, b) for a, b in zip(output, target, strict=True)
        )
        if stretched or output == (*target, 1) or target == (*output, 1):
            of_outputs = "outputs[..., 0] in apply_fn"
            raise ValueError(
                f"{caller}: outputs of shape {output} and targets of shape {target} would broadcast against each "
                f"other. Drop the axis of size 1, for example with {'y[..., 0]' if target[-1] == 1 else of_outputs}."
            )
    return batch_sizes.pop()


def _check_values(caller: str, values: jax.Array, outputs: Any, y: Any) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((outputs, y))]
    if not any(values.shape == shape[: values.ndim] for shape in shapes):
        raise ValueError(
            f"{caller}: loss_fn must return a scalar, one value per example, or values with trailing axes that outputs "
            f"or targets also have, got shape {values.shape} from {_join(shapes)}. Did it broadcast them?"
        )


def default_loss(caller: str, outputs: Any, y: Any) -> LossFn:
    """Integer targets are class labels, floating-point targets have a Gaussian likelihood of unit scale."""
    dtype = getattr(y, "dtype", np.dtype(object))
    if jnp.issubdtype(dtype, jnp.integer):
        if getattr(outputs, "shape", ())[:-1] != y.shape:
            raise ValueError(
                f"{caller}: integer targets of shape {y.shape} are class labels and need logits with one more axis, "
                f"got {_kinds(outputs)}. {_meant_by_labels(outputs, y)}"
                + (" If apply_fn returns (outputs, aux), pass has_aux=True." if isinstance(outputs, tuple) else "")
            )
        return categorical_nll
    if jnp.issubdtype(dtype, jnp.floating):
        if getattr(outputs, "shape", y.shape)[:-1] == y.shape:
            raise ValueError(
                f"{caller}: floating-point targets of shape {y.shape} have a Gaussian likelihood and need outputs of "
                f"that shape, got {_kinds(outputs)}. If the targets are class labels, pass integers: y.astype(int)."
            )
        return gaussian_nll
    raise ValueError(f"{caller}: there is no default loss for targets {describe(y)}. Pass loss_fn(outputs, y).")


def _meant_by_labels(outputs: Any, y: Any) -> str:
    if getattr(outputs, "shape", ()) == y.shape and y.ndim > 1:
        return "Of one-hot labels pass y.argmax(axis=-1); pass loss_fn for another likelihood."
    return "Pass loss_fn for another likelihood."


def _kinds(tree: Any) -> str:
    return "outputs " + ", ".join(f"of shape {jnp.shape(leaf)}" for leaf in jax.tree.leaves(tree))


def _join(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "none"
