import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import array, softplus
from scipy import stats

import illia_fn
from illia_fn import Gaussian, is_posterior, mean_field
from illia_fn.posteriors import _join, posterior
from illia_fn.posteriors.posterior import Sampler

PARAMS = {
    "dense": {"kernel": array(np.ones((4, 3))), "bias": array(np.zeros(3))},
    "steps": array(7, np.int32),
    "flag": array([True], bool),
}


@pytest.fixture
def q():
    return mean_field(PARAMS, scale=0.05)


def test_mean_field_replaces_floating_leaves_only(q):
    assert is_posterior(q["dense"]["kernel"])
    assert is_posterior(q["dense"]["bias"])
    assert (q["steps"].dtype, q["flag"].dtype) == (jnp.int32, bool)
    for leaf, original in zip(jax.tree.leaves(illia_fn.mean(q)), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(leaf, original)
    np.testing.assert_allclose(q["dense"]["kernel"].stddev, 0.05, rtol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        {"dense": {"kernel": True, "bias": False}, "steps": False, "flag": False},
        lambda params: jax.tree.map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params),
    ],
)
def test_mask_is_a_prefix_tree_or_a_callable(mask):
    q = mean_field(PARAMS, scale=0.05, mask=mask)
    assert is_posterior(q["dense"]["kernel"])
    np.testing.assert_array_equal(q["dense"]["bias"], PARAMS["dense"]["bias"])
    assert illia_fn.num_params(q) == 12


def test_mask_for_a_whole_subtree():
    assert illia_fn.num_params(mean_field(PARAMS, scale=0.1, mask={"dense": True, "steps": False, "flag": False})) == 15


