"""q^(1/T): the same mean, and T times the covariance."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import check_temperature
from illia_fn._base.numerics import at_least_float32, log_softplus, raw_of_scale, softplus
from illia_fn._base.trees import PyTree
from illia_fn.algebra._nodes import FAMILIES, check_has_nodes
from illia_fn.posteriors.posterior import is_posterior

_ROOTS = ("rho", "factor", "tril", "row_rho", "row_tril")  # fields that scale a covariance by their square
_TRIANGLES = ("tril", "row_tril")


def tempered(q: PyTree, temperature: ArrayLike) -> PyTree:
    """q^(1/T), normalised: each node with its mean and T times its covariance.

        q_T(w) = q(w)^(1/T) / int q(u)^(1/T) du,    N(m, S) to N(m, T S)

    T < 1 is a colder posterior, nearer to its mean, T > 1 a warmer one. Of K copies of q the product is q at
    T = 1 / K, and q at T = K is one share of it. Nothing of a covariance is formed: a node stays of its family, and its
    standard deviations are right to the last digits that its fields can tell.

    Args:
        q: a posterior tree of the families of this library; deterministic leaves stay.
        temperature: T, a positive number.

    Returns:
        A posterior tree of the same structure and dtypes.

    Raises:
        ValueError: for a temperature that is not positive and finite, a tree without posterior nodes, or a node of a
            family of your own.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.ones(2)}, scale=0.1)
    >>> print(tempered(q, 4.0)["w"].stddev.round(3))
    [0.2 0.2]
    """
    check_temperature("tempered", temperature)
    check_has_nodes("tempered", q)
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: _tempered(jax.tree_util.keystr(keys), leaf, temperature), q, is_leaf=is_posterior
    )


def _tempered(path: str, node: Any, temperature: ArrayLike) -> Any:
    if not is_posterior(node):
        return node
    if not isinstance(node, FAMILIES):
        raise ValueError(
            f"tempered: q{path} is a {type(node).__name__}, of which it does not know how its covariance scales. Build "
            "that node yourself, and temper the others."
        )
    return type(node)(
        **{
            name: _scaled(name, jnp.asarray(field), temperature) if name in _ROOTS else field
            for name, field in vars(node).items()
        }
    )


def _scaled(name: str, field: jax.Array, temperature: ArrayLike) -> jax.Array:
    """The field of a root of the covariance times sqrt(T)."""
    wide = at_least_float32(field)
    root = jnp.sqrt(jnp.asarray(temperature).astype(wide.dtype))
    if name == "factor":
        return (root * wide).astype(field.dtype)
    raw = jnp.diagonal(wide) if name in _TRIANGLES else wide
    raw = raw_of_scale(root * softplus(raw), jnp.log(root) + log_softplus(raw))
    scaled = jnp.tril(root * wide, -1) + jnp.diag(raw) if name in _TRIANGLES else raw
    return scaled.astype(field.dtype)
