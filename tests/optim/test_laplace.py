"""Posteriors from curvature, against closed forms and dense linear algebra."""

from functools import partial

import families
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from families import array, normal
from scipy.special import softmax

import illia_fn
from illia_fn import FullCovariance, Gaussian, Normal, full_covariance, laplace, mean_field, posterior_tree

pytestmark = pytest.mark.promotes  # a bias

KEY = jax.random.key(0)
X = np.asarray(normal(0, 50, 3))
LABELS = np.arange(50) % 3


def linear(w, x):
    return x @ w["kernel"] + w["bias"]


PARAMS = {"kernel": normal(1, 3, 3), "bias": array([0.1, -0.2, 0.3])}


def dense_precision(prior_precision=1.0):
    """Of a softmax of a linear map, by example, class and weight; leaves in the order bias, kernel."""
    precision = prior_precision * np.eye(12)
    probs = softmax(X @ np.asarray(PARAMS["kernel"], np.float64) + np.asarray(PARAMS["bias"]), axis=1)
    for x, p in zip(np.asarray(X, np.float64), probs, strict=True):
        jacobian = np.concatenate([np.eye(3), np.einsum("i,cd->cid", x, np.eye(3)).reshape(3, 9)], axis=1)
        precision += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
    return precision


def test_softmax_regression():
    """In four batches, of which the last is not full."""
    expected = dense_precision()
    full = laplace(linear, full_covariance(PARAMS), X, LABELS, batch_size=16)
    np.testing.assert_allclose(families.covariance(full), np.linalg.inv(expected), rtol=2e-4, atol=1e-6)
    diagonal = laplace(linear, mean_field(PARAMS), X, LABELS, batch_size=16)
    scales = np.concatenate([families.softplus(diagonal[name].rho).ravel() for name in ("bias", "kernel")])
    np.testing.assert_allclose(scales, np.diagonal(expected) ** -0.5, rtol=1e-5)
    np.testing.assert_array_equal(diagonal["kernel"].loc, PARAMS["kernel"])


def test_it_is_the_posterior_of_linear_regression():
    """Whatever the noise, and the scales at the start; and the gradient of the ELBO is 0 there."""
    with jax.enable_x64(True):
        x, y = array(X, float), array(X @ [1.0, -2.0, 0.5], float)
        loss_fn, prior = partial(illia_fn.gaussian_nll, scale=0.3), Normal(0.5, 2.0)
        wide, targets = np.asarray(x), np.asarray(y)
        precision = wide.T @ wide / 0.09 + np.eye(3) / 4.0
        middle = array(np.linalg.solve(precision, wide.T @ targets / 0.09 + 0.5 / 4.0), float)

        def apply_fn(w, x):
            return x @ w

        start = FullCovariance(middle, array(7.0 * np.eye(3), float))
        q = laplace(apply_fn, start, x, y, loss_fn=loss_fn, prior=prior)
        np.testing.assert_allclose(families.covariance(q), np.linalg.inv(precision), rtol=1e-10)
        options = {"loss_fn": loss_fn, "num_data": 50, "prior": prior, "estimator": "doubly_reparameterised"}
        grads = jax.jit(jax.grad(lambda q: illia_fn.elbo_loss(apply_fn, q, x, y, KEY, **options)))(q)
        np.testing.assert_allclose(grads.loc, 0.0, atol=1e-12)
        np.testing.assert_allclose(grads.tril, 0.0, atol=1e-12)
        twice = np.concatenate([x, x]), np.concatenate([y, y])
        double = laplace(apply_fn, q, *twice, loss_fn=loss_fn, prior=prior)
        scaled = laplace(apply_fn, q, x, y, loss_fn=loss_fn, prior=prior, num_data=100)
        np.testing.assert_allclose(scaled.tril, double.tril, rtol=1e-10)


def test_a_last_layer_under_jit():
    params = {"body": array(np.eye(3)), "head": PARAMS}

    def apply_fn(w, x):
        return linear(w["head"], jnp.tanh(x @ w["body"]))

    @jax.jit
    def both(params, x, y):
        q = posterior_tree(params, {"head": full_covariance})
        return laplace(apply_fn, q, x, y), laplace(linear, q["head"], jnp.tanh(x), y)

    found, alone = both(params, X, LABELS)
    np.testing.assert_allclose(found["head"].tril, alone.tril, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["body"], params["body"])
    law = jax.eval_shape(partial(illia_fn.linearise, apply_fn), found, X[:2])
    assert law.covariance.shape == (2, 3, 3)


