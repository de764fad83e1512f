"""q_1 ... q_K / p^(K - 1): precisions add, and so do means weighted by them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from illia_fn._base.checks import concrete
from illia_fn._base.numerics import widest_dtype
from illia_fn._base.trees import PyTree
from illia_fn.algebra._gaussians import (
    Found,
    Removed,
    product_of_diagonals,
    product_of_low_ranks,
    product_of_triangles,
)
from illia_fn.algebra._nodes import (
    FAMILIES,
    Place,
    check_has_nodes,
    full_of,
    gaussian_of,
    marginals_by_array,
    places_of,
    repeated,
    with_nodes,
)
from illia_fn.engine._eager import compiled_once
from illia_fn.kl._priors import check_fits, check_prior, is_joint, is_prior
from illia_fn.kl.full import dense
from illia_fn.kl.independent import INDEPENDENT
from illia_fn.kl.loss import kl_pairs
from illia_fn.kl.lowrank import form_of, rank_of
from illia_fn.posteriors._factors import Marginals, Triangle
from illia_fn.posteriors._flat import unravel
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.lowrank import LowRank, LowRankForm
from illia_fn.posteriors.posterior import is_posterior, mean
from illia_fn.priors.normal import Normal


def product(*qs: PyTree, prior: PyTree | None = None) -> PyTree:
    """The normalised product of posteriors, with the prior that each of them holds counted once.

        q(w) = q_1(w) ... q_K(w) / p(w)^(K - 1) / Z

    Of Gaussians, precisions add, and so do means weighted by them. If each q_k is the posterior of its own share of the
    data under the prior p, the product is that of all data: exact for linear models with Gaussian noise, and else as
    good as the q_k. It is how what was learned on shards, or where data must stay, comes together without the data.
    Neiswanger, Wang & Xing 2014, Asymptotically exact, embarrassingly parallel MCMC, https://arxiv.org/abs/1311.4780;
    with the posterior of the last round as p it ends a round of partitioned variational inference, Ashman et al. 2022,
    https://arxiv.org/abs/2202.12275.

    What holds the product exactly, of nodes that may differ in family from tree to tree:

    - `Gaussian` and `KTied`: a `Gaussian`;
    - `LowRank` of R_1, ..., R_K directions, or one of them and nodes of independent numbers: a `LowRank` of
      R_1 + ... + R_K directions;
    - a `FullCovariance`, and anything over the same subtree: a `FullCovariance`.

    Args:
        qs: posterior trees of one model, K of them. What is deterministic in one is so, and the same, in all.
        prior: what every q_k was trained with: a `Normal`, a prefix tree of such, or a posterior tree. Without one the
            product is q_1 ... q_K: for parts that share the prior out, as `Normal(0.0, scale * K**0.5)` does.

    Returns:
        A posterior tree. Products of one tree are that tree.

    Raises:
        TypeError: for one list of posteriors in the place of several, or a prior among them.
        ValueError: without qs; for trees of other structures or shapes, or of deterministic leaves that differ; for
            nodes whose product is of none of the families; for a prior that is not Gaussian; where the prior, taken out
            K - 1 times, leaves no positive precision.

    >>> import jax.numpy as jnp
    >>> from illia_fn import Normal, mean_field
    >>> ones, twos = mean_field({"w": jnp.ones(1)}, scale=0.5), mean_field({"w": 2 * jnp.ones(1)}, scale=0.5)
    >>> q = product(ones, twos, prior=Normal(0.0, 1.0))  # precision 4 + 4 - 1, mean (4 + 8) / 7
    >>> print(f"precision {q['w'].stddev[0] ** -2:.2f}, mean {q['w'].loc[0]:.2f}")
    precision 7.00, mean 1.71
    """
    if not qs:
        raise ValueError("product: there must be at least one posterior tree, got none.")
    _check_are_trees(qs)
    _check_alike(qs)
    trees = [places_of(q) for q in qs]
    widest = _widest(trees)
    _check_deterministic(trees, widest)
    carrier = with_nodes(mean(qs[0]), {place.keys: place.node for place in widest})
    pairs = kl_pairs("product", carrier, prior, None)
    arrays = jax.tree.leaves(mean(qs[0]))
    made = {}
    for place, pair in zip(widest, pairs, strict=True):
        parts = [_parts(number, tree, place) for number, tree in enumerate(trees)]
        block = Block(pair.name, place.node.mean, arrays[place.start : place.stop], parts)
        removed = None if prior is None else _prior_of(block, pair.p, place.node)
        made[place.keys] = _product(block, removed) if len(qs) > 1 else place.node
    return with_nodes(mean(qs[0]), made)


Form = Callable[[list[Any], list[Any]], Any]


class Block(NamedTuple):
    """What is multiplied to one node.

    Attributes:
        name: how errors name it.
        like: what the node will stand for.
        arrays: the same, as a list.
        parts: for each tree, the node of each of the arrays.
    """

    name: str
    like: PyTree
    arrays: list[Any]
    parts: list[list[Any]]

    def forms(self, form: Form, prior: list[Any] | None, form_of_prior: Form | None = None) -> tuple[Any, ...]:
        """The factors, the prior that is taken out of them, and the dtype to compute in."""
        factors = [form(part, self.arrays) for part in self.parts]
        removed = None
        if prior is not None:
            removed = Removed(len(self.parts) - 1, (form_of_prior or form)(prior, self.arrays))
        return factors, removed, widest_dtype((self.arrays, self.parts))


def _product(block: Block, prior: list[Any] | None) -> Any:
    nodes = [node for part in block.parts for node in part]
    kinds = [*nodes, *(prior or [])]
    if all(isinstance(node, INDEPENDENT) for node in kinds):
        return _computed(
            block,
            lambda: product_of_diagonals(*block.forms(_marginals, prior)),
            lambda *law: gaussian_of(block.arrays[0], *law),
        )
    whole = [part[0] for part in block.parts if all(node is part[0] for node in part)]
    if any(isinstance(node, FullCovariance) for node in whole):
        return _computed(
            block,
            lambda: product_of_triangles(*block.forms(_triangles, prior)),
            lambda *law: full_of(block.like, *law),
        )
    if all(isinstance(node, (*INDEPENDENT, LowRank)) for node in nodes) and not any(map(is_joint, prior or [])):
        return _computed(
            block,
            lambda: product_of_low_ranks(*block.forms(_low_ranks, prior, _marginals)),
            lambda loc, rho, factor: LowRank(unravel(loc, block.like), rho, factor),
        )
    names = ", ".join(dict.fromkeys(type(node).__name__ for node in kinds))
    raise ValueError(
        f"{block.name}: the product of {names} is of none of the families. Make one of them a FullCovariance over all "
        "of this part first, by moment_match(q, {'...': full_covariance}), which takes the square of its size."
    )


def _computed(block: Block, product: Callable[[], Found], node_of: Callable[..., Any]) -> Any:
    """The node of a product, in one program where it is called outside of a jit."""

    def of_arrays() -> tuple[jax.Array, Any]:
        found = product()
        return found.left, node_of(*found.law)

    left, node = compiled_once(of_arrays)
    _check_left(block, left)
    return node


def _marginals(nodes: list[Any], arrays: list[Any]) -> Marginals:
    return marginals_by_array(nodes, arrays, widest_dtype((nodes, arrays)))


def _triangles(nodes: list[Any], arrays: list[Any]) -> tuple[jax.Array, Triangle]:
    return dense(nodes, arrays)


def _low_ranks(nodes: list[Any], arrays: list[Any]) -> LowRankForm:
    return form_of(nodes, arrays, rank_of(nodes, arrays))


def _check_left(block: Block, left: jax.Array) -> None:
    """What is left of the sum of the precisions, as a share of it in each direction, is positive."""
    known = concrete(left)
    if known is None:
        return
    smallest = np.min(known if known.ndim == 1 else np.linalg.eigvalsh(known.astype(np.float64)))
    if not smallest > 0:
        raise ValueError(
            f"{block.name}: the prior, taken out {len(block.parts) - 1} times, is more precise than all posteriors "
            f"together: it leaves {smallest:.3g} of their precision in one direction. Pass the prior that each of them "
            "was trained with, or train them longer: a posterior is narrower than its prior."
        )


def _check_are_trees(qs: tuple[PyTree, ...]) -> None:
    for number, q in enumerate(qs):
        if is_prior(q) and not is_posterior(q):
            raise TypeError(f"product: posterior number {number} is a {type(q).__name__}. Pass a prior as prior=.")
        check_has_nodes(f"product, of posterior number {number}", q)
    kinds = [jax.tree.structure(tree) for tree in qs[0]] if len(qs) == 1 and isinstance(qs[0], (list, tuple)) else []
    if len(kinds) > 1 and len(set(kinds)) == 1 and not hasattr(qs[0], "_fields"):
        raise TypeError(f"product: got one {type(qs[0]).__name__} of {len(kinds)} posteriors. Pass product(*qs).")


def _check_alike(qs: tuple[PyTree, ...]) -> None:
    likes = [jax.eval_shape(mean, q) for q in qs]
    for number, like in enumerate(likes):
        same = jax.tree.structure(like) == jax.tree.structure(likes[0])
        if not same or jax.tree.map(np.shape, like) != jax.tree.map(np.shape, likes[0]):
            shapes = [jax.tree.map(np.shape, tree) for tree in (likes[0], like)]
            text = f"{shapes[0]} and {shapes[1]}"
            raise ValueError(
                f"product: all posteriors must be over the same parameters, and those of number 0 and {number} are "
                f"not: they have shapes {text if len(text) < 400 else text[:400] + ' ...'}."
            )


def _widest(trees: list[list[Place]]) -> list[Place]:
    """The nodes that are in no other, in order: of those over the same arrays the first."""
    nodes = [place for tree in trees for place in tree if place.is_posterior]
    found: list[Place] = []
    for place in sorted(nodes, key=lambda place: (place.start, -place.stop)):
        if not (found and place.within(found[-1])):
            found.append(place)
    return found


def _parts(number: int, tree: list[Place], widest: Place) -> list[Any]:
    places = [place for place in tree if place.within(widest)]
    for place in places:
        if not place.is_posterior:
            raise ValueError(
                f"product: params{place.path} is deterministic in posterior number {number} and has a posterior in "
                "another. Leave it deterministic in all."
            )
        if not isinstance(place.node, FAMILIES):
            raise ValueError(
                f"product: params{place.path} is a {type(place.node).__name__} in posterior number {number}, whose "
                "precision is not known. Take one of the Gaussian families, such as those of moment_match."
            )
    return repeated(places)


def _check_deterministic(trees: list[list[Place]], widest: list[Place]) -> None:
    for number, tree in enumerate(trees):
        first = {place.start: place for place in trees[0]}
        for place in tree:
            if place.is_posterior or any(place.within(node) for node in widest):
                continue
            leaves = first[place.start].node, place.node
            one, other = (concrete(leaf) if hasattr(leaf, "shape") else None for leaf in leaves)
            if one is not None and other is not None and not np.array_equal(one, other):
                raise ValueError(
                    f"product: params{place.path} is deterministic and differs between posterior number 0 and "
                    f"{number}. Train all from the same frozen parameters, or give it a posterior."
                )


def _prior_of(block: Block, p: PyTree, node: Any) -> list[Any]:
    """The prior of each of the arrays, which is Gaussian."""
    check_prior(block.name, p)
    check_fits(block.name, p, node.mean)
    priors = [p] * len(block.arrays) if is_prior(p) else jax.tree.structure(node.mean).flatten_up_to(p)
    for prior in priors:
        if not isinstance(prior, (Normal, *FAMILIES)):
            raise ValueError(
                f"{block.name}: a prior that is taken out of a product must be Gaussian, got a {type(prior).__name__}. "
                "Train with a Normal, or with a posterior tree."
            )
    return priors
