"""Bounds on the log evidence from importance weights: one power mean of them, and three ways to differentiate it."""

from collections.abc import Callable
from typing import Any, Literal, Required, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._batch import LossFn, mean_loss
from illia_fn._checks import check_draws, describe, split_aux
from illia_fn._join import Joined
from illia_fn._numerics import at_least_float32
from illia_fn._trees import PyTree
from illia_fn.expectation import expectation
from illia_fn.kl import kl_pairs, log_prior
from illia_fn.objectives import check_arguments, with_extras
from illia_fn.posteriors import is_posterior, log_prob
from illia_fn.priors import Normal

Estimator = Literal["reparameterised", "doubly_reparameterised", "score_function"]


class Options(TypedDict, total=False):
    """Keyword arguments of every bound, as in `elbo_loss`; num_data is required, as it scales the data term inside.

    `estimator` is how the gradient is estimated: "reparameterised", through the draws and the density of q;
    "doubly_reparameterised", through the draws alone, which is unbiased too and whose noise vanishes where q is the
    posterior (Roeder et al. 2017, https://arxiv.org/abs/1703.09194; Tucker et al. 2019,
    https://arxiv.org/abs/1810.04152); or "score_function", through the density of q alone, with leave-one-out control
    variates, for losses that have no gradient (Mnih & Rezende 2016, https://arxiv.org/abs/1602.06725).
    `return_log_weights=True` returns the log weights, (num_samples,), as well.
    """

    num_data: Required[int]
    loss_fn: LossFn | None
    prior: PyTree
    kl_weight: ArrayLike | None
    weights: ArrayLike | None
    estimator: Estimator
    chunk_size: int | None
    antithetic: bool
    needs_key: bool
    has_aux: bool
    return_log_weights: bool


def iwae_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    **options: Unpack[Options],
) -> Any:
    """Importance-weighted bound per training example: a lower bound on the log evidence that rises with num_samples.

        L = -(1 / N) log (1 / S) sum_s exp(l_s),    l_s = N mean_i log p(y_i | w_s) + kl_weight log(p(w_s) / q(w_s))

    with w_s ~ q. Burda et al. 2016, Importance weighted autoencoders, https://arxiv.org/abs/1509.00519. With one sample
    it is an ELBO whose KL is sampled, and for any number it is exact where q is the posterior. The gradient is the
    doubly reparameterised one (DReG), whose signal-to-noise ratio does not fall with num_samples.

    Args:
        apply_fn, params, x, y, key, num_samples: as in `elbo_loss`.
        options: keyword arguments, see `illia_fn.bounds.Options`; the estimator is "doubly_reparameterised" unless
            told, and with `antithetic=True` must be "reparameterised", as the draws are not independent.

    Returns:
        The loss, as in `elbo_loss`, in nats per example.

    Raises:
        ValueError: as `elbo_loss`, and without num_data, for an unknown estimator, or one that does not go with the
            number of samples or antithetic draws.
        TypeError: for an unknown option.

    >>> from illia_fn import Gaussian  # prior N(0, 1), one y = 5 of unit noise, and q the posterior
    >>> q = Gaussian(jnp.array(2.5), jnp.log(jnp.expm1(jnp.sqrt(0.5))))
    >>> data = jnp.zeros(1), jnp.array([5.0])
    >>> loss = iwae_loss(lambda w, x: x + w, q, *data, jax.random.key(0), 3, num_data=1, prior=Normal(0.0, 1.0))
    >>> print(f"{loss:.4f}")  # the log evidence is -7.5155
    7.5155
    """
    return _power_mean_loss("iwae_loss", 1.0, apply_fn, params, x, y, key, num_samples, **options)


