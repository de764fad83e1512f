"""Did it work? What can be told of a trained posterior without another one to compare it with."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_draws, check_required_num_data
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.trees import PyTree, leaves_by_path
from illia_fn.coupling import Coupling
from illia_fn.diagnostics.table import Summary, aligned, summary
from illia_fn.engine._eager import compiled_once
from illia_fn.kl.loss import hyperpriors, kl_pairs
from illia_fn.objectives._data import LossFn
from illia_fn.objectives.elbo import elbo_loss
from illia_fn.objectives.importance import iwae_loss
from illia_fn.posteriors.posterior import num_params
from illia_fn.priors.normal import Normal


class Diagnosis(NamedTuple):
    """What `diagnose` found; prints as a table, with a sentence on what each number can and cannot tell.

    Attributes:
        nll: E_q of the mean negative log-likelihood per example, in nats.
        kl: KL(q || prior) / N, in nats per example.
        negative_elbo: nll + kl.
        summary: by leaf, see `summary`.
        gradient_signal: by path of a field of q, the signal-to-noise ratio of the gradient from one draw, of this
            coupling and all of x, |E g| / sqrt(E |g - E g|^2), over its numbers together; 0 where S draws show none.
        log_weights: log p(y | w_s) + log p(w_s) - log q(w_s) of S draws, in nats, (S,): ArviZ's `psislw` takes minus
            that for its k-hat, which is to be below min(1 - 1 / log10 S, 0.7): .34 for 32 draws, .67 for 1000.
        gap: that between the importance-weighted bound of S draws and the ELBO, in nats of the whole data: a lower
            bound, up to its own noise, on KL(q || posterior).
        effective_sample_size: (sum w)^2 / sum w^2 of the importance weights, from 1 to S.
    """

    nll: float
    kl: float
    negative_elbo: float
    summary: Summary
    gradient_signal: dict[str, float]
    log_weights: np.ndarray
    gap: float
    effective_sample_size: float

    def __str__(self) -> str:
        count, params = len(self.log_weights), self.summary.num_params
        least = f"below {count**-0.5:.2g}"  # the noise of the mean
        signal = [(path, f"{ratio:.3g}" if ratio != 0 else least) for path, ratio in self.gradient_signal.items()]
        signal = [("gradient of", "signal-to-noise"), *signal]
        parts = [
            f"negative ELBO {self.negative_elbo:.4g} = nll {self.nll:.4g} + KL {self.kl:.4g} (nats per example)\n"
            "It compares settings of one model and prior; it does not choose among models or priors. Held-out data do.",
            f"{self.summary}\n"
            "A leaf at the prior has learned nothing, or needs to know nothing: the predictions tell which.",
            f"{aligned(signal, left=1)}\n"
            "Far below 1 at the end of training is as it should be; from the start it asks for more samples, a "
            "coupling or larger batches.",
            f"importance-weighted bound of {count} draws above the ELBO by {self.gap:.4g} nats, effective sample size "
            f"{self.effective_sample_size:.3g}\n" + _of_weights(self.effective_sample_size, count, params),
        ]
        return "\n\n".join(parts)


def _of_weights(effective: float, count: int, params: int) -> str:
    if effective >= max(2.0, 0.1 * count):
        return (
            "No sign that q is elsewhere. A q that is too narrow, or misses a mode, looks like this as well: k-hat of "
            "ArviZ (psislw of minus log_weights) sees the former, with some thousand draws."
        )
    if params < 100:
        return "A few draws have all of the weight: q is far from the posterior."
    return (
        f"A few draws have all of the weight, as they do for almost any q over {params} weights, good or bad. The gap "
        "is a small part of KL(q || posterior); simulation-based calibration of a small model tells more."
    )


def diagnose(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 32,
    *,
    num_data: int,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    weights: ArrayLike | None = None,
    coupling: Coupling = "shared",
    needs_key: bool = False,
    has_aux: bool = False,
) -> Diagnosis:
    """Look at a trained posterior from all sides that need no other one: terms, leaves, gradients, importance weights.

    In many dimensions none of these can prove a posterior right (Yao et al. 2018, Yes, but did it work?,
    https://arxiv.org/abs/1802.02538); each can show that something is wrong. `print` says how far each goes.

    Args:
        apply_fn, params, x, y, key: as in `elbo_loss`, not under jit. All of the data where that fits: importance
            weights of a batch have its noise inside of an exponential.
        num_samples: S, at least 2 draws, run one after another.
        num_data, loss_fn, prior, weights, needs_key, has_aux: as in `elbo_loss`.
        coupling: of the gradient whose signal is measured: that of the training.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError, TypeError: as `elbo_loss`; for one sample, no num_data, a tree without posterior nodes, or a prior
            that is fitted to q.

    >>> from illia_fn import Gaussian  # the exact posterior of y = 5 under unit noise and prior
    >>> q = Gaussian(jnp.array(2.5), jnp.log(jnp.expm1(jnp.sqrt(0.5))))
    >>> found = diagnose(lambda w, x: x + w, q, jnp.zeros(1), jnp.array([5.0]), jax.random.key(0), num_data=1)
    >>> print(f"{found.gap:.3f} nats from the posterior, {found.effective_sample_size:.0f} of 32 draws count")
    0.000 nats from the posterior, 32 of 32 draws count
    """
    _check(params, prior, key, num_samples, num_data)
    call: dict[str, Any] = {"loss_fn": loss_fn, "prior": prior, "num_data": num_data, "weights": weights}
    call |= {"needs_key": needs_key, "has_aux": has_aux}
    of_weights, of_terms, of_gradient, of_kl = jax.random.split(key, 4)

    def alone(result: Any) -> Any:
        return result[0] if has_aux else result  # without aux

    def gradient(q: PyTree, key: jax.Array) -> PyTree:
        one_draw = partial(elbo_loss, apply_fn, coupling=coupling, **call)
        return alone(jax.grad(one_draw, has_aux=has_aux, allow_int=True)(q, x, y, key))

    def numbers(q: PyTree) -> Any:
        _, log_weights = iwae_loss(apply_fn, q, x, y, of_weights, num_samples, return_log_weights=True, **call)
        _, terms = elbo_loss(apply_fn, q, x, y, of_terms, num_samples, return_terms=True, **call)
        signal = _signal(partial(gradient, q), jax.random.split(of_gradient, num_samples))
        return alone(log_weights), alone(terms), signal

    log_weights, terms, signal = compiled_once(numbers, params)
    nll, kl = float(terms.nll), float(terms.kl) / num_data
    return Diagnosis(
        nll,
        kl,
        nll + kl,
        summary(params, prior, key=of_kl, num_samples=num_samples),
        {path: float(value) for path, value in leaves_by_path(signal, lambda _: False)},
        np.asarray(log_weights, np.float64),
        *_gap_and_size(np.asarray(log_weights, np.float64)),
    )


def _check(params: PyTree, prior: PyTree, key: jax.Array, num_samples: int, num_data: int) -> None:
    check_draws("diagnose", key, num_samples, 1, antithetic=False)
    check_required_num_data("diagnose", num_data)
    if num_samples < 2:
        raise ValueError(f"diagnose: num_samples must be at least 2, to tell signal from noise, got {num_samples}.")
    if not num_params(params):
        raise ValueError("diagnose: params has no posterior node, so there is no q. Pass the posterior tree itself.")
    if hyperpriors(kl_pairs("diagnose", params, prior, None)):
        raise ValueError(
            "diagnose: the importance weights need a prior that does not depend on q, and EmpiricalBayes is fitted to "
            "it. Pass what it has found, for each node: prior.fit(node.mean, node.stddev)[0]. summary(params, prior) "
            "takes it as it is."
        )


def _gap_and_size(log_weights: np.ndarray) -> tuple[float, float]:
    """log mean_s w_s - mean_s log w_s, and (sum w)^2 / sum w^2."""
    share = np.exp(log_weights - log_weights.max())
    gap = np.log(np.mean(share)) + log_weights.max() - np.mean(log_weights)
    return float(gap), float(np.sum(share) ** 2 / np.sum(share**2))


def _signal(gradient: Callable[[jax.Array], PyTree], keys: jax.Array) -> PyTree:
    """|E g| / sqrt(E |g - E g|^2) of each array of a gradient, without those of what is no float."""
    count = len(keys)
    like = jax.eval_shape(gradient, keys[0])
    is_float = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), like)
    middle = _floats(gradient(keys[0]), is_float)  # near the mean: what is left does not cancel

    def add(sums: tuple[PyTree, PyTree], key: jax.Array) -> tuple[tuple[PyTree, PyTree], tuple[()]]:
        step = jax.tree.map(jnp.subtract, _floats(gradient(key), is_float), middle)
        squares = jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), step)
        return jax.tree.map(jnp.add, sums, (step, squares)), ()

    zeros = jax.tree.map(jnp.zeros_like, middle), jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), middle)
    (total, squares), _ = jax.lax.scan(add, zeros, keys)

    def ratio(middle: jax.Array, total: jax.Array, squares: jax.Array) -> jax.Array:
        off = total / count
        noise = jnp.maximum(squares - count * jnp.sum(jnp.square(off)), 0.0) / (count - 1)
        signal = jnp.maximum(jnp.sum(jnp.square(middle + off)) - noise / count, 0.0)  # the noise of the mean taken out
        return jnp.where(signal == 0, 0.0, jnp.sqrt(signal / noise))  # a NaN stays one

    ratios = iter(jax.tree.map(ratio, middle, total, squares))
    return jax.tree.map(lambda flag: next(ratios) if flag else None, is_float)


def _floats(tree: PyTree, is_float: PyTree) -> list[jax.Array]:
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(is_float), strict=True)
    return [at_least_float32(leaf) for leaf, flag in leaves if flag]
