"""L(q) = E_{w ~ q}[mean_i -log p(y_i | f(x_i, w))] + kl_weight KL(q || prior) / N: the evidence lower bound."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.trees import PyTree
from illia_fn.coupling import Coupling
from illia_fn.engine import ChunkSize
from illia_fn.engine.estimators import Estimator
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.objectives._draws import Draws
from illia_fn.objectives._regulariser import Regulariser
from illia_fn.priors.normal import Normal


class ELBOTerms(NamedTuple):
    """What an ELBO loss is made of: loss = nll + weight * kl (+ weight * hyperprior), to the last bit.

    Attributes:
        nll: mean negative log-likelihood per example, averaged over the Monte Carlo samples, in nats.
        kl: KL(q || prior) of the whole tree, in nats; with `temperature` or `free_nats`, what takes its place.
        weight: the factor of the KL: kl_weight / num_data, or kl_weight / num_params(params) without `num_data`.
        hyperprior: -log of the hyperprior of a prior that is fitted to q (`priors.EmpiricalBayes`), in nats, or None.
    """

    nll: jax.Array
    kl: jax.Array
    weight: jax.Array
    hyperprior: jax.Array | None = None

    @property
    def loss(self) -> jax.Array:
        """nll + weight * kl, and the hyperprior with the same weight."""
        loss = _round(self.nll) + _round(self.weight * self.kl)
        return loss if self.hyperprior is None else _round(loss) + _round(self.weight * self.hyperprior)


@jax.custom_jvp
def _round(x: jax.Array) -> jax.Array:
    """Return `x`, rounded as it would be outside of jit.

    XLA contracts a product and a sum, so that they round once. A select between the two keeps them apart.
    """
    return jnp.where(jnp.isnan(x), jnp.nan, x)


_round.defjvps(lambda tangent, _, __: tangent)


def elbo_loss(
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
    coupling: Coupling = "shared",
    chunk_size: ChunkSize = "auto",
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
    return_terms: bool = False,
) -> Any:
    """Negative evidence lower bound of a model with weights w ~ q: the loss of Bayes by backprop.

    Blundell et al. 2015, Weight uncertainty in neural networks, https://arxiv.org/abs/1505.05424.

    With `num_data=N`, exactly the negative ELBO per training example, in nats:

        L(q) = E_{w ~ q}[ mean_i -log p(y_i | f(x_i, w)) ] + kl_weight * KL(q || prior) / N,    kl_weight = 1

    so -N * L bounds the log evidence from below, and the expectation of L is the same for any size of a batch that is
    drawn uniformly, and any padding of weight 0. Without `num_data`, the KL is averaged over the
    P = `num_params(params)` variational parameters, as in illia's ELBOLoss:

        L(q) = E_{w ~ q}[ mean_i -log p(y_i | f(x_i, w)) ] + kl_weight * KL(q || prior) / P,    kl_weight = 1e-3

    The expectation is a mean over reparameterised draws, one w for the whole batch unless `coupling` tells; the KL is
    exact where it has a closed form, and otherwise an unbiased estimate from `num_samples` draws of its own (see
    `kl_divergence`).

    Args:
        apply_fn: the model, apply_fn(params, x) -> outputs. With `needs_key=True` (dropout), apply_fn(params, x, key)
            with a key of its own for each Monte Carlo sample; with `has_aux=True` (batch statistics), it returns
            (outputs, aux).
        params: a posterior tree, such as `mean_field` makes; its plain leaves are deterministic parameters.
        x: inputs, as the model takes them.
        y: targets, an array or a pytree of arrays with a leading batch axis of size B.
        key: a PRNG key; a fresh one for each step.
        num_samples: Monte Carlo samples, a static int of at least 1.
        loss_fn: loss_fn(outputs, y), a negative log-likelihood in nats: values per example (B,), values with trailing
            axes (B, ...), which are summed, or a scalar, which is taken to be the mean over examples. None goes by the
            targets: integers are class labels (`optax.softmax_cross_entropy_with_integer_labels`), floats have a
            Gaussian likelihood of unit scale (`gaussian_nll`). Half-precision outputs reach it as float32.
        prior: as in `kl_loss`. A prior without a closed form (any but ours and those of `register_kl`) is sampled.
        num_data: N, the size of the training set.
        kl_weight: a factor of the KL, not negative; may be traced (a schedule). A tempered posterior,
            p(y | w)^(1 / kl_weight) p(w), is the optimum of kl_weight other than 1.
        temperature: T, positive; may be traced. The optimum is the cold (T < 1) or warm posterior
            (p(y | w) p(w))^(1 / T): KL(q || prior) becomes -E_q[log prior(w)] - T H(q) = KL + (1 - T) H(q) (Wenzel et
            al. 2020, https://arxiv.org/abs/2002.02405).
        free_nats: free bits (Kingma et al. 2016, https://arxiv.org/abs/1606.04934), in nats: the KL of each leaf l,
            tempered if `temperature` is not 1, becomes max(KL_l, free_nats), so that up to there it costs nothing. A
            number for each leaf, or a prefix tree of them. The loss stays an upper bound of the negative ELBO.
        weights: weights of the examples, (B,), for a weighted mean; 0 for padding, whose targets may be anything, but
            whose inputs must be finite. If all are 0 under jit, the loss is NaN.
        estimator: how the gradient is estimated; the value is the same. "reparameterised": through the draws, with the
            exact gradient of the KL. "doubly_reparameterised": sticking the landing (Roeder et al. 2017,
            https://arxiv.org/abs/1703.09194), with the KL's gradient taken at the same draws and through them alone,
            so that the noise of both terms cancels where q is the posterior. "score_function": for a loss_fn or a model
            without a gradient (the 0/1 error, a simulator), through log q, with leave-one-out control variates (Mnih &
            Rezende 2016, https://arxiv.org/abs/1602.06725); it needs num_samples of at least 2.
        coupling: how the noise is coupled across the examples of the batch and across the samples: "shared", one w for
            all examples, and independent samples; "decorrelated", the noise of each leaf apart for each example where
            that is cheap and exact, and spread evenly over its law by the samples, for the same expectation at a lower
            variance; "flipout" or "local_reparam". See `decorrelate` and `explain_coupling`. All but "shared" need
            examples that do not interact, the reparameterised estimator, and an apply_fn without aux.
        chunk_size: how many samples run at once; None for all. The memory grows with this, and not with `num_samples`;
            see `expectation`. "auto" goes by the platform: see `engine.auto_chunk_size`. On a CPU it is one after
            another, or 8 at once, as one large batch, if the coupling leaves no noise that all examples share. Beyond
            64 samples, the draws of a coupling depend on it.
        antithetic: whether the networks come in pairs that mirror each other; see `expectation`. Samples of a coupling
            that is not "shared" do so already, in other pairs for each number of the noise; with this, in the same
            pairs for all of it, so that what is even in the noise is sampled half as often.
        needs_key: whether apply_fn takes a key.
        has_aux: whether apply_fn returns (outputs, aux).
        return_terms: whether to return the terms of the loss as well.

    Returns:
        The loss, a scalar of float32 or wider; with `return_terms=True` (loss, terms), an `ELBOTerms`; with
        `has_aux=True` (loss, aux), every leaf of aux with a leading axis of size `num_samples`; with both (loss,
        (terms, aux)).

    Raises:
        ValueError: if batch sizes or shapes of outputs, targets and weights do not match (nothing is broadcast); for
            num_samples, chunk_size or num_data < 1, an odd number of antithetic samples, a prior that does not match,
            a temperature that is not positive, an unknown estimator or one that does not go with the samples, or,
            without `num_data`, a tree without posterior nodes.
        TypeError: if `key` is not a PRNG key.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.zeros((3, 2))}, scale=0.1)
    >>> x, y = jnp.ones((5, 3)), jnp.array([0, 1, 0, 1, 1])
    >>> loss, terms = elbo_loss(lambda w, x: x @ w["w"], q, x, y, jax.random.key(0), 8, num_data=100, return_terms=True)
    >>> print(f"{terms.kl:.3f}", loss == terms.nll + terms.weight * terms.kl)
    10.846 True
    """
    data = DataTerm("elbo_loss", apply_fn, x, y, loss_fn=loss_fn, weights=weights, needs_key=needs_key, has_aux=has_aux)
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
    regulariser = Regulariser(
        draws, prior=prior, num_data=num_data, kl_weight=kl_weight, temperature=temperature, free_nats=free_nats
    )
    nll, aux = draws.mean_nll()
    kl = regulariser.kl()
    terms = ELBOTerms(nll, kl, regulariser.weight(kl.dtype), regulariser.hyperprior())
    return with_extras(terms.loss, *[terms] * return_terms, *[aux] * has_aux)


def with_extras(loss: jax.Array, *extras: Any) -> Any:
    """The loss alone, (loss, extra) or (loss, (extra, extra)): what `jax.value_and_grad(has_aux=True)` takes."""
    return loss if not extras else (loss, extras[0] if len(extras) == 1 else extras)
