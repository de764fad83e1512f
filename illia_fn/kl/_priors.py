"""One prior for all that a posterior node stands for, or a tree of them: what it must be, and its density."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import describe
from illia_fn._base.numerics import at_least_float32, total
from illia_fn._base.trees import PyTree, leaves_by_path, leaves_with_path
from illia_fn.posteriors.posterior import is_posterior
from illia_fn.priors._foreign import has_density
from illia_fn.priors.empirical import EmpiricalBayes


def is_prior(p: Any) -> bool:
    """Whether it is one prior, and no tree of them."""
    # of its type: a flax.nnx.Param has the attributes of what it holds, such as those of a posterior
    return hasattr(type(p), "log_prob") or isinstance(p, EmpiricalBayes)


def fitted(q: Any, p: PyTree) -> tuple[PyTree, list[jax.Array]]:
    """A prior whose scales are fitted to q, and their -log hyperpriors in nats; others as they are."""
    priors, structure = jax.tree.flatten(p, is_leaf=is_prior)
    if not (is_posterior(q) and any(isinstance(prior, EmpiricalBayes) for prior in priors)):
        return p, []
    moments = zip(priors, structure.flatten_up_to(q.mean), structure.flatten_up_to(q.stddev), strict=True)
    fits = [each.fit(mean, sd) if isinstance(each, EmpiricalBayes) else (each, None) for each, mean, sd in moments]
    return structure.unflatten([prior for prior, _ in fits]), [nats for _, nats in fits if nats is not None]


class Block(NamedTuple):
    """A prior and the arrays, with their paths, that it is over: one, or those that a joint posterior stands for."""

    prior: Any
    arrays: list[Any]
    paths: list[str]


def blocks_of(p: PyTree, tree: PyTree, caller: str = "kl_divergence") -> list[Block]:
    """The arrays of what a posterior node stands for, in order, by their priors: one for all, or a tree of them."""
    arrays, structure = leaves_with_path(tree), jax.tree.structure(tree)
    priors = [p] * len(arrays) if is_prior(p) else structure.flatten_up_to(p)
    if is_joint(p) and jax.tree.structure(p.like) != structure:
        texts = [_arrays_of(each) for each in (p.like, tree)]
        _refuse(caller, p, *texts if texts[0] != texts[1] else (jax.tree.structure(p.like), structure))
    blocks, start = [], 0
    while start < len(arrays):
        prior = priors[start]
        count = len(jax.tree.leaves(prior.like)) if is_joint(prior) else 1
        paths, group = map(list, zip(*arrays[start : start + count], strict=True))
        if is_joint(prior):
            shapes = [list(map(np.shape, leaves)) for leaves in (jax.tree.leaves(prior.like), group)]
            if shapes[0] != shapes[1] or any(each is not prior for each in priors[start : start + count]):
                _refuse(caller + paths[0], prior, f"arrays of shapes {shapes[0]}", shapes[1])
        blocks.append(Block(prior, group, paths))
        start += count
    return blocks


def is_joint(p: Any) -> bool:
    """Whether it is a posterior node that is not element-wise."""
    return is_posterior(p) and not p.elementwise


def _refuse(caller: str, p: Any, its: Any, ours: Any) -> None:
    raise ValueError(
        f"{caller}: the prior, of type {type(p).__name__}, must stand for what the posterior stands for: it is "
        f"over {its}, and the posterior over {ours}. Of the same arrays, a prior for each alone is "
        'illia_fn.moment_match(prior, {".*": illia_fn.mean_field}).'
    )


def _arrays_of(tree: PyTree) -> str:
    paths = [path for path, _ in leaves_by_path(tree)]
    if paths in ([], [""]):
        return "one array" if paths else "nothing"
    return ", ".join(map(repr, paths[:4])) + (f" and {len(paths) - 4} more arrays" if len(paths) > 4 else "")


def check_fits(caller: str, p: PyTree, tree: PyTree) -> None:
    """Every array has a prior whose parameters go with it."""
    for block in blocks_of(p, tree, caller):
        if not is_joint(block.prior):
            check_broadcast(caller + block.paths[0], np.shape(block.arrays[0]), block.prior)


def log_prior_of_node(caller: str, p: PyTree, w: PyTree) -> jax.Array:
    """log p(w) in nats, a scalar, of all that one posterior node stands for."""
    check_prior(caller, p)
    terms = []
    for prior, arrays, paths in blocks_of(p, jax.tree.map(at_least_float32, w), caller):
        if is_joint(prior):
            terms.append(prior.log_prob(jax.tree.structure(prior.like).unflatten(arrays)))
        else:
            terms.append(_log_prior_of_array(caller + paths[0], prior, arrays[0]))
    return total(terms)


def _log_prior_of_array(caller: str, p: Any, w: jax.Array) -> jax.Array:
    check_broadcast(caller, np.shape(w), p)
    log_p = p.log_prob(w)
    if np.shape(log_p) not in ((), np.shape(w)):
        raise ValueError(
            f"{caller}: the prior's log_prob must be element-wise, or a scalar, the joint density: it has shape "
            f"{np.shape(log_p)} for w of shape {w.shape}."
        )
    return jnp.sum(log_p)


def check_prior(caller: str, p: PyTree) -> None:
    """It is a prior, or a tree of them."""
    for leaf in jax.tree.leaves(p, is_leaf=lambda leaf: leaf is None or is_prior(leaf)) or [p]:
        if not is_prior(leaf) or isinstance(leaf, type):
            raise TypeError(
                f"{caller}: the prior must have a log_prob, such as illia_fn.Normal(0.0, 1.0), got {describe(leaf)}."
                + _meant(leaf)
            )


def _meant(leaf: Any) -> str:
    if isinstance(leaf, (int, float)):
        return f" For that scale pass illia_fn.Normal(0.0, {leaf})."
    if isinstance(leaf, (jax.Array, np.ndarray)):
        return " For a prior around parameters pass jax.tree.map(lambda w: illia_fn.Normal(w, scale), params)."
    return ""


def check_broadcast(caller: str, shape: tuple[int, ...], p: Any) -> None:
    """The parameters of an element-wise prior are numbers, or have as many axes as w, each of the same size or 1."""
    fields = map(np.shape, jax.tree.leaves(p))
    for sizes in fields if getattr(p, "elementwise", False) else [tuple(getattr(p, "batch_shape", ()))]:
        if sizes and (
            len(sizes) != len(shape) or any(size not in (1, full) for size, full in zip(sizes, shape, strict=True))
        ):
            raise ValueError(
                f"{caller}: a prior parameter of shape {sizes} does not go with a posterior of shape {shape}. It must "
                "be a number, or have as many axes as the posterior, each of the same size or 1."
            )


def check_support(caller: str, p: PyTree) -> None:
    """The prior has a density everywhere on the real line, as far as it tells: elsewhere KL(q || p) is infinite."""
    for leaf in jax.tree.leaves(p, is_leaf=is_prior):
        if any(flags is not None and not np.all(flags) for flags in has_density(leaf, (-1e30, -0.3, 0.3, 1e30))):
            raise ValueError(
                f"{caller}: the prior {type(leaf).__name__} has no density on part of the real line, where the "
                "posterior has some, so KL(q || p) is infinite. Take the prior of an unconstrained parameter u, "
                'illia_fn.priors.constrained(prior, to="positive") or to=(low, high), and its forward(u) in apply_fn.'
            )


def names_of(p: PyTree) -> str:
    """The types of a prior, or of a tree of them."""
    leaves = jax.tree.leaves(p, is_leaf=is_prior)
    return ", ".join(dict.fromkeys(f"{type(leaf).__module__}.{type(leaf).__name__}" for leaf in leaves))
