"""The distribution of y that a likelihood means: its mean, variance and draws, in a table by the likelihood."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp  # noqa: F401  (for the examples)

from illia_fn._base.checks import check_callable, describe


class Law(NamedTuple):
    """The distribution of y given what one network returned, with the parameters of a likelihood.

    Attributes:
        mean: E[y], (B, ...).
        variance: Var[y], in the shape of the mean.
        sample: sample(key), a draw of y, independent for all its elements, (B, ...).
        class_probs: of a likelihood of classes, their probabilities, (B, ..., C); else None.
        circular: whether y are angles: then mean is the mean direction, in radians, and variance the circular variance,
            1 - |E[exp(i y)]|, in [0, 1].
    """

    mean: jax.Array
    variance: jax.Array
    sample: Callable[[jax.Array], jax.Array]
    class_probs: jax.Array | None = None
    circular: bool = False


_LAWS: dict[Hashable, Callable[..., Law]] = {}


def register_law(loss_fn: Callable[..., jax.Array]) -> Callable[[Callable[..., Law]], Callable[..., Law]]:
    """Decorate f(outputs) -> `Law`, to add a likelihood to those that moments, draws and class probabilities know.

    `outputs` are those of one network; keywords of loss_fn that `functools.partial` has bound are passed on.

    >>> from illia_fn import predictive_moments
    >>> def exponential_nll(outputs, targets):
    ...     return jnp.exp(outputs) * targets - outputs
    >>> @register_law(exponential_nll)
    ... def _(log_rate):
    ...     scale = jnp.exp(-log_rate)
    ...     return Law(scale, scale**2, lambda key: scale * jax.random.exponential(key, scale.shape))
    >>> print(predictive_moments(exponential_nll, jnp.zeros((4, 2))).variance)
    [1. 1.]
    """

    def register(f: Callable[..., Law]) -> Callable[..., Law]:
        _LAWS[loss_fn] = f
        return f

    return register


def law_of(caller: str, loss_fn: Any) -> Callable[[Any], Law]:
    """The entry of the table, a function of the outputs of one network; what a partial has bound is passed on."""
    if loss_fn is None:
        raise ValueError(
            f"{caller}: loss_fn must be a likelihood. There are no targets here to choose a default by: pass "
            "illia_fn.gaussian_nll for numbers, of unit scale, or illia_fn.categorical_nll for class labels."
        )
    check_callable(caller, "loss_fn", loss_fn)
    likelihood, keywords = loss_fn, {}
    if isinstance(loss_fn, partial) and not loss_fn.args:
        likelihood, keywords = loss_fn.func, loss_fn.keywords
    law = _LAWS.get(likelihood) if isinstance(likelihood, Hashable) else None
    if law is None:
        raise ValueError(
            f"{caller}: loss_fn must be a likelihood whose mean, variance and draws are known: one of illia_fn, such "
            f"as gaussian_nll or partial(student_t_nll, df=3.0), got {_name(likelihood)}. Bind keywords with "
            "functools.partial, not in a function of your own; for a squared error pass gaussian_nll, for a softmax "
            "cross-entropy categorical_nll; add a likelihood of your own with illia_fn.register_law."
        )
    return partial(law, **keywords)


def _name(f: Any) -> str:
    return f"the function {f.__name__}" if hasattr(f, "__name__") else describe(f)
