"""Objectives that are a function of log importance weights, and three ways to differentiate them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import describe
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.trees import PyTree
from illia_fn.engine.estimators import advantages, refuse_antithetic, with_gradient_of
from illia_fn.objectives._call import Call, Options, check_options, require_shared, with_extras
from illia_fn.objectives._data import weighted_mean
from illia_fn.posteriors.posterior import log_prob

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
        model: from the log weights to their coefficients in the gradient of all that is not q; None takes those of q.
    """

    value: Scalar
    differentiated: Callable[[jax.Array], Scalar]
    curvature: Scalar
    model: Scalar | None = None


def power_mean(order: Any) -> Functional:
    """log (mean_s exp(order l_s))^(1 / order)."""
    f = partial(log_power_mean, order=order)

    def curvature(log_weights: jax.Array) -> jax.Array:
        share = jax.grad(f)(log_weights)
        return order * share * (1.0 - share)

    return Functional(f, lambda _: f, curvature)


def mean_of(
    f: Callable[[jax.Array, jax.Array], jax.Array], normaliser: Scalar, temperature: Any, value: Scalar | None = None
) -> Functional:
    """mean_s f(l_s, normaliser), element-wise, with the normaliser held where it is differentiated.

    It grows with the log weights, or some do: a model that lowered it would unlearn the data. What is not q raises the
    bound of `iwae_loss` instead.
    """

    def differentiated(log_weights: jax.Array) -> Scalar:
        held = jax.lax.stop_gradient(normaliser(log_weights))
        return lambda log_weights: jnp.mean(f(log_weights, held))

    def curvature(log_weights: jax.Array) -> jax.Array:
        gradient = jax.grad(differentiated(log_weights))  # element-wise, so that its Jacobian is diagonal
        return jax.jvp(gradient, (log_weights,), (jnp.ones_like(log_weights),))[1]

    def model(log_weights: jax.Array) -> jax.Array:
        return -jax.nn.softmax(log_weights / temperature)

    return Functional(
        value or (lambda log_weights: differentiated(log_weights)(log_weights)), differentiated, curvature, model
    )


def log_power_mean(log_weights: jax.Array, order: Any) -> jax.Array:
    """log (mean_s exp(order l_s))^(1 / order), which increases with the order; for order 0 its limit, mean_s l_s."""
    mean = jnp.mean(log_weights)
    if isinstance(order, (int, float)) and order == 0:
        return mean
    exponents = order * (log_weights - mean)
    # 1 / order would magnify the rounding of a logarithm that is nearly 0
    near = jnp.max(jnp.abs(exponents)) < 0.5
    small = jnp.log1p(jnp.mean(jnp.expm1(jnp.where(near, exponents, 0.0))))
    large = jax.nn.logsumexp(exponents) - jnp.log(jnp.asarray(len(log_weights), log_weights.dtype))
    return mean + jnp.where(near, small, large) / order


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
    require_shared(
        caller, options.get("coupling", "shared"), "an importance weight is that of one w for the whole batch"
    )
    options.setdefault("estimator", "doubly_reparameterised")
    call = Call(caller=caller, apply_fn=apply_fn, params=params, x=x, y=y, key=key, num_samples=num_samples, **options)
    if call.antithetic and call.estimator != "reparameterised":
        refuse_antithetic(caller, call.estimator)
    if not call.pairs:
        raise ValueError(
            f"{caller}: params has no posterior node, so there is no q. Make some leaves Bayesian with mean_field."
        )
    num_data = call.require_num_data("it scales the data term inside of the logarithm")
    value, log_weights, aux = _estimate(call, functional, num_data)
    loss = jnp.asarray(sign, value.dtype) * value / jnp.asarray(num_data, value.dtype)
    return with_extras(loss, *[log_weights] * call.return_log_weights, *[aux] * call.has_aux)


def _estimate(
    call: Call, functional_at: Callable[[Any], Functional], num_data: int
) -> tuple[jax.Array, jax.Array, Any]:
    """The functional of the log weights, with the gradient of the estimator; the log weights; aux.

    Two passes: the log weights of all draws, and then their gradients with coefficients, accumulated draw by draw.
    """
    nodes, held_nodes = call.joined.nodes, jax.lax.stop_gradient(call.joined.nodes)
    kl_weight = at_least_float32(1.0 if call.kl_weight is None else call.kl_weight)

    def log_weight(w: list[jax.Array], q: list[Any], *apply_key: jax.Array) -> tuple[jax.Array, Any]:
        losses, aux = call.losses_at(w, *apply_key)
        nll, log_ratio = weighted_mean(losses, call.weights), call.log_ratio(w, log_prob(q, w))
        return kl_weight.astype(log_ratio.dtype) * log_ratio - jnp.asarray(num_data, nll.dtype) * nll, aux

    def values_at(w: list[jax.Array], *apply_key: jax.Array) -> tuple[tuple[()], jax.Array]:
        return (), log_weight(w, nodes, *apply_key)[0]

    def slope_at(w: list[jax.Array], *inputs: jax.Array) -> tuple[jax.Array, Any]:
        *apply_key, of_model, of_draw, of_score = inputs
        held = jax.lax.stop_gradient(w)
        through_model, aux = log_weight(held, held_nodes, *apply_key)
        slope = of_model * through_model
        if call.estimator == "score_function":  # without a derivative along the draw: the model may have none
            return slope + of_score * log_prob(nodes, held).astype(slope.dtype), aux
        q = nodes if call.estimator == "reparameterised" else held_nodes
        through_draw, aux = log_weight(w, q, *apply_key)
        through_draw = of_draw * through_draw
        # of_model is 0 where what is not q takes the coefficients of q
        return through_draw if call.estimator == "reparameterised" and of_q_alone else slope + through_draw, aux

    _, log_weights = call.sum(values_at, needs_key=call.needs_key, held=True)
    temperature = call.temperature  # a Python number, or an array that is to be of the dtype of the weights
    is_number = isinstance(temperature, (int, float))
    functional = functional_at(temperature if is_number else jnp.asarray(temperature).astype(log_weights.dtype))
    of_q_alone = functional.model is None
    coefficients = _coefficients(call, functional, kl_weight, log_weights)
    slope, aux = call.sum(slope_at, *coefficients, needs_key=call.needs_key)
    return with_gradient_of(functional.value(log_weights), slope), log_weights, aux


def _coefficients(
    call: Call, functional: Functional, kl_weight: jax.Array, log_weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the log weight of each draw as a function of the model alone, and of the draw; and of its grad log q(w_s)."""
    differentiated = functional.differentiated(log_weights)
    share = jax.grad(differentiated)(log_weights)
    model = share if functional.model is None else functional.model(log_weights)
    factor = (kl_weight * at_least_float32(call.temperature).astype(kl_weight.dtype)).astype(share.dtype)
    if call.estimator == "score_function":
        return model, jnp.zeros_like(share), advantages(differentiated, log_weights) - factor * share
    if call.estimator == "reparameterised":
        return model - share, share, jnp.zeros_like(share)
    # The score of q has the factor -share kl_weight temperature. Its expectation, reparameterised once more, is that of
    # minus the curvature times that factor, through the draw (Tucker et al. 2019).
    through = share - factor * functional.curvature(log_weights)
    return model - through, through, jnp.zeros_like(share)


def static_number(caller: str, name: str, value: Any) -> float:
    """A finite number that is known at trace time."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not abs(value) < float("inf"):
        raise ValueError(f"{caller}: {name} must be a finite number, known at trace time, got {describe(value)}.")
    return float(value)
