"""What models of frameworks are checked for: their parameters, their state, and the keywords of their calls."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from illia_fn._base.checks import describe
from illia_fn._base.trees import PyTree, is_floating, leaves_with_path
from illia_fn.posteriors.posterior import is_posterior


def check_floating(caller: str, name: str, params: PyTree) -> None:
    """Parameters are floating-point arrays, and at least one; no posterior yet."""
    leaves = leaves_with_path(params, is_posterior)
    if not leaves:
        raise ValueError(
            f"{caller}: {name} has no leaves, got {params!r}. Pass floating-point arrays, such as the parameters of an "
            "initialised model."
        )
    for path, leaf in leaves:
        if is_posterior(leaf):
            raise ValueError(
                f"{caller}: {name}{path} is a posterior node ({type(leaf).__name__}), and a model has parameters. "
                "Pass plain arrays, such as illia_fn.mean(q), and give model.params a posterior."
            )
        if not is_floating(leaf):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(
                f"{caller}: {name}{path} is of type {kind}, and parameters must be floating-point arrays. Keep all "
                "else in the model or in its state."
            )


def call_keywords(caller: str, train: Any, evaluate: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of a model's call, for training and for evaluation."""
    for name, keywords in (("train", train), ("evaluate", evaluate)):
        if keywords is not None and not isinstance(keywords, dict):
            raise TypeError(
                f"{caller}: {name} must be a dict of keyword arguments of the model's call, such as "
                f'{{"deterministic": False}}, got {describe(keywords)}.'
            )
    return train or {}, evaluate or {}


def check_options(objective: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse options that the objective does not take, where its signature tells."""
    known = inspect.signature(objective, follow_wrapped=False).parameters.values()  # a wrapper may take more
    names = [one.name for one in known if one.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(names) == len(known) and (unknown := [name for name in options if name not in names]):
        name = getattr(getattr(objective, "func", objective), "__name__", repr(objective))  # of a functools.partial
        raise TypeError(
            f"FunctionalModel.loss: {name} does not take {', '.join(unknown)}. It takes {', '.join(names[1:])}."
        )


def check_like(what: str, expected: PyTree, state: PyTree, remedy: str, *, dtypes: bool = False) -> None:
    """Refuse another structure, other shapes and, if asked to, other dtypes."""
    structures = jax.tree.structure(expected), jax.tree.structure(state)
    if structures[0] != structures[1]:
        expected_text, text = map(_short, structures)
        where = _difference(expected, state)
        raise ValueError(f"{what} {where}must have the structure {expected_text}, got {text}. {remedy}")
    for (path, like), leaf in zip(leaves_with_path(expected), jax.tree.leaves(state), strict=True):
        if jnp.shape(like) != jnp.shape(leaf):
            raise ValueError(f"{what} must have shape {jnp.shape(like)} at {path}, got {jnp.shape(leaf)}. {remedy}")
        types = [jnp.result_type(each) for each in (like, leaf)] if dtypes else ["", ""]
        if types[0] != types[1]:
            raise ValueError(f"{what} must be of dtype {types[0]} at {path}, got {types[1]}. {remedy}")


def _difference(expected: PyTree, given: PyTree) -> str:
    """The first path that only one of them has, as the beginning of a sentence."""
    ours, theirs = ([path for path, _ in leaves_with_path(tree)] for tree in (expected, given))
    missing, more = (
        next((path for path in some if path not in others), None)
        for some, others in ((ours, set(theirs)), (theirs, set(ours)))
    )
    if missing is not None:
        return f"has nothing at {missing or 'its root'}: it "
    return f"has something at {more or 'its root'}: it " if more is not None else ""


def _short(structure: Any) -> str:
    """The beginning of a structure: that of a large model fills pages."""
    text = str(structure)
    return text if len(text) <= 160 else f"{text[:160]} ..."
