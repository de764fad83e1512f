"""Classes: what probability they have, and how much of the doubt more data could lift."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.special import minus_log
from illia_fn.likelihoods._example_losses import LossFn
from illia_fn.likelihoods.classes import categorical_nll
from illia_fn.likelihoods.table import law_of
from illia_fn.predictions._outputs import check_outputs
from illia_fn.predictions.metrics._shared import only_probabilities


class ClassSummary(NamedTuple):
    """What S networks say of the class of each example; entropies are in nats.

    Attributes:
        probs: the mean probabilities, which are the predictive distribution, (B, ..., C).
        total: entropy of the mean probabilities, (B, ...).
        aleatoric: mean of the entropies, the doubt that each network has, (B, ...).
        epistemic: total - aleatoric, the mutual information of class and network, the doubt that the networks differ
            in and that more data would lift, (B, ...).
        variation_ratio: the share of the networks whose most likely class is not the most frequent one, (B, ...).
    """

    probs: jax.Array
    total: jax.Array
    aleatoric: jax.Array
    epistemic: jax.Array
    variation_ratio: jax.Array


def class_probs(loss_fn: LossFn | None, outputs: Any) -> jax.Array:
    """p(y = c | f_s(x_b)) of each network, example and class.

    Args:
        loss_fn: a likelihood of classes: `categorical_nll`, or None for it; `bernoulli_nll`, whose classes are no and
            yes; `ordinal_nll`; or one that `register_law` added with class_probs.
        outputs: those of S networks, as `illia_fn.predict` returns them, as loss_fn takes them.

    Returns:
        (S, B, ..., C); float32 or wider.

    Raises:
        ValueError: if loss_fn is no likelihood of classes, or the outputs have no axis of networks.

    >>> from illia_fn import bernoulli_nll
    >>> print(class_probs(bernoulli_nll, jnp.array([[0.0, 100.0]])))
    [[[0.5 0.5]
      [0.  1. ]]]
    """
    num_networks, batch_size = check_outputs("class_probs", outputs)
    law = law_of("class_probs", categorical_nll if loss_fn is None else loss_fn)
    probs = jax.vmap(lambda of_network: law(of_network).class_probs)(jax.tree.map(jnp.asarray, outputs))
    if probs is None:
        raise ValueError(
            "class_probs: loss_fn must be a likelihood of classes: categorical_nll, bernoulli_nll or ordinal_nll. "
            "predictive_moments summarises the others."
        )
    if probs.shape[:2] != (num_networks, batch_size):
        raise ValueError(
            f"class_probs: loss_fn must give probabilities of shape ({num_networks}, {batch_size}, ..., C), got "
            f"{probs.shape}."
        )
    return probs


def class_summary(probs: ArrayLike) -> ClassSummary:
    """The mean probabilities of S networks, and their entropy split in two.

        H[mean_s p_s] = mean_s H[p_s] + mean_s KL(p_s || mean_s p_s)
        total         = aleatoric     + epistemic

    Depeweg et al. 2018, https://arxiv.org/abs/1710.07283; Houlsby et al. 2011, https://arxiv.org/abs/1112.5745. The
    epistemic part is computed as that mean, never negative, and as exact where networks all but agree. Each part also
    is where probabilities are 0 or tiny. With few networks it is too small: at most log S.

    Args:
        probs: probabilities of S networks, (S, B, ..., C), such as those of `class_probs`.

    Returns:
        A `ClassSummary`. Of classes that are equally likely, a network votes for the first in its variation ratio.

    Raises:
        ValueError: if there is no axis of networks, or probabilities are negative or do not sum to one. Under jit,
            where they cannot be refused, they make the example NaN.

    >>> agree, differ = [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]
    >>> summary = class_summary(jnp.array([agree, differ]).swapaxes(0, 1))  # (networks, examples, classes)
    >>> print(summary.total, summary.aleatoric, summary.epistemic, summary.variation_ratio)
    [0.6931472 0.6931472] [0.6931472 0.       ] [0.        0.6931472] [0.  0.5]
    """
    given, probs = jnp.asarray(probs).dtype, at_least_float32(probs)
    if probs.ndim < 3 or not probs.size:
        raise ValueError(
            f"class_summary: probs must be those of S networks, (S, B, ..., C), got {probs.shape}. Of one network pass "
            "probs[None]."
        )
    _check_probs("class_summary", probs, given)
    return _summarise(only_probabilities(probs))


@jax.jit
def _summarise(probs: jax.Array) -> ClassSummary:
    mean = jnp.mean(probs, axis=0)
    epistemic = jnp.mean(jnp.sum(_divergence(probs, mean[None]), axis=-1), axis=0)
    votes = jax.nn.one_hot(jnp.argmax(probs, axis=-1), probs.shape[-1], dtype=probs.dtype)
    dissent = 1.0 - jnp.max(jnp.sum(votes, axis=0), axis=-1) / len(probs)
    return ClassSummary(mean, _entropy(mean), jnp.mean(_entropy(probs), axis=0), epistemic, dissent)


def _check_probs(caller: str, probs: jax.Array, given: Any) -> None:
    """Probabilities are not negative and sum to one, as far as that can be known before tracing."""
    value = concrete(probs)
    if value is None:
        return
    sums = value.sum(axis=-1, dtype=np.float64)
    room = max(1e-4, 4.0 * float(jnp.finfo(given).eps) if jnp.issubdtype(given, jnp.floating) else 0.0)
    if not (np.all(value >= 0) and np.all(np.abs(sums - 1.0) <= room)):
        raise ValueError(
            f"{caller}: probs must be probabilities that sum to one over the last axis, got numbers from {value.min()} "
            f"to {value.max()} and sums from {sums.min()} to {sums.max()}. Of logits pass jax.nn.softmax(logits)."
        )


def _entropy(probs: jax.Array) -> jax.Array:
    """-sum_c p_c log p_c over the last axis."""
    # Of a class with p near 1, log p is that of the others' sum: 1 - p has rounded it away.
    likely = jax.nn.one_hot(jnp.argmax(probs, axis=-1), probs.shape[-1], dtype=bool) & (probs > 0.5)
    others = jnp.sum(jnp.where(likely, 0.0, probs), axis=-1, keepdims=True)
    of_likely = -probs * jnp.log1p(-jnp.where(likely, others, 0.0))
    return jnp.sum(jnp.where(likely, of_likely, jax.scipy.special.entr(probs)), axis=-1)


def _divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """p log(p / q) - p + q >= 0, whose sum is KL(p || q), of numbers with q >= p / S."""
    # Each term alone has the sign of p - q, and their sum would cancel; the mean of -p + q over the networks is 0.
    some = p >= jnp.finfo(p.dtype).tiny
    own, mean = jnp.where(some, p, 1.0), jnp.where(some, q, 1.0)
    return jnp.where(some, own * minus_log((mean - own) / own, jnp.log(mean) - jnp.log(own)), q)
