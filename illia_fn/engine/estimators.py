"""How the gradient of an expectation over draws is estimated, whatever the objective."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from illia_fn.engine._eager import compiled_once

Estimator = Literal["reparameterised", "doubly_reparameterised", "score_function"]


def check_estimator(caller: str, estimator: Any, num_samples: int, *, antithetic: bool) -> None:
    """The estimator is known, and the draws are as it needs them."""
    if estimator not in get_args(Estimator):
        raise ValueError(
            f"{caller}: estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}. Of one sample, "
            "doubly_reparameterised is sticking the landing."
        )
    if estimator == "score_function" and num_samples < 2:
        raise ValueError(
            f"{caller}: the leave-one-out control variate of the score function needs num_samples of at least 2, got "
            f"{num_samples}."
        )
    if estimator == "score_function" and antithetic:
        refuse_antithetic(caller, estimator)


def refuse_antithetic(caller: str, estimator: str) -> None:
    """For estimators that are unbiased for independent draws only."""
    raise ValueError(
        f'{caller}: estimator="{estimator}" needs independent draws. Drop antithetic=True, or take '
        'estimator="reparameterised".'
    )


def advantages(reduce: Callable[[jax.Array], jax.Array], values: jax.Array) -> jax.Array:
    """reduce(values) - reduce(all values but that of s), (S,): the coefficients of the scores grad log q(w_s).

    What is left out does not depend on w_s, so it is a control variate without bias (Mnih & Rezende 2016).
    """
    return reduce(values) - _leave_one_out(reduce, values)


def _leave_one_out(reduce: Callable[[jax.Array], jax.Array], values: jax.Array) -> jax.Array:
    """The reduction of all rows but one, for each; some at a time, as all at once would take S^2 rows."""
    others = jnp.arange(1, len(values))

    def without(index: jax.Array) -> jax.Array:
        return reduce(values[(index + others) % len(values)])

    return compiled_once(lambda indices: jax.lax.map(without, indices, batch_size=16), jnp.arange(len(values)))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def with_gradient_of(value: jax.Array, surrogate: jax.Array, once: str | None) -> jax.Array:  # noqa: ARG001
    """The value, with the derivative of the surrogate.

    `once` is the error of a second derivative, where the surrogate holds for the first one only; None allows it.
    """
    return value


@with_gradient_of.defjvp
def _with_gradient_of_jvp(once: str | None, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    tangent = tangents[1]
    if once is not None:
        tangent = tangent * _differentiable_once(primals[1], once)
    return with_gradient_of(*primals, once), tangent


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _differentiable_once(x: jax.Array, error: str) -> jax.Array:  # noqa: ARG001
    """1, a factor of the first derivative that refuses to be differentiated in turn."""
    return jnp.ones_like(x)


@_differentiable_once.defjvp
def _differentiable_once_jvp(error: str, *_: Any) -> Any:
    raise TypeError(error)