def renyi_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    alpha: float,
    **options: Unpack[Options],
) -> Any:
    """Renyi's alpha bound per training example: from the ELBO (alpha = 1) to IWAE (alpha = 0) and beyond.

        L = -(1 / N) 1 / (1 - alpha) log (1 / S) sum_s exp((1 - alpha) l_s)

    with the l_s of `iwae_loss`. Li & Turner 2016, Renyi divergence variational inference,
    https://arxiv.org/abs/1602.02311. It falls with alpha. For alpha >= 0 it is a lower bound on the log evidence; for
    alpha < 0 its limit of many samples is an upper bound, and with few it may lie on either side. alpha = 1 is the ELBO
    with a sampled KL.

    Args:
        alpha: the order, a finite number, static.
        others: as in `iwae_loss`.

    Returns and errors are those of `iwae_loss`; ValueError if alpha is not a finite number.

    >>> from illia_fn import Gaussian
    >>> q = Gaussian(jnp.array(2.5), jnp.log(jnp.expm1(jnp.sqrt(0.5))))
    >>> args = lambda w, x: x + w, q, jnp.zeros(1), jnp.array([5.0]), jax.random.key(0), 3
    >>> print(f"{renyi_loss(*args, alpha=0.5, num_data=1, prior=Normal(0.0, 1.0)):.4f}")
    7.5155
    """
    order = 1.0 - _number("renyi_loss", "alpha", alpha)
    return _power_mean_loss("renyi_loss", order, apply_fn, params, x, y, key, num_samples, **options)


def cubo_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    order: float = 2.0,
    **options: Unpack[Options],
) -> Any:
    """Chi upper bound (CUBO) per training example: what is minimised bounds the log evidence from above.

        L = (1 / N) (1 / n) log (1 / S) sum_s exp(n l_s),    n = order

    with the l_s of `iwae_loss`: CHIVI, whose q covers the posterior. Dieng et al. 2017, Variational inference via chi
    upper bound minimization, https://arxiv.org/abs/1611.00328. The bound is that of many samples; the logarithm of a
    mean over few lies below it on average.

    Args:
        order: n, a finite number of at least 1, static.
        others: as in `iwae_loss`.

    Returns and errors are those of `iwae_loss`; ValueError if order is not such a number.

    >>> from illia_fn import Gaussian
    >>> q = Gaussian(jnp.array(2.5), jnp.log(jnp.expm1(jnp.sqrt(0.5))))
    >>> args = lambda w, x: x + w, q, jnp.zeros(1), jnp.array([5.0]), jax.random.key(0), 3
    >>> print(f"{cubo_loss(*args, num_data=1, prior=Normal(0.0, 1.0)):.4f}")
    -7.5155
    """
    if _number("cubo_loss", "order", order) < 1.0:
        raise ValueError(f"cubo_loss: order must be at least 1, got {order}. For smaller ones see renyi_loss.")
    return _power_mean_loss("cubo_loss", order, apply_fn, params, x, y, key, num_samples, sign=1.0, **options)


def _power_mean_loss(
    caller: str,
    order: float,
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int,
    *,
    sign: float = -1.0,
    num_data: int | None = None,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 0.1),
    kl_weight: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    estimator: Estimator = "doubly_reparameterised",
    chunk_size: int | None = 1,
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
    return_log_weights: bool = False,
    **unknown: Any,
) -> Any:
    if "coupling" in unknown:
        raise ValueError(
            f"{caller}: an importance weight is that of one w for the whole batch, so there is no coupling but one "
            f"shared draw, got coupling={unknown['coupling']!r}. Drop it, or use elbo_loss, whose data term is a sum "
            "over examples."
        )
    if unknown:
        raise TypeError(f"{caller}: unknown option {', '.join(unknown)}. The options are {', '.join(_OPTIONS)}.")
    check_arguments(caller, apply_fn, loss_fn, params, num_data, kl_weight, weights)
    check_draws(caller, key, num_samples, chunk_size, antithetic)
    _check_estimator(caller, estimator, num_samples, antithetic=antithetic)
    if num_data is None:
        raise ValueError(f"{caller}: num_data is required: the size of the training set scales the data term inside.")
    pairs = kl_pairs(caller, params, prior, None)
    joined = Joined.of(params, is_posterior)
    factor = at_least_float32(1.0 if kl_weight is None else kl_weight)

    def at_draws(*, through_w: bool, through_q: bool) -> tuple[jax.Array, jax.Array, Any]:
        """log weights, log q and aux of all draws."""

        def at_draw(w: list[jax.Array], *apply_key: jax.Array) -> tuple[jax.Array, Any]:
            w = w if through_w else jax.lax.stop_gradient(w)
            outputs, aux = split_aux(caller, "apply_fn", apply_fn(joined.tree(w), x, *apply_key), has_aux=has_aux)
            nll = mean_loss(caller, loss_fn, outputs, y, weights)
            log_q = log_prob(joined.nodes if through_q else jax.lax.stop_gradient(joined.nodes), w)
            log_ratio = log_prior(joined, pairs, w) - log_q
            log_weight = factor.astype(log_ratio.dtype) * log_ratio - jnp.asarray(num_data, nll.dtype) * nll
            return jnp.zeros(()), (log_weight, log_q, aux)

        draws = {"chunk_size": chunk_size, "antithetic": antithetic, "needs_key": needs_key, "has_aux": True}
        return expectation(at_draw, joined.nodes, key, num_samples, **draws)[1]

    value, log_weights, aux = _estimate(at_draws, order, factor, estimator)
    loss = jnp.asarray(sign, value.dtype) * value / jnp.asarray(num_data, value.dtype)
    return with_extras(loss, *[log_weights] * return_log_weights, *[aux] * has_aux)


