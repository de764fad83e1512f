"""A mixture of posteriors of one family, over one array or jointly over a subtree, for posteriors of several modes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_callable, check_count, check_key, check_scale, concrete, describe
from illia_fn._base.numerics import at_least_float32, matmul, one_program, total, widest_dtype
from illia_fn._base.trees import PyTree, frozen_pytree, leaves_with_path
from illia_fn.posteriors._components import at, deviations, middle, root_mean_square
from illia_fn.posteriors._flat import check_like, ravel, unravel
from illia_fn.posteriors._leaves import whole
from illia_fn.posteriors.blocks import covariance_at
from illia_fn.posteriors.gaussian import mean_field
from illia_fn.posteriors.posterior import Posterior, is_posterior, like, log_prob, mean, stddev


@frozen_pytree
class Mixture(Posterior):
    """A mixture of equal weights, q(w) = (1 / K) sum_k q_k(w), over one array or jointly over a subtree.

    A draw picks one component for all that the node stands for, and then is a draw of it: over a whole network each
    component is a network's posterior of its own. `log_prob`, `mean`, `stddev` and `covariance` are exact.

    The entropy has no closed form. `entropy` is a lower bound of it, so that KLs to priors that the components have a
    closed form to, and with them the loss, are upper bounds, which do not need a key:

        KL(q || p) <= mean_k KL(q_k || p) - I,  I = -mean_k log mean_j exp(-C(q_k, q_j)) from 0 to log K,

    C being the Bhattacharyya distance. It is 0 in the place of C for a family that does not tell it: `MatrixNormal` and
    `Eigenbasis`. The bound is exact where components coincide or are far apart. Kolchinsky & Tracey 2017, Estimating
    mixture entropy with pairwise distances, https://arxiv.org/abs/1706.02419. Objectives of importance weights, such as
    `iwae_loss`, and the gradient of estimator="doubly_reparameterised" take `log_prob`, and so the exact q.

    The weights are fixed: so draws are reparameterised without bias. The gradient of learned weights would have to go
    through the choice of the component, by the score function.

    Args:
        components: a posterior tree, one node or a tree of nodes, each of whose arrays has a leading axis of the K
            components. `mixture` and `Mixture.of` make it.

    Raises:
        ValueError: if the arrays do not share a leading axis of at least 2.
        TypeError: if a leaf of `components` is no posterior node, or is a mixture.

    >>> from illia_fn import Gaussian
    >>> q = Mixture(Gaussian(loc=jnp.array([-3.0, 3.0]), rho=jnp.zeros(2)))  # of one number
    >>> print(q.num_components, q.mean, f"{q.stddev:.3f}", f"{q.log_prob(jnp.array(3.0)):.3f}")
    2 0.0 3.079 -1.246
    """

    has_entropy: ClassVar[bool] = False

    components: PyTree

    def __post_init__(self):
        for path, node in leaves_with_path(self.components, is_posterior):
            if not is_posterior(node) or isinstance(node, Mixture):
                raise TypeError(
                    f"Mixture: components{path} must be a posterior node, and no mixture, got {describe(node)}. Leave "
                    "deterministic leaves outside: posterior_tree puts a mixture in the place of a subtree."
                )
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(self.components)}
        if len(sizes) != 1 or min(sizes) < (2,):
            raise ValueError(
                "Mixture: the arrays of components must share a leading axis of K components, at least 2, got shapes "
                f"{[np.shape(leaf) for leaf in jax.tree.leaves(self.components)]}. Build it with Mixture.of."
            )

    @staticmethod
    def of(components: Sequence[PyTree]) -> "Mixture":
        """The mixture of these posteriors: nodes, or posterior trees of nodes alone, all of one structure.

        Networks that were trained from different starts make a mixture of several modes.

        Raises:
            ValueError: for less than two of them, or if they differ in structure, families, shapes or dtypes.
            TypeError: if one is no posterior, or holds a deterministic leaf or a mixture.

        >>> q = Mixture.of([mean_field({"w": jnp.full(2, loc)}) for loc in (-1.0, 0.0, 1.0)])
        >>> print(q.num_components, q.stddev["w"].round(3))
        3 [0.818 0.818]
        """
        return _stacked("Mixture.of", components)

    @property
    def num_components(self) -> int:
        """K."""
        return np.shape(jax.tree.leaves(self.components)[0])[0]

    def of_each(self, f: Callable[[PyTree], Any]) -> Any:
        """f(q_k) of all components, stacked."""
        # arrays of JAX, as a custom derivative under vmap and jit takes no others
        return jax.vmap(f)(jax.tree.map(jnp.asarray, self.components))

    def component(self, index: int | jax.Array) -> PyTree:
        """The posterior q_k of this index."""
        return at(index, self.components)

    def widened(self) -> "Mixture":
        return Mixture(jax.tree.map(lambda node: node.widened(), self.components, is_leaf=is_posterior))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(1 + N,): one number chooses the component, and N are its noise."""
        return (1 + sum(math.prod(shape) for shape in self._noise_shapes()),)

    def _noise_shapes(self) -> list[tuple[int, ...]]:
        """Those of the nodes of one component."""
        shapes = []

        def find(component: PyTree) -> None:
            shapes.extend(node.noise_shape for node in _nodes(component))

        jax.eval_shape(jax.vmap(find), self.components)
        return shapes

    def reparameterise(self) -> Callable[[jax.Array], PyTree]:
        shapes = self._noise_shapes()
        ends = np.cumsum([1, *map(math.prod, shapes)])
        count = self.num_components
        from scipy.special import ndtri  # here, as it takes a sixth of the time that jax and optax take to import

        # by the quantiles of the noise, as its distribution function would round to 0 and 1 at the ends
        quantiles = ndtri(np.arange(1, count) / count)

        def draw(noise: jax.Array) -> PyTree:
            component = self.component(jnp.sum(noise[0] > jnp.asarray(quantiles, noise.dtype)))
            draws = []
            for node, piece, shape in zip(_nodes(component), jnp.split(noise, ends)[1:-1], shapes, strict=True):
                draws.append(node.reparameterise()(piece.astype(widest_dtype(node.like)).reshape(shape)))
            return jax.tree.structure(component, is_leaf=is_posterior).unflatten(draws)

        return draw

    def log_prob(self, w: PyTree) -> jax.Array:
        check_like("Mixture.log_prob", w, self.like)
        each = self.of_each(lambda component: log_prob(component, w))
        largest = jax.lax.stop_gradient(jnp.max(each))
        # where all are -inf, so is their mean, whose slope is finite if theirs are
        is_lost = largest == -jnp.inf
        above = jnp.where(is_lost, 0.0, each - largest)
        return jnp.where(is_lost, jnp.mean(each), largest + jnp.log(jnp.mean(jnp.exp(above))))

    def entropy(self) -> jax.Array:
        """A lower bound of the entropy: mean_k H(q_k) + I."""
        each = self.of_each(lambda component: total([node.entropy() for node in _nodes(component)]))
        return jnp.mean(each) + self.component_information()

    @one_program
    def component_information(self) -> jax.Array:
        """I, a lower bound of the mutual information of w and its component in nats, from 0 to log K."""

        nodes = _nodes(self.components)
        forms = self.of_each(lambda component: [node.bhattacharyya_form() for node in _nodes(component)])

        def distance(pair: jax.Array) -> jax.Array:
            q, p = (at(index, forms) for index in pair)
            return total([node.bhattacharyya(a, b) for node, a, b in zip(nodes, q, p, strict=True)])

        count = self.num_components
        pairs = jnp.asarray(np.stack(np.triu_indices(count, 1), axis=1))
        # one by one in the memory of a pair; all at once, which compiles in half of the time
        is_small = count * sum(map(np.size, jax.tree.leaves(self.components))) <= _AT_ONCE
        each = jax.vmap(distance)(pairs) if is_small else jax.lax.map(jax.checkpoint(distance), pairs)
        apart = jnp.zeros((count, count), each.dtype).at[tuple(pairs.T)].set(each)
        return -jnp.mean(jnp.log(jnp.mean(jnp.exp(-(apart + apart.T)), axis=1)))

    @property
    def like(self) -> PyTree:
        each = jax.eval_shape(jax.vmap(like), self.components)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), each)

    @property
    def _means(self) -> PyTree:
        """The means of the components, (K, ...), in float32 or wider."""
        return jax.vmap(mean)(jax.tree.map(at_least_float32, self.components))

    @property
    def mean(self) -> PyTree:
        return jax.tree.map(lambda each, like: middle(each).astype(like.dtype), self._means, self.like)

    @property
    def stddev(self) -> PyTree:
        """By the law of total variance: the root of mean_k (s_k^2 + (m_k - m)^2)."""
        scales = jax.vmap(stddev)(jax.tree.map(at_least_float32, self.components))
        roots = jax.tree.map(lambda each, scale: root_mean_square(deviations(each), scale), self._means, scales)
        return jax.tree.map(lambda root, like: root.astype(like.dtype), roots, self.like)

    def covariance(self, places: np.ndarray) -> jax.Array:
        apart = jax.vmap(ravel)(jax.tree.map(deviations, self._means))[:, places]
        within = self.of_each(lambda component: covariance_at(component, places))
        return jnp.mean(within, axis=0) + matmul(apart.T, apart) / self.num_components


