"""PAC-Bayes as a training objective: a bound on the risk of networks drawn from q."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from illia_fn._base.checks import check_callable
from illia_fn._base.trees import PyTree
from illia_fn.coupling import Coupling
from illia_fn.engine import ChunkSize
from illia_fn.engine.estimators import Estimator
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.objectives._draws import Draws
from illia_fn.objectives._regulariser import Regulariser
from illia_fn.objectives.elbo import with_extras
from illia_fn.objectives.pac_bayes.bounded_losses import (
    bounded_cross_entropy,
    one_if_inside,
    risk_and_range,
    zero_one_loss,
)
from illia_fn.objectives.pac_bayes.bounds import Bound, probability, quadratic_bound
from illia_fn.priors.normal import Normal


class RiskTerms(NamedTuple):
    """What a PAC-Bayes loss is made of.

    Attributes:
        risk: the mean loss of networks from q on the data given.
        kl: KL(q || prior), in nats.
    """

    risk: jax.Array
    kl: jax.Array


def pac_bayes_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    num_data: int,
    bound: Bound = quadratic_bound,
    delta: float = 0.05,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    weights: ArrayLike | None = None,
    estimator: Estimator = "reparameterised",
    coupling: Coupling = "shared",
    chunk_size: ChunkSize = "auto",
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
    return_terms: bool = False,
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
        num_data: N, the size of the training set.
        prior: as in `elbo_loss`; it must not have seen the data. q as it was initialised is a good one.
        loss_fn: loss_fn(outputs, y), per example, in [0, 1]; None is `bounded_cross_entropy`. For the 0/1 error,
            loss_fn=zero_one_loss and estimator="score_function".
        return_terms: whether to return `RiskTerms` as well.
        others: as in `elbo_loss`; there is nothing that tempers the KL.

    Returns:
        The bound, a scalar; extras as in `elbo_loss`.

    Raises:
        ValueError: as `elbo_loss`; for delta outside of (0, 1), a KL without a closed form,
            zero_one_loss without its estimator, or a loss outside of [0, 1]; under jit the last makes both the loss and
            its gradient NaN.

    >>> import jax.numpy as jnp
    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.zeros((3, 2))}, scale=0.1)
    >>> x, y = jnp.ones((5, 3)), jnp.array([0, 1, 0, 1, 1])
    >>> loss = pac_bayes_loss(lambda w, x: x @ w["w"], q, x, y, jax.random.key(0), 8, num_data=100, prior=q)
    >>> print(loss.round(1))  # as good as chance, and the price of 100 examples
    0.2
    """
    caller = "pac_bayes_loss"
    check_callable(caller, "bound", bound)
    probability(caller, "delta", delta)
    if loss_fn is zero_one_loss and estimator != "score_function":
        raise ValueError(
            'pac_bayes_loss: zero_one_loss has no gradient. Pass estimator="score_function", or train with '
            "bounded_cross_entropy."
        )
    loss_fn = loss_fn or bounded_cross_entropy
    data = DataTerm(caller, apply_fn, x, y, loss_fn=loss_fn, weights=weights, needs_key=needs_key, has_aux=has_aux)
    draws = Draws(
        data,
        params,
        key,
        num_samples,
        estimator=estimator,
        coupling=coupling,
        chunk_size=chunk_size,
        antithetic=antithetic,
    )
    regulariser = Regulariser(draws, prior=prior, num_data=num_data)
    num_data = regulariser.require_num_data("it is the n of the bound")
    regulariser.refuse_fitted("the bound holds for a prior that has not seen the data")
    regulariser.require_exact()
    risk, extremes, aux = draws.mean(partial(risk_and_range, data))
    terms = RiskTerms(risk * one_if_inside(caller, *extremes).astype(risk.dtype), regulariser.kl())
    return with_extras(bound(*terms, num_data, delta), *[terms] * return_terms, *[aux] * has_aux)
