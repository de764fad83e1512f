"""What an equation of the model is evaluated on beside plain arrays: see `_moments` for the third kind."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Strategy = Literal["local_reparam", "flipout", "per_example", "shared"]
Site = tuple[int, ...]  # the place of an equation in the jaxpr: its index, after those of the equations around it


class PerExample(NamedTuple):
    """An array that depends on the example; a bare array is the same for all examples of the batch."""

    value: jax.Array


@dataclass(frozen=True)
class View:
    """W = mean + dev * noise of one leaf, carried through reshapes and the like until it meets data.

    Arrays are thin: an axis along which they are constant may have size 1 in the place of its size in `shape`.

    Attributes:
        leaf: the index of the posterior node, or that of several whose weights are concatenated: see `_concatenation`.
        strategy: what becomes of the noise; None while the model is only probed.
        shape, dtype: those of the weight that the model sees.
        mean: in float32 or wider.
        dev: under flipout, the perturbation that all examples share; else the scale.
        signs: for axes of the leaf, the signs of this example; while probing, NumPy arrays of the positions along them.
        copies: how many times an element of the leaf stands in W, or is read again in the rounds of a loop.
    """

    leaf: int
    strategy: Strategy | None
    shape: tuple[int, ...]
    dtype: Any
    mean: jax.Array
    dev: jax.Array
    signs: Mapping[int, Any]
    copies: float = 1.0

    def dense(self, array: jax.Array, dtype: Any = None) -> jax.Array:
        """`array`, one of mean and dev, no longer thin."""
        return jnp.broadcast_to(array, self.shape).astype(dtype or self.dtype)

    def laid_out(self, rule: Callable[[Any, tuple[int, ...]], Any], outputs: Sequence[Any]) -> "list[View]":
        """The views, of the shapes of `outputs`, that a rule of a thin array and its full shape makes."""

        def parts(array: Any) -> list[Any]:
            result = rule(array, self.shape)
            return result if isinstance(result, list) else [result]

        means, devs, signs = parts(self.mean), parts(self.dev), {axis: parts(sign) for axis, sign in self.signs.items()}
        return [
            replace(
                self,
                shape=output.shape,
                mean=means[index],
                dev=devs[index],
                signs={axis: pieces[index] for axis, pieces in signs.items()},
                copies=self.copies * max(1, output.size // max(1, math.prod(self.shape))),
            )
            for index, output in enumerate(outputs)
        ]

    def mapped(self, f: Callable[..., jax.Array], position: int, others: Sequence[Any], output: Any) -> "View":
        """The view of f(W), for f affine in this operand: the derivative of f maps dev."""

        def of_mean(mean: jax.Array) -> jax.Array:
            operands = [jnp.asarray(other).astype(mean.dtype) for other in others]
            return f(*operands[:position], mean, *operands[position:])

        view = self if len(self.shape) == output.ndim else self._of_rank(output.ndim)
        mean, dev = view.mean, view.dev
        if others:  # a factor may vary along an axis that is thin
            mean, dev = (view.dense(array, array.dtype) for array in (mean, dev))
        mean, dev = jax.jvp(of_mean, (mean,), (dev,))
        copies = self.copies * max(1, output.size // max(1, math.prod(self.shape)))  # it may broadcast
        return replace(view, shape=output.shape, dtype=output.dtype, mean=mean, dev=dev, copies=copies)

    def _of_rank(self, rank: int) -> "View":
        """A scalar, which broadcasts against arrays of any rank."""
        ones = (1,) * rank
        signs = {axis: sign.reshape(ones) for axis, sign in self.signs.items()}
        return replace(self, shape=ones, mean=self.mean.reshape(ones), dev=self.dev.reshape(ones), signs=signs)

    def spans(self, axis: int) -> set[int]:
        """The axes of this view along which the sign of an axis of the leaf varies."""
        return {index for index, size in enumerate(self.signs[axis].shape) if size > 1}


def along(x: Any, axis: int, rank: int) -> Any:
    """A vector as an array that varies along one axis."""
    return x.reshape([-1 if index == axis else 1 for index in range(rank)])
