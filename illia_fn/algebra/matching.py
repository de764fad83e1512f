"""The node of another family that is nearest to a posterior: of the same mean, and what it holds of the covariance."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.numerics import widest_dtype
from illia_fn._base.trees import PyTree
from illia_fn.algebra._factoring import (
    kronecker_of_dense,
    kronecker_of_variances,
    low_rank_of_dense,
    tied,
    with_spare_directions,
)
from illia_fn.algebra._nodes import (
    FAMILIES,
    Place,
    check_has_nodes,
    full_of,
    gaussian_of,
    marginals_by_array,
    places_of,
    raw_of_triangle,
    repeated,
    with_nodes,
)
from illia_fn.engine._eager import compiled_once
from illia_fn.kl.full import dense
from illia_fn.kl.independent import INDEPENDENT
from illia_fn.kl.lowrank import form_of, rank_of
from illia_fn.posteriors._factors import Marginals, Triangle, positive_qr
from illia_fn.posteriors._flat import size_of, unravel
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.lowrank import LowRank
from illia_fn.posteriors.matrix import MatrixNormal
from illia_fn.posteriors.patterns import Constructor, family_tree
from illia_fn.posteriors.posterior import mean
from illia_fn.posteriors.tied import KTied


def moment_match(q: PyTree, families: Mapping[str, Constructor]) -> PyTree:
    """The posterior tree in which what a pattern names is of another family: the nearest one, in KL(q || .).

        min_p KL(q || p) over a family:  E_p[w] = E_q[w],  and Cov_p[w] = Cov_q[w] as far as it holds one

    Patterns and constructors are those of `posterior_tree`, and so a richer family starts where a simpler one ended, a
    joint one over what were many nodes, or a simpler one where a richer one ended:

        q = moment_match(q, {"head": full_covariance})

    A constructor says the family, its rank, and which axis is that of the outputs. Its scale is not used.

    - `mean_field`: the marginals of each number.
    - `full_covariance`: all of the covariance.
    - `low_rank`: exactly, from as many directions; else maximum-likelihood factor analysis (Joreskog 1967), which takes
      the square of the memory. Every variance is exact. Directions that q has no use for, from fewer of them or from
      independent numbers, start as `low_rank` starts them, with a tenth of what the others leave of a variance, as
      directions of 0 would stay so.
    - `matrix_normal`: the nearest Kronecker product (Dutilleul 1999, The MLE algorithm for the matrix normal
      distribution), a fixed point of rows and columns, exact where q is one. Of a joint node it takes the square of the
      memory.
    - `k_tied`: the nearest scales u_i v_j, over columns that start apart, as those of `k_tied` do.

    Args:
        q: a posterior tree. What no pattern names stays as it is.
        families: patterns of paths of the parameters, each with a constructor, as in `posterior_tree`.

    Returns:
        A posterior tree.

    Raises:
        ValueError: without posterior nodes; for a pattern that names a part of a joint node alone; for a family of your
            own, other than to `mean_field`; and what `posterior_tree` raises.
        TypeError: for a pattern that names what is deterministic, or a family that is not one of these.

    >>> from illia_fn import full_covariance, mean_field, stddev
    >>> import jax.numpy as jnp
    >>> q = mean_field({"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}, scale=0.1)
    >>> rich = moment_match(q, {"head": full_covariance})
    >>> print(type(rich["head"]).__name__, rich["head"].tril.shape, stddev(rich)["head"]["bias"].round(3))
    FullCovariance (9, 9) [0.1 0.1 0.1]
    """
    caller = "moment_match"
    check_has_nodes(caller, q)
    arrays = jax.tree.leaves(mean(q))
    sources = places_of(q)
    targets = [place for place in places_of(family_tree(caller, mean(q), families)) if place.is_posterior]
    made = {place.keys: place.node for place in sources if place.is_posterior}
    for target in targets:
        overlapping = [place for place in sources if place.start < target.stop and target.start < place.stop]
        for place in overlapping:
            _check_source(place, targets)
            made.pop(place.keys, None)
        made[target.keys] = _matched(Match.of(target, overlapping, arrays))
    return with_nodes(mean(q), made)


def _check_source(place: Place, targets: list[Place]) -> None:
    if not place.is_posterior:
        raise TypeError(
            f"moment_match: the patterns name q{place.path}, which is deterministic. Leave it out, or give it a "
            "posterior by posterior_tree."
        )
    covered = sum(max(0, min(place.stop, at.stop) - max(place.start, at.start)) for at in targets)
    if covered < place.stop - place.start:
        raise ValueError(
            f"moment_match: q{place.path} is one {type(place.node).__name__}, and the patterns name a part of it "
            "alone, so that the rest would be cut off. Name all of it."
        )


class Match(NamedTuple):
    """What becomes one node.

    Attributes:
        path: where it is.
        template: a node of the family, rank and arrays that are asked for.
        nodes, arrays: the nodes that tell the arrays, one for each, and these; maybe of more arrays than the template.
        chosen: the numbers of the template among those of the arrays.
    """

    path: str
    template: Any
    nodes: list[Any]
    arrays: list[Any]
    chosen: slice

    @staticmethod
    def of(target: Place, sources: list[Place], arrays: list[Any]) -> "Match":
        start, stop = sources[0].start, sources[-1].stop
        first = size_of(arrays[start : target.start])
        chosen = slice(first, first + size_of(arrays[target.start : target.stop]))
        return Match(target.path, target.node, repeated(sources), arrays[start:stop], chosen)

    @property
    def dtype(self) -> np.dtype:
        """That of the computation."""
        return widest_dtype((self.arrays, self.nodes))

    @property
    def independent(self) -> bool:
        """Whether all numbers are."""
        return all(isinstance(node, INDEPENDENT) for node in self.nodes)

    def marginals(self) -> Marginals:
        """Of each of the P numbers."""
        found = marginals_by_array(self.nodes, self.arrays, self.dtype)
        return Marginals(*[field[self.chosen] for field in found])

    def triangle(self) -> tuple[jax.Array, Triangle]:
        """The mean and the root of the covariance of all P numbers."""
        loc, root = dense(self.nodes, self.arrays)
        if len(loc) > self.chosen.stop - self.chosen.start:
            found = positive_qr(root.matrix[self.chosen].T)[1].T
            loc, root = loc[self.chosen], Triangle(found, jnp.log(jnp.diagonal(found)))
        return loc, root


def _matched(match: Match) -> Any:
    if all(node is match.nodes[0] for node in match.nodes) and _is_of_form(match.nodes[0], match.template):
        return match.nodes[0]
    return compiled_once(partial(_nearest, match))


def _nearest(match: Match) -> Any:
    template = match.template
    if isinstance(template, Gaussian):
        return gaussian_of(template.loc, *match.marginals())
    for node in match.nodes:
        if not isinstance(node, FAMILIES):
            raise ValueError(
                f"moment_match: q{match.path} is a {type(node).__name__}, of which it knows the mean and the standard "
                f"deviations alone, and not how it is a {type(template).__name__}. Match it with mean_field."
            )
    if isinstance(template, FullCovariance):
        return full_of(template.loc, *match.triangle())
    if isinstance(template, LowRank):
        return _low_rank(match)
    if isinstance(template, (MatrixNormal, KTied)):
        return _matrix(match)
    raise TypeError(
        f"moment_match: the family of {match.path} must be mean_field, full_covariance, low_rank, matrix_normal or "
        f"k_tied, got one that makes a {type(template).__name__}."
    )


def _is_of_form(node: Any, template: Any) -> bool:
    """Whether there is nothing to do."""
    same = type(node) is type(template) and jax.tree.structure(node) == jax.tree.structure(template)
    return same and [np.shape(x) for x in jax.tree.leaves(node)] == [np.shape(x) for x in jax.tree.leaves(template)]


def _low_rank(match: Match) -> LowRank:
    template, blocks = match.template, list({id(node): node for node in match.nodes}.values())
    held = all(isinstance(node, (*INDEPENDENT, LowRank)) for node in blocks)
    rank = rank_of(match.nodes, match.arrays) if held else None
    if rank is not None and rank <= template.factor.shape[1]:
        form = form_of(match.nodes, match.arrays, rank)
        loc, scale, log_scale, factor = (
            field[match.chosen] for field in (form.loc, form.scale, form.log_scale, form.factor * form.scale[:, None])
        )
    else:
        loc, root = match.triangle()
        scale, log_scale, factor = low_rank_of_dense(root, template.factor.shape[1])
    rho, factor = with_spare_directions(scale, log_scale, factor, template)
    return LowRank(unravel(loc, template.loc), rho.astype(loc.dtype), factor.astype(loc.dtype))


def _matrix(match: Match) -> MatrixNormal | KTied:
    template = match.template
    is_matrix = isinstance(template, MatrixNormal)
    shape = template.matrix_shape if is_matrix else (len(template.row_rho), len(template.column_rho))
    if match.independent or not is_matrix:
        rows, columns = kronecker_of_variances(match.marginals(), shape)
    else:
        rows, columns = kronecker_of_dense(match.triangle()[1], shape)
    raw = [raw_of_triangle(triangle) for triangle in (rows, columns)]
    fields = raw if is_matrix else tied(template, rows, columns)
    return type(template)(template.loc, *[field.astype(template.loc.dtype) for field in fields])