def test_what_is_not_convex_adds_nothing():
    """Of a Gaussian whose scale is predicted the second derivative by rho is negative near the target."""
    q = laplace(
        lambda w, x: (w["loc"] * x, w["rho"] * x),
        mean_field({"loc": array(1.0), "rho": array(1.0)}),
        np.ones(4, np.float32),
        np.ones(4, np.float32),
        loss_fn=illia_fn.gaussian_nll,
    )
    np.testing.assert_allclose(q["loc"].stddev, (1.0 + 4.0 / families.softplus(1.0) ** 2) ** -0.5, rtol=1e-5)
    np.testing.assert_allclose(q["rho"].stddev, 1.0, rtol=1e-5)  # the prior


def test_priors():
    """Of another library, element-wise and joint; its own for each array; another posterior."""
    zeros, targets = np.zeros(3, np.float32), np.zeros(50, np.float32)
    precisions = [4.0, np.array([4.0, 1.0, 0.25]), 2.0, np.log(2.0) ** -2]

    @jax.jit
    def told(params):
        flat = mean_field(params["bias"])
        priors = [
            dist.Normal(0.0, 0.5),
            dist.Normal(zeros, np.float32([0.5, 1.0, 2.0])).to_event(1),
            dist.MultivariateNormal(jnp.asarray(zeros), precision_matrix=jnp.eye(3) + 1.0),
            Gaussian(jnp.asarray(zeros), jnp.asarray(zeros)),
        ]
        each = {"bias": Normal(0.0, 1e-2), "kernel": Normal(0.0, 1.0)}
        of_each = laplace(linear, mean_field(params), X[:1], LABELS[:1], prior=each)
        return [laplace(lambda w, x: 0.0 * x @ w, flat, X, targets, prior=p).stddev for p in priors], of_each

    stddevs, of_each = told(PARAMS)
    for stddev, precision in zip(stddevs, precisions, strict=True):
        np.testing.assert_allclose(np.asarray(stddev) ** -2, precision * np.ones(3), rtol=1e-4)
    np.testing.assert_allclose(of_each["bias"].stddev, 1e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (PARAMS, {}, "params has no posterior node"),
        (illia_fn.low_rank(PARAMS, rank=1, key=KEY), {}, "this is a LowRank"),
        (mean_field(PARAMS), {"loss_fn": lambda f, y: jnp.mean(f)}, "one value per example"),
        (mean_field(PARAMS), {"batch_size": 0}, "batch_size must be an int of at least 1"),
        (mean_field(PARAMS), {"num_data": 0}, "num_data must be an int of at least 1"),
        (mean_field(PARAMS), {"num_data": 49}, "size of the training set, got 49 for 50 examples"),
        (mean_field(PARAMS), {"prior": dist.HalfNormal(1.0)}, "at params.*HalfNormal has no density on part of"),
        (full_covariance(PARAMS), {"prior": dist.Uniform(-9.0, 9.0)}, "Uniform has no density on part of the real"),
        (mean_field(PARAMS), {"prior": dist.StudentT(1.0, 0.0, 1e-2)}, "the precision must be positive"),
        (full_covariance(PARAMS), {"y": LABELS[:4]}, "share a leading axis"),
        (mean_field(PARAMS), {"prior": illia_fn.priors.EmpiricalBayes(1.0, 1.0)}, "takes a prior whose scale is known"),
    ],
)  # fmt: skip
def test_refusals(params, options, message):
    options = {"y": LABELS, **options}
    with pytest.raises(ValueError, match=f"laplace.*{message}"):
        laplace(linear, params, X, **options)


def test_it_starts_variational_inference():
    """The ELBO at the Laplace posterior of softmax regression is above that of narrow scales."""
    q = laplace(linear, full_covariance(PARAMS), X, LABELS)
    assert isinstance(q, FullCovariance)
    loss = jax.jit(partial(illia_fn.elbo_loss, linear, x=X, y=LABELS, key=KEY, num_samples=64, num_data=50))
    assert loss(params=q) < loss(params=full_covariance(PARAMS)) - 0.1
