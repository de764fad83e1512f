"""The family that the chapter builds, over a subtree: its densities, its KLs, and saving."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from families import array, flat, normal
from scipy import stats

import illia_fn
from illia_fn import Normal, kl_divergence, kl_loss, kl_tree

KEY = jax.random.key(0)
PAGE = Path(illia_fn.__file__).parent / "posteriors" / "README.md"


@pytest.fixture(scope="module")
def family():
    """As on the page, up to where its KL is registered."""
    (source,) = re.findall(r"```python\n(from jax.flatten_util.*?)```", PAGE.read_text(), re.DOTALL)
    namespace = {"illia_fn": illia_fn, "jax": jax, "jnp": jnp}
    exec(source, namespace)
    return namespace["Isotropic"]


@pytest.fixture
def node(family):
    return family({"b": normal(1, 3), "w": {"k": array(np.ones((2, 1)))}}, array(0.3))


def dense(node):
    variance = np.log1p(np.exp(np.float64(node.rho))) ** 2
    return stats.multivariate_normal(flat(node.loc), variance * np.eye(5))


def test_densities_are_those_of_the_dense_gaussian(node):
    @jax.jit
    def told(node, keys):
        draws = jax.vmap(node.sample)(keys)
        return draws, jax.vmap(node.log_prob)(draws), node.entropy(), node.stddev

    draws, log_probs, entropy, stddev = told(node, jax.random.split(KEY, 20))
    rows = np.concatenate([np.reshape(leaf, (20, -1)) for leaf in jax.tree.leaves(draws)], axis=1)
    np.testing.assert_allclose(log_probs, dense(node).logpdf(rows), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, dense(node).entropy(), rtol=1e-5)
    np.testing.assert_allclose(flat(stddev), np.sqrt(np.diag(dense(node).cov)), rtol=1e-5)


def test_its_covariance(node):
    q = {"deep": node, "fixed": normal(0, 2)}
    found = jax.jit(lambda q: illia_fn.covariance(q, lambda w: w["deep"]))(q)
    np.testing.assert_allclose(found, dense(node).cov, rtol=1e-6)


def test_functions_on_trees_see_the_subtree(node):
    q = {"deep": node, "fixed": normal(0, 2), "flat": illia_fn.mean_field(normal(1, 4), scale=0.1)}
    assert illia_fn.num_params(q) == 5 + 4

    @jax.jit
    def told(q):
        w = illia_fn.sample(KEY, q)
        expected = q["deep"].log_prob(w["deep"]) + q["flat"].log_prob(w["flat"])
        return (w, illia_fn.mean(q), illia_fn.stddev(q)), (illia_fn.log_prob(q, w), expected)

    (w, *moments), log_probs = told(q)
    chex.assert_trees_all_equal_shapes_and_dtypes(w, *moments)
    np.testing.assert_allclose(*log_probs, rtol=1e-6)
    with pytest.raises(ValueError, match=r"log_prob: w\['deep'\]\['b'\] has shape \(2,\)"):
        illia_fn.log_prob(q, w | {"deep": w["deep"] | {"b": normal(0, 2)}})


def cross_entropy(node, loc, scale):
    """-E_q[log N(w; loc, scale^2)], each of the shape of the flat subtree."""
    mean, variance = flat(node.loc), np.diag(dense(node).cov)
    return np.sum(((mean - loc) ** 2 + variance) / (2 * scale**2) + np.log(scale) + np.log(2 * np.pi) / 2)


def sampled_kl(node, prior, count=4000):
    """Mean and standard error of the Monte Carlo KL."""
    keys = jax.random.split(KEY, count)
    values = np.asarray(jax.jit(jax.vmap(lambda key: kl_loss(node, prior, reduction="sum", key=key)))(keys))
    return np.mean(values), np.std(values) / np.sqrt(count)


PRIORS = {
    "one for all": (Normal(0.5, 2.0), 0.5, 2.0),
    "one for each array": (
        {"b": Normal(0.0, 1.0), "w": {"k": Normal(1.0, np.full((2, 1), 3.0, np.float32))}},
        np.array([0, 0, 0, 1, 1]),
        np.array([1, 1, 1, 3, 3]),
    ),
    "a prefix": ({"b": Normal(0.0, 1.0), "w": Normal(1.0, 3.0)}, np.array([0, 0, 0, 1, 1]), np.array([1, 1, 1, 3, 3])),
}


@pytest.mark.parametrize("name", PRIORS)
def test_the_kl_is_sampled_from_the_joint_draw(node, name):
    prior, loc, scale = PRIORS[name]
    exact = cross_entropy(node, np.broadcast_to(loc, 5), np.broadcast_to(scale, 5)) - dense(node).entropy()
    mean, standard_error = sampled_kl(node, prior)
    assert abs(mean - exact) < 5 * standard_error
    assert standard_error < 0.05 * exact
    (path,) = jax.eval_shape(lambda q: kl_tree(q, {"deep": prior}, key=KEY), {"deep": node})
    assert path == "deep/b, deep/w/k"


def test_the_kl_to_itself_is_exactly_zero_and_to_another_unbiased(node, family):
    kls = lambda q: (kl_divergence(q, q, key=KEY), kl_loss({"a": q}, {"a": q}, key=KEY, num_samples=3))  # noqa: E731
    np.testing.assert_array_equal(jax.jit(kls)(node), 0.0)
    other = family(jax.tree.map(lambda x: array(np.asarray(x) + 0.3), node.loc), array(0.8))
    p, q = dense(other), dense(node)
    residual = p.mean - q.mean
    exact = 0.5 * (
        np.trace(np.linalg.solve(p.cov, q.cov))
        + residual @ np.linalg.solve(p.cov, residual)
        - 5
        + np.linalg.slogdet(p.cov)[1]
        - np.linalg.slogdet(q.cov)[1]
    )
    mean, standard_error = sampled_kl(node, other)
    assert abs(mean - exact) < 5 * standard_error


def test_a_closed_form_of_a_family_whose_fields_have_other_shapes(node):
    class Prior:
        """A joint prior, which the table knows."""

        def log_prob(self, w):
            raise AssertionError("not to be sampled")

    illia_fn.register_kl(type(node), Prior)(lambda q, p: 2.0 - q.entropy())
    np.testing.assert_allclose(kl_divergence(node, Prior()), 2.0 - node.entropy())
    np.testing.assert_allclose(kl_loss({"a": node}, Prior(), reduction="sum"), 2.0 - node.entropy())
    illia_fn.register_kl(type(node), Prior)(lambda q, p: jnp.ones(5))
    with pytest.raises(ValueError, match=r"kl_divergence: the closed form of KL\(Isotropic \|\| Prior\) must return"):
        kl_divergence(node, Prior())


def test_a_joint_prior_that_stands_for_something_else_is_refused(node, family):
    other = family(normal(0, 5), node.rho)
    with pytest.raises(
        ValueError, match="kl_divergence: the prior, of type Isotropic, must stand for what the posterior st"
    ):
        kl_divergence(node, other, key=KEY)


def test_it_is_saved_and_restored(node, tmp_path):
    q = {"deep": node, "flat": illia_fn.mean_field(normal(0, 4), scale=0.1)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "q", q)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "q", q)
    chex.assert_trees_all_equal(restored, q)
    assert type(restored["deep"]) is type(node)
