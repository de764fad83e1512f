"""What a coupling does with each leaf, as a table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from illia_fn._base.trees import PyTree
from illia_fn.coupling._plan import Coupling, LeafPlan
from illia_fn.coupling._transform import Coupled


class Explanation(NamedTuple):
    """A strategy for each posterior leaf, which prints as a table.

    Attributes:
        coupling: the coupling that is explained.
        leaves: for each leaf its path, shape, strategy, and why.
    """

    coupling: Coupling
    leaves: tuple[LeafPlan, ...]

    def __str__(self) -> str:
        rows = [("leaf", "shape", "strategy", "why")]
        rows += [(leaf.path, _text(leaf.shape), leaf.strategy, leaf.why) for leaf in self.leaves]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([lines[0], "-|-".join("-" * width for width in widths), *lines[1:]])


def _text(shape: tuple[Any, ...]) -> str:
    """A shape, or several."""
    return ", ".join(map(str, shape)) if any(isinstance(part, tuple) for part in shape) else str(shape)


def explain_coupling(
    apply_fn: Callable[..., Any],
    q: PyTree,
    x: PyTree,
    *,
    coupling: Coupling = "decorrelated",
    needs_key: bool = False,
) -> Explanation:
    """Which strategy each leaf of q gets, and why: see `decorrelate`.

    Args:
        apply_fn, q, x, coupling, needs_key: as in `decorrelate`; only the shapes of x matter.

    Returns:
        An `Explanation`: print it, or read its `leaves`.

    Raises:
        ValueError: as the function that `decorrelate` returns.

    >>> import jax.numpy as jnp
    >>> from illia_fn import mean_field
    >>> q = mean_field({"embed": jnp.ones((9, 4)), "head": jnp.ones((4, 2)), "tau": jnp.ones(())}, scale=0.1)
    >>> def apply_fn(w, tokens):
    ...     return w["embed"][tokens].mean(axis=1) @ w["head"] * jnp.exp(w["tau"])
    >>> print(explain_coupling(apply_fn, q, jnp.zeros((3, 5), int)))
    leaf      | shape  | strategy      | why
    ----------|--------|---------------|----------------------------------------------------------------
    ['embed'] | (9, 4) | flipout       | linear in every use; signs along axes 1
    ['head']  | (4, 2) | local_reparam | an element reaches one output of an example
    ['tau']   | ()     | per_example   | a draw is no larger than the activations it meets, element-wise
    """
    key = jax.random.key(0) if needs_key else None
    plan = Coupled.of("explain_coupling", apply_fn, q, x, key, coupling).plan
    return Explanation(coupling, tuple(plan.leaves))
