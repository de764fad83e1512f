"""What a coupling does with each leaf, and whether the outputs are linear in it, as tables."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from illia_fn._base.checks import check_callable
from illia_fn._base.trees import PyTree
from illia_fn.coupling._linearity import LeafLinearity, linearity
from illia_fn.coupling._plan import LeafPlan
from illia_fn.coupling._strategies import Coupling
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
        rows = [(leaf.path, _text(leaf.shape), leaf.strategy, leaf.why) for leaf in self.leaves]
        return _table(("leaf", "shape", "strategy", "why"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    first, *lines = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
    return "\n".join([first, "-|-".join("-" * width for width in widths), *lines])


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
    leaf  | shape  | strategy      | why
    ------|--------|---------------|----------------------------------------------------------------
    embed | (9, 4) | flipout       | linear in every use; signs along axes 1
    head  | (4, 2) | local_reparam | an element reaches one output of an example
    tau   | ()     | per_example   | a draw is no larger than the activations it meets, element-wise
    """
    key = jax.random.key(0) if needs_key else None
    plan = Coupled.of("explain_coupling", apply_fn, q, x, key, coupling).plan
    return Explanation(coupling, tuple(plan.leaves))


class LinearityExplanation(NamedTuple):
    """Whether the outputs are linear in each posterior leaf, which prints as a table.

    Attributes:
        leaves: for each leaf its path, shape, whether they are, and why not or what its variance takes.
    """

    leaves: tuple[LeafLinearity, ...]

    def __str__(self) -> str:
        rows = [
            (leaf.path, _text(leaf.shape), "linear" if leaf.is_linear else "not linear", leaf.why)
            for leaf in self.leaves
        ]
        return _table(("leaf", "shape", "outputs", "why"), rows)


def explain_linearity(
    apply_fn: Callable[..., Any], q: PyTree, x: PyTree, *, needs_key: bool = False
) -> LinearityExplanation:
    """Whether the outputs are linear in each leaf of q, and why not: what `analytic_elbo_loss` needs.

    Linear is meant up to a constant. A leaf whose product with another one is in the outputs is not linear; leave out
    one of the two.

    Args:
        apply_fn, q, x, needs_key: as in `decorrelate`; only the shapes of x matter. Examples may interact.

    Returns:
        A `LinearityExplanation`: print it, or read its `leaves`.

    >>> import jax.numpy as jnp
    >>> from illia_fn import mean_field
    >>> q = mean_field({"hidden": jnp.ones((4, 3)), "bias": jnp.ones(2), "head": jnp.ones((3, 2))}, scale=0.1)
    >>> def apply_fn(w, x):
    ...     return jnp.tanh(x @ w["hidden"]) @ w["head"] + w["bias"]
    >>> print(explain_linearity(apply_fn, q, jnp.ones((5, 4))))
    leaf   | shape  | outputs    | why
    -------|--------|------------|-----------------------------------
    bias   | (2,)   | linear     | where the others are deterministic
    head   | (3, 2) | linear     | where the others are deterministic
    hidden | (4, 3) | not linear | tanh: not linear in it
    """
    key = jax.random.key(0) if needs_key else None
    check_callable("explain_linearity", "apply_fn", apply_fn)
    return LinearityExplanation(tuple(linearity(apply_fn, q, x, key)))
