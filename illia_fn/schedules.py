"""kl_weight: schedules step -> weight, shaped like optax's, for `elbo_loss(kl_weight=schedule(step))`.

A linear warm-up is optax's own, `optax.linear_schedule(0.0, 1.0, num_steps)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from illia_fn._base.checks import check_count, describe

Schedule = Callable[[ArrayLike], jax.Array]


def cosine_warmup(num_steps: int) -> Schedule:
    """KL warm-up along half a cosine, (1 - cos(pi t / T)) / 2 for t < T = `num_steps`, and then 1.

    The mirror image of `optax.cosine_decay_schedule`.

    Raises:
        ValueError: if `num_steps` is not an int of at least 1.

    >>> weight = cosine_warmup(100)
    >>> print(weight(0), weight(50), weight(100), weight(1000))
    0.0 0.5 1.0 1.0
    """
    check_count("cosine_warmup", "num_steps", num_steps)
    decay = optax.cosine_decay_schedule(1.0, num_steps)

    def weight(step: ArrayLike) -> jax.Array:
        return jnp.asarray(1.0 - decay(jnp.asarray(step, jnp.float32)))

    return weight


def sigmoid_warmup(num_steps: int, steepness: float = 10.0) -> Schedule:
    """KL warm-up along a sigmoid that passes 1/2 at T / 2, sigmoid(steepness (t / T - 1/2)), T = `num_steps`.

    Bowman et al. 2016, Generating sentences from a continuous space, https://arxiv.org/abs/1511.06349. It starts at
    sigmoid(-steepness / 2) and only tends to 1.

    Raises:
        ValueError: if `num_steps` is not an int of at least 1, or `steepness` is not positive.

    >>> weight = sigmoid_warmup(100)
    >>> [f"{weight(step):.4f}" for step in (0, 50, 100)]
    ['0.0067', '0.5000', '0.9933']
    """
    check_count("sigmoid_warmup", "num_steps", num_steps)
    if not (isinstance(steepness, (int, float)) and 0 < steepness < float("inf")):
        raise ValueError(f"sigmoid_warmup: steepness must be a positive number, got {describe(steepness)}.")
    return lambda step: jax.nn.sigmoid(steepness * (jnp.asarray(step, jnp.float32) / num_steps - 0.5))


def cyclical_warmup(num_steps: int, num_cycles: int = 4, ratio: float = 0.5) -> Schedule:
    """KL warm-up in cycles: linear from 0 to 1 in the first `ratio` of each of `num_cycles`, and then 1.

    Fu et al. 2019, Cyclical annealing schedule, https://arxiv.org/abs/1903.10145; here a cycle has T / M steps, whole
    or not. After T = `num_steps` it stays at 1.

    Raises:
        ValueError: if `num_steps` or `num_cycles` is not an int of at least 1, or `ratio` is not in (0, 1].

    >>> weight = cyclical_warmup(100, num_cycles=2)
    >>> [f"{weight(step):.1f}" for step in (0, 20, 40, 50, 100)]
    ['0.0', '0.8', '1.0', '0.0', '1.0']
    """
    check_count("cyclical_warmup", "num_steps", num_steps)
    check_count("cyclical_warmup", "num_cycles", num_cycles)
    if not (isinstance(ratio, (int, float)) and 0 < ratio <= 1):
        raise ValueError(f"cyclical_warmup: ratio must be a number in (0, 1], got {describe(ratio)}.")

    def weight(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        within = jnp.mod(step * num_cycles, num_steps) / num_steps  # products of whole numbers: the ends are exact
        return jnp.where(step < num_steps, jnp.minimum(within / ratio, 1.0), 1.0)

    return weight


def minibatch_weight(num_batches: int) -> Schedule:
    """The KL of Blundell et al. 2015 (section 3.4): most of it on the first minibatches of each epoch.

    Minibatch i = 1, ..., M of an epoch carries the share pi_i = 2^(M - i) / (2^M - 1) of the KL. `elbo_loss` with
    `num_data` gives each an equal share, 1 / M, so the weight of step t is M pi_i with i = t mod M + 1: 1 on average.
    https://arxiv.org/abs/1505.05424

    Raises:
        ValueError: if `num_batches` is not an int of at least 1.

    >>> weight = minibatch_weight(3)
    >>> print([round(float(weight(step)) * 7 / 3, 4) for step in range(4)])
    [4.0, 2.0, 1.0, 4.0]
    """
    check_count("minibatch_weight", "num_batches", num_batches)

    def weight(step: ArrayLike) -> jax.Array:
        index = jnp.mod(jnp.asarray(step), num_batches) + 1
        # 2^-i / (1 - 2^-M): neither 2^M nor 2^(M - i) overflows
        return num_batches * jnp.exp2(-index.astype(jnp.float32)) / (1.0 - 2.0 ** -min(num_batches, 1000))

    return weight
