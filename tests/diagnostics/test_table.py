"""A posterior as a table."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from points import Point

import illia_fn
from illia_fn import Normal, kl_tree, mean_field, summary


def tree():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(30, 4)), jnp.float32)
    return {
        "deterministic": jnp.array([3.0, -1.0]),
        "steps": jnp.arange(3),
        "b": mean_field(jnp.zeros(4), scale=1.0),
        "w": mean_field(w, scale=0.5),
    }


def test_every_number():
    q = tree()
    table = summary(q)
    rows = {row.path: row for row in table.leaves}
    assert list(rows) == ["b", "deterministic", "w"]
    loc = np.asarray(q["w"].loc, np.float64)
    row = rows["w"]
    assert (row.shape, row.family) == ((30, 4), "Gaussian")
    each = np.log(1.0 / 0.5) + (0.25 + loc**2) / 2 - 0.5
    expected = [np.abs(loc).mean(), 0.5, each.sum(), each.mean(), np.median(np.abs(loc) / 0.5), np.mean(each < 0.05)]
    chex.assert_trees_all_close(list(row[3:-1]), expected, rtol=1e-5)
    assert rows["b"][5:] == (0.0, 0.0, 0.0, 1.0, True)
    assert rows["deterministic"].mean_abs == 2.0
    assert math.isnan(rows["deterministic"].kl)
    np.testing.assert_allclose(table.kl, sum(map(float, kl_tree(q).values())), rtol=1e-6)
    assert table.num_params == illia_fn.num_params(q) == 124


def test_the_share_at_an_elementwise_prior():
    """Priors of any shape, and posteriors as priors."""
    q = mean_field({"w": jnp.array([[0.0, 1.0], [2.0, 3.0]])}, scale=1.0)
    for prior, share in (
        ({"w": Normal(jnp.array([[0.0, 1.0]]), 1.0)}, 0.5),
        ({"w": Normal(0.0, jnp.array([[10.0], [1.0]]))}, 0.0),
        (q, 1.0),
    ):
        assert summary(q, prior).leaves[0].at_prior == share


def test_what_has_no_closed_form():
    class Laplace:
        def log_prob(self, w):
            return -jnp.abs(w) - jnp.log(2.0)

    q = mean_field(jnp.zeros(50), scale=0.1)
    row = summary(q, Laplace(), key=jax.random.key(0), num_samples=64).leaves[0]
    assert math.isnan(row.at_prior)
    exact = -0.5 * np.log(2 * np.pi * np.e * 0.01) + 0.1 * np.sqrt(2 / np.pi) + np.log(2)
    standard_error = 0.1 * np.sqrt((1 - 2 / np.pi) / (50 * 64))
    np.testing.assert_allclose(row.kl_per_weight, exact, atol=5 * standard_error)
    with pytest.raises(ValueError, match=r"summary at params: .*key"):
        summary(q, Laplace())


def test_it_prints():
    lines = str(summary(tree())).splitlines()
    assert [line.split()[0] for line in lines] == [
        "path",
        "b",
        "deterministic",
        "w",
        "total",
        "The",
        "Train",
    ]
    assert "30x4" in lines[3]
    assert lines[1].endswith("100 %")


def test_a_node_over_a_subtree():
    row = summary(Point({"a": jnp.ones(2), "b": jnp.ones((2, 2))}), key=jax.random.key(0)).leaves[0]
    assert (row.shape, row.path, row.mean_abs, row.signal_to_noise) == ((6,), "a, b", 1.0, 1.0)
    np.testing.assert_allclose(row.kl, 6 * (0.5 + 0.5 * np.log(2 * np.pi)), rtol=1e-6)


def test_every_path_that_is_shown_is_one_that_by_path_takes():
    q = mean_field({"body": [jnp.ones((2, 3)), jnp.ones(3)], "head": {"kernel": jnp.ones((3, 1))}}, scale=0.1)

    def apply_fn(w, x):
        return (x @ w["body"][0] + w["body"][1][None]) @ w["head"]["kernel"]

    x, y, key = jnp.ones((4, 2)), jnp.zeros((4, 1)), jax.random.key(0)
    shown = {
        "kl_tree": kl_tree(q),
        "kl_is_exact": illia_fn.kl_is_exact(q),
        "summary": [row.path for row in summary(q).leaves],
        "explain_coupling": [leaf.path for leaf in illia_fn.explain_coupling(apply_fn, q, x).leaves],
        "explain_linearity": [leaf.path for leaf in illia_fn.explain_linearity(apply_fn, q, x).leaves],
    }
    for name, paths in shown.items():
        masks = [jax.tree.leaves(illia_fn.by_path(path)(illia_fn.mean(q))) for path in paths]
        np.testing.assert_array_equal(masks, np.eye(3, dtype=bool), err_msg=name)
    fields = illia_fn.diagnose(apply_fn, q, x, y, key, 2, num_data=4).gradient_signal
    assert list(fields) == [f"{path}/{field}" for path in kl_tree(q) for field in ("loc", "rho")]


def test_scales_that_are_alike():
    q = mean_field(jnp.zeros(40), scale=0.1)
    assert summary(q).scales_are_alike
    said, remedy = str(summary(q)).splitlines()[-2:]
    assert said.startswith("The scales are alike")
    assert remedy.startswith("Train longer")
    learned = mean_field(jnp.zeros(40), scale=jnp.linspace(0.1, 0.2, 40))
    assert not summary(learned).scales_are_alike
    assert not summary(mean_field(jnp.zeros(3), scale=0.1)).scales_are_alike


def test_no_leaves():
    with pytest.raises(ValueError, match="summary: params has no floating-point leaves"):
        summary({})
