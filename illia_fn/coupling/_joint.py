"""Posteriors over numbers that are not independent: noise of each example's own that moves all of them together.

Within an example all that a posterior stands for must have its joint law; across examples any coupling will do.

One sign. A draw that is linear in its noise, w = mean + A z, has a law that is symmetric around the mean. So

    w_i = mean + s_i A z,        s_i = +1 or -1, one sign for each example, z the same for all of them

has it, too, for any A, if s_i is the same in all leaves and in all uses: flipout with a sign that has no axis. It takes
one more product wherever w meets data.

A matrix. W = loc + A f(Z) B^T, as a matrix normal has it, whose Z may have signs along an axis: a sum of products
a_k b_k^T with a sign s_ik for each. Where rows meet data and columns are outputs, sum_k s_ik f(x, a_k) b_k takes
p K + K q operations, K being the shorter of p and q.

Low rank. w = loc + scale * noise + U z has independent numbers, those of one `Gaussian` for each leaf, which has the
strategy of such a leaf; and the directions U. Of these an example has coefficients of its own, z_i, at the price of a
product for each; or one sign for U z if they are many.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from illia_fn._base.numerics import at_least_float32, matmul, widest_dtype
from illia_fn._base.sharding import is_sharded, vary_along, varying_axes
from illia_fn._base.trees import PyTree
from illia_fn.coupling._affine import breaks_of
from illia_fn.coupling._noise import Noise
from illia_fn.coupling._values import Directions, PerExample, View
from illia_fn.posteriors._flat import unravel, wide
from illia_fn.posteriors._kernels import Kernel
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.lowrank import LowRank
from illia_fn.posteriors.posterior import Posterior, is_posterior
from illia_fn.posteriors.tied import KTied

_FEW = 2  # directions: with more, one sign gives more for its time than coefficients of their own


def is_linear_in_noise(node: Posterior) -> bool:
    """Whether draws are, so that they are Gaussian, whatever the family."""
    if isinstance(node, Kernel) or type(node) in (Gaussian, FullCovariance, LowRank):
        return True
    noise = jax.ShapeDtypeStruct(node.noise_shape, widest_dtype(node.like))
    return not breaks_of(lambda noise: jax.tree.leaves(node.reparameterise()(noise)), [noise])[1]


def probe_together(node: Posterior, number: int) -> list[Any]:
    """A view without a strategy for each array that the node stands for."""
    if isinstance(node, Kernel):
        factors = node.products(jnp.zeros(node.noise_shape, widest_dtype(node.mean)))
        return [_view(node.mean, factors, jnp.zeros(len(factors[0])), number, None)]
    return [_view(leaf, (leaf[None],), jnp.zeros(1), number, None) for leaf in jax.tree.leaves(node.like)]


def drawn_together(node: Posterior, number: int, noise: Noise, axes: Sequence[int]) -> list[Any]:
    """The mean, and the change A z along directions with signs of this example, for each array of the node.

    Of a matrix whose outputs are drawn, its columns or its rows by the axis, all that it takes to draw them.
    """
    if isinstance(node, Kernel) and axes:
        coefficients = noise.examples[number]
        view = _view(node.mean, node.directions(), coefficients, number, "local_reparam")
        return [_drawing_outputs(view, number, node.scales(), axes[0])]
    z, signs = noise.leaves[number], noise.signs[number][0]
    if isinstance(node, Kernel) and len(signs) > 1:
        return [_view(node.mean, node.products(z), signs, number, "flipout")]
    origin = vary_along(jnp.zeros_like(z), varying_axes(z))
    means, changes = map(jax.tree.leaves, jax.jvp(node.reparameterise(), (origin,), (z,)))
    pairs = zip(means, changes, strict=True)
    return [_view(mean, (change[None],), signs, number, "flipout") for mean, change in pairs]


def _view(leaf: jax.Array, factors: Sequence[jax.Array], coefficients: jax.Array, number: int, strategy: Any) -> Any:
    if not leaf.size:
        return leaf
    directions = Directions(tuple(_laid_like(at_least_float32(factor), leaf) for factor in factors), coefficients)
    mean = at_least_float32(leaf)
    return View(number, strategy, leaf.shape, leaf.dtype, mean, None, {}, directions={number: directions})


def _drawing_outputs(view: Any, number: int, scales: jax.Array, axis: int) -> Any:
    """The view whose directions have scales, the factor that meets data before that of the outputs."""
    if not isinstance(view, View):
        return view
    moves = view.directions[number]
    order = slice(None) if axis == 1 else slice(None, None, -1)
    moves = Directions(moves.factors[order], moves.coefficients, scales if axis == 1 else scales.T)
    return replace(view, directions={number: moves})


def _laid_like(factor: jax.Array, leaf: jax.Array) -> jax.Array:
    """Sharded as the leaf is, along the axes that it has of it."""
    if not is_sharded(leaf):
        return factor
    sharding = jax.typeof(leaf).sharding
    spec = P(None, *[None if size == 1 else axis for size, axis in zip(factor.shape[1:], sharding.spec, strict=True)])
    return jax.sharding.reshard(factor, sharding.update(spec=spec))


class Factor(NamedTuple):
    """The directions of a `LowRank` posterior, whose independent numbers are nodes of the model.

    Attributes:
        number: of the directions, and of their noise; beyond those of the nodes.
        nodes: the indices of these nodes.
        matrix: U, (P, R).
    """

    number: int
    nodes: range
    matrix: jax.Array

    @property
    def rank(self) -> int:
        return self.matrix.shape[1]

    @property
    def has_coefficients(self) -> bool:
        """Whether each example has its own, rather than one sign."""
        return self.rank <= _FEW

    def add_noise(self, noise: Noise, *, is_free: bool) -> None:
        """The shapes of it; without freedom one draw serves all examples."""
        like = jax.ShapeDtypeStruct((self.rank,), self.matrix.dtype)
        (noise.examples if is_free and self.has_coefficients else noise.leaves)[self.number] = like
        if is_free and not self.has_coefficients:
            noise.signs[self.number] = {0: jax.ShapeDtypeStruct((1,), jnp.float32)}

    def probed(self, means: Sequence[jax.Array]) -> list[Directions]:
        """Directions without values."""
        return [Directions((at_least_float32(mean)[None],), jnp.zeros(1)) for mean in means]

    def drawn(self, means: Sequence[jax.Array], noise: Noise) -> list[Directions]:
        """The directions in the shapes of these arrays, which each has one; constant if all examples share them."""
        likes = list(map(at_least_float32, means))
        if self.number in noise.examples:
            columns = jax.vmap(lambda column: unravel(column, likes))(self.matrix.T)
            return [Directions((column,), noise.examples[self.number]) for column in columns]
        change = unravel(matmul(self.matrix, noise.leaves[self.number]), likes)
        signs = noise.signs[self.number][0] if self.number in noise.signs else jnp.ones(1)
        return [Directions((array[None],), signs) for array in change]

    def explain(self, hindrance: str | None) -> str:
        """What becomes of them."""
        if hindrance:
            return f"{self.rank} directions: one draw for all examples, as {hindrance}"
        noise = "coefficients" if self.has_coefficients else "one sign"
        return f"{self.rank} directions: {noise} of each example's own"


def moved(value: Any, index: int, number: int, directions: Directions, *, is_free: bool) -> Any:
    """A weight in any form, with directions; those that are not free are a change of its mean."""
    if isinstance(value, PerExample):
        return PerExample(_plus(value.value, directions))
    if isinstance(value, View) and not is_free:
        assert not value.is_pure, "what has directions was probed with them, and met no other factor"
        return replace(value, mean=value.mean + directions.total())
    if not is_free or not directions.factors[0].size:
        return _plus(value, directions)
    if not isinstance(value, View):
        value = View(index, "shared", value.shape, value.dtype, at_least_float32(value), None, {})
    return replace(value, directions={**value.directions, number: directions})


def _plus(array: jax.Array, directions: Directions) -> jax.Array:
    return (at_least_float32(array) + directions.total()).astype(array.dtype)


def separated(q: PyTree) -> tuple[PyTree, list[Factor]]:
    """q with independent numbers in the place of what is made of them, and what else there is."""
    leaves, structure = jax.tree.flatten(q, is_leaf=is_posterior)
    count, found = 0, []
    for at, leaf in enumerate(leaves):
        if isinstance(leaf, KTied):
            leaves[at] = leaf.untied()
        elif type(leaf) is LowRank:
            leaves[at] = leaf.independent()
            found.append((range(count, count + len(jax.tree.leaves(leaf.loc))), wide(leaf.factor)))
        count += sum(map(is_posterior, jax.tree.leaves(leaves[at], is_leaf=is_posterior)))
    factors = [Factor(count + number, *rest) for number, rest in enumerate(found)]
    return structure.unflatten(leaves), factors