_AT_ONCE = 2**20  # numbers of all pairs of components


def _nodes(tree: PyTree) -> list[Posterior]:
    return jax.tree.leaves(tree, is_leaf=is_posterior)


def _stacked(caller: str, components: Sequence[PyTree]) -> Mixture:
    """The mixture of posterior trees, with errors in the name of its caller."""
    if not isinstance(components, Sequence) or len(components) < 2:
        count = f"{len(components)} of them" if isinstance(components, Sequence) else describe(components)
        raise ValueError(f"{caller}: a mixture is of a list of at least 2 posteriors, got {count}.")
    for number, tree in enumerate(components):
        for path, node in leaves_with_path(tree, is_posterior):
            if not is_posterior(node) or isinstance(node, Mixture):
                raise TypeError(
                    f"{caller}: component {number}{path} must be a posterior node, and no mixture, got "
                    f"{describe(node)}. Give the deterministic leaves of a network a place outside of the mixture: "
                    "posterior_tree puts one in the place of a subtree."
                )
    kinds = [(jax.tree.structure(tree), [_type(leaf) for leaf in jax.tree.leaves(tree)]) for tree in components]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"{caller}: all components must be of one family and structure, with arrays of the same shapes and "
                f"dtypes, and component {number} is not as the first: {kind} and {kinds[0]}."
            )
    return Mixture(jax.tree.map(lambda *leaves: jnp.stack(leaves), *components))


