"""L(q) without sampling w: of a model that is linear in its Bayesian leaves, or by propagation of moments."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import describe, split_aux
from illia_fn._base.trees import PyTree
from illia_fn.coupling._linearity import LinearModel
from illia_fn.coupling._propagated import PropagatedModel
from illia_fn.engine._eager import compiled_once
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.objectives._draws import Draws
from illia_fn.objectives._expected import SoftmaxBound, check_bound, expected_losses
from illia_fn.objectives._regulariser import Regulariser
from illia_fn.objectives.elbo import ELBOTerms, with_extras
from illia_fn.priors.normal import Normal

OutputMethod = Literal["exact", "moments"]


def analytic_elbo_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array | None = None,
    num_samples: int = 1,
    *,
    loss_fn: LossFn | None = None,
    method: OutputMethod = "exact",
    bound: SoftmaxBound = "knowles_minka",
    num_points: int = 20,
    prior: PyTree = Normal(0.0, 1.0),
    num_data: int | None = None,
    kl_weight: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    free_nats: PyTree | None = None,
    weights: ArrayLike | None = None,
    needs_key: bool = False,
    has_aux: bool = False,
    return_terms: bool = False,
) -> Any:
    """Negative evidence lower bound without sampling the weights: exact where they enter linearly, or by their moments.

        L(q) = mean_i E_{w ~ q}[ -log p(y_i | f(x_i, w)) ] + kl_weight * KL(q || prior) / N

    where f is linear in the Bayesian leaves, up to a constant, as in a Bayesian last layer on any network: then f(x_i,
    w) is Gaussian, and what `elbo_loss` averages over draws is known, with the mean and variance m, c of the outputs:

    - `gaussian_nll`, exactly: -log N(y; m, s^2) + c / (2 s^2).
    - `categorical_nll`, an upper bound, so that L bounds the negative ELBO from above: the tightest of Knowles & Minka
      2011, Non-conjugate variational message passing for multinomial and binary regression, or Jensen's inequality,
      -m_y + log sum_k exp(m_k + c_k / 2).
    - the other likelihoods of illia_fn, but for mixtures, and any loss_fn of one output for each example:
      Gauss-Hermite quadrature. With 20 points, that of a Bernoulli is within 1e-6 nats where the standard deviation of
      its logit is 2, 1e-3 where it is 4, and .02 where it is 8; at a kink, as that of `laplace_nll`, it is off by up to
      .03 standard deviations. Five times the points make that .006.

    Variational Bayesian last layers: Harrison et al. 2024, https://arxiv.org/abs/2404.11599. Here any posterior whose
    draws are linear in their noise serves, for any model: what is linear is read off the model's derivatives (see
    `explain_linearity`). The gradient has no noise but that of the batch. Examples may interact in deterministic
    layers, as under batch normalisation.

    With `method="moments"` f need not be linear: m and c are those of `propagate_moments`, which goes through the
    network from layer to layer (Wu et al. 2019, Deterministic variational inference for robust Bayesian neural
    networks, https://arxiv.org/abs/1810.03958, without the covariances of units). That is an approximation: L is no
    bound any more, nor does it tell how far it is off. For one hidden dense layer of relu m and c are exact, and so is
    L of a `gaussian_nll`. For more, c is wrong, as what the units of a layer have in common is neglected, and an
    optimiser makes use of that: in `benchmarks.moments` a network of three hidden layers ends at the negative ELBO of
    `elbo_loss`, but its held-out likelihood is worse, and the data term of L is half of that by draws. Judge what was
    trained by `elbo_loss`. A pair (loc, rho) of a `gaussian_nll` may be random in both, for which rho is averaged by
    quadrature.

    Args:
        apply_fn, params, x, y: as in `elbo_loss`; one of the outputs depends on the posterior nodes of params: of a
            pair (loc, rho) the first, say, with a rho of deterministic parameters. All nodes enter the outputs linearly
            or, by moments, through operations that `propagate_moments` takes.
        key: a PRNG key for what is random beside w: with `needs_key=True` (dropout), and for a KL that is sampled.
        num_samples: how many draws to take of that; the weights need none.
        loss_fn: as in `elbo_loss`, of the kinds above. Keywords are bound with `functools.partial`.
        method: "exact", or "moments".
        bound: that of `categorical_nll`, "knowles_minka" or "jensen". The first one is a fixed number of steps towards
            the tightest: within 1e-5 nats of it where the standard deviation of each logit is below 3, or below 2 if
            they are correlated (then within 1e-2 at 3). It needs the covariance of the logits of an example, unless
            they are independent, and has first derivatives only.
        num_points: points of the quadrature, of the likelihood and of activations.
        others: as in `elbo_loss`.

    Returns:
        As `elbo_loss`.

    Raises:
        ValueError: as `elbo_loss`, and if the outputs are not linear in a Bayesian leaf, which it names along with the
            operation that is in the way, for a posterior that is not Gaussian, and for a loss_fn of another kind. By
            moments, as `propagate_moments` for the first two of these.
        TypeError: if `key` is not a PRNG key, and for a second derivative of `bound="knowles_minka"`.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.ones((3, 2))}, scale=0.1)  # two outputs of mean 3 and variance 0.03
    >>> data = jnp.ones((5, 3)), jnp.zeros((5, 2))
    >>> print(f"{analytic_elbo_loss(lambda w, x: x @ w['w'], q, *data, num_data=5):.3f}")
    13.637
    >>> def network(w, x):
    ...     return jax.nn.relu(x @ w["w"]) @ jnp.ones((2, 1))
    >>> print(f"{analytic_elbo_loss(network, q, data[0], jnp.zeros((5, 1)), num_data=5, method='moments'):.3f}")
    21.718
    """
    check_bound("analytic_elbo_loss", bound, num_points)
    if method not in get_args(OutputMethod):
        raise ValueError(
            f"analytic_elbo_loss: method must be one of {', '.join(get_args(OutputMethod))}, got {describe(method)}."
        )
    data = DataTerm(
        "analytic_elbo_loss", apply_fn, x, y, loss_fn=loss_fn, weights=weights, needs_key=needs_key, has_aux=has_aux
    )
    draws = Draws(data, params, jax.random.key(0) if key is None else key, num_samples)
    regulariser = Regulariser(
        draws, prior=prior, num_data=num_data, kl_weight=kl_weight, temperature=temperature, free_nats=free_nats
    )
    if key is None:
        _refuse_missing_key(regulariser)
    nll, aux = _mean_nll(draws, method, bound, num_points)
    kl = regulariser.kl()
    terms = ELBOTerms(nll, kl, regulariser.weight(kl.dtype), regulariser.hyperprior())
    return with_extras(terms.loss, *[terms] * return_terms, *[aux] * has_aux)


def _refuse_missing_key(regulariser: Regulariser) -> None:
    caller = regulariser.caller
    if regulariser.draws.data.needs_key:
        raise ValueError(f"{caller}: needs_key=True takes a key, for the random numbers of apply_fn. Pass one.")
    if not all(pair.is_exact for pair in regulariser.pairs):
        raise ValueError(
            f"{caller}: KL(q || prior) has no closed form and must be sampled. Pass a key, or take illia_fn.Normal or "
            "a posterior tree as the prior."
        )


def _mean_nll(draws: Draws, method: OutputMethod, bound: SoftmaxBound, num_points: int) -> tuple[jax.Array, PyTree]:
    """The expected mean loss, over num_samples keys if apply_fn takes one, and all aux."""
    data, params = draws.data, draws.params

    def nll(*apply_key: jax.Array) -> tuple[jax.Array, PyTree]:
        def outputs(w: PyTree) -> tuple[PyTree, PyTree]:
            return split_aux(data.caller, "apply_fn", data.apply_fn(w, data.x, *apply_key), has_aux=data.has_aux)

        if method == "exact":
            model = LinearModel.of(data.caller, outputs, params, data.x)
        else:
            model = PropagatedModel.of(data.caller, outputs, params, data.x, num_points)
        losses = expected_losses(data, model, bound=bound, num_points=num_points)
        return data.mean(losses), model.aux

    if data.needs_key and draws.num_samples > 1:
        values, aux = jax.lax.map(lambda key: nll(key), jax.random.split(draws.keys[0], draws.num_samples))
        return jnp.mean(values), aux
    value, aux = compiled_once(nll, *[draws.keys[0]] * data.needs_key)
    return value, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (draws.num_samples, *jnp.shape(leaf))), aux)
