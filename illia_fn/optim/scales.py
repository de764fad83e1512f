"""Means and scales of a posterior are learned at rates of their own."""

from typing import Any, Literal

import jax
import optax
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale
from illia_fn._base.trees import PyTree
from illia_fn.posteriors.posterior import is_posterior

Label = Literal["loc", "rho", "deterministic"]


def labels(q: PyTree) -> PyTree:
    """What each array of a posterior tree is: "loc", "rho" or "deterministic", for `optax.multi_transform`.

    In a family of your own every array has the name of its field, and a scale is whatever is not called "loc".

    Args:
        q: a posterior tree.

    Returns:
        A tree of strings, of the structure of q.

    >>> import jax.numpy as jnp
    >>> from illia_fn import mean_field
    >>> q = {"body": jnp.ones(3), "head": mean_field(jnp.ones(2), scale=0.1)}
    >>> print(labels(q))
    {'body': 'deterministic', 'head': Gaussian(loc='loc', rho='rho')}
    >>> rates = {"loc": optax.adam(1e-2), "rho": optax.adam(2e-3), "deterministic": optax.set_to_zero()}
    >>> optimizer = optax.multi_transform(rates, labels)  # with a frozen body
    """

    def of_node(node: Any) -> Any:
        if not is_posterior(node):
            return "deterministic"
        return jax.tree_util.tree_map_with_path(lambda path, _: _field(path[0]), node)

    return jax.tree.map(of_node, q, is_leaf=is_posterior)


def _field(key: Any) -> str:
    return key.name if isinstance(key, jax.tree_util.GetAttrKey) else str(key)


def slow_scales(factor: ArrayLike = 0.2) -> optax.GradientTransformation:
    """Multiply the updates of all scales, what is not the mean of its node, by a factor; place it last in a chain.

    With Adam, whose updates do not depend on the size of the gradient, that is a learning rate of `factor` times that
    of the means. Scales that settle more slowly than the means made the better posteriors on every network that was
    tried (`benchmarks/defaults.py`): their gradients are noisy, and scales that grow before the means have found their
    place drown them.

    Args:
        factor: positive.

    Raises:
        ValueError: if the factor is not positive and finite.

    >>> optimizer = optax.chain(optax.adam(optax.cosine_decay_schedule(1e-2, 1000)), slow_scales())
    """
    check_scale("slow_scales", factor, "factor")

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        kept = ("loc", "deterministic")
        slower = jax.tree.map(lambda u, label: u if label in kept else factor * u, updates, labels(updates))
        return slower, state

    return optax.GradientTransformation(init, update)
