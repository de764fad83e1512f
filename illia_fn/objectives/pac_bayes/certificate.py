"""A PAC-Bayes certificate: what q promises on data to come."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from illia_fn._base.checks import check_callable
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.objectives._draws import Draws
from illia_fn.objectives._regulariser import Regulariser
from illia_fn.objectives.pac_bayes._binary_kl import kl_inverse
from illia_fn.objectives.pac_bayes.bounded_losses import one_if_inside, risk_and_range, zero_one_loss
from illia_fn.objectives.pac_bayes.bounds import Bound, maurer_bound, probability
from illia_fn.posteriors.posterior import is_posterior


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
    chunk_size: int | Literal["auto"] | None = "auto",
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
    data = DataTerm(caller, apply_fn, x, y, loss_fn=loss_fn or zero_one_loss, needs_key=needs_key)
    draws = Draws(data, params, key, num_samples, chunk_size=chunk_size)
    regulariser = Regulariser(draws, prior=prior)
    fixed = [path for path, leaf in leaves_with_path(params, is_posterior) if not is_posterior(leaf)]
    if fixed and not fixed_leaves:
        raise ValueError(
            f"{caller}: params{fixed[0]} is deterministic. If all such leaves were fixed without the data, pass "
            "fixed_leaves=True; if they were trained on it, the bound does not hold: give them a posterior."
        )
    regulariser.refuse_fitted("the bound holds for a prior that has not seen the data")
    regulariser.require_exact()

    def risk_at(*args: Any) -> tuple[tuple[()], Any]:
        return (), risk_and_range(data, draws.losses(*args)[0])

    _, (risks, extremes) = draws.sum(risk_at, takes_key=True)
    # of all at once, as a running sum of many rounds downwards; and the mean of ones may round upwards
    risk = jnp.minimum(jnp.mean(risks), 1.0)
    risk = risk * one_if_inside(caller, *extremes).astype(risk.dtype)
    empirical_bound = kl_inverse(risk, jnp.asarray(math.log(2.0 / delta) / num_samples, risk.dtype))
    kl = regulariser.kl()
    num_data = len(jax.tree.leaves(y)[0])
    return Certificate(bound(empirical_bound, kl, num_data, delta / 2.0), empirical_bound, risk, kl)