def _type(leaf: jax.Array) -> tuple[tuple[int, ...], str]:
    return np.shape(leaf), str(jnp.result_type(leaf))


def mixture(
    params: PyTree,
    num_components: int,
    family: Callable[[PyTree], PyTree] = mean_field,
    *,
    spread: float = 0.1,
    key: jax.Array,
) -> Mixture:
    """One `Mixture` node for all of `params`, of components of a family that start apart, around them.

    What starts equal has equal gradients in expectation, and would part by noise alone. So the parameters of the
    components are moved by spread N(0, 1) for each number, such that their mean is `params`. Modes of a network are
    further apart: for these take networks of different starts, `Mixture.of([mean_field(init(k)) for k in keys])`.

    Args:
        params: an array or a tree of floating-point arrays, P numbers together. It takes K times the memory of the
            family; a draw takes the time of one component, a density that of K, and an entropy or KL that of K^2.
        num_components: K, at least 2.
        family: a function from params to a posterior tree without deterministic leaves, such as `mean_field`,
            `full_covariance`, or a `functools.partial` with its options.
        spread: how far the components start apart, a positive number.
        key: a PRNG key, for the starts.

    Returns:
        A posterior node, in the place of `params`: partial(mixture, num_components=3, key=key) is a constructor for
        `posterior_tree`.

    Raises:
        ValueError: for less than two components, a spread that is not positive, a tree without numbers or one that
            already holds posterior nodes.
        TypeError: for leaves that are not floating-point numbers, a family that is no function or leaves a leaf
            deterministic, or a key that is none.

    >>> q = mixture({"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, 4, spread=0.2, key=jax.random.key(0))
    >>> print(q.components["kernel"].loc.shape, q.mean["bias"].round(6) + 0.0)
    (4, 3, 2) [0. 0.]
    """
    check_count("mixture", "num_components", num_components)
    if num_components < 2:
        raise ValueError(
            f"mixture: num_components must be at least 2, got {num_components}. One is {family!r}(params)."
        )
    check_callable("mixture", "family", family)
    check_scale("mixture", spread, "spread, that of the components,")
    if np.shape(spread) != ():
        raise ValueError(f"mixture: spread must be one number, got {describe(spread)}.")
    check_key("mixture", key)
    loc, scale = whole("mixture", params, 1.0)
    moves = jax.random.normal(key, (int(num_components), len(scale)), scale.dtype)
    factor = jnp.asarray(spread * math.sqrt(num_components / (num_components - 1)), scale.dtype)
    moves = factor * (moves - jnp.mean(moves, axis=0, keepdims=True))
    made = _stacked("mixture", [family(unravel(ravel(loc) + move, loc)) for move in moves])
    _check_apart(made)
    return made


def _check_apart(made: Mixture) -> None:
    values = [concrete(leaf) for leaf in jax.tree.leaves(made.components)]
    if all(value is not None and np.all(value == value[:1]) for value in values):
        raise ValueError(
            "mixture: the family makes one and the same component of all parameters, as from_distribution does, which "
            "takes only their shapes. Make components that are apart, and pass them to Mixture.of."
        )
