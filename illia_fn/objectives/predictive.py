"""-log of the posterior predictive, with a KL: what is deployed, trained."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.trees import PyTree
from illia_fn.engine.estimators import Estimator
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.objectives._draws import Draw, Draws
from illia_fn.objectives._regulariser import Regulariser
from illia_fn.objectives.elbo import ELBOTerms, with_extras
from illia_fn.priors.normal import Normal


def predictive_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    num_data: int | None = None,
    kl_weight: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    free_nats: PyTree | None = None,
    weights: ArrayLike | None = None,
    estimator: Estimator = "reparameterised",
    chunk_size: int | Literal["auto"] | None = "auto",
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
    return_terms: bool = False,
) -> Any:
    """Predictive negative log-likelihood with a KL: the mean over networks is inside the logarithm, per example.

        L = mean_i -log (1 / S) sum_s p(y_i | f(x_i, w_s)) + kl_weight * KL(q || prior) / N,    w_s ~ q

    It trains what is deployed, the posterior predictive: direct loss minimisation (Sheth & Khardon 2017,
    https://arxiv.org/abs/1706.00473), PAC^m-Bayes (Morningstar et al. 2022, https://arxiv.org/abs/2010.09629). With one
    sample it is the ELBO loss, and with more it lies below it: -N * L is no lower bound on the log evidence.

    Args:
        apply_fn, params, x, y, key, num_samples: as in `elbo_loss`. It takes more than one sample to differ from it.
        loss_fn: as in `elbo_loss`; it must return values per example.
        others: as in `elbo_loss`. There is no coupling: the samples of an example are to be independent.

    Returns and errors are those of `elbo_loss`, and ValueError for a loss_fn that returns a scalar.

    >>> from illia_fn import elbo_loss, mean_field
    >>> q = mean_field({"w": jnp.zeros((3, 2))}, scale=1.0)
    >>> args = lambda w, x: x @ w["w"], q, jnp.ones((5, 3)), jnp.array([0, 1, 0, 1, 1]), jax.random.key(0), 8
    >>> predictive_loss(*args, num_data=100) < elbo_loss(*args, num_data=100)
    Array(True, dtype=bool)
    """
    data = DataTerm(
        "predictive_loss", apply_fn, x, y, loss_fn=loss_fn, weights=weights, needs_key=needs_key, has_aux=has_aux
    )
    draws = Draws(data, params, key, num_samples, estimator=estimator, chunk_size=chunk_size, antithetic=antithetic)
    regulariser = Regulariser(
        draws, prior=prior, num_data=num_data, kl_weight=kl_weight, temperature=temperature, free_nats=free_nats
    )

    def losses(w: Draw, *apply_key: jax.Array) -> tuple[jax.Array, Any]:
        values, aux = draws.losses(w, *apply_key)
        return data.require_examples(values), aux

    def predictive_nll(losses: jax.Array) -> jax.Array:
        log_count = jnp.log(jnp.asarray(len(losses), losses.dtype))
        return data.mean(log_count - jax.nn.logsumexp(-losses, axis=0))

    nll, aux = draws.reduce(losses, predictive_nll)
    kl = regulariser.kl()
    terms = ELBOTerms(nll, kl, regulariser.weight(kl.dtype), regulariser.hyperprior())
    return with_extras(terms.loss, *[terms] * return_terms, *[aux] * has_aux)
