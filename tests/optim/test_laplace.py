"""Posteriors from curvature, against closed forms and dense linear algebra."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import illia_fn
from illia_fn import FullCovariance, Gaussian, Normal, full_covariance, laplace, mean_field, posterior_tree

pytestmark = pytest.mark.promotes  # a bias

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (50, 3))
LABELS = jnp.arange(50) % 3


def linear(w, x):
    return x @ w["kernel"] + w["bias"]


PARAMS = {"kernel": jax.random.normal(jax.random.key(1), (3, 3)), "bias": jnp.array([0.1, -0.2, 0.3])}


def dense_precision(prior_precision=1.0):
    """Of a softmax of a linear map, by example, class and weight; leaves in the order bias, kernel."""
    precision = prior_precision * np.eye(12)
    probs = np.asarray(jax.nn.softmax(linear(PARAMS, X)), np.float64)
    for x, p in zip(np.asarray(X, np.float64), probs, strict=True):
        jacobian = np.concatenate([np.eye(3), np.einsum("i,cd->cid", x, np.eye(3)).reshape(3, 9)], axis=1)
        precision += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
    return precision


@pytest.mark.parametrize("batch_size", [16, 64])
def test_softmax_regression(batch_size):
    expected = dense_precision()
    full = laplace(linear, full_covariance(PARAMS), X, LABELS, batch_size=batch_size)
    covariance = np.asarray(full.scale_tril @ full.scale_tril.T)
    np.testing.assert_allclose(covariance, np.linalg.inv(expected), rtol=2e-4, atol=1e-6)
    diagonal = laplace(linear, mean_field(PARAMS), X, LABELS, batch_size=batch_size)
    scales = np.concatenate([np.ravel(diagonal[name].stddev) for name in ("bias", "kernel")])
    np.testing.assert_allclose(scales, np.diagonal(expected) ** -0.5, rtol=1e-5)
    np.testing.assert_array_equal(diagonal["kernel"].loc, PARAMS["kernel"])


def test_it_is_the_posterior_of_linear_regression():
    """Whatever the noise, and the scales at the start; and the gradient of the ELBO is 0 there."""
    with jax.enable_x64(True):
        x, y = jnp.asarray(np.asarray(X), jnp.float64), jnp.asarray(np.asarray(X) @ [1.0, -2.0, 0.5])
        loss_fn, prior = partial(illia_fn.gaussian_nll, scale=0.3), Normal(0.5, 2.0)
        precision = x.T @ x / 0.09 + np.eye(3) / 4.0
        middle = jnp.linalg.solve(precision, x.T @ y / 0.09 + 0.5 / 4.0)

        def apply_fn(w, x):
            return x @ w

        q = laplace(apply_fn, full_covariance(middle, scale=7.0), x, y, loss_fn=loss_fn, prior=prior)
        np.testing.assert_allclose(q.scale_tril @ q.scale_tril.T, np.linalg.inv(precision), rtol=1e-10)
        options = {"loss_fn": loss_fn, "num_data": 50, "prior": prior, "estimator": "doubly_reparameterised"}
        grads = jax.jit(jax.grad(lambda q: illia_fn.elbo_loss(apply_fn, q, x, y, KEY, 2, **options)))(q)
        np.testing.assert_allclose(grads.loc, 0.0, atol=1e-12)
        np.testing.assert_allclose(grads.tril, 0.0, atol=1e-12)
        twice = jnp.concatenate([x, x]), jnp.concatenate([y, y])
        double = laplace(apply_fn, q, *twice, loss_fn=loss_fn, prior=prior)
        scaled = laplace(apply_fn, q, x, y, loss_fn=loss_fn, prior=prior, num_data=100)
        np.testing.assert_allclose(scaled.tril, double.tril, rtol=1e-10)


def test_a_last_layer_under_jit():
    params = {"body": jnp.eye(3), "head": PARAMS}

    def apply_fn(w, x):
        return linear(w["head"], jnp.tanh(x @ w["body"]))

    q = posterior_tree(params, {"head": full_covariance})
    found = jax.jit(partial(laplace, apply_fn))(q, X, LABELS)
    alone = laplace(linear, full_covariance(PARAMS), jnp.tanh(X), LABELS)
    np.testing.assert_allclose(found["head"].tril, alone.tril, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["body"], params["body"])
    law = jax.eval_shape(partial(illia_fn.linearise, apply_fn), found, X[:2])
    assert law.covariance.shape == (2, 3, 3)


def test_what_is_not_convex_adds_nothing():
    """Of a Gaussian whose scale is predicted the second derivative by rho is negative near the target."""
    q = laplace(
        lambda w, x: (w["loc"] * x, w["rho"] * x),
        mean_field({"loc": jnp.ones(()), "rho": jnp.ones(())}),
        jnp.ones(4),
        jnp.ones(4),
        loss_fn=illia_fn.gaussian_nll,
    )
    np.testing.assert_allclose(q["loc"].stddev, (1.0 + 4.0 / jax.nn.softplus(1.0) ** 2) ** -0.5, rtol=1e-5)
    np.testing.assert_allclose(q["rho"].stddev, 1.0, rtol=1e-5)  # the prior


def test_priors():
    """Of another library, element-wise and joint; its own for each array; another posterior."""
    flat = mean_field(PARAMS["bias"])
    for p, expected in (
        (dist.Normal(0.0, 0.5), 4.0),
        (dist.Normal(jnp.zeros(3), jnp.array([0.5, 1.0, 2.0])).to_event(1), np.array([4.0, 1.0, 0.25])),
        (dist.MultivariateNormal(jnp.zeros(3), precision_matrix=jnp.eye(3) + 1.0), 2.0),
        (Gaussian(jnp.zeros(3), jnp.zeros(3)), np.log(2.0) ** -2),
    ):
        q = laplace(lambda w, x: 0.0 * x @ w, flat, X, jnp.zeros(50), prior=p)
        np.testing.assert_allclose(q.stddev**-2, expected * np.ones(3), rtol=1e-4)
    q = laplace(
        linear, mean_field(PARAMS), X[:1], LABELS[:1], prior={"bias": Normal(0.0, 1e-2), "kernel": Normal(0.0, 1.0)}
    )
    np.testing.assert_allclose(q["bias"].stddev, 1e-2, rtol=1e-3)


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
