"""Which part of a network has which family."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from illia_fn._base.checks import describe
from illia_fn._base.trees import PyTree, is_floating, path_of
from illia_fn.posteriors._leaves import copied, refuse_statistic, statistics_of
from illia_fn.posteriors.posterior import is_posterior, like

Constructor = Callable[[PyTree], PyTree]


def posterior_tree(params: PyTree, families: Mapping[str, Constructor]) -> PyTree:
    """The params tree in which each subtree that a pattern names has become what its constructor makes of it.

        posterior_tree(params, {
            "body/.*/kernel": matrix_normal,
            "body/.*/bias": mean_field,
            "head": partial(full_covariance, scale=0.1),
        })

    A pattern is a regular expression that matches the whole path of a leaf or of a subtree, as in `by_path`. Of matches
    within each other the outermost counts: "head" is all of the head, for one joint node, and "body/.*" each of the
    subtrees of the body by itself. What no pattern names stays as it is: deterministic.

    Args:
        params: the model's parameters.
        families: patterns, each with a function from a subtree to a posterior tree, such as `mean_field`,
            `full_covariance`, or a `functools.partial` with its options.

    Returns:
        A posterior tree, with a copy of what stays deterministic.

    Raises:
        ValueError: for a pattern that is no regular expression or matches nothing, for patterns that name the same
            subtree or one within the other; for a statistic of the model that would get a posterior; and what the
            constructors raise, with the path of the subtree.
        TypeError: for leaves under a pattern that are not floating-point arrays, or a constructor that returns no
            posterior.

    >>> from functools import partial
    >>> import jax.numpy as jnp
    >>> from illia_fn import full_covariance, mean_field, mean
    >>> params = {"body": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}, "head": {"kernel": jnp.ones((4, 1))}}
    >>> q = posterior_tree(params, {"body/kernel": mean_field, "head": partial(full_covariance, scale=0.1)})
    >>> print(type(q["body"]["kernel"]).__name__, type(q["head"]).__name__, q["body"]["bias"])
    Gaussian FullCovariance [0. 0. 0. 0.]
    """
    return family_tree("posterior_tree", params, families)


def family_tree(caller: str, params: PyTree, families: Mapping[str, Constructor]) -> PyTree:
    """`posterior_tree`, with errors in the name of its caller."""
    if not isinstance(families, Mapping) or not families:
        raise TypeError(
            f"{caller}: families must be a dict of patterns and constructors, such as {{'head/.*': mean_field}}, "
            f"got {describe(families)}."
        )
    chosen = _chosen(caller, params, {pattern: _compiled(caller, pattern, make) for pattern, make in families.items()})
    leaves, structure = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda path, _: path in chosen, is_leaf_takes_path=True
    )
    made = [
        _made(caller, path, chosen[path], families[chosen[path]], leaf) if path in chosen else copied(leaf)
        for path, leaf in leaves
    ]
    _refuse_statistics(
        caller, params, {path: node for (path, _), node in zip(leaves, made, strict=True) if path in chosen}
    )
    return structure.unflatten(made)


def refuse_unmatched(caller: str, pattern: str, paths: list[str]) -> None:
    """The error of a pattern that matches none of the paths, with those that are near."""
    near = difflib.get_close_matches(pattern, paths, n=4, cutoff=0.3)
    shown = ", ".join(map(repr, list(dict.fromkeys([*near, *paths]))[:8])) + (", ..." if len(paths) > 8 else "")
    of_subtree = any(re.fullmatch(pattern, path[: end.start()]) for path in paths for end in re.finditer("/", path))
    hint = " It names a subtree, whose leaves a pattern names that ends in '/.*'." if of_subtree else ""
    raise ValueError(
        f"{caller}: the pattern {pattern!r} matches no path of params as a whole. There are {shown}.{hint}"
    )


def compiled(caller: str, pattern: Any) -> re.Pattern[str]:
    """A regular expression."""
    if not isinstance(pattern, str):
        raise TypeError(f"{caller}: pattern must be a string, got {describe(pattern)}.")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{caller}: pattern must be a regular expression, got {pattern!r}: {error}.") from error


def _compiled(caller: str, pattern: Any, make: Any) -> re.Pattern[str]:
    if not callable(make):
        raise TypeError(
            f"{caller}: the family of {pattern!r} must be a function of a subtree, such as mean_field, got "
            f"{describe(make)}."
        )
    return compiled(caller, pattern)


def _chosen(caller: str, params: PyTree, patterns: Mapping[str, re.Pattern[str]]) -> dict[Any, str]:
    """The keys to the outermost subtrees that match, with their patterns."""
    leaves = [keys for keys, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_posterior)]
    chosen: dict[Any, str] = {}
    for pattern, expression in patterns.items():
        found = {}
        for keys in leaves:
            ways = [keys[:depth] for depth in range(len(keys) + 1)]
            at = next((way for way in ways if expression.fullmatch(path_of(way))), None)
            if at is None:
                continue
            found[at] = pattern
            other = next((chosen[way] for way in ways if way in chosen), None)
            if other is not None:
                raise ValueError(
                    f"{caller}: the patterns {other!r} and {pattern!r} both name {path_of(keys)!r}. Give each "
                    "part of params one family."
                )
        if not found:
            refuse_unmatched(caller, pattern, list(map(path_of, leaves)))
        chosen |= found
    return chosen


def _made(caller: str, keys: Any, pattern: str, make: Constructor, subtree: PyTree) -> PyTree:
    for inner, leaf in jax.tree_util.tree_leaves_with_path(subtree, is_leaf=is_posterior):
        if not (is_floating(leaf) or isinstance(leaf, float) or is_posterior(leaf)):
            raise TypeError(
                f"{caller}: the pattern {pattern!r} names {path_of((*keys, *inner))!r}, which holds no "
                f"floating-point numbers but {describe(leaf)}. Leave it out."
            )
    try:
        made = make(subtree)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{caller}: at {path_of(keys)!r}, by the pattern {pattern!r}: {error}") from error
    if not any(map(is_posterior, jax.tree.leaves(made, is_leaf=is_posterior))):
        raise TypeError(
            f"{caller}: the family of {pattern!r} must return a posterior tree, and returns none for "
            f"{path_of(keys)!r}, got {describe(made)}."
        )
    found, expected = (jax.tree.structure(jax.eval_shape(like, tree)) for tree in (made, subtree))
    if found != expected:
        raise TypeError(
            f"{caller}: the family of {pattern!r} must return what stands for {path_of(keys)!r} as it is, and returns "
            f"{type(made).__name__} of another structure. rank_one is of a whole model, and not of a part."
        )
    return made


def _refuse_statistics(caller: str, params: PyTree, made: Mapping[Any, PyTree]) -> None:
    """A constructor sees its subtree alone: what is above it tells the statistics of a model as well."""
    statistics = statistics_of(params)
    if not statistics:
        return
    nodes = {
        (*keys, *inner)
        for keys, tree in made.items()
        for inner, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_posterior)
        if is_posterior(node)
    }
    for keys, _ in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(keys)
        if path in statistics and any(keys[:depth] in nodes for depth in range(len(keys) + 1)):
            refuse_statistic(caller, path, statistics[path])
