"""Probabilities and entropies of classes against float64 by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import illia_fn as fn

RNG = np.random.default_rng(0)
KEEN = RNG.dirichlet(np.full(5, 0.3), size=(7, 40))
CLOSE = RNG.dirichlet(np.ones(5), size=(1, 40)) * (1 + 1e-3 * RNG.normal(size=(7, 40, 5)))
SHARP = np.stack([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]])


@pytest.mark.parametrize("probs", [KEEN, CLOSE / CLOSE.sum(-1, keepdims=True), SHARP], ids=["keen", "close", "sharp"])
def test_the_split(probs):
    given = jnp.asarray(probs, jnp.float32)
    summary = jax.jit(fn.class_summary)(given)
    probs = np.asarray(given, float)
    mean, total, aleatoric = probs.mean(0), special.entr(probs.mean(0)).sum(-1), special.entr(probs).sum(-1).mean(0)
    np.testing.assert_allclose(summary.probs, mean, rtol=1e-6)
    np.testing.assert_allclose(summary.total, total, rtol=1e-5)
    np.testing.assert_allclose(summary.aleatoric, aleatoric, rtol=1e-5)
    # the generalised divergence: that of probabilities that sum to one up to float32
    exact = (special.kl_div(probs, mean[None])).sum(-1).mean(0)
    np.testing.assert_allclose(summary.epistemic, exact, rtol=2e-5, atol=1e-13)
    np.testing.assert_allclose(summary.total, summary.aleatoric + summary.epistemic, rtol=1e-5)
    votes = probs.argmax(-1)
    dissent = [1 - stats.mode(column).count / len(column) for column in votes.T]
    np.testing.assert_allclose(summary.variation_ratio, dissent, atol=1e-6)


def test_networks_that_all_but_agree():
    """Where total - aleatoric would be rounding, of either sign."""
    p = np.float32(0.3) + np.float32(1e-5) * np.arange(-3, 4, dtype=np.float32)[:, None]
    probs = np.stack([p, np.float32(1.0) - p], axis=-1)
    exact = special.kl_div(probs.astype(float), probs.astype(float).mean(0)[None]).sum(-1).mean(0)
    np.testing.assert_allclose(fn.class_summary(probs).epistemic, exact, rtol=1e-2)  # about 1e-9
    same = np.broadcast_to(KEEN[:1], (7, 40, 5)).astype(np.float32)
    epistemic = np.asarray(fn.class_summary(same).epistemic)
    assert (epistemic >= 0).all()
    assert (epistemic < 1e-12).all()


def test_probabilities_that_are_tiny():
    rest = 10.0 ** np.linspace(-30, -8, 8)
    probs = np.stack([np.stack([np.ones(8), rest], axis=-1), np.stack([np.ones(8), 2 * rest], axis=-1)])
    summary = fn.class_summary(jnp.asarray(probs, jnp.float32))
    entropy = lambda r: r * (1 - np.log(r))  # noqa: E731  # up to r^2
    np.testing.assert_allclose(summary.total, entropy(1.5 * rest), rtol=1e-5)
    np.testing.assert_allclose(summary.aleatoric, (entropy(rest) + entropy(2 * rest)) / 2, rtol=1e-5)
    exact = rest * (1.5 * np.log(1 / 1.5) + np.log(2))
    np.testing.assert_allclose(summary.epistemic, exact, rtol=1e-5)


def test_probabilities_at_the_ends_of_float32():
    for least in (0.0, 1e-40, 1e-38):
        summary = fn.class_summary(jnp.array([[[least, 1.0]], [[1.0, least]]]))
        np.testing.assert_allclose(summary.epistemic, np.log(2), rtol=1e-6)
        np.testing.assert_allclose(summary.aleatoric, 0.0, atol=1e-35)


def test_one_network_trailing_axes_and_dtypes():
    keen = KEEN.astype(np.float32)
    given = [keen[:1], keen.reshape(7, 4, 10, 5), keen, np.eye(3, dtype=int)[None]]
    one, deep, flat, whole = jax.jit(lambda given: [fn.class_summary(probs) for probs in given])(given)
    np.testing.assert_array_equal(one.epistemic, 0.0)
    np.testing.assert_array_equal(one.variation_ratio, 0.0)
    np.testing.assert_allclose(np.ravel(deep.epistemic), flat.epistemic, rtol=1e-6)
    half = fn.class_summary(jnp.asarray(KEEN, jnp.bfloat16))  # whose sums are seen to be one, outside of jit
    assert half.total.dtype == jnp.float32
    np.testing.assert_allclose(half.total, flat.total, atol=0.03)
    np.testing.assert_array_equal(whole.total, 0.0)
    with jax.enable_x64(True):
        wide = fn.class_summary(jnp.asarray(KEEN))
        assert wide.epistemic.dtype == jnp.float64
        exact = special.kl_div(KEEN, KEEN.mean(0)[None]).sum(-1).mean(0)
        np.testing.assert_allclose(wide.epistemic, exact, rtol=1e-12)


def test_probs_of_each_likelihood():
    f = RNG.normal(size=(4, 6)).astype(np.float32)
    logits, gaps = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
    outputs = [
        *((loss, logits) for loss in (None, fn.categorical_nll)),
        *((fn.bernoulli_nll, x) for x in (f, np.float32([[60.0]]), f.reshape(4, 3, 2))),
        (fn.ordinal_nll, (f, gaps)),
    ]
    losses, given = zip(*outputs, strict=True)
    found = jax.jit(lambda given: [fn.class_probs(*pair) for pair in zip(losses, given, strict=True)])(given)
    by_default, categorical, bernoulli, far, cut, probs = map(np.asarray, found)
    softmax = special.softmax(logits.astype(float), axis=-1)
    np.testing.assert_allclose(by_default, softmax, rtol=1e-5)
    np.testing.assert_allclose(categorical, softmax, rtol=1e-5)
    yes = special.expit(f.astype(float))
    np.testing.assert_allclose(bernoulli, np.stack([1 - yes, yes], -1), rtol=1e-5)
    log_prob = jax.jit(partial(fn.pointwise_log_prob, fn.ordinal_nll))
    for k in range(4):
        log_p = log_prob((f, gaps), np.full(6, k))
        np.testing.assert_allclose(probs[..., k], np.exp(log_p), rtol=1e-6)
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(far[0, 0], [np.exp(-60.0), 1.0], rtol=1e-5)
    assert cut.shape == (4, 3, 2, 2)


@pytest.mark.parametrize(
    ("probs", "match"),
    [
        (jnp.full((2, 3, 4), 0.3), "sums from 1.2"),
        (jnp.array([[[1.5, -0.5]]]), "numbers from -0.5 to 1.5"),
        (jnp.array([[[jnp.nan, 1.0]]]), "from nan"),
        (jnp.array([[[0.5, 0.501]]]), "sum to one"),
        (jnp.full((3, 4), 0.25), r"\(S, B, ..., C\), got \(3, 4\). Of one network pass probs\[None\]"),
        (jnp.zeros((0, 3, 4)), "got .0, 3, 4."),
    ],
)
def test_what_are_no_probabilities(probs, match):
    with pytest.raises(ValueError, match=f"class_summary: .*{match}"):
        fn.class_summary(probs)


def test_what_has_no_classes():
    with pytest.raises(ValueError, match="class_probs: loss_fn must be a likelihood of classes"):
        fn.class_probs(fn.gaussian_nll, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="class_probs: outputs must be those of S networks"):
        fn.class_probs(None, jnp.zeros(3))
    with pytest.raises(ValueError, match="one network must have shape"):
        fn.class_probs(None, jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match="class_probs: loss_fn must be a likelihood whose"):
        fn.class_probs(lambda f, y: f, jnp.zeros((5, 3, 2)))


def test_logits_under_jit_are_nan():
    logits = jnp.array([[[2.0, -3.0], [0.5, 0.5]]])
    found = jax.jit(fn.class_summary)(logits)
    np.testing.assert_array_equal(np.isnan(found.total), [True, False])
