"""Losses of classifiers that lie in [0, 1], as PAC-Bayes needs them."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._checks import describe
from illia_fn.likelihoods import categorical_nll
from illia_fn.pac_bayes.bounds import probability


def zero_one_loss(outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """1 where the class of the largest logit is not the label, else 0: it has no gradient.

    Args:
        outputs: logits, (B, K).
        targets: class labels, integers (B,).

    >>> print(zero_one_loss(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])))
    [0. 1.]
    """
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"zero_one_loss: outputs must be logits (B, K) and targets integers (B,), got {describe(outputs)} and "
            f"{describe(targets)}."
        )
    return (jnp.argmax(outputs, axis=1) != targets).astype(jnp.float32)


def bounded_cross_entropy(outputs: ArrayLike, targets: ArrayLike, *, min_prob: float = 1e-5) -> jax.Array:
    """min(-log softmax(f)[y], log(1 / min_prob)) / log(1 / min_prob), in [0, 1]: a loss in [0, 1] with a gradient.

    Perez-Ortiz et al. 2021, Tighter risk certificates for neural networks, https://arxiv.org/abs/2007.12911.

    Args:
        outputs: logits f, (B, K).
        targets: class labels y, integers (B,).
        min_prob: what smaller probabilities count as.

    >>> print(bounded_cross_entropy(jnp.array([[0.0, 0.0], [0.0, 99.0]]), jnp.array([0, 0])).round(4))
    [0.0602 1.    ]
    """
    most = -math.log(probability("bounded_cross_entropy", "min_prob", min_prob))
    return jnp.minimum(categorical_nll(outputs, targets), most) / most
