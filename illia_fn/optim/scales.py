"""Means and scales of a posterior are learned at rates of their own."""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from illia_fn._base.checks import check_scale
from illia_fn._base.trees import PyTree
from illia_fn.posteriors.foreign import ForeignPosterior
from illia_fn.posteriors.posterior import is_posterior

_MEANS = ("loc", "deterministic")
_BASES = ("row_basis", "column_basis")  # orthogonal, and so no longer if a turn of them is made shorter


def labels(q: PyTree) -> PyTree:
    """What each array of a posterior tree is: "loc", "rho" or "deterministic", for `optax.multi_transform`.

    "loc" are means, and all that a distribution of another library is given by, of which means are not told apart.
    "rho" is everything else that families of this library have, but for the bases of `Eigenbasis`, which no loss has a
    gradient by: they are "deterministic". In a family of your own every array has the name of its field, and a scale is
    whatever is not called "loc".

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
        if isinstance(node, ForeignPosterior):
            return jax.tree.map(lambda _: "loc", node)
        is_ours = type(node).__module__.startswith("illia_fn.")
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: labels(leaf) if is_posterior(leaf) else _label(path[0], is_ours=is_ours),
            node,
            is_leaf=lambda leaf: is_posterior(leaf) and leaf is not node,  # the components of a mixture
        )

    return jax.tree.map(of_node, q, is_leaf=is_posterior)


def _label(key: Any, *, is_ours: bool) -> str:
    name = key.name if isinstance(key, jax.tree_util.GetAttrKey) else str(key)
    if is_ours and name in _BASES:
        return "deterministic"
    return "rho" if is_ours and name != "loc" else name


def slow_scales(factor: ArrayLike = 0.2) -> optax.GradientTransformation:
    """Multiply the updates of all scales, what is not the mean of its node, by a factor; place it last in a chain.

    With Adam, whose updates do not depend on the size of the gradient, that is a learning rate of `factor` times that
    of the means, also with weight decay or a clipped gradient before it. The gradient of a scale is the noisiest of a
    step, and scales that grow before the means have found their place drown them: within 1500 steps
    slow scales made better predictions on twelve of thirteen networks, with a far larger KL (`benchmarks/defaults.py`).

    How far scales get is then a matter of the schedule: under Adam rho moves by hardly more than factor * sum of the
    rates. That is 1.5 for 1500 steps of a cosine from 1e-2, from softplus(rho) = 0.05 to 0.2; to the prior's 1 it takes
    3500 steps. A `summary` of q shows where they are: scales that are all alike come from the schedule.

    Args:
        factor: positive.

    Raises:
        ValueError: if the factor is not positive and finite; from the transformation's `init`, if the parameters have
            no posterior node, as behind `optax.flatten`.

    >>> optimizer = optax.chain(optax.adam(optax.cosine_decay_schedule(1e-2, 1000)), slow_scales())
    """
    check_scale("slow_scales", factor, "factor")

    def init(params: PyTree) -> optax.EmptyState:
        if set(jax.tree.leaves(labels(params))) <= set(_MEANS):
            raise ValueError(
                "slow_scales: the parameters have no scale to slow down. Pass a posterior tree to init, and leave out "
                "what flattens it."
            )
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        slower = jax.tree.map(lambda u, label: u if label in _MEANS else factor * u, updates, labels(updates))
        return slower, state

    return optax.GradientTransformation(init, update)
