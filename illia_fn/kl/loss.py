"""KL(q || p) of a whole tree: the loss, its parts by path, and the density of the prior at a draw."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_factor, check_key
from illia_fn._base.numerics import total
from illia_fn._base.trees import PyTree, broadcast_prefix, leaves_by_path, leaves_with_path
from illia_fn.engine.monte_carlo import expectation
from illia_fn.kl._priors import check_fits, fitted, is_prior, log_prior_of_node
from illia_fn.kl.gaussian import kl_normal_normal
from illia_fn.kl.table import closed_form, kl_of_node, upper_bound
from illia_fn.posteriors._join import Joined, join, split
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import check_nodes, is_posterior, like, num_params
from illia_fn.priors._known import in_known_form
from illia_fn.priors.normal import Normal


def kl_loss(
    params: PyTree,
    prior: PyTree = Normal(0.0, 1.0),
    *,
    reduction: Literal["mean", "sum"] = "mean",
    weight: ArrayLike = 1.0,
    key: jax.Array | None = None,
    num_samples: int = 1,
) -> jax.Array:
    """KL loss, weight * sum_l KL(q_l || p_l) over the posterior nodes l of a tree, in nats.

    With reduction="mean" it is divided by the number of variational parameters, `num_params(params)`: all of them.
    A prior that is fitted to q, `priors.EmpiricalBayes`, adds -log of its hyperprior to the KL of its node.

    Args:
        params: a posterior tree; deterministic leaves add no KL.
        prior: a `Normal`, any object with a `log_prob` (element-wise, or the joint density of an array), a prefix tree
            of these, or a posterior tree of the structure of `params` (yesterday's posterior as today's prior).
        reduction: "mean" per variational parameter, or "sum".
        weight: a factor, not negative.
        key: a PRNG key, required if some prior has no closed form (see `kl_divergence`).
        num_samples: Monte Carlo draws for those.

    Returns:
        A scalar, float32 or wider. A tree without posterior nodes gives exactly 0 for "sum".

    Raises:
        ValueError: for an unknown reduction, "mean" of a tree without posterior nodes, a prior that does not match the
            tree, a missing key.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.ones((2, 3))}, scale=1.0)
    >>> print(kl_loss(q, Normal(0.0, 1.0)), kl_loss(q, Normal(0.0, 1.0), reduction="sum"))
    0.5 3.0
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'kl_loss: reduction must be "mean" or "sum", got {reduction!r}.')
    check_factor("kl_loss", "weight", weight)
    check_nodes("kl_loss", params)
    count = num_params(params)
    if reduction == "mean" and count == 0:
        raise ValueError(
            "kl_loss: params has no posterior node, so there is no mean per variational parameter. Make some leaves "
            'Bayesian with mean_field, or use reduction="sum", which is 0.'
        )
    pairs = kl_pairs("kl_loss", params, prior, key)
    kl = total([total_kl(Joined.of(params, is_posterior), pairs, num_samples), *hyperpriors(pairs)])
    return jnp.asarray(weight, kl.dtype) * (kl / jnp.asarray(count, kl.dtype) if reduction == "mean" else kl)


def kl_tree(
    params: PyTree, prior: PyTree = Normal(0.0, 1.0), *, key: jax.Array | None = None, num_samples: int = 1
) -> dict[str, jax.Array]:
    """KL(q_l || p_l) of every posterior node l, by its path: where the information sits, in nats.

    Paths are those of `by_path`. A node over a subtree has one KL, under the paths of all arrays that it stands for,
    separated by commas. Args and errors are those of `kl_loss`.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"b": jnp.zeros(3), "w": jnp.ones((2, 3))}, scale=1.0)
    >>> print({path: round(float(kl), 3) for path, kl in kl_tree(q, Normal(0.0, 1.0)).items()})
    {'b': 0.0, 'w': 3.0}
    """
    pairs = kl_pairs("kl_tree", params, prior, key)
    return {pair.path: pair.kl(num_samples) for pair in pairs}


def kl_is_exact(params: PyTree, prior: PyTree = Normal(0.0, 1.0)) -> dict[str, bool]:
    """Whether the KL of each posterior node has a closed form, by its path as in `kl_tree`.

    The others are sampled, but for a `Mixture` whose components have one: its KL is an upper bound.

    Args, errors: as in `kl_loss`.

    >>> from illia_fn import low_rank, matrix_normal
    >>> q = {"a": low_rank(jnp.ones((2, 3)), rank=1, key=jax.random.key(0))}
    >>> print(kl_is_exact(q), kl_is_exact(q, {"a": matrix_normal(jnp.ones((2, 3)))}))
    {'a': True} {'a': False}
    """
    pairs = kl_pairs("kl_is_exact", params, prior, None)
    for pair in pairs:
        check_fits(pair.name, pair.p, pair.q.like)
    return {pair.path: pair.is_exact for pair in pairs}


