"""Pruning by signal-to-noise: which weights go, and what the ELBO says of it, against sums by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import Gaussian, Normal, elbo_loss, mean_field, prune, pruning_curve

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Q = {
    "a": Gaussian(jnp.array([[2.0, -0.1, 0.0]]), jnp.array([[-1.0, 0.0, 1.0]])),
    "b": Gaussian(jnp.array([0.3]), jnp.array([-4.0])),
    "c": jnp.array(7.0),
}
Y = 2.0 * X[:, 0] + np.float32(0.3)


def apply_fn(w, x):
    return x @ w["a"][0] + w["b"] + 0.0 * w["c"]


def test_the_smallest_ratios_go_first_over_all_leaves():
    ratios = {name: np.abs(Q[name].loc) / np.asarray(Q[name].stddev) for name in "ab"}
    order = np.argsort(np.concatenate([ratios["a"].ravel(), ratios["b"]]))
    for count in range(5):
        pruned = prune(Q, count / 4)
        flat = np.concatenate([pruned["a"].ravel(), pruned["b"]])
        expected = np.concatenate([Q["a"].loc.ravel(), Q["b"].loc])
        expected[order[:count]] = 0.0
        np.testing.assert_array_equal(flat, expected)
        assert pruned["c"] == 7.0
        assert pruned["a"].dtype == Q["a"].loc.dtype


def test_equal_ratios_are_cut_at_the_count():
    assert int(jnp.sum(prune(mean_field(jnp.ones(10), scale=0.1), 0.3) == 0)) == 3


def test_the_curve():
    curve = pruning_curve(apply_fn, Q, X, Y, KEY, 4, num_data=20, shares=[0.0, 0.5, 1.0], prior=Normal(0.0, 2.0))
    run = jax.jit(partial(elbo_loss, apply_fn, num_samples=4, num_data=20, prior=Normal(0.0, 2.0), return_terms=True))
    whole = run(Q, X, Y, KEY)[1]
    loc, stddev = ({name: np.asarray(getattr(Q[name], of), float) for name in "ab"} for of in ("loc", "stddev"))
    np.testing.assert_allclose(curve.kl[0], whole.kl / 20, rtol=1e-6)
    # of an additive model in closed form: the squares of what is left, and of the noise
    for share, nll, kl in zip(curve.shares, curve.nll, curve.kl, strict=True):
        gone = jax.tree.map(np.asarray, prune(Q, share))
        keep = {name: (gone[name] != 0.0) | (share == 0.0) for name in "ab"}
        variance = np.sum(np.where(keep["a"], stddev["a"], 0.0) ** 2 * X**2, axis=1)
        variance += np.where(keep["b"], stddev["b"], 0.0) ** 2
        error = np.square(apply_fn(gone, X) - Y)
        exact = 0.5 * np.mean(error + variance) + 0.5 * np.log(2 * np.pi)
        spread = np.mean(variance) + np.sqrt(np.mean(error * variance))
        assert abs(nll - exact) < 5 * spread / np.sqrt(4) + 1e-6
        kls = {name: np.log(2.0 / stddev[name]) + (stddev[name] ** 2 + loc[name] ** 2) / 8 - 0.5 for name in "ab"}
        expected = sum(kls[name][keep[name]].sum() for name in "ab")
        np.testing.assert_allclose(kl, expected / 20, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(curve.negative_elbo, curve.nll + curve.kl)
    assert curve.kl[-1] == 0.0
    np.testing.assert_allclose(curve.nll[-1], 0.5 * np.mean(np.square(Y)) + 0.5 * np.log(2 * np.pi), rtol=1e-5)


class Joint:
    """A prior that is not element-wise."""

    def log_prob(self, w):
        return -0.5 * jnp.sum(jnp.square(w))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prune(Q, 1.5), r"prune: a share must be a number in \[0, 1\], got 1.5"),
        (lambda: prune({"w": jnp.ones(3)}, 0.5), "prune: params has no posterior node"),
        (lambda: pruning_curve(apply_fn, Q, X, Y, KEY, num_data=20, shares=[-0.1]), "pruning_curve: a share must be"),
        (lambda: pruning_curve(apply_fn, Q, X, Y, KEY, num_data=20, shares=[]), "shares must name at least one share"),
        (lambda: pruning_curve(apply_fn, Q, X, Y, KEY, num_data=-5), "pruning_curve: num_data must be the number"),
        (lambda: pruning_curve(apply_fn, Q, X, Y, KEY, num_data=20, prior=Joint()), "there is no KL for each weight"),
        (
            lambda: pruning_curve(apply_fn, Q, X, Y, KEY, num_data=20, prior=Normal(jnp.zeros(3), 1.0)),
            r"pruning_curve at params\['a'\]: a prior parameter of shape \(3,\) does not go with",
        ),
        (
            lambda: pruning_curve(apply_fn, Q, X, Y, KEY, num_data=20, prior=illia_fn.priors.EmpiricalBayes(4.0, 9.0)),
            r"pruning_curve at params\['a'\]: pruning_curve takes a prior whose scale is known",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
