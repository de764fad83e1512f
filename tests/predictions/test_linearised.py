"""The law of the outputs of the linearised network, against draws, dense algebra and integrals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import illia_fn
from illia_fn import Posterior, frozen_pytree, linearise, mean_field, predict
from illia_fn.predictions import softmax_by_probit, softmax_of_gaussian

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype(np.float32)
Q = mean_field({"w": jnp.array([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]]), "b": jnp.ones(2)}, scale=0.3)


def apply_fn(w, x):
    return {"logits": jnp.tanh(x @ w["w"] + w["b"][None]), "size": x[:, 0] * w["b"][0]}


@frozen_pytree
class FullRank(Posterior):
    """N(loc, factor factor') over a subtree of two leaves."""

    loc: dict
    factor: jax.Array

    def reparameterise(self):
        return lambda noise: jax.tree.map(jnp.add, self.loc, self._unflat(self.factor @ noise))

    def _unflat(self, flat):
        return {"b": flat[:2], "w": flat[2:].reshape(3, 2)}

    log_prob = entropy = None

    @property
    def mean(self):
        return self.loc

    @property
    def stddev(self):
        return self._unflat(jnp.sqrt(jnp.sum(jnp.square(self.factor), axis=1)))


@partial(jax.jit, static_argnames="chunk_size")
def law_of(q, chunk_size=1):
    return linearise(apply_fn, q, X, chunk_size=chunk_size)


@jax.jit
def dense(q, covariance):
    """f(x, m) and J S J', by the whole Jacobian."""
    at = illia_fn.mean(q)

    def outputs(flat, x):
        w = {"b": flat[:2], "w": flat[2:].reshape(3, 2)}
        values = apply_fn(w, x[None])
        return jnp.concatenate([values["logits"][0], values["size"]])

    flat = jnp.concatenate([at["b"], at["w"].ravel()])
    jacobian = jax.vmap(jax.jacfwd(outputs), (None, 0))(flat, X)
    return jnp.einsum("bkp,pq,blq->bkl", jacobian, covariance, jacobian)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_a_mean_field(chunk_size):
    law = law_of(Q, chunk_size)
    np.testing.assert_allclose(law.mean["logits"], np.tanh(X @ Q["w"].loc + 1.0), rtol=1e-6)
    np.testing.assert_allclose(law.covariance, dense(Q, 0.09 * np.eye(8, dtype=np.float32)), rtol=1e-4, atol=1e-6)
    variances = np.diagonal(law.covariance, axis1=1, axis2=2)
    np.testing.assert_allclose(law.variance["size"], variances[:, 2])
    np.testing.assert_allclose(law.variance["logits"], variances[:, :2])


def test_a_family_over_a_subtree():
    factor = np.tril(RNG.normal(size=(8, 8))).astype(np.float32)
    q = FullRank(illia_fn.mean(Q), factor)
    np.testing.assert_allclose(law_of(q).covariance, dense(q, factor @ factor.T), rtol=1e-4, atol=1e-5)


def test_only_what_is_bayesian_varies():
    q = mean_field(illia_fn.mean(Q), scale=0.3, mask={"w": False, "b": True})
    covariance = np.diag(np.float32([0.09] * 2 + [0.0] * 6))
    np.testing.assert_allclose(law_of(q).covariance, dense(q, covariance), rtol=1e-4, atol=1e-6)


def test_draws_have_that_law():
    law = law_of(Q)
    draws = predict(apply_fn, Q, X, KEY, 4000, linearised=True, chunk_size=None)
    flat = np.concatenate([draws["logits"], draws["size"][..., None]], axis=2)
    errors = np.einsum("sbk,sbl->bkl", *[flat - flat.mean(axis=0)] * 2) / len(flat) - law.covariance
    stddev = np.sqrt(np.diagonal(law.covariance, axis1=1, axis2=2))
    limit = 5 * np.sqrt(2 / len(flat)) * stddev[:, :, None] * stddev[:, None, :]
    assert np.all(np.abs(errors) < limit + 1e-6)


@pytest.mark.parametrize(("size", "atol"), [(0.1, 0.03), (1.0, 0.12)])
def test_the_softmax_of_a_gaussian(size, atol):
    """Against means over draws, at what the docstring says of the error, for variances of 0.3 and of 3."""
    mean = np.float32([[2.0, 0.0, -1.0], [0.3, 0.1, 0.0], [4.0, -4.0, 0.0]])
    factor = RNG.normal(size=(3, 3, 3)).astype(np.float32)
    covariance = size * factor @ factor.transpose(0, 2, 1)
    noise = RNG.normal(size=(200_000, 3))
    exact = special.softmax(mean + size**0.5 * np.einsum("bij,sj->sbi", factor, noise), axis=-1).mean(axis=0)
    np.testing.assert_allclose(softmax_of_gaussian(mean, covariance), exact, atol=atol)


def test_two_classes_are_a_sigmoid():
    """Both are MacKay's sigmoid(m / sqrt(1 + pi v / 8)) of the difference."""
    gap, variance = np.linspace(-6.0, 6.0, 13, dtype=np.float32), 3.0
    mean = np.stack([gap, np.zeros_like(gap)], axis=1)
    covariance = np.broadcast_to(np.diag(np.float32([variance, 0.0])), (13, 2, 2))
    expected = special.expit(gap / np.sqrt(1.0 + np.pi / 8.0 * variance))
    for common in (0.0, 2.0):  # to all logits alike, which changes no probability
        np.testing.assert_allclose(softmax_of_gaussian(mean, covariance + common)[:, 0], expected, rtol=1e-5)


def test_certain_logits_are_their_softmax():
    mean = np.float32([3.0, -2.0, 80.0])
    for f in (softmax_of_gaussian, softmax_by_probit):
        np.testing.assert_allclose(f(mean, np.zeros((3, 3), np.float32)), special.softmax(mean), rtol=1e-6)
        with pytest.raises(ValueError, match=f"{f.__name__}: mean must have shape"):
            f(mean, np.ones(3, np.float32))


def test_it_is_exact_for_a_last_layer():
    """A Gaussian on linear weights: the same mean and variance as the outputs themselves."""
    params = {"hidden": np.ones((3, 4), np.float32), "out": np.ones((4, 2), np.float32)}
    q = mean_field(params, scale=0.5, mask={"hidden": False, "out": True})

    def model(w, x):
        return jnp.tanh(x @ w["hidden"]) @ w["out"]

    features = np.tanh(X @ params["hidden"])
    law = jax.jit(lambda q: linearise(model, q, X))(q)
    expected = 0.25 * np.sum(np.square(features), axis=1)
    np.testing.assert_allclose(law.variance, np.stack([expected] * 2, axis=1), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(law.covariance)[:, 0, 1], 0.0, atol=1e-6)


@frozen_pytree
class LogNormal(Posterior):
    """exp(loc + noise), whose draws are no linear function of the noise."""

    loc: jax.Array
    far: float = 0.0

    def reparameterise(self):
        return lambda noise: self.far + jnp.exp(self.loc + noise)

    log_prob = entropy = None

    @property
    def mean(self):
        return self.far + jnp.exp(self.loc + 0.5)

    @property
    def stddev(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linearise(lambda w, x: x * w, LogNormal(jnp.zeros(3)), X), "is a LogNormal, whose draws are not"),
        (lambda: linearise(lambda w, x: x * w, LogNormal(jnp.zeros(3), 1e4), X), "is a LogNormal, whose draws are not"),
    ],
)
def test_a_family_that_is_not_gaussian(call, message):
    with pytest.raises(ValueError, match=f"linearise: .*{message}"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linearise(apply_fn, illia_fn.mean(Q), X), "no posterior node"),
        (
            lambda: linearise(apply_fn, Q, (X, X[:2])),
            r"share a leading axis of examples, got shapes \[\(6, 3\), \(2, 3\)",
        ),
        (lambda: linearise(lambda w, x: w["b"], Q, X), r"leading axis of examples, got shape \(2,\)"),
        (lambda: linearise(apply_fn, Q, X, chunk_size=0), "chunk_size must be an int of at least 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"linearise: .*{message}"):
        call()


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 10.0])
def test_gaussians_of_any_scale_and_half_precision_are_served(scale):
    for dtype in (jnp.float32, jnp.bfloat16):
        q = mean_field(jnp.asarray([1.0, -300.0, 0.0], dtype), scale=scale)
        assert np.all(np.isfinite(linearise(lambda w, x: x * w[None].astype(x.dtype), q, X).covariance))


def test_float64():
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), Q)
        law = jax.jit(linearise, static_argnums=0)(apply_fn, wide, X.astype(np.float64))
    assert law.covariance.dtype == jnp.float64
