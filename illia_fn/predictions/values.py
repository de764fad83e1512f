"""Numbers: mean, variance and draws of what was not seen, the noise of the likelihood included."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_count, check_key, concrete
from illia_fn._base.numerics import one_program
from illia_fn.likelihoods._example_losses import LossFn
from illia_fn.likelihoods.table import Law, law_of
from illia_fn.predictions._outputs import check_outputs

_NOT_THAT_OF_PREDICT = 0x79 << 24 | 1  # beyond the numbers of networks


class PredictiveMoments(NamedTuple):
    """The first moments of the posterior predictive, all of the shape of the mean.

    Attributes:
        mean: E[y], (B, ...).
        variance: Var[y] = aleatoric + epistemic, in squared units of y.
        aleatoric: mean_s Var[y | f_s], the noise that the likelihood has.
        epistemic: Var_s E[y | f_s], what the networks differ in and more data would lift.
    """

    mean: jax.Array
    variance: jax.Array
    aleatoric: jax.Array
    epistemic: jax.Array


def predictive_moments(loss_fn: LossFn, outputs: Any) -> PredictiveMoments:
    """Mean and variance of y under the posterior predictive, by the law of total variance.

        E[y] = mean_s m_s,    Var[y] = mean_s v_s + mean_s (m_s - E[y])^2,

    with the mean m_s and the variance v_s of the likelihood under network s. The divisor is S, as the S networks are
    the mixture that is predicted with. Of independent networks the epistemic part is unbiased for that of q times
    S / (S - 1); mirrored or evenly spread ones have it about right as it is.

    What is meant for each likelihood:
    - `gaussian_nll`, `laplace_nll`, `asymmetric_laplace_nll` (its mean, which is not its quantile),
      `mixture_density_nll`, `poisson_nll`, `negative_binomial_nll`: y itself;
    - `student_t_nll`: likewise; the variance is inf for 1 < df <= 2, and it and the mean are NaN for df <= 1, which has
      none: take quantiles of `predictive_draws`;
    - `bernoulli_nll`: y of 0 or 1; `ordinal_nll`: the number of the class, 0, ..., K - 1;
    - `categorical_nll`: the one-hot label, (B, ..., K) (Kwon et al. 2020, https://doi.org/10.1016/j.csda.2019.106816);
    - `von_mises_nll`: an angle has no mean on the line. The mean is the direction of E[exp(i y)], in [-pi, pi], of no
      meaning where the variance is near 1; the variance is the circular one, 1 - |E[exp(i y)]|, in [0, 1], about half
      the squared radians where it is small (Mardia & Jupp 2000, https://doi.org/10.1002/9780470316979); it also is the
      mean of those of the networks and of A_s (1 - cos(m_s - mean)), with A_s = 1 - v_s.

    Args:
        loss_fn: a likelihood of illia_fn, its keywords bound by functools.partial, or one that `register_law` added.
        outputs: those of S networks, as `illia_fn.predict` returns them: every leaf (S, B, ...), or one number per
            network, (S,).

    Returns:
        `PredictiveMoments`; float32 or wider.

    Raises:
        ValueError: if loss_fn is no such likelihood, or the outputs have no axis of networks.

    >>> from functools import partial
    >>> from illia_fn import gaussian_nll
    >>> loc = jnp.array([[1.0, 0.0], [3.0, 0.0]])  # two networks, two examples
    >>> predictive_moments(partial(gaussian_nll, scale=0.5), loc)._asdict()["variance"]  # 0.5^2 + 1, 0.5^2
    Array([1.25, 0.25], dtype=float32)
    """
    caller = "predictive_moments"
    sizes = check_outputs(caller, outputs)
    law, circular = law_of(caller, loss_fn), []

    def moments(of_network: Any) -> tuple[jax.Array, jax.Array]:
        of_y = law(of_network)
        circular.append(of_y.circular)
        return of_y.mean, of_y.variance

    means, variances = jax.vmap(moments)(jax.tree.map(jnp.asarray, outputs))
    if means.shape[:2] != sizes or variances.shape != means.shape:
        raise ValueError(
            f"{caller}: loss_fn must have a mean and a variance of one shape with {sizes[1]} examples, got "
            f"{means.shape[1:]} and {variances.shape[1:]} for each network."
        )
    return PredictiveMoments(*_total_variance(means, variances, circular[0]))


@partial(one_program, static_argnums=2)
def _total_variance(means: jax.Array, variances: jax.Array, circular: bool) -> tuple[jax.Array, ...]:  # noqa: FBT001
    """The mean, the variance and its two parts, of the moments of each network."""
    aleatoric = jnp.mean(variances, axis=0)
    if circular:
        length = 1.0 - variances
        east, north = (jnp.mean(length * f(means), axis=0) for f in (jnp.cos, jnp.sin))
        mean = jnp.arctan2(north, east)
        # length (1 - cos) = 2 length sin(half)^2, which does not cancel where the networks agree
        epistemic = jnp.mean(2.0 * length * jnp.square(jnp.sin(0.5 * (means - mean[None]))), axis=0)
    else:
        mean = jnp.mean(means, axis=0)
        epistemic = jnp.mean(jnp.square(means - mean[None]), axis=0)
    return mean, aleatoric + epistemic, aleatoric, epistemic


def predictive_draws(loss_fn: LossFn, outputs: Any, key: jax.Array, num_draws: int = 1) -> jax.Array:
    """Draws of y from the posterior predictive: for each network `num_draws` from the likelihood.

    y ~ p(y | f_s(x_b)). Draws of one network lie together. Their noise is independent for all networks, examples
    and trailing axes. What is drawn: floating-point numbers, also for counts, which may leave the range of integers;
    integers for classes, 0 or 1 of `bernoulli_nll` included; angles in [-pi, pi] of `von_mises_nll`.

    Args:
        loss_fn, outputs: as in `predictive_moments`.
        key: a PRNG key. That of `predict` does no harm: the noise is from another stream.
        num_draws: draws per network, a static int of at least 1.

    Returns:
        (S * num_draws, B, ...), for `central_interval` and `highest_density_interval`. A NaN among the outputs is one
        of numbers; classes have none, and outputs for classes that are NaN are refused where they are known.

    Raises:
        ValueError: as `predictive_moments`, and if `num_draws` is not an int of at least 1.
        TypeError: if `key` is not a PRNG key.

    >>> from illia_fn import poisson_nll
    >>> log_rates = jnp.log(jnp.full((100, 2), 4.0))
    >>> draws = predictive_draws(poisson_nll, log_rates, jax.random.key(0), 20)
    >>> print(draws.shape, draws.mean(axis=0).round(0), draws.var(axis=0).round(0))
    (2000, 2) [4. 4.] [4. 4.]
    """
    caller = "predictive_draws"
    sizes = check_outputs(caller, outputs)
    check_key(caller, key)
    check_count(caller, "num_draws", num_draws)
    law = law_of(caller, loss_fn)

    def draws_of(of_network: Any, key: jax.Array) -> jax.Array:
        of_y: Law = law(of_network)
        return jax.vmap(of_y.sample)(jax.random.split(key, num_draws))

    key = jax.random.fold_in(key, _NOT_THAT_OF_PREDICT)
    draws = jax.vmap(draws_of)(jax.tree.map(jnp.asarray, outputs), jax.random.split(key, sizes[0]))
    if draws.ndim < 3 or draws.shape[2] != sizes[1]:
        raise ValueError(
            f"{caller}: loss_fn must have draws of shape ({sizes[1]}, ...), got {draws.shape[2:]} of each network."
        )
    if jnp.issubdtype(draws.dtype, jnp.integer):
        _refuse_nan(caller, outputs)
    return draws.reshape(-1, *draws.shape[2:])


def _refuse_nan(caller: str, outputs: Any) -> None:
    values = [concrete(leaf) for leaf in jax.tree.leaves(outputs)]
    if any(value is not None and np.any(np.isnan(value.astype(np.float64))) for value in values):
        raise ValueError(
            f"{caller}: the outputs have a NaN, and there is no class to draw for it. Look at the networks."
        )
