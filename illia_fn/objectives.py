"""L(q): what to minimise."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._batch import LossFn, check_weights, mean_loss
from illia_fn._checks import check_callable, check_draws, check_factor, check_num_data, split_aux
from illia_fn._join import Joined
from illia_fn._trees import PyTree
from illia_fn.coupling import Coupling, coupled_mean
from illia_fn.expectation import expectation
from illia_fn.kl import kl_pairs, total_kl
from illia_fn.posteriors import is_posterior, num_params
from illia_fn.priors import Normal


class ELBOTerms(NamedTuple):
    """What an ELBO loss is made of: loss = nll + weight * kl, to the last bit.

    Attributes:
        nll: mean negative log-likelihood per example, averaged over the Monte Carlo samples, in nats.
        kl: KL(q || prior) of the whole tree, in nats.
        weight: the factor of the KL: kl_weight / num_data, or kl_weight / num_params(params) without `num_data`.
    """

    nll: jax.Array
    kl: jax.Array
    weight: jax.Array

    @property
    def loss(self) -> jax.Array:
        """nll + weight * kl."""
        return _round(self.nll) + _round(self.weight * self.kl)


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
    prior: PyTree = Normal(0.0, 0.1),
    num_data: int | None = None,
    kl_weight: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    coupling: Coupling = "shared",
    chunk_size: int | Literal["auto"] | None = "auto",
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
        kl_weight: a factor of the KL, not negative; may be traced (a schedule).
        weights: weights of the examples, (B,), for a weighted mean; 0 for padding, whose targets may be anything, but
            whose inputs must be finite. If all are 0 under jit, the loss is NaN.
        coupling: how the noise of a sample is coupled across the examples of the batch: "shared", one w for all;
            "decorrelated", the noise of each leaf apart for each example where that is cheap and exact, for the same
            expectation at a lower variance; "flipout" or "local_reparam". See `decorrelate` and `explain_coupling`.
        chunk_size: how many samples run at once; None for all. The memory does not grow with `num_samples`, but with
            this; see `expectation`. "auto" is one after another, which is usually fastest on a CPU, and all at
            once, as one large batch, if the coupling leaves no noise that all examples share.
        antithetic: whether the networks come in pairs that mirror each other; see `expectation`.
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
            or, without `num_data`, a tree without posterior nodes.
        TypeError: if `key` is not a PRNG key.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.zeros((3, 2))}, scale=0.1)
    >>> x, y = jnp.ones((5, 3)), jnp.array([0, 1, 0, 1, 1])
    >>> loss, terms = elbo_loss(lambda w, x: x @ w["w"], q, x, y, jax.random.key(0), 8, num_data=100, return_terms=True)
    >>> print(terms.kl.round(6), loss == terms.nll + terms.weight * terms.kl)
    0.0 True
    """
    check_arguments("elbo_loss", apply_fn, loss_fn, params, num_data, kl_weight, weights)
    shared_chunk = 1 if chunk_size == "auto" else chunk_size
    check_draws("elbo_loss", key, num_samples, shared_chunk, antithetic)
    draw_key, kl_key = jax.random.split(key)

    pairs = kl_pairs("elbo_loss", params, prior, kl_key)
    joined = Joined.of(params, is_posterior)

    def mean_nll(w: list[jax.Array], *apply_key: jax.Array) -> tuple[jax.Array, Any]:
        outputs, aux = split_aux("elbo_loss", "apply_fn", apply_fn(joined.tree(w), x, *apply_key), has_aux=has_aux)
        return mean_loss("elbo_loss", loss_fn, outputs, y, weights), aux

    how: dict[str, Any] = {"antithetic": antithetic, "needs_key": needs_key}
    if coupling == "shared":
        how |= {"chunk_size": shared_chunk, "has_aux": True}
        nll, aux = expectation(mean_nll, joined.nodes, draw_key, num_samples, **how)
    else:
        how |= {"chunk_size": chunk_size, "has_aux": has_aux, "coupling": coupling}
        loss_of = partial(mean_loss, "elbo_loss", loss_fn, y=y, weights=weights)
        nll, aux = coupled_mean("elbo_loss", loss_of, apply_fn, params, x, draw_key, num_samples, **how), None
    kl = total_kl(joined, pairs, num_samples)
    terms = ELBOTerms(nll, kl, _weight_of_kl("elbo_loss", params, num_data, kl_weight, kl.dtype))
    return with_extras(terms.loss, *[terms] * return_terms, *[aux] * has_aux)


def check_arguments(
    caller: str,
    apply_fn: Any,
    loss_fn: Any,
    params: PyTree,
    num_data: Any,
    kl_weight: Any,
    weights: Any,
) -> None:
    """The checks that all objectives share."""
    check_callable(caller, "apply_fn", apply_fn)
    if loss_fn is not None:
        check_callable(caller, "loss_fn", loss_fn)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"{caller}: params has no leaves, got {params!r}. Pass a posterior tree, such as mean_field makes."
        )
    check_num_data(caller, num_data)
    if kl_weight is not None:
        check_factor(caller, "kl_weight", kl_weight)
    check_weights(caller, weights)


def _weight_of_kl(
    caller: str, params: PyTree, num_data: int | None, kl_weight: ArrayLike | None, dtype: Any
) -> jax.Array:
    if num_data is not None:
        return jnp.asarray(1.0 if kl_weight is None else kl_weight, dtype) / jnp.asarray(num_data, dtype)
    count = num_params(params)
    if count == 0:
        raise ValueError(
            f"{caller}: params has no posterior node, so there is no KL per variational parameter. Make some leaves "
            "Bayesian with mean_field, or pass num_data: the loss of a deterministic tree is then its mean NLL."
        )
    return jnp.asarray(1e-3 if kl_weight is None else kl_weight, dtype) / jnp.asarray(count, dtype)


def with_extras(loss: jax.Array, *extras: Any) -> Any:
    """The loss alone, (loss, extra) or (loss, (extra, extra)): what `jax.value_and_grad(has_aux=True)` takes."""
    return loss if not extras else (loss, extras[0] if len(extras) == 1 else extras)