class Pair(NamedTuple):
    """A posterior node and its prior.

    Attributes:
        name: how errors name it.
        path: of the array that it stands for, or of all of them, separated by commas.
        q: the node.
        p: its prior; for a node over a subtree, one for all of it or a tree of priors.
        key: to sample with, once `index` is folded in.
        index: the place of the node among the leaves of the tree.
        hyperpriors: -log of those of a prior that was fitted to q, in nats.
    """

    name: str
    path: str
    q: Any
    p: PyTree
    key: jax.Array | None
    index: int
    hyperpriors: Sequence[jax.Array] = ()

    def kl(self, num_samples: int) -> jax.Array:
        """KL(q || p), a scalar."""
        key = self.key if self.key is None or self.is_exact else jax.random.fold_in(self.key, self.index)
        return kl_of_node(self.name, self.q, self.p, key, num_samples)

    def entropy(self, num_samples: int) -> jax.Array:
        """H(q), or what the KL has in its place: a lower bound, or an estimate from the same draws."""
        if self.q.has_entropy or upper_bound(self.q, self.p) is not None:
            return self.q.entropy()
        assert self.key is not None
        q = self.q.widened()
        return -expectation(q.log_prob, q, jax.random.fold_in(self.key, self.index), num_samples)

    @property
    def is_exact(self) -> bool:
        """Whether there is a closed form."""
        return closed_form(self.q, self.p) is not None

    def kl_of_each(self) -> jax.Array | None:
        """KL(q_i || p_i) of each number; None if it is sampled, or the node or its prior is not element-wise."""
        if not (self.is_exact and getattr(self.q, "elementwise", False) and getattr(self.p, "elementwise", False)):
            return None
        check_fits(self.name, self.p, self.q.mean)
        shape = np.shape(self.q.mean)
        q, p = jax.tree.map(lambda field: jnp.broadcast_to(jnp.asarray(field), shape).ravel(), (self.q, self.p))
        return jax.vmap(lambda q, p: self._replace(q=q, p=p).kl(1))(q, p).reshape(shape)

    @property
    def partner(self) -> Hashable:
        """Joined nodes with equal partners have one prior, or posteriors for priors that can be joined likewise."""
        fields = jax.tree.leaves(self.p)
        if closed_form(self.q, self.p) is kl_normal_normal:
            if isinstance(self.p, Gaussian) and np.shape(self.p.mean) == np.shape(self.q.mean):
                return Gaussian, *[jnp.result_type(field) for field in fields]
            if isinstance(self.p, Normal) and not any(np.shape(field) for field in fields):
                return Normal, *[field if isinstance(field, (int, float)) else id(field) for field in fields]
        return object()  # a form or a prior of someone else's may go by the shape of one leaf


def kl_pairs(caller: str, params: PyTree, prior: PyTree, key: jax.Array | None) -> list[Pair]:
    """One for each posterior node, in the order of the tree."""
    if key is not None:
        check_key(caller, key)
    check_nodes(caller, params)
    arrays = like(params)  # a prior may tell apart the arrays that one node stands for
    prior = jax.tree.map(in_known_form, prior, is_leaf=_is_prior_leaf)
    # by number: equal objects may be two priors, and one object becomes two where a tree passes through jit
    priors, of_priors = jax.tree.flatten(prior, is_leaf=_is_prior_leaf)
    numbered = of_priors.unflatten(range(len(priors)))
    numbers = iter(broadcast_prefix(caller, "prior", numbered, arrays, None, _is_prior_leaf))
    paths = iter(path for path, _ in leaves_by_path(arrays))
    pairs = []
    for index, (path, q) in enumerate(leaves_with_path(params, is_posterior)):
        structure = jax.tree.structure(q.like if is_posterior(q) else q)
        mine = [(next(paths), next(numbers)) for _ in range(structure.num_leaves)]
        if is_posterior(q):
            own_paths, own = map(list, zip(*mine, strict=True))
            p = priors[own[0]] if len(set(own)) == 1 else structure.unflatten([priors[number] for number in own])
            p, of_scales = fitted(q, p)
            pairs.append(Pair(f"{caller} at params{path}", ", ".join(own_paths), q, p, key, index, of_scales))
    return pairs


def total_kl(joined: Joined, pairs: list[Pair], num_samples: int) -> jax.Array:
    """KL(q || prior) of the whole tree in nats."""
    return total([pair.kl(num_samples) for node, group in _groups(joined) for pair in _by_prior(node, group, pairs)])


def hyperpriors(pairs: list[Pair]) -> list[jax.Array]:
    """-log of the hyperpriors of all that was fitted to q, in nats."""
    return [nats for pair in pairs for nats in pair.hyperpriors]


def log_prior(joined: Joined, pairs: list[Pair], w: list[PyTree]) -> jax.Array:
    """log p(w) in nats, at one draw for each joined node."""
    terms = []
    for (node, group), draw in zip(_groups(joined), w, strict=True):
        joined_pairs = _by_prior(node, group, pairs)
        pieces = [draw]
        if len(joined_pairs) > 1:
            joined_pairs = [pairs[index] for index in group]
            pieces = split(draw, tuple(np.shape(pair.q.mean) for pair in joined_pairs))
        terms += [log_prior_of_node(pair.name, pair.p, piece) for pair, piece in zip(joined_pairs, pieces, strict=True)]
    return total(terms)


def _groups(joined: Joined) -> Iterator[tuple[Any, list[int]]]:
    return zip(joined.nodes, joined.groups, strict=True)


def _by_prior(node: Any, group: list[int], pairs: list[Pair]) -> list[Pair]:
    """A joined node and its joined prior, or one such pair for each of several priors."""
    partners: dict[Hashable, list[Pair]] = {}
    for pair in [pairs[index] for index in group]:
        partners.setdefault(pair.partner, []).append(pair)
    nodes = [node] if len(partners) == 1 else [join([pair.q for pair in some]) for some in partners.values()]
    return [
        some[0]._replace(q=q, p=join([pair.p for pair in some]) if isinstance(some[0].p, Gaussian) else some[0].p)
        for q, some in zip(nodes, partners.values(), strict=True)
    ]


def _is_prior_leaf(node: Any) -> bool:
    return node is None or is_prior(node)