def test_scale_is_a_number_or_a_prefix_tree():
    kernel = array(np.linspace(0.1, 1.2, 12).reshape(4, 3))
    scale = {"dense": {"kernel": kernel, "bias": 0.5}, "steps": None, "flag": None}
    q = mean_field(PARAMS, scale=scale)
    np.testing.assert_allclose(q["dense"]["kernel"].stddev, scale["dense"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(q["dense"]["bias"].stddev, 0.5, rtol=1e-6)


def test_sample_has_the_moments_of_q():
    params = {"a": array(np.full(200, 2.0)), "b": {"c": array(np.full(200, -1.0))}}
    q = mean_field(params, scale={"a": 0.5, "b": 0.1})
    w = jax.jit(jax.vmap(illia_fn.sample, (0, None)))(jax.random.split(jax.random.key(0), 1000), q)
    w = jax.device_get(w)
    for draws, loc, scale in ((w["a"], 2.0, 0.5), (w["b"]["c"], -1.0, 0.1)):
        n = draws.size
        assert abs(draws.mean() - loc) < 5 * scale / np.sqrt(n)
        assert abs(draws.std() / scale - 1) < 5 / np.sqrt(2 * n)
    correlation = np.mean((w["a"] - 2.0) * (w["b"]["c"] + 1.0)) / (0.5 * 0.1)  # leaves are independent
    assert abs(correlation) < 5 / np.sqrt(w["a"].size)


def test_a_half_precision_sample_is_drawn_in_float32():
    q = Gaussian(array(np.zeros(100_000), jnp.bfloat16), array(np.full(100_000, 0.5413), jnp.bfloat16))  # scale 1
    w = np.asarray(jax.jit(lambda q: q.sample(jax.random.key(0)))(q))
    assert w.dtype == jnp.bfloat16
    # a bfloat16 draw never exceeds 2.7 and takes 127 values; of 100 000 float32 draws some 270 lie beyond 3
    assert 200 < np.sum(np.abs(w.astype(np.float32)) > 3) < 350
    assert abs(w.astype(np.float32).std() - 1) < 5 / np.sqrt(2 * w.size)


def test_sample_is_reparameterised():
    @jax.jit
    def told(q):
        w, pull = jax.vjp(lambda q: illia_fn.sample(jax.random.key(0), q), q)
        return w, pull(jnp.ones(3))[0]

    w, slopes = told(Gaussian(array(np.zeros(3)), array(np.zeros(3))))
    np.testing.assert_array_equal(slopes.loc, 1.0)
    np.testing.assert_allclose(slopes.rho, 0.5 * np.asarray(w) / np.log(2), rtol=1e-6)  # sigmoid(0) * noise


def test_log_prob_sums_over_posterior_nodes(q):
    @jax.jit
    def told(q):
        w = illia_fn.sample(jax.random.key(1), q)
        return w["dense"], illia_fn.log_prob(q, w)

    w, log_prob = told(q)
    laws = {name: stats.norm(np.asarray(node.loc), softplus(node.rho)) for name, node in q["dense"].items()}
    np.testing.assert_allclose(log_prob, sum(law.logpdf(w[name]).sum() for name, law in laws.items()), rtol=1e-5)


def test_entropy_is_minus_the_expected_log_prob():
    @jax.jit
    def told(q):
        draws = q.sample(jax.random.key(0))
        return jax.vmap(lambda node, w: node.log_prob(w))(q, draws), q.entropy()

    log_probs, entropy = map(np.asarray, told(Gaussian(array(np.zeros(10_000)), array(np.full(10_000, -2.0)))))
    standard_error = np.std(log_probs) / np.sqrt(10_000)
    assert abs(np.mean(-log_probs) - entropy / 10_000) < 5 * standard_error


def test_stddev_of_a_deterministic_leaf_is_zero(q):
    stddev = illia_fn.stddev({"w": q["dense"]["bias"], "b": array(np.ones(2)), "n": 3})
    np.testing.assert_allclose(stddev["w"], 0.05, rtol=1e-6)
    np.testing.assert_array_equal(stddev["b"], 0.0)
    assert stddev["n"] == 0
    others = {"f": jnp.tanh, "key": jax.random.key(0)}
    assert illia_fn.stddev(others) == others


def loss(q):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(illia_fn.sample(jax.random.key(0), q)))


@pytest.fixture
def floats(q):
    return q["dense"]


def test_survives_jit_grad_vmap_and_donation(floats):
    grads = jax.jit(jax.grad(loss))(floats)
    assert jax.tree.structure(grads) == jax.tree.structure(floats)
    stacked = jax.tree.map(lambda leaf: array(np.stack([leaf, leaf])), floats)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(stacked), jax.jit(loss)(floats), rtol=1e-6)
    doubled = jax.jit(lambda q: jax.tree.map(lambda leaf: 2 * leaf, q), donate_argnums=0)(stacked)
    assert is_posterior(doubled["kernel"])
    assert stacked["kernel"].loc.is_deleted()


def test_donating_a_posterior_leaves_the_parameters_alone():
    params = {"w": array(np.ones(3)), "masked": array(np.ones(3)), "steps": array([0, 1, 2], np.int32)}
    params["key"] = jax.random.key(0)
    mask = {name: name != "masked" for name in params}
    q = mean_field(params, scale=0.1, mask=mask)
    jax.jit(lambda q: jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim else leaf, q), donate_argnums=0)(q)
    assert q["w"].loc.is_deleted()
    assert q["masked"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in params.values())


@pytest.mark.promotes
@pytest.mark.parametrize("start", [0.5, 1, array(0.5)])
def test_a_step_is_traced_once_whatever_numbers_it_starts_from(start):
    params = {"w": float(start), "masked": array(0.5), "own": start}
    q = mean_field(params, scale=0.1, mask={"w": True, "masked": False, "own": False})
    q["own"] = Gaussian(start, -1.0)
    optimizer, traces = optax.adam(1e-2), []

    @jax.jit
    def step(q, state):
        traces.append(0)
        updates, state = optimizer.update(jax.grad(loss)(q), state, q)
        return optax.apply_updates(q, updates), state

    state = optimizer.init(q)
    for _ in range(3):
        q, state = step(q, state)
    assert len(traces) == 1


