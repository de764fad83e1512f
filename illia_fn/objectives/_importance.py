"""Objectives that are a function of log importance weights, and three ways to differentiate them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import describe
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.trees import PyTree
from illia_fn.engine._eager import compiled_once
from illia_fn.engine.estimators import advantages, refuse_antithetic, with_gradient_of
from illia_fn.objectives._draws import Draw, Draws
from illia_fn.objectives._regulariser import Regulariser

OfWeights = Callable[[jax.Array], jax.Array]  # of the log weights of all draws, (S,)


class Functional(NamedTuple):
    """A function of the log weights (S,).

    Attributes:
        value: what is reported.
        differentiated: from the log weights to the function whose gradient is taken there; it may hold a normaliser.
        curvature: the diagonal of that function's Hessian.
        model: from the log weights to their coefficients in the gradient of all that is not q; None takes those of q.
    """

    value: OfWeights
    differentiated: Callable[[jax.Array], OfWeights]
    curvature: OfWeights
    model: OfWeights | None = None


def power_mean(order: Any) -> Functional:
    """log (mean_s exp(order l_s))^(1 / order)."""
    f = partial(log_power_mean, order=order)

    def curvature(log_weights: jax.Array) -> jax.Array:
        share = jax.grad(f)(log_weights)
        return order * share * (1.0 - share)

    return Functional(f, lambda _: f, curvature)


def mean_of(
    f: Callable[[jax.Array, jax.Array], jax.Array],
    normaliser: OfWeights,
    temperature: Any,
    value: OfWeights | None = None,
) -> Functional:
    """mean_s f(l_s, normaliser), element-wise, with the normaliser a constant where it is differentiated.

    It grows with the log weights, or some do: a model that lowered it would unlearn the data. What is not q raises the
    bound of `iwae_loss` instead.
    """

    def differentiated(log_weights: jax.Array) -> OfWeights:
        constant = jax.lax.stop_gradient(normaliser(log_weights))
        return lambda log_weights: jnp.mean(f(log_weights, constant))

    def curvature(log_weights: jax.Array) -> jax.Array:
        gradient = jax.grad(differentiated(log_weights))  # element-wise, so that its Jacobian is diagonal
        return jax.jvp(gradient, (log_weights,), (jnp.ones_like(log_weights),))[1]

    def model(log_weights: jax.Array) -> jax.Array:
        return -jax.nn.softmax(log_weights / temperature)

    return Functional(
        value or (lambda log_weights: differentiated(log_weights)(log_weights)), differentiated, curvature, model
    )


def log_power_mean(log_weights: jax.Array, order: Any) -> jax.Array:
    """log (mean_s exp(order l_s))^(1 / order), which increases with the order; for order 0 its limit, mean_s l_s.

    A weight of 0, with the logarithm -inf, is one of the S.
    """
    if isinstance(order, (int, float)) and order == 0:
        return jnp.mean(log_weights)
    # The largest term is exp(0): a weight that is far from the others, on either side, costs them no digits.
    largest = jnp.where(order > 0, jnp.max(log_weights), jnp.min(log_weights))
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    exponents = order * (log_weights - largest)
    # 1 / order would magnify the rounding of a logarithm that is nearly 0
    near = jnp.min(exponents) > -0.5
    small = jnp.log1p(jnp.mean(jnp.expm1(jnp.where(near, exponents, 0.0))))
    large = jnp.log(jnp.mean(jnp.exp(exponents)))
    return largest + jnp.where(near, small, large) / order


def importance_loss(
    draws: Draws, regulariser: Regulariser, functional_at: Callable[[Any], Functional], *, sign: float = 1.0
) -> tuple[jax.Array, jax.Array, PyTree]:
    """sign / N times the functional, made for a temperature, of the log weights of w_s ~ q; the log weights; aux.

    l_s = N mean_i log p(y_i | w_s) + kl_weight (log p(w_s) - temperature log q(w_s))

    Two passes: the log weights of all draws, and then their gradients with coefficients, accumulated draw by draw.
    """
    _check(draws, regulariser)
    num_data = regulariser.require_num_data("it scales the data term inside of the logarithm")
    kl_weight = at_least_float32(1.0 if regulariser.kl_weight is None else regulariser.kl_weight)

    def log_weight(w: Draw, log_q: jax.Array, *apply_key: jax.Array) -> tuple[jax.Array, PyTree]:
        nll, aux = draws.nll(w, *map(jax.random.clone, apply_key))  # the same noise, however often
        log_ratio = regulariser.log_ratio(w, log_q)
        return kl_weight.astype(log_ratio.dtype) * log_ratio - jnp.asarray(num_data, nll.dtype) * nll, aux

    def values_at(w: Draw, *apply_key: jax.Array) -> tuple[tuple[()], jax.Array]:
        return (), log_weight(w, draws.log_q(w, of_draw_alone=False), *apply_key)[0]

    def slope_at(w: Draw, *inputs: jax.Array) -> tuple[jax.Array, PyTree]:
        *apply_key, of_model, of_draw, of_score = inputs
        fixed_w = jax.lax.stop_gradient(w)
        if draws.estimator == "score_function":  # without a derivative along the draw: the model may have none
            through_model, aux = log_weight(fixed_w, jax.lax.stop_gradient(draws.log_q(w)), *apply_key)
            score = of_score * draws.log_q(fixed_w).astype(through_model.dtype)
            return of_model * through_model + score, aux
        is_plain = draws.estimator == "reparameterised"
        through_draw, aux = log_weight(w, draws.log_q(w, of_draw_alone=not is_plain), *apply_key)
        if is_plain and of_q_alone:  # what is not q takes the coefficients of q
            return of_draw * through_draw, aux
        through_model, _ = log_weight(fixed_w, jax.lax.stop_gradient(draws.log_q(w, of_draw_alone=False)), *apply_key)
        return of_model * through_model + of_draw * through_draw, aux

    _, log_weights = draws.sum(values_at, takes_key=True, constant=True)
    temperature = regulariser.temperature  # a Python number, or an array that is to be of the dtype of the weights
    is_number = isinstance(temperature, (int, float))
    functional = functional_at(temperature if is_number else jnp.asarray(temperature).astype(log_weights.dtype))
    of_q_alone = functional.model is None
    factor = _factor(regulariser, kl_weight)

    def of_weights(log_weights: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        return _coefficients(draws.estimator, functional, factor, log_weights), functional.value(log_weights)

    coefficients, value = compiled_once(of_weights, log_weights)
    slope, aux = draws.sum(slope_at, *coefficients, takes_key=True, holds_draws=True)
    once = None if draws.estimator == "reparameterised" and of_q_alone else _once(draws, functional)
    value = with_gradient_of(value, slope, once)
    loss = jnp.asarray(sign, value.dtype) * value / jnp.asarray(num_data, value.dtype)
    return loss, log_weights, aux


def _check(draws: Draws, regulariser: Regulariser) -> None:
    regulariser.refuse_fitted("its scales are the best ones for the KL, and not for this objective")
    if draws.antithetic and draws.estimator != "reparameterised":
        refuse_antithetic(draws.caller, draws.estimator)
    if not regulariser.pairs:
        raise ValueError(
            f"{draws.caller}: params has no posterior node, so there is no q. Make some leaves Bayesian with "
            "mean_field."
        )


def _once(draws: Draws, functional: Functional) -> str:
    if functional.model is None:
        return draws.once
    return (
        f'{draws.caller}: its gradient (estimator="{draws.estimator}") is not that of its value, so a second '
        "derivative is that of neither. Differentiate it once, or take iwae_loss or elbo_loss."
    )


def _factor(regulariser: Regulariser, kl_weight: jax.Array) -> jax.Array:
    """That of log q in a log weight, but for its sign: kl_weight times the temperature."""
    return kl_weight * at_least_float32(regulariser.temperature).astype(kl_weight.dtype)


def _coefficients(
    estimator: str, functional: Functional, factor: jax.Array, log_weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the log weight of each draw as a function of the model alone, and of the draw; and of its grad log q(w_s)."""
    differentiated = functional.differentiated(log_weights)
    share = jax.grad(differentiated)(log_weights)
    model = share if functional.model is None else functional.model(log_weights)
    factor = factor.astype(share.dtype)
    if estimator == "score_function":
        return model, jnp.zeros_like(share), advantages(differentiated, log_weights) - factor * share
    if estimator == "reparameterised":
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
