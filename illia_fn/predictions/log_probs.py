"""log p(y | x) under the posterior predictive: of each example, and of several together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_callable, check_count, concrete, describe
from illia_fn._base.numerics import one_program
from illia_fn.likelihoods._example_losses import LossFn, example_losses
from illia_fn.predictions._outputs import check_examples


def pointwise_log_prob(loss_fn: LossFn | None, outputs: Any, y: Any) -> jax.Array:
    """log p(y_b | f_s(x_b)) of each network and example, what LOO and WAIC of ArviZ take.

    Args:
        loss_fn: a likelihood, or any loss in nats that `elbo_loss` takes, with one value per example; None for what
            `elbo_loss` takes: class labels for integer targets, a Gaussian of unit scale for others.
        outputs: those of S networks, as `illia_fn.predict` returns them: every leaf (S, B, ...), or one number per
            network, (S,), such as a scale that all examples share.
        y: targets, (B, ...), as loss_fn takes them.

    Returns:
        (S, B), in nats, summed over the trailing axes of an example; float32 or wider.

    Raises:
        ValueError: if the outputs have no axis of networks, their examples are not those of y, loss_fn returns a
            scalar, or what loss_fn refuses: labels that are no class, shapes that differ.

    >>> log_probs = pointwise_log_prob(None, jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.array([0.0, 1.0]))
    >>> [[f"{number:.3f}" for number in row] for row in log_probs]  # -log(2 pi) / 2, and 2 less at a distance of 2
    [['-0.919', '-0.919'], ['-0.919', '-2.919']]
    """
    return _pointwise("pointwise_log_prob", loss_fn, outputs, y)


def predictive_log_prob(loss_fn: LossFn | None, outputs: Any, y: Any) -> jax.Array:
    """log p(y_b | x_b) = log (1 / S) sum_s p(y_b | f_s(x_b)) of each example, under the posterior predictive.

    Its mean is the test log-likelihood. The logarithm of a mean over few networks lies below that of the limit, by
    about Var_s[p] / (2 S E_s[p]^2).

    Args and errors are those of `pointwise_log_prob`.

    Returns:
        (B,), in nats; float32 or wider.

    >>> logits = jnp.array([[[50.0, 0.0]], [[0.0, 50.0]]])  # two networks, each sure of another class
    >>> print(predictive_log_prob(None, logits, jnp.array([0])).round(4))  # log(1/2)
    [-0.6931]
    """
    return _log_mean_exp(_pointwise("predictive_log_prob", loss_fn, outputs, y))


def joint_predictive_log_prob(loss_fn: LossFn | None, outputs: Any, y: Any, groups: int | ArrayLike = 10) -> jax.Array:
    """log (1 / S) sum_s prod_{b in group} p(y_b | f_s(x_b)), the log-likelihood of several examples together.

    What tells a posterior from a calibrated point: of a coin that is surely fair and one that has two heads or two
    tails, each example is as likely, but not ten of them. Osband et al. 2022, The neural testbed,
    https://arxiv.org/abs/2110.04629. A group of one is `predictive_log_prob`. The more examples, the fewer networks
    decide: compare with more networks, until it changes no more.

    Args:
        loss_fn, outputs, y: as in `pointwise_log_prob`. The outputs of a network for all examples go together, as in
            one call of `predict`.
        groups: how many consecutive examples make a group, a divisor of B; or the indices of the examples of each
            group, integers (G, size). An example twice in a group has one label, not two that are drawn.

    Returns:
        (G,), in nats, of the whole group; divided by its size it compares with `predictive_log_prob`.

    Raises:
        ValueError: as `pointwise_log_prob`, and if B is no multiple of the size, or an index is no example. Under jit,
            where it cannot be refused, an index that is no example makes its group NaN.
        TypeError: if indices are not integers.

    >>> two_headed = 50.0 * jnp.array([[1.0] * 4, [-1.0] * 4])  # logits of heads: one network each
    >>> heads = jnp.array([1, 1, 1, 1])
    >>> from illia_fn import bernoulli_nll
    >>> print(f"{joint_predictive_log_prob(bernoulli_nll, two_headed, heads, 4)[0]:.3f}")  # log(1/2)
    -0.693
    >>> print(f"{joint_predictive_log_prob(bernoulli_nll, 0.0 * two_headed, heads, 4)[0]:.3f}")  # 4 log(1/2)
    -2.773
    """
    caller = "joint_predictive_log_prob"
    log_probs = _pointwise(caller, loss_fn, outputs, y)
    indices = _indices(caller, groups, log_probs.shape[1])
    inside = jnp.all((indices >= 0) & (indices < log_probs.shape[1]), axis=1)
    joint = _log_mean_exp(jnp.sum(log_probs[:, indices], axis=2))
    return jnp.where(inside, joint, jnp.nan)


def _pointwise(caller: str, loss_fn: LossFn | None, outputs: Any, y: Any) -> jax.Array:
    if loss_fn is not None:
        check_callable(caller, "loss_fn", loss_fn)
    check_examples(caller, outputs, y)
    outputs = jax.tree.map(jnp.asarray, outputs)
    losses = jax.vmap(lambda of_network: example_losses(caller, loss_fn, of_network, y, None))(outputs)
    if losses.ndim == 1:
        raise ValueError(
            f"{caller}: loss_fn must return one value per example, but it returned a scalar. Drop its mean."
        )
    return -losses


@one_program
def _log_mean_exp(log_probs: jax.Array) -> jax.Array:
    value = jax.nn.logsumexp(log_probs, axis=0) - jnp.log(jnp.asarray(len(log_probs), log_probs.dtype))
    # XLA's maximum on a CPU loses a NaN, and what is then made of it under jit loses the others
    return jnp.where(jnp.any(jnp.isnan(log_probs), axis=0), jnp.nan, value)


def _indices(caller: str, groups: int | ArrayLike, num_examples: int) -> jax.Array:
    if isinstance(groups, (int, np.integer)):
        check_count(caller, "groups", groups)
        if num_examples % groups:
            raise ValueError(
                f"{caller}: groups of {groups} consecutive examples must divide the batch, which has {num_examples}. "
                f"Leave out the last {num_examples % groups}, or pass the indices of each group."
            )
        return jnp.arange(num_examples).reshape(-1, groups)
    indices = jnp.asarray(groups)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"{caller}: groups must be a size or integers, indices of examples, got {describe(groups)}.")
    if indices.ndim != 2 or not indices.size:
        raise ValueError(f"{caller}: indices in groups must have shape (G, size), got {indices.shape}.")
    value = concrete(indices)
    if value is not None and ((value < 0) | (value >= num_examples)).any():
        raise ValueError(
            f"{caller}: groups must be indices from 0 to {num_examples - 1}, got {value.min()} to {value.max()}."
        )
    return indices