def by_field(params):
    return jax.tree.map_with_path(lambda path, _: path[-1].name, params)


@pytest.mark.promotes
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-2),
        optax.masked(optax.adam(1e-2), {"kernel": True, "bias": False}),
        optax.multi_transform({"loc": optax.adam(1e-2), "rho": optax.sgd(1e-1)}, by_field),
    ],
)
def test_optax_steps(floats, optimizer):
    @jax.jit
    def step(q, state):
        value, grads = jax.value_and_grad(loss)(q)
        updates, state = optimizer.update(grads, state, q)
        return optax.apply_updates(q, updates), state, value

    state = jax.jit(optimizer.init)(floats)
    q, state, first = step(floats, state)
    q, state, second = step(q, state)
    assert second < first
    assert is_posterior(q["kernel"])


@pytest.mark.promotes
def test_multi_transform_freezes_by_path(floats):
    optimizer = optax.multi_transform({"loc": optax.sgd(0.1), "rho": optax.set_to_zero()}, by_field)
    updates, _ = jax.jit(lambda q: optimizer.update(jax.grad(loss)(q), optimizer.init(q), q))(floats)
    assert not np.any(updates["kernel"].rho)
    assert np.any(updates["kernel"].loc)


def test_nodes_carry_anything_through_jax_tree(floats):
    shapes = jax.tree.map(jnp.shape, floats)
    assert shapes["kernel"].loc == (4, 3)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(floats)]
    assert paths == ["['bias'].loc", "['bias'].rho", "['kernel'].loc", "['kernel'].rho"]
    assert jax.eval_shape(lambda q: q, floats)["bias"].rho.shape == (3,)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)  # what a checkpoint is restored to
    assert Gaussian(shape, shape).loc is shape


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_is_kept(dtype):
    @jax.jit
    def told(loc):
        q = mean_field(loc, scale=0.1)
        return (q, illia_fn.sample(jax.random.key(0), q), illia_fn.stddev(q)), illia_fn.log_prob(q, q.loc)

    leaves, log_prob = jax.eval_shape(told, array(np.ones(3), dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(leaves)} == {jnp.dtype(dtype)}
    assert log_prob.dtype == jnp.float32
    prior = illia_fn.Normal(array(1.0, dtype), array(0.5, dtype))
    np.testing.assert_allclose(prior.log_prob(array(2.0, dtype)), stats.norm.logpdf(2.0, 1.0, 0.5), rtol=1e-6)


def test_float64(x64):
    @jax.jit
    def told(loc):
        q = mean_field(loc, scale=0.1)
        return illia_fn.sample(jax.random.key(0), q), q.stddev

    w, stddev = told(array(np.ones(3), float))
    assert w.dtype == jnp.float64
    np.testing.assert_allclose(stddev, 0.1, rtol=1e-15)


def test_a_new_family_must_be_complete():
    class Delta(illia_fn.Posterior):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Delta()


def test_noise_of_large_nodes_is_drawn_apart(monkeypatch):
    """No two nodes, large or small, even or odd, share any of it."""
    assert posterior._LARGE >= _join._SMALL
    monkeypatch.setattr(posterior, "_LARGE", 0)
    shapes = [(4, 8), (3,), (31,), (16,), (3,), (40,)]
    sampler = Sampler.of([Gaussian(array(np.zeros(shape)), array(np.zeros(shape))) for shape in shapes])
    noise = jax.device_get(jax.jit(sampler.noise)(jax.random.key(0)))
    assert [leaf.shape for leaf in noise] == shapes
    flat = np.concatenate([leaf.ravel() for leaf in noise])
    assert len(np.unique(flat)) == len(flat) == 125
    text = jax.jit(sampler.noise).lower(jax.random.key(0)).as_text()
    assert len(re.findall(r"call @_normal(_\d+)?\(", text)) == 4  # of 32, 16 and 40 numbers, and of the rest