_OPTIONS = tuple(Options.__annotations__)


def _estimate(
    at_draws: Callable[..., tuple[jax.Array, jax.Array, Any]], order: float, factor: jax.Array, estimator: Estimator
) -> tuple[jax.Array, jax.Array, Any]:
    """The power mean of the log weights, with the gradient of the estimator; the log weights; aux."""
    if estimator == "reparameterised":
        log_weights, _, aux = at_draws(through_w=True, through_q=True)
        return log_power_mean(log_weights, order), log_weights, aux
    by_score = estimator == "score_function"
    held, log_q, aux = at_draws(through_w=False, through_q=by_score)
    value = log_power_mean(held, order)
    share = jax.grad(log_power_mean)(held, order)  # of each draw in the mean
    if by_score:
        terms = [(share, held), (value - _leave_one_out(held, order), log_q)]
    else:
        # The score of q has the factor -share. Its expectation, reparameterised once more, is that of
        # -d share / d log_weight = -order share (1 - share) times the gradient through the draw.
        through = share * (1.0 - factor.astype(share.dtype) * order * (1.0 - share))
        moved, _, _ = at_draws(through_w=True, through_q=False)
        terms = [(share - through, held), (through, moved)]
    surrogate = sum(jnp.sum(jax.lax.stop_gradient(coefficients) * values) for coefficients, values in terms)
    return _with_gradient_of(value, surrogate), held, aux


@jax.custom_jvp
def _with_gradient_of(value: jax.Array, surrogate: jax.Array) -> jax.Array:  # noqa: ARG001
    """The value, with the derivative of the surrogate."""
    return value


_with_gradient_of.defjvps(None, lambda tangent, _, __, ___: tangent)


def log_power_mean(log_weights: jax.Array, order: float) -> jax.Array:
    """log (mean_s exp(order l_s))^(1 / order), which increases with the order; for order 0 its limit, mean_s l_s."""
    if order == 0.0:
        return jnp.mean(log_weights)
    return (jax.nn.logsumexp(order * log_weights) - jnp.log(jnp.asarray(len(log_weights), log_weights.dtype))) / order


def _leave_one_out(log_weights: jax.Array, order: float) -> jax.Array:
    """The power mean of all log weights but one, for each."""
    count = len(log_weights)
    others = (jnp.arange(count)[:, None] + jnp.arange(1, count)[None, :]) % count
    return jax.vmap(lambda rows: log_power_mean(log_weights[rows], order))(others)


def _check_estimator(caller: str, estimator: Any, num_samples: int, *, antithetic: bool) -> None:
    if estimator not in get_args(Estimator):
        raise ValueError(f"{caller}: estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}.")
    if antithetic and estimator != "reparameterised":
        raise ValueError(
            f'{caller}: estimator="{estimator}" needs independent draws. Drop antithetic=True, or take '
            'estimator="reparameterised".'
        )
    if estimator == "score_function" and num_samples < 2:
        raise ValueError(
            f"{caller}: the leave-one-out control variate of the score function needs num_samples of at least 2, got "
            f"{num_samples}."
        )


def _number(caller: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise ValueError(f"{caller}: {name} must be a finite number, known at trace time, got {describe(value)}.")
    return float(value)
