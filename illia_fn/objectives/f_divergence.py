"""f-divergences between the posterior and q."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import concrete, describe
from illia_fn._base.trees import PyTree
from illia_fn.engine._eager import compiled_once
from illia_fn.engine.estimators import Estimator
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.objectives._draws import Draws
from illia_fn.objectives._importance import Functional, importance_loss, log_power_mean, mean_of
from illia_fn.objectives._regulariser import Regulariser
from illia_fn.objectives.divergences import Generator
from illia_fn.objectives.elbo import with_extras
from illia_fn.priors.normal import Normal


def f_divergence_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 2,
    *,
    generator: Generator,
    log_evidence: ArrayLike | None = None,
    num_data: int,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    kl_weight: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    estimator: Estimator = "doubly_reparameterised",
    chunk_size: int | Literal["auto"] | None = "auto",
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
    return_log_weights: bool = False,
) -> Any:
    """f-divergence from q to the posterior per training example: 0 where q is the posterior, and positive elsewhere.

        L = (1 / N) (1 / S) sum_s f(u_s),    log u_s = l_s - log_evidence

    with the l_s of `iwae_loss`. Without `log_evidence` it is estimated from the same draws, log mean_s exp(l_s), and
    a constant in the gradient, which is then consistent: its bias is of the order 1 / S. Given, L and its gradient are
    unbiased; given as 0, it is the loss of tfp.vi and bounds f(evidence) / N from above: with `kl_reverse` it is the
    ELBO loss with a sampled KL. Wan et al. 2020, f-divergence variational inference, https://arxiv.org/abs/2009.13093.
    A temperature T raises the joint density to 1 / T and multiplies the divergence by T, as in the ELBO.

    As in `cubo_loss`, what is not q gets the gradient of `iwae_loss`. The weights of a large network concentrate on few
    samples: the estimate then saturates, and does not show how far training has come, and generators that look at large
    u (`kl_forward`, `pearson`, `chi_square`) learn from these few alone. Start from an ELBO solution.

    Args:
        apply_fn, params, x, y, key, num_samples: as in `elbo_loss`.
        generator: f as a function of log u, element-wise, such as `divergences.kl_forward`, with f(1) = 0.
        log_evidence: the logarithm of the evidence in nats, of all N examples, if known; with a temperature T that of
            the integral of joint^(1 / T). May be traced; it is a constant.
        estimator: "doubly_reparameterised" needs a twice differentiable generator. The others need weights that many
            samples share: with one that has all the weight they lead away from the posterior.
        others: as in `iwae_loss`.

    Returns and errors are those of `iwae_loss`; ValueError for a generator that is not element-wise, not convex or not
    0 at u = 1, or has a kink there under "doubly_reparameterised", and for one sample without `log_evidence`.

    >>> from illia_fn import Gaussian, Normal  # the problem of iwae_loss
    >>> from illia_fn.objectives.divergences import kl_forward
    >>> q = Gaussian(jnp.array(2.5), jnp.log(jnp.expm1(jnp.sqrt(0.5))))
    >>> args = lambda w, x: x + w, q, jnp.zeros(1), jnp.array([5.0]), jax.random.key(0), 3
    >>> print(abs(f_divergence_loss(*args, generator=kl_forward, num_data=1, prior=Normal(0.0, 1.0))) < 1e-6)
    True
    """
    _check_generator(generator, smooth=estimator == "doubly_reparameterised")
    if log_evidence is not None:
        _check_log_evidence(log_evidence)
    elif isinstance(num_samples, int) and num_samples == 1:
        raise ValueError(
            "f_divergence_loss: the evidence is estimated from the same draws, so num_samples must be at least 2, got "
            "1. Take more, or pass log_evidence."
        )

    data = DataTerm(
        "f_divergence_loss", apply_fn, x, y, loss_fn=loss_fn, weights=weights, needs_key=needs_key, has_aux=has_aux
    )
    draws = Draws(data, params, key, num_samples, estimator=estimator, chunk_size=chunk_size, antithetic=antithetic)
    regulariser = Regulariser(draws, prior=prior, num_data=num_data, kl_weight=kl_weight, temperature=temperature)
    loss, log_weights, aux = importance_loss(draws, regulariser, partial(_divergence, generator, log_evidence))
    return with_extras(loss, *[log_weights] * return_log_weights, *[aux] * has_aux)


def _divergence(generator: Generator, log_evidence: ArrayLike | None, temperature: Any) -> Functional:
    def normaliser(log_weights: jax.Array) -> jax.Array:
        if log_evidence is None:
            return log_power_mean(log_weights / temperature, 1.0)
        return jnp.asarray(log_evidence, log_weights.dtype)

    def f(log_weights: jax.Array, log_evidence: jax.Array) -> jax.Array:
        return temperature * generator(log_weights / temperature - log_evidence)

    return mean_of(f, normaliser, temperature)


def _check_generator(generator: Any, *, smooth: bool) -> None:
    if not callable(generator):
        raise TypeError(
            "f_divergence_loss: generator must be a function of log u, such as illia_fn.divergences.kl_forward, got "
            f"{describe(generator)}."
        )
    at = np.asarray([0.0, 0.01, -0.01, 0.02, -0.02], np.float32)
    with jax.ensure_compile_time_eval():
        values, slopes = jax.device_get(compiled_once(partial(_at_each, generator), at))
    if not abs(values[0]) < 1e-5:
        raise ValueError(f"f_divergence_loss: generator must be 0 at u = 1, got {values[0]}. It is given log u.")
    # f'' = (g'' - g') / u^2 of g(log u) = f(u)
    if not (slopes[3] - slopes[4]) / 0.04 - slopes[0] > -1e-2:
        raise ValueError("f_divergence_loss: generator is not convex in u at u = 1. It is given log u.")
    near, far = abs(slopes[1] - slopes[2]), abs(slopes[3] - slopes[4])
    if smooth and far > 1e-3 and near > 0.75 * far:  # of a smooth f half
        raise ValueError(
            "f_divergence_loss: generator has a kink at u = 1, which the doubly reparameterised gradient does not "
            "see. Take a smooth one, such as squared_hellinger; or, where many samples share the weight, pass "
            'estimator="reparameterised".'
        )


def _at_each(generator: Generator, log_u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The generator and its slope at each log u."""
    values = generator(log_u)
    if not isinstance(values, jax.Array) or values.shape != log_u.shape:
        raise ValueError(
            "f_divergence_loss: generator must be an element-wise function of log u, got "
            f"{describe(values)} for log u of shape {log_u.shape}. Call amari_alpha, t_power, dual and the like first."
        )
    return values, jax.vmap(jax.grad(generator))(log_u)


def _check_log_evidence(log_evidence: Any) -> None:
    value = concrete(log_evidence)
    if np.shape(log_evidence) != () or (value is not None and not np.isfinite(value)):
        raise ValueError(
            f"f_divergence_loss: log_evidence must be a finite number of nats, got {describe(log_evidence)}."
        )
