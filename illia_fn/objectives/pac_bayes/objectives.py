"""PAC-Bayes as a training objective, and as a certificate."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from illia_fn._base.checks import check_callable, concrete
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.coupling import ChunkSize
from illia_fn.objectives._call import Call, DataOptions, check_options, with_extras
from illia_fn.objectives._data import LossFn, weighted_mean
from illia_fn.objectives.pac_bayes._kl_inverse import kl_inverse
from illia_fn.objectives.pac_bayes.bounds import maurer_bound, probability, quadratic_bound
from illia_fn.objectives.pac_bayes.losses import bounded_cross_entropy, zero_one_loss
from illia_fn.posteriors.posterior import is_posterior

Bound = Callable[[jax.Array, jax.Array, Any, float], jax.Array]


class RiskTerms(NamedTuple):
    """What a PAC-Bayes loss is made of.

    Attributes:
        risk: the mean loss of networks from q on the data given.
        kl: KL(q || prior), in nats.
    """

    risk: jax.Array
    kl: jax.Array


class RiskOptions(DataOptions, total=False):
    """Keyword arguments of `pac_bayes_loss`."""

    return_terms: bool


def pac_bayes_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    bound: Bound = quadratic_bound,
    delta: float = 0.05,
    **options: Unpack[RiskOptions],
) -> Any:
    """PAC-Bayes training objective: a bound on the risk of networks w ~ q, from the risk on the data and the KL.

        L = bound(E_{w ~ q}[ mean_i loss(f(x_i, w), y_i) ], KL(q || prior), N, delta)

    Perez-Ortiz et al. 2021, Tighter risk certificates for neural networks, https://arxiv.org/abs/2007.12911. Where the
    ELBO bounds the evidence of the data, this bounds from above the risk on data to come, and above 1 says nothing.
    With a fixed lambda, `lambda_bound` of `bounded_cross_entropy` is, up to factors and the clipping, the ELBO loss
    with kl_weight = log(1 / min_prob) / lambda. On a batch, or with few samples, it is an estimate of the bound to
    train with; `pac_bayes_certificate` is the bound.

    Args:
        apply_fn, params, x, y, key, num_samples: as in `elbo_loss`.
        bound: one of `illia_fn.pac_bayes`: `quadratic_bound`, `mcallester_bound`, `lambda_bound`, `maurer_bound`,
            `partial(catoni_bound, beta=...)`, or any function of the same four arguments.
        delta: the probability with which the bound may fail, in (0, 1).
        options: keyword arguments as in `elbo_loss`, without those that temper the KL. num_data, N, is required, and
            the prior must not have seen the data: q as it was initialised is a good one. loss_fn must lie in [0, 1];
            None is `bounded_cross_entropy`. For the 0/1 error, loss_fn=zero_one_loss and estimator="score_function".
            return_terms returns `RiskTerms`.

    Returns:
        The bound, a scalar; extras as in `elbo_loss`.

    Raises:
        ValueError: as `elbo_loss`; for delta outside of (0, 1), a missing num_data, a KL without a closed form,
            zero_one_loss without its estimator, or a loss outside of [0, 1]; under jit the last makes both the loss and
            its gradient NaN.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.zeros((3, 2))}, scale=0.1)
    >>> x, y = jnp.ones((5, 3)), jnp.array([0, 1, 0, 1, 1])
    >>> loss = pac_bayes_loss(lambda w, x: x @ w["w"], q, x, y, jax.random.key(0), 8, num_data=100, prior=q)
    >>> print(loss.round(1))  # as good as chance, and the price of 100 examples
    0.2
    """
    check_options("pac_bayes_loss", {**options}, RiskOptions)
    check_callable("pac_bayes_loss", "bound", bound)
    probability("pac_bayes_loss", "delta", delta)
    options["loss_fn"] = options.get("loss_fn") or bounded_cross_entropy
    if options["loss_fn"] is zero_one_loss and options.get("estimator") != "score_function":
        raise ValueError(
            'pac_bayes_loss: zero_one_loss has no gradient. Pass estimator="score_function", or train with '
            "bounded_cross_entropy."
        )
    caller = "pac_bayes_loss"
    call = Call(caller=caller, apply_fn=apply_fn, params=params, x=x, y=y, key=key, num_samples=num_samples, **options)
    num_data = call.require_num_data("it is the n of the bound")
    _require_exact_kl(call)
    risk, extremes, aux = call.mean(partial(_range, call))
    terms = RiskTerms(risk * _check_losses(call, *extremes).astype(risk.dtype), call.kl())
    return with_extras(bound(*terms, num_data, delta), *[terms] * call.return_terms, *[aux] * call.has_aux)


class Certificate(NamedTuple):
    """A bound on the risk of networks drawn from q, and what it is made of.

    Attributes:
        bound: with probability at least 1 - delta, the risk is at most this.
        empirical_bound: a bound on the mean loss of all networks of q on the data, from those that were drawn.
        empirical_risk: the mean loss of those.
        kl: KL(q || prior), in nats.
    """

    bound: jax.Array
    empirical_bound: jax.Array
    empirical_risk: jax.Array
    kl: jax.Array


def pac_bayes_certificate(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int,
    *,
    prior: PyTree,
    loss_fn: LossFn | None = None,
    delta: float = 0.05,
    bound: Bound = maurer_bound,
    chunk_size: ChunkSize = "auto",
    needs_key: bool = False,
    fixed_leaves: bool = False,
) -> Certificate:
    """A PAC-Bayes risk certificate: with probability at least 1 - delta, networks w ~ q have at most this risk.

        E_q[risk on data to come] <= bound(r, KL(q || prior), n, delta / 2),
        r = kl_inverse(mean loss of S networks on the n examples, log(2 / delta) / S)

    The second line bounds the mean over all of q by that over the S networks drawn, with probability 1 - delta / 2
    (Langford & Caruana 2001; Chernoff's bound in Maurer's form). It holds for the network that is drawn anew for each
    prediction. Perez-Ortiz et al. 2021, https://arxiv.org/abs/2007.12911. It does not hold for the best of several
    certificates, nor where examples interact in apply_fn, as under batch normalisation in training mode.

    Args:
        apply_fn, params, key: as in `elbo_loss`.
        x, y: all n examples that the bound is about, independent draws of one distribution. q may have been trained on
            them; the prior must not, nor the choice between several priors.
        num_samples: S. The price of few is log(2 / delta) / S in `kl_inverse`: some hundreds, at least.
        prior: as in `elbo_loss`; q as it was initialised, or trained on other data. KL(q || prior) must have a closed
            form.
        loss_fn: loss_fn(outputs, y), per example, in [0, 1]; None is `zero_one_loss`.
        delta: the probability with which the certificate may fail, in (0, 1).
        bound: `maurer_bound` is the tightest one of `illia_fn.pac_bayes`.
        chunk_size, needs_key: as in `elbo_loss`.
        fixed_leaves: set to True to state that the deterministic leaves of params were fixed without the data. The
            bound does not hold for leaves that were trained.

    Returns:
        A `Certificate`.

    Raises:
        ValueError: as `pac_bayes_loss`; for a KL without a closed form, or deterministic leaves without `fixed_leaves`.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.eye(2)}, scale=0.1)
    >>> x, y = jnp.tile(jnp.eye(2), (200, 1)), jnp.tile(jnp.array([0, 1]), 200)
    >>> certificate = pac_bayes_certificate(lambda w, x: x @ w["w"], q, x, y, jax.random.key(0), 500, prior=q)
    >>> print(certificate.empirical_risk, certificate.bound.round(3))
    0.0 0.037
    """
    caller = "pac_bayes_certificate"
    probability(caller, "delta", delta)
    check_callable(caller, "bound", bound)
    options: DataOptions = {
        "prior": prior,
        "loss_fn": loss_fn or zero_one_loss,
        "chunk_size": chunk_size,
        "needs_key": needs_key,
    }
    call = Call(caller=caller, apply_fn=apply_fn, params=params, x=x, y=y, key=key, num_samples=num_samples, **options)
    fixed = [path for path, leaf in leaves_with_path(params, is_posterior) if not is_posterior(leaf)]
    if fixed and not fixed_leaves:
        raise ValueError(
            f"{caller}: params{fixed[0]} is deterministic. If all such leaves were fixed without the data, pass "
            "fixed_leaves=True; if they were trained on it, the bound does not hold: give them a posterior."
        )
    _require_exact_kl(call)
    _, (risks, extremes) = call.sum(lambda *args: ((), _range(call, call.losses_at(*args)[0])), needs_key=needs_key)
    # of all at once, as a running sum of many rounds downwards; and the mean of ones may round upwards
    risk = jnp.minimum(jnp.mean(risks), 1.0)
    risk = risk * _check_losses(call, *extremes).astype(risk.dtype)
    empirical_bound = kl_inverse(risk, jnp.asarray(math.log(2.0 / delta) / num_samples, risk.dtype))
    kl = call.kl()
    num_data = len(jax.tree.leaves(y)[0])
    return Certificate(bound(empirical_bound, kl, num_data, delta / 2.0), empirical_bound, risk, kl)


def _check_losses(call: Call, low: jax.Array, high: jax.Array) -> jax.Array:
    """1, or NaN if some losses lie outside of [0, 1] and that is not known yet."""
    low, high = jax.lax.stop_gradient((jnp.min(low), jnp.max(high)))
    inside = (low >= 0.0) & (high <= 1.0 + 1e-6)
    if concrete(inside) is not None and not inside:
        raise ValueError(
            f"{call.caller}: the losses must lie in [0, 1], got {low} to {high}. Bound them, as bounded_cross_entropy "
            "does."
        )
    return jnp.where(inside, 1.0, jnp.nan)


def _range(call: Call, losses: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The mean loss of one network, and the range of its losses."""
    if losses.ndim == 0:
        raise ValueError(
            f"{call.caller}: loss_fn must return one value per example, but it returned a scalar. Drop its mean."
        )
    return weighted_mean(losses, call.weights), (jnp.min(losses), jnp.max(losses))


def _require_exact_kl(call: Call) -> None:
    if not all(pair.is_exact for pair in call.pairs):
        raise ValueError(
            f"{call.caller}: KL(q || prior) must have a closed form. Take illia_fn.Normal or a posterior tree."
        )
