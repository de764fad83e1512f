"""Objectives that are a function of log importance weights, and three ways to differentiate them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from illia_fn._call import Call, Options, check_options, with_extras
from illia_fn._checks import describe
from illia_fn._estimators import refuse_antithetic, score_function, with_gradient_of
from illia_fn._numerics import at_least_float32
from illia_fn._trees import PyTree
from illia_fn.posteriors import log_prob

Scalar = Callable[[jax.Array], jax.Array]  # of the log weights of all draws, (S,)


class BoundOptions(Options, total=False):
    """Keyword arguments of every objective that is made of importance weights."""

    return_log_weights: bool


class Functional(NamedTuple):
    """A function of the log weights (S,).

    Attributes:
        value: what is reported.
        differentiated: from the log weights to the function whose gradient is taken there; it may hold a normaliser.
        curvature: the diagonal of that function's Hessian.
    """

    value: Scalar
    differentiated: Callable[[jax.Array], Scalar]
    curvature: Scalar


def power_mean(order: Any) -> Functional:
    """log (mean_s exp(order l_s))^(1 / order)."""
    f = partial(log_power_mean, order=order)

    def curvature(log_weights: jax.Array) -> jax.Array:
        share = jax.grad(f)(log_weights)
        return order * share * (1.0 - share)

    return Functional(f, lambda _: f, curvature)


def mean_of(
    f: Callable[[jax.Array, jax.Array], jax.Array], normaliser: Scalar, value: Scalar | None = None
) -> Functional:
    """mean_s f(l_s, normaliser), element-wise, with the normaliser held where it is differentiated."""

    def differentiated(log_weights: jax.Array) -> Scalar:
        held = jax.lax.stop_gradient(normaliser(log_weights))
        return lambda log_weights: jnp.mean(f(log_weights, held))

    def curvature(log_weights: jax.Array) -> jax.Array:
        gradient = jax.grad(differentiated(log_weights))  # element-wise, so that its Jacobian is diagonal
        return jax.jvp(gradient, (log_weights,), (jnp.ones_like(log_weights),))[1]

    return Functional(
        value or (lambda log_weights: differentiated(log_weights)(log_weights)), differentiated, curvature
    )


def log_power_mean(log_weights: jax.Array, order: Any) -> jax.Array:
    """log (mean_s exp(order l_s))^(1 / order), which increases with the order; for order 0 its limit, mean_s l_s."""
    if isinstance(order, (int, float)) and order == 0:
        return jnp.mean(log_weights)
    count = jnp.asarray(len(log_weights), log_weights.dtype)
    return (jax.nn.logsumexp(order * log_weights) - jnp.log(count)) / order


def importance_loss(
    caller: str,
    functional: Callable[[Any], Functional],
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int,
    *,
    sign: float = 1.0,
    **options: Unpack[BoundOptions],
) -> Any:
    """sign / N times the functional, made for a temperature, of the log weights of w_s ~ q.

    l_s = N mean_i log p(y_i | w_s) + kl_weight (log p(w_s) - temperature log q(w_s))
    """
    check_options(caller, {**options}, BoundOptions)
    options.setdefault("estimator", "doubly_reparameterised")
    call = Call(caller=caller, apply_fn=apply_fn, params=params, x=x, y=y, key=key, num_samples=num_samples, **options)
    if call.antithetic and call.estimator != "reparameterised":
        refuse_antithetic(caller, call.estimator)
    num_data = call.require_num_data("it scales the data term inside of the logarithm")
    temperature = call.temperature if isinstance(call.temperature, (int, float)) else at_least_float32(call.temperature)
    value, log_weights, aux = _estimate(call, functional(temperature), num_data)
    loss = jnp.asarray(sign, value.dtype) * value / jnp.asarray(num_data, value.dtype)
    return with_extras(loss, *[log_weights] * call.return_log_weights, *[aux] * call.has_aux)


def _estimate(call: Call, functional: Functional, num_data: int) -> tuple[jax.Array, jax.Array, Any]:
    """The functional of the log weights, with the gradient of the estimator; the log weights; aux."""
    nodes, kl_weight = call.joined.nodes, at_least_float32(1.0 if call.kl_weight is None else call.kl_weight)

    def at_draws(*, hold_w: bool, hold_q: bool) -> tuple[jax.Array, jax.Array, Any]:
        """Log weights, log q and aux of all draws."""

        def at_draw(w: list[jax.Array], *apply_key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
            w = jax.lax.stop_gradient(w) if hold_w else w
            nll, aux = call.mean_loss(w, *apply_key)
            log_q = log_prob(jax.lax.stop_gradient(nodes) if hold_q else nodes, w)
            log_ratio = call.log_ratio(w, log_q)
            log_weight = kl_weight.astype(log_ratio.dtype) * log_ratio - jnp.asarray(num_data, nll.dtype) * nll
            return (log_weight, log_q), aux

        (log_weights, log_q), aux = call.at_draws(at_draw)
        return log_weights, log_q, aux

    if call.estimator == "reparameterised":
        log_weights, _, aux = at_draws(hold_w=False, hold_q=False)
        differentiated = functional.differentiated(jax.lax.stop_gradient(log_weights))
        return with_gradient_of(functional.value(log_weights), differentiated(log_weights)), log_weights, aux
    by_score = call.estimator == "score_function"
    held, log_q, aux = at_draws(hold_w=True, hold_q=not by_score)
    value, differentiated = functional.value(held), functional.differentiated(jax.lax.stop_gradient(held))
    if by_score:
        return with_gradient_of(value, score_function(differentiated, held, log_q)), held, aux
    # The score of q has the factor -share kl_weight temperature. Its expectation, reparameterised once more, is that of
    # minus the curvature times that factor, through the draw (Tucker et al. 2019).
    share, curvature = jax.lax.stop_gradient((jax.grad(differentiated)(held), functional.curvature(held)))
    factor = kl_weight * at_least_float32(call.temperature).astype(kl_weight.dtype)
    through = share - jax.lax.stop_gradient(factor).astype(share.dtype) * curvature
    moved, _, _ = at_draws(hold_w=False, hold_q=True)
    return with_gradient_of(value, jnp.sum((share - through) * held) + jnp.sum(through * moved)), held, aux


def static_number(caller: str, name: str, value: Any) -> float:
    """A finite number that is known at trace time."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise ValueError(f"{caller}: {name} must be a finite number, known at trace time, got {describe(value)}.")
    return float(value)
