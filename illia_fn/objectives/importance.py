"""Bounds on the log evidence that are power means of the importance weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.trees import PyTree
from illia_fn.engine.estimators import Estimator
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.objectives._draws import Draws
from illia_fn.objectives._importance import (
    Functional,
    importance_loss,
    log_power_mean,
    mean_of,
    power_mean,
    static_number,
)
from illia_fn.objectives._regulariser import Regulariser
from illia_fn.objectives.elbo import with_extras
from illia_fn.priors.normal import Normal


def iwae_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    num_data: int,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    kl_weight: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    estimator: Estimator = "doubly_reparameterised",
    chunk_size: int | Literal["auto"] | None = "auto",
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
    return_log_weights: bool = False,
) -> Any:
    """Importance-weighted bound per training example: a lower bound on the log evidence that rises with num_samples.

        L = -(1 / N) log (1 / S) sum_s exp(l_s),    l_s = N mean_i log p(y_i | w_s) + kl_weight log(p(w_s) / q(w_s))

    with w_s ~ q. Burda et al. 2016, Importance weighted autoencoders, https://arxiv.org/abs/1509.00519. With one sample
    it is an ELBO whose KL is sampled, and for any number it is exact where q is the posterior. With a temperature T it
    is -(T / N) log (1 / S) sum_s exp(l_s / T), with T log q(w_s) in l_s. The gradient is the doubly reparameterised one
    (DReG, Tucker et al. 2019, https://arxiv.org/abs/1810.04152), whose signal-to-noise ratio does not fall with
    num_samples. It is a bound on full data only: the noise of batches is inside of the exponential, and biases -N * L
    upwards, the more so the more samples. The l_s are sums over N examples: of very many, float32 rounds them by more
    than they differ.

    Args:
        apply_fn, params, x, y, key, num_samples: as in `elbo_loss`.
        num_data: N, the size of the training set.
        estimator: as in `elbo_loss`; with `antithetic=True` it must be "reparameterised", as the draws are not
            independent. It is the one that can be differentiated twice.
        return_log_weights: whether to return the l_s, (num_samples,), as well.
        others: as in `elbo_loss`.

    Returns:
        The loss, as in `elbo_loss`, in nats per example.

    Raises:
        ValueError: as `elbo_loss`, and for an estimator that does not go with the number of samples or antithetic
            draws.
        TypeError: for a second derivative of an estimator that has first ones only.

    >>> from illia_fn import Gaussian, Normal  # prior N(0, 1), one y = 5 of unit noise, and q the posterior
    >>> q = Gaussian(jnp.array(2.5), jnp.log(jnp.expm1(jnp.sqrt(0.5))))
    >>> data = jnp.zeros(1), jnp.array([5.0])
    >>> loss = iwae_loss(lambda w, x: x + w, q, *data, jax.random.key(0), 3, num_data=1, prior=Normal(0.0, 1.0))
    >>> print(f"{loss:.4f}")  # the log evidence is -7.5155
    7.5155
    """
    data = DataTerm("iwae_loss", apply_fn, x, y, loss_fn=loss_fn, weights=weights, needs_key=needs_key, has_aux=has_aux)
    draws = Draws(data, params, key, num_samples, estimator=estimator, chunk_size=chunk_size, antithetic=antithetic)
    regulariser = Regulariser(draws, prior=prior, num_data=num_data, kl_weight=kl_weight, temperature=temperature)
    loss, log_weights, aux = importance_loss(
        draws, regulariser, lambda temperature: power_mean(1.0 / temperature), sign=-1.0
    )
    return with_extras(loss, *[log_weights] * return_log_weights, *[aux] * has_aux)


def renyi_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    alpha: float,
    num_data: int,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    kl_weight: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    estimator: Estimator = "doubly_reparameterised",
    chunk_size: int | Literal["auto"] | None = "auto",
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
    return_log_weights: bool = False,
) -> Any:
    """Renyi's alpha bound per training example: from the ELBO (alpha = 1) to IWAE (alpha = 0) and beyond.

        L = -(1 / N) 1 / (1 - alpha) log (1 / S) sum_s exp((1 - alpha) l_s)

    with the l_s of `iwae_loss`. Li & Turner 2016, Renyi divergence variational inference,
    https://arxiv.org/abs/1602.02311. -N * L is a lower bound on the log evidence, which falls with alpha; alpha = 1 is
    the ELBO with a sampled KL. The upper bounds of a negative alpha are those of `cubo_loss`.

    Args:
        alpha: the order, a number of at least 0, static.
        others: as in `iwae_loss`.

    Returns and errors are those of `iwae_loss`; ValueError for an alpha that is not finite or negative.

    >>> from illia_fn import Gaussian, Normal
    >>> q = Gaussian(jnp.array(2.5), jnp.log(jnp.expm1(jnp.sqrt(0.5))))
    >>> args = lambda w, x: x + w, q, jnp.zeros(1), jnp.array([5.0]), jax.random.key(0), 3
    >>> print(f"{renyi_loss(*args, alpha=0.5, num_data=1, prior=Normal(0.0, 1.0)):.4f}")
    7.5155
    """
    order = 1.0 - static_number("renyi_loss", "alpha", alpha)
    if order > 1.0:
        raise ValueError(
            f"renyi_loss: alpha must be at least 0, got {alpha}. Of a negative one minimise the upper bound, "
            f"cubo_loss(order={order:g})."
        )

    def power(temperature: Any) -> Functional:
        return power_mean(order / temperature if order else 0)

    data = DataTerm(
        "renyi_loss", apply_fn, x, y, loss_fn=loss_fn, weights=weights, needs_key=needs_key, has_aux=has_aux
    )
    draws = Draws(data, params, key, num_samples, estimator=estimator, chunk_size=chunk_size, antithetic=antithetic)
    regulariser = Regulariser(draws, prior=prior, num_data=num_data, kl_weight=kl_weight, temperature=temperature)
    loss, log_weights, aux = importance_loss(draws, regulariser, power, sign=-1.0)
    return with_extras(loss, *[log_weights] * return_log_weights, *[aux] * has_aux)


def cubo_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    order: float = 2.0,
    num_data: int,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    kl_weight: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    estimator: Estimator = "doubly_reparameterised",
    chunk_size: int | Literal["auto"] | None = "auto",
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
    return_log_weights: bool = False,
) -> Any:
    """Chi upper bound (CUBO) per training example: what is minimised bounds the log evidence from above.

        L = (1 / N) (1 / n) log (1 / S) sum_s exp(n l_s),    n = order

    with the l_s of `iwae_loss`: CHIVI, whose q covers the posterior. Dieng et al. 2017, Variational inference via chi
    upper bound minimization, https://arxiv.org/abs/1611.00328. It falls with n, to the log evidence at n = 1, where
    `iwae_loss` comes to it from below, and on to the ELBO at n = 0. The bound is that of many samples; the logarithm of
    a mean over few lies below it on average. So the gradient is not that of this value, which for one sample would
    maximise the divergence, but, as in the paper, that of the mean of exp(n l_s), divided by its value: consistent,
    and unbiased up to that factor. A model that lowered an upper bound would unlearn the data, so all that is not q
    (deterministic leaves, a learned prior, what apply_fn closes over) gets the gradient of `iwae_loss`.

    Args:
        order: n, a finite number greater than 1, static.
        others: as in `iwae_loss`.

    Returns and errors are those of `iwae_loss`; ValueError if order is not such a number.

    >>> from illia_fn import Gaussian, Normal
    >>> q = Gaussian(jnp.array(2.5), jnp.log(jnp.expm1(jnp.sqrt(0.5))))
    >>> args = lambda w, x: x + w, q, jnp.zeros(1), jnp.array([5.0]), jax.random.key(0), 3
    >>> print(f"{cubo_loss(*args, num_data=1, prior=Normal(0.0, 1.0)):.4f}")
    -7.5155
    """
    if static_number("cubo_loss", "order", order) <= 1.0:
        raise ValueError(f"cubo_loss: order must be greater than 1, got {order}. For smaller ones see renyi_loss.")

    def chi(temperature: Any) -> Functional:
        n = order / temperature
        bound = partial(log_power_mean, order=n)

        def mean(log_weights: jax.Array, log_evidence: jax.Array) -> jax.Array:
            return jnp.exp(n * (log_weights - log_evidence)) / n

        return mean_of(mean, bound, temperature, value=bound)

    data = DataTerm("cubo_loss", apply_fn, x, y, loss_fn=loss_fn, weights=weights, needs_key=needs_key, has_aux=has_aux)
    draws = Draws(data, params, key, num_samples, estimator=estimator, chunk_size=chunk_size, antithetic=antithetic)
    regulariser = Regulariser(draws, prior=prior, num_data=num_data, kl_weight=kl_weight, temperature=temperature)
    loss, log_weights, aux = importance_loss(draws, regulariser, chi)
    return with_extras(loss, *[log_weights] * return_log_weights, *[aux] * has_aux)
