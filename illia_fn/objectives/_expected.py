"""E[-log p(y | f)] of each example where f is Gaussian: exact, a bound, or by quadrature."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from illia_fn import likelihoods
from illia_fn._base.checks import check_count, describe
from illia_fn._base.numerics import at_least_float32, gauss_hermite
from illia_fn._base.trees import PyTree
from illia_fn.coupling._linearity import LinearModel
from illia_fn.coupling._moments import root
from illia_fn.coupling._propagated import PropagatedModel
from illia_fn.engine.estimators import with_gradient_of
from illia_fn.likelihoods._example_losses import default_loss
from illia_fn.likelihoods._shared import check_shapes, per_example, positive, standardise, surprise
from illia_fn.likelihoods.classes import check_labels, nan_unless
from illia_fn.objectives._data import DataTerm

SoftmaxBound = Literal["knowles_minka", "jensen"]
OutputModel = LinearModel | PropagatedModel

# sums over numbers of which each depends on one number of an output; ordinal_nll if that is its location
_SEPARABLE = {
    likelihoods.asymmetric_laplace_nll,
    likelihoods.bernoulli_nll,
    likelihoods.gaussian_nll,
    likelihoods.laplace_nll,
    likelihoods.negative_binomial_nll,
    likelihoods.ordinal_nll,
    likelihoods.poisson_nll,
    likelihoods.student_t_nll,
    likelihoods.von_mises_nll,
}
_ITERATIONS = 20


def check_bound(caller: str, bound: Any, num_points: Any) -> None:
    """One of the bounds, and a number of points."""
    if bound not in get_args(SoftmaxBound):
        raise ValueError(f"{caller}: bound must be one of {', '.join(get_args(SoftmaxBound))}, got {describe(bound)}.")
    check_count(caller, "num_points", num_points)


def expected_losses(data: DataTerm, model: OutputModel, *, bound: SoftmaxBound, num_points: int) -> jax.Array:
    """The expected loss of each example, (B,), or the scalar of loss_fn.

    Args:
        data: of the losses.
        model: the law of the outputs.
        bound, num_points: as in `analytic_elbo_loss`.
    """
    likelihood = data.loss_fn or default_loss(data.caller, jax.tree.map(at_least_float32, model.mean), data.y)
    keywords: dict[str, Any] = {}
    if isinstance(likelihood, partial) and not likelihood.args:
        likelihood, keywords = likelihood.func, likelihood.keywords
    random = [index for index, flag in enumerate(model.is_random) if flag]
    if not random:
        return data.losses_of_outputs(model.mean)
    predicts_scale = likelihood is likelihoods.gaussian_nll and random == [0, 1] and isinstance(model, PropagatedModel)
    if len(random) > 1 and not predicts_scale:
        raise ValueError(
            f"{data.caller}: one output may depend on the Bayesian leaves, but {len(random)} of what apply_fn returns "
            "do. Predict the others, such as the scale of the noise, with deterministic parameters; or use elbo_loss."
        )
    if likelihood is likelihoods.categorical_nll:
        return _softmax_losses(data, model, bound)
    variance, *of_rho = model.law.variances()
    if likelihood is likelihoods.gaussian_nll and random[0] == 0:
        if not of_rho:
            return _gaussian_losses(data, model.mean, variance, keywords)
        (loc, rho), structure = jax.tree.flatten(model.mean)
        given = lambda rho: _gaussian_losses(data, structure.unflatten([loc, rho]), variance, keywords)  # noqa: E731
        return _average(given, rho, of_rho[0], num_points)
    if likelihood is likelihoods.ordinal_nll and random != [0]:
        raise ValueError(
            f"{data.caller}: of ordinal_nll the location may be Bayesian, and the gaps between the cutpoints are: the "
            "loss of one example depends on several of them. Make them deterministic, or use elbo_loss."
        )
    if likelihood not in _SEPARABLE and variance.size != data.batch_size:
        raise ValueError(
            f"{data.caller}: loss_fn must be a likelihood of illia_fn or one of a single output for each example, got "
            f"{_name(likelihood)} for outputs of shape {variance.shape}. For a softmax cross-entropy pass "
            "illia_fn.categorical_nll, for a squared error gaussian_nll; for another, use elbo_loss."
        )
    return _by_quadrature(data, model, variance, random[0], num_points)


def _gaussian_losses(data: DataTerm, outputs: PyTree, variance: jax.Array, keywords: dict[str, Any]) -> jax.Array:
    """-log N(y; m, s^2) + c / (2 s^2)."""
    _, scale, log_scale = positive("gaussian_nll", outputs, keywords.get("scale"))
    ratio = standardise(variance, jnp.zeros_like(variance), scale, log_scale)
    ratio = standardise(ratio, jnp.zeros_like(variance), scale, log_scale)  # twice, as its square leaves the range
    return data.losses_of_outputs(outputs) + per_example(0.5 * ratio)


def _by_quadrature(data: DataTerm, model: OutputModel, variance: jax.Array, index: int, num_points: int) -> jax.Array:
    """The mean of the losses over one of the outputs."""
    leaves, structure = jax.tree.flatten(model.mean)

    def losses_at(output: jax.Array) -> jax.Array:
        return data.losses_of_outputs(structure.unflatten([*leaves[:index], output, *leaves[index + 1 :]]))

    return _average(losses_at, leaves[index], variance, num_points)


def _average(f: Callable[[jax.Array], jax.Array], mean: jax.Array, variance: jax.Array, num_points: int) -> jax.Array:
    """sum_s share_s f(mean + z_s stddev), at the points and with the shares of Gauss and Hermite."""
    mean, stddev = at_least_float32(mean), root(variance)
    points, shares = gauss_hermite(num_points)
    losses = jax.vmap(lambda z: f(mean + z * stddev))(jnp.asarray(points, variance.dtype))
    shares = jnp.asarray(shares, losses.dtype)
    return jnp.tensordot(shares, losses, 1, precision=jax.lax.Precision.HIGHEST)


def _name(f: Any) -> str:
    return f"the function {f.__name__}" if hasattr(f, "__name__") else describe(f)


def _softmax_losses(data: DataTerm, model: OutputModel, bound: SoftmaxBound) -> jax.Array:
    """Upper bounds of E[-log softmax(f)_y], f ~ N(m, V): for any a,

        -m_y + 1/2 a^T V a + log sum_k exp(m_k + V_kk / 2 - (V a)_k)

    which is convex in a. Jensen's inequality is a = 0, and the tightest has a = softmax(m + diag(V) / 2 - V a). Of a
    diagonal V its diagonal is all there is.
    """
    second = model.law.variances()[0] if bound == "jensen" else model.law.covariance()

    def loss(outputs: tuple[jax.Array, jax.Array], labels: jax.Array) -> jax.Array:
        mean, second = outputs
        check_labels(data.caller, labels, mean.shape[-1])
        check_shapes(data.caller, "logits without their last axis", mean.shape[:-1], labels.shape)
        inside = (labels >= 0) & (labels < mean.shape[-1])
        labels = jnp.where(inside, labels, 0)
        a = jnp.zeros_like(mean) if bound == "jensen" else _tightest(mean, second)
        product = _times(second, a)
        shift = 0.5 * _diagonal(mean, second) - product
        own = jnp.take_along_axis(shift, labels[..., None], axis=-1)[..., 0]
        nll = surprise(mean + shift, labels) + own + 0.5 * jnp.sum(a * product, axis=-1)
        return per_example(nll * nan_unless(inside, nll.dtype))

    (mean,) = jax.tree.leaves(model.mean)
    losses = dataclasses.replace(data, loss_fn=loss).losses_of_outputs((mean, second))
    if bound == "jensen":
        return losses
    once = (
        f'{data.caller}: bound="{bound}" has first derivatives only, and this asks for a second one. Take '
        'bound="jensen".'
    )
    return with_gradient_of(losses, losses, once)


def _diagonal(mean: jax.Array, second: jax.Array) -> jax.Array:
    return second if second.ndim == mean.ndim else jnp.diagonal(second, axis1=-2, axis2=-1)


def _times(second: jax.Array, a: jax.Array) -> jax.Array:
    if second.ndim == a.ndim:
        return second * a
    return jnp.einsum("...ij,...j->...i", second, a, precision=jax.lax.Precision.HIGHEST)


def _tightest(mean: jax.Array, second: jax.Array) -> jax.Array:
    """The a of the tightest bound, by a fixed number of steps; constant to gradients, as the bound is least there.

    The gradient in a is V (a - p), p the softmax. Over V, its slope lies between 1 and 1 + norm(V) / 2: the rate and
    the momentum are those of Nesterov for these two.
    """
    mean, second = jax.lax.stop_gradient((mean, second))
    half = 0.5 * _diagonal(mean, second)
    norm = jnp.max(jnp.abs(second) if second.ndim == mean.ndim else jnp.sum(jnp.abs(second), axis=-1), axis=-1)
    slope = 1.0 + 0.5 * norm[..., None]
    momentum = (jnp.sqrt(slope) - 1.0) / (jnp.sqrt(slope) + 1.0)

    def step(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        a, ahead = state
        new = ahead + (jax.nn.softmax(mean + half - _times(second, ahead), axis=-1) - ahead) / slope
        return new, new + momentum * (new - a)

    start = jax.nn.softmax(mean, axis=-1)
    return jax.lax.fori_loop(0, _ITERATIONS, step, (start, start))[0]
