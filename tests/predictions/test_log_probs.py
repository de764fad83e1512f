"""log-mean-exp over networks against float64 by hand; of several examples against a closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

import illia_fn as fn

RNG = np.random.default_rng(0)
S, B = 5, 6
LOC, Y = RNG.normal(size=(S, B)), RNG.normal(size=B)
LOGITS, LABELS = 3 * RNG.normal(size=(S, B, 4)), RNG.integers(4, size=B)
RHO = np.linspace(-3.0, 2.0, S)
SCALE = np.log1p(np.exp(RHO))[:, None]
CATEGORICAL = special.log_softmax(LOGITS, axis=-1)[:, np.arange(B), LABELS]
CASES = {  # loss, outputs, y, exact log p
    "default of numbers": (None, LOC, Y, stats.norm.logpdf(Y, LOC)),
    "default of labels": (None, LOGITS, LABELS, CATEGORICAL),
    "of optax": (optax.softmax_cross_entropy_with_integer_labels, LOGITS, LABELS, CATEGORICAL),
    "student t": (partial(fn.student_t_nll, df=4), LOC, Y, stats.t.logpdf(Y, 4, LOC)),
    "one rho per network": (fn.gaussian_nll, (LOC, RHO), Y, stats.norm.logpdf(Y, LOC, SCALE)),
    "counts": (fn.poisson_nll, LOC, LABELS, stats.poisson.logpmf(LABELS, np.exp(LOC))),
    "trailing axes": (
        fn.laplace_nll,
        LOC.reshape(S, 3, 2),
        Y.reshape(3, 2),
        stats.laplace.logpdf(Y, LOC).reshape(S, 3, 2).sum(-1),
    ),
}


def cast(tree, dtype=jnp.float32):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if np.asarray(x).dtype.kind == "f" else jnp.int32), tree)


def log_mean_exp(log_p):
    top = log_p.max(axis=0)
    return top + np.log(np.exp(log_p - top).mean(axis=0))


@pytest.mark.parametrize(("loss", "outputs", "y", "exact"), CASES.values(), ids=CASES)
def test_each_example(loss, outputs, y, exact):
    @jax.jit
    def told(outputs, y):
        of_each = fn.pointwise_log_prob(loss, outputs, y), fn.predictive_log_prob(loss, outputs, y)
        return *of_each, fn.joint_predictive_log_prob(loss, outputs, y, 3)

    matrix, predictive, joint = told(cast(outputs), cast(y))
    np.testing.assert_allclose(matrix, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(predictive, log_mean_exp(exact), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(joint, log_mean_exp(exact.reshape(S, -1, 3).sum(-1)), rtol=1e-5, atol=1e-5)


def test_dtypes(x64):
    loc, y = jnp.asarray(LOC), jnp.asarray(Y)
    wide = fn.predictive_log_prob(None, loc, y)
    assert wide.dtype == jnp.float64
    np.testing.assert_allclose(wide, log_mean_exp(stats.norm.logpdf(Y, LOC)), rtol=1e-13)
    half = loc.astype(jnp.bfloat16)
    narrow = fn.predictive_log_prob(None, half, y.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.float32
    exact = log_mean_exp(stats.norm.logpdf(np.asarray(y.astype(jnp.bfloat16), float), np.asarray(half, float)))
    np.testing.assert_allclose(narrow, exact, rtol=1e-5)


def test_far_and_impossible_targets():
    far = fn.predictive_log_prob(None, jnp.array([[0.0, 0.0], [1.0, 0.0]]), jnp.array([1e4, 0.0]))
    np.testing.assert_allclose(
        far, [-0.5 * 9999.0**2 - np.log(2 * np.pi) / 2 - np.log(2), -np.log(2 * np.pi) / 2], 1e-6
    )
    masked = jnp.array([[[0.0, -jnp.inf]], [[0.0, -jnp.inf]]])
    np.testing.assert_array_equal(fn.predictive_log_prob(None, masked, jnp.array([1])), -jnp.inf)


def test_the_joint_evidence_of_a_linear_gaussian_model():
    """y = w x + noise with w ~ N(0, 1): together y ~ N(0, x x^T + 1), and alone the variances on its diagonal."""
    num, x, y = 400_000, np.array([1.0, -2.0, 0.5, 1.0]), np.array([0.7, -1.0, 0.2, 1.9])
    w = np.random.default_rng(1).normal(size=(num, 1))
    outputs = jnp.asarray(w * x, jnp.float32)
    groups = jnp.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 0, 0]])
    joint = jax.jit(fn.joint_predictive_log_prob, static_argnums=0)(None, outputs, np.float32(y), groups)
    of_first = np.ones((4, 4)) + np.eye(4)  # the same example four times is seen with the noise of each
    exact = [
        stats.multivariate_normal.logpdf(y, cov=np.outer(x, x) + np.eye(4)),
        stats.multivariate_normal.logpdf(y, cov=np.outer(x, x) + np.eye(4)),
        stats.multivariate_normal.logpdf(np.full(4, y[0]), cov=of_first),
    ]
    likelihood = np.exp(stats.norm.logpdf(y, w * x).sum(axis=1))
    error = likelihood.std() / likelihood.mean() / np.sqrt(num)
    np.testing.assert_allclose(joint[:2], exact[:2], atol=5 * error)
    np.testing.assert_allclose(joint[0], joint[1], rtol=1e-5)
    repeated = np.exp(4 * stats.norm.logpdf(y[0], w * x[0]))
    np.testing.assert_allclose(joint[2], exact[2], atol=5 * repeated.std() / repeated.mean() / np.sqrt(num))
    alone = jax.jit(fn.joint_predictive_log_prob, static_argnums=(0, 3))(None, outputs, np.float32(y), 1)
    np.testing.assert_allclose(alone, stats.norm.logpdf(y, scale=np.sqrt(1 + x**2)), atol=0.01)


def test_a_label_that_is_no_class_is_nan_under_jit():
    logits = jnp.array([[[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]])
    for label in (3, -1, 99):
        value = jax.jit(partial(fn.predictive_log_prob, fn.categorical_nll))(logits, jnp.array([label]))
        assert np.isnan(value), label


def test_an_index_that_is_no_example():
    joint = lambda groups: fn.joint_predictive_log_prob(None, cast(LOC), cast(Y), groups)  # noqa: E731
    value = jax.jit(joint)(jnp.array([[0, 1], [0, B], [-1, 0]]))
    np.testing.assert_array_equal(np.isnan(value), [False, True, True])
    for groups, match in (
        (4, "must divide the batch, which has 6. Leave out the last 2"),
        (0, "groups must be an int of at least 1"),
        (jnp.array([[0, B]]), "indices from 0 to 5, got 0 to 6"),
        (jnp.array([[-1, 0]]), "got -1 to 0"),
        (jnp.array([0, 1]), r"must have shape \(G, size\)"),
    ):
        with pytest.raises(ValueError, match=f"joint_predictive_log_prob: .*{match}"):
            joint(groups)
    with pytest.raises(TypeError, match="groups must be a size or integers"):
        joint(jnp.array([[0.0, 1.0]]))


FUNCTIONS = [fn.pointwise_log_prob, fn.predictive_log_prob, fn.joint_predictive_log_prob]
ERRORS = {
    "no networks": (None, jnp.zeros((B, 4)), jnp.zeros(B, int), r"y must have a leading axis of the B = 4 examples"),
    "no networks, square": (None, jnp.zeros((3, 3)), jnp.zeros(3, int), "class labels and need logits"),
    "no examples": (None, jnp.zeros(B), jnp.zeros(B), r"every leaf of shape \(S, B, ...\)"),
    "nothing": (None, (), jnp.zeros(B), "got none"),
    "no outputs": (None, jnp.zeros((0, B)), jnp.zeros(B), r"got \(0, 6\)"),
    "other networks": (fn.gaussian_nll, (jnp.zeros((3, B)), jnp.zeros((2, B))), jnp.zeros(B), r"\(3, 6\), \(2, 6\)"),
    "other examples": (fn.gaussian_nll, (jnp.zeros((3, B)), jnp.zeros((3, 2))), jnp.zeros(B), r"\(3, 6\), \(3, 2\)"),
    "other targets": (None, jnp.zeros((3, B)), jnp.zeros(B - 1), "of the B = 6 examples"),
    "no targets": (None, jnp.zeros((3, B)), 0.0, "of the B = 6 examples"),
    "a last axis": (None, jnp.zeros((3, B, 1)), jnp.zeros(B), "would broadcast against each other"),
    "no class": (None, jnp.zeros((3, B, 2)), jnp.full(B, 2), "classes from 0 to 1, got 2 to 2"),
    "a mean": (lambda f, y: jnp.mean(f - y), jnp.zeros((3, B)), jnp.zeros(B), "it returned a scalar. Drop its mean"),
    "an outer": (lambda f, y: f[:, None] - y[None], jnp.zeros((3, B)), jnp.zeros(B), "Did it broadcast them"),
}


@pytest.mark.parametrize(("loss", "outputs", "y", "match"), ERRORS.values(), ids=ERRORS)
def test_errors(loss, outputs, y, match):
    for f in FUNCTIONS:
        with pytest.raises(ValueError, match=match) as error:
            f(loss, outputs, y)
        assert str(error.value).startswith((f.__name__, "categorical_nll"))


def test_a_loss_that_is_no_function():
    for f in FUNCTIONS:
        with pytest.raises(TypeError, match=f"{f.__name__}: loss_fn must be a function"):
            f(jnp.zeros((3, 2)), jnp.zeros(2), None)
