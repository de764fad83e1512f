"""What an equation of the model is evaluated on beside plain arrays: see `_moments` for the third kind."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Strategy = Literal["local_reparam", "flipout", "per_example", "shared"]
Site = tuple[int, ...]  # the place of an equation in the jaxpr: its index, after those of the equations around it

Leaf = int | tuple[Site, ...]  # a posterior node, several whose weights are concatenated, or the factors of a product


class PerExample(NamedTuple):
    """An array that depends on the example; a bare array is the same for all examples of the batch."""

    value: jax.Array


class Directions(NamedTuple):
    """sum_k c_k D_k, which an example adds to a weight: see `_joint`.

    Attributes:
        factors: arrays (K, ...) whose product is D; thin, as those of a `View`, after their first axis.
        coefficients: c, (K,), of this example; the same for all that a posterior stands for.
        scale: (J, K), where the factors are (J, ...) and (K, ...) and what is added is sum_jk scale_jk Z_jk a_j b_k, Z
            standard normal and of this example. A rule draws sqrt(sum_j scale_jk^2 f(x, a_j)^2) c_k b_k in its place;
            the first factor is then the one that meets data.
    """

    factors: tuple[jax.Array, ...]
    coefficients: jax.Array
    scale: jax.Array | None = None

    def mapped(self, f: Callable[[jax.Array], jax.Array]) -> "Directions":
        """With f of every factor of every D_k."""
        return self._replace(factors=tuple(jax.vmap(f)(factor) for factor in self.factors))

    def dense(self, shape: tuple[int, ...]) -> jax.Array:
        """D, (K, *shape)."""
        return jnp.broadcast_to(self._product(), (len(self.coefficients), *shape))

    def total(self) -> jax.Array:
        """sum_k c_k D_k, a thin array."""
        return weighted_sum(self.coefficients, self._product())

    def _product(self) -> jax.Array:
        return functools.reduce(jnp.multiply, self.factors)


_UNROLLED = 8


def weighted_sum(coefficients: jax.Array, arrays: jax.Array) -> jax.Array:
    """sum_k c_k arrays_k."""
    coefficients = coefficients.astype(arrays.dtype)
    # XLA on a CPU adds up along a leading axis one number at a time
    if len(arrays) <= _UNROLLED:
        return functools.reduce(jnp.add, [c * array for c, array in zip(coefficients, arrays, strict=True)])
    return jnp.sum(along(coefficients, 0, arrays.ndim) * arrays, axis=0)


@dataclass(frozen=True)
class View:
    """W = mean + dev * noise + directions of one leaf, carried through reshapes and the like until it meets data.

    Arrays are thin: an axis along which they are constant may have size 1 in the place of its size in `shape`.

    Attributes:
        leaf: the index of the posterior node, or that of several whose weights are concatenated: see `_concatenation`;
            of a product, those of its factors: see `_factors`.
        strategy: what becomes of the noise of dev; None while the model is only probed.
        shape, dtype: those of the weight that the model sees.
        mean: in float32 or wider.
        dev: under flipout, the perturbation that all examples share; else the scale. None if there are only directions.
        signs: for axes of the leaf, the signs of this example; while probing, NumPy arrays of the positions along them.
            For factors, their values.
        copies: how many times an element of the leaf stands in W, or is read again in the rounds of a loop.
        directions: what moves together with other weights, by its number.
        part: which of the arrays of the node it is.
        is_pure: whether nothing has been added to it, so that it may be a factor, W = dev * signs.
    """

    leaf: Leaf
    strategy: Strategy | None
    shape: tuple[int, ...]
    dtype: Any
    mean: jax.Array
    dev: jax.Array | None
    signs: Mapping[Any, Any]
    copies: float = 1.0
    directions: Mapping[int, Directions] = field(default_factory=dict)
    part: int = 0
    is_pure: bool = False

    def dense(self, array: jax.Array, dtype: Any = None) -> jax.Array:
        """`array`, a thin one, no longer thin."""
        return jnp.broadcast_to(array, self.shape).astype(dtype or self.dtype)

    def centre(self) -> jax.Array:
        """mean + directions of this example, dense."""
        return self.dense(sum((moves.total() for moves in self.directions.values()), self.mean))

    def of_example(self) -> jax.Array:
        """W of this example, dense."""
        if self.dev is None:
            return self.centre()
        assert self.strategy == "flipout", f"a weight under {self.strategy} is not to be drawn"
        noise = self.dev
        for sign in self.signs.values():
            noise = noise * sign.astype(noise.dtype)
        return replace(self, mean=self.mean + noise).centre()

    def laid_out(self, rule: Callable[[Any, tuple[int, ...]], Any], outputs: Sequence[Any]) -> "list[View]":
        """The views, of the shapes of `outputs`, that a rule of a thin array and its full shape makes."""

        def parts(array: Any) -> list[Any]:
            result = rule(array, self.shape)
            return result if isinstance(result, list) else [result]

        means, signs = parts(self.mean), {axis: parts(sign) for axis, sign in self.signs.items()}
        devs = [None] * len(outputs) if self.dev is None else parts(self.dev)
        return [
            replace(
                self,
                shape=output.shape,
                mean=means[index],
                dev=devs[index],
                signs={axis: pieces[index] for axis, pieces in signs.items()},
                directions={j: moves.mapped(lambda x: parts(x)[index]) for j, moves in self.directions.items()},  # noqa: B023
                copies=self.copies * max(1, output.size // max(1, math.prod(self.shape))),
            )
            for index, output in enumerate(outputs)
        ]

    def mapped(self, f: Callable[..., jax.Array], position: int, others: Sequence[Any], output: Any) -> "View":
        """The view of f(W), for f affine in this operand: the derivative of f maps dev."""

        def of_mean(mean: jax.Array) -> jax.Array:
            operands = [jnp.asarray(other).astype(mean.dtype) for other in others]
            return f(*operands[:position], mean, *operands[position:])

        view = self if len(self.shape) == output.ndim else self.of_rank(output.ndim)
        is_pure = view.is_pure and f not in (jnp.add, jnp.subtract)
        copies = self.copies * max(1, output.size // max(1, math.prod(self.shape)))  # it may broadcast
        view, full = replace(view, shape=output.shape, dtype=output.dtype, copies=copies), view.shape
        if not others and f(view.mean) is view.mean:  # in another dtype
            return view

        def dense(array: jax.Array) -> jax.Array:  # a factor may vary along an axis that is thin
            return jnp.broadcast_to(array, full) if others or view.directions else array

        mean = dense(view.mean)

        def derivative(dev: jax.Array) -> jax.Array:
            return jax.jvp(of_mean, (jnp.broadcast_to(mean, dev.shape),), (dev,))[1]

        one = {j: moves._replace(factors=(moves.dense(full),)) for j, moves in view.directions.items()}
        directions = {j: moves.mapped(derivative) for j, moves in one.items()}
        dev = None if view.dev is None else derivative(dense(view.dev))
        mean = view.mean if is_pure else of_mean(mean)
        return replace(view, mean=mean, dev=dev, directions=directions, is_pure=is_pure)

    def of_rank(self, rank: int) -> "View":
        """A scalar, which broadcasts against arrays of any rank."""
        like = jax.ShapeDtypeStruct((1,) * rank, self.dtype)
        return self.laid_out(lambda x, _: x.reshape((1,) * rank), [like])[0]

    def spans(self, axis: Any) -> set[int]:
        """The axes of this view along which the sign of an axis of the leaf varies."""
        return {index for index, size in enumerate(self.signs[axis].shape) if size > 1}


def along(x: Any, axis: int, rank: int) -> Any:
    """A vector as an array that varies along one axis."""
    return x.reshape([-1 if index == axis else 1 for index in range(rank)])
