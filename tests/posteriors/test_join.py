"""Small nodes are joined into few: the values and all derivatives are those of the tree as it was."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from families import array, normal

import illia_fn
from illia_fn import Gaussian, Normal, elbo_loss, kl_loss, kl_tree, mean_field, sample
from illia_fn.posteriors import _join
from illia_fn.posteriors._join import Joined
from illia_fn.posteriors.posterior import is_posterior

SHAPES = {"a": (3, 4), "b": (4,), "c": (), "d": (2, 1, 3), "e": (3, 4)}


def tree(*, total_is_even=False):
    """Gaussian leaves, with a deterministic one among them."""
    shapes = SHAPES | ({"f": (1,)} if total_is_even else {})
    params = {
        name: Gaussian(normal(seed, *shape), array(np.asarray(normal(seed + 10, *shape, scale=0.5)) - 1.0))
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return params | {"bb": array([1.0, 2.0])}


def through_join(q):
    joined = Joined.of(q, is_posterior)
    assert len(joined.nodes) == 1
    return {"loc": joined.tree([joined.nodes[0].loc]), "rho": joined.tree([joined.nodes[0].rho])}


def as_it_is(q):
    return {
        field: {name: getattr(node, field) if is_posterior(node) else node for name, node in q.items()}
        for field in ("loc", "rho")
    }


assert_close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def curved(f, q):
    return sum(jnp.sum(jnp.sin(leaf) * leaf) for leaf in jax.tree.leaves(f(q)))


def value_and_gradients(f, q):
    """As it is, and what becomes of cotangents and of tangents, other ones for each number."""
    by = jax.tree.map(lambda leaf: np.cos(np.asarray(leaf)), q)
    values, pull = jax.vjp(f, q)
    return values, pull(as_it_is(by)), jax.jvp(f, (q,), (by,))[1]


@pytest.mark.parametrize(("total_is_even", "wrap"), [(False, lambda f: f), (True, jax.jit)], ids=["eager", "jit"])
def test_there_and_back(total_is_even, wrap):
    q = tree(total_is_even=total_is_even)
    there_and_back = value_and_gradients(wrap(through_join), q)
    chex.assert_trees_all_equal(there_and_back, value_and_gradients(as_it_is, q))


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
def test_second_derivatives(mode):
    q = {"a": tree()["a"], "c": tree()["c"]}
    hessians = jax.jit(lambda q: [mode(jax.grad(partial(curved, f)))(q) for f in (through_join, as_it_is)])
    assert_close(*hessians(q))


def test_under_vmap():
    batch = jax.tree.map(lambda leaf: np.stack([leaf, np.asarray(leaf) + 1.0]), tree())
    both = lambda f: jax.vmap(lambda q: (f(q), jax.grad(partial(curved, f))(q)))  # noqa: E731
    assert_close(*jax.jit(lambda batch: [both(way)(batch) for way in (through_join, as_it_is)])(batch))


def test_what_is_joined():
    def groups(nodes):
        return Joined.of(nodes, is_posterior).groups

    def gaussian(*shape, dtype=jnp.float32):
        return Gaussian(np.zeros(shape, dtype), np.zeros(shape, np.float32))

    class Other(Gaussian):
        elementwise = False

    small, half = gaussian(2), gaussian(2, dtype=jnp.bfloat16)
    other = Other(small.loc, small.rho)
    assert groups([small, half, small.loc, small, other, half, other]) == [[0, 2], [1, 4], [3], [5]]
    assert groups([small, gaussian(2**16), gaussian(2**16 + 1), small]) == [[0, 1, 3], [2]]


PRIORS = {
    "one for all": lambda q: Normal(0.1, 0.3),
    "traced": lambda q: Normal(array(0.1), array(0.4)),
    "one for each": lambda q: {name: Normal(0.1 * index, 1.0) for index, name in enumerate(sorted(q))},
    "arrays": lambda q: {name: Normal(0.0, np.full_like(leaf, 0.4)) for name, leaf in mean_of(q).items()},
    "yesterday's posterior": lambda q: jax.tree.map(lambda leaf: array(0.9 * np.asarray(leaf) - 0.1), q),
}


def mean_of(q):
    return {name: node.loc if is_posterior(node) else node for name, node in q.items()}


def without_e():
    return {name: node for name, node in tree().items() if name != "e"}


def by_leaf_in_numpy(node, prior):
    """KL, slopes to loc and rho, and slopes to the loc and scale of the prior, each of the shape of its leaf."""
    loc, rho, p_loc, p_scale = (np.asarray(x, np.float64) for x in (node.loc, node.rho, prior.loc, prior.scale))
    scale, slope = np.logaddexp(0, rho), 1 / (1 + np.exp(-rho))
    z, ratio = (loc - p_loc) / p_scale, scale / p_scale
    kl = np.sum((ratio**2 + z**2 - 1) / 2 - np.log(ratio))
    return kl, (z / p_scale, (ratio / p_scale - 1 / scale) * slope), (-z / p_scale, (1 - ratio**2 - z**2) / p_scale)


@pytest.mark.parametrize("name", PRIORS)
def test_the_kl_is_that_of_the_leaves(name):
    q = without_e()
    prior = PRIORS[name](q)
    of_arrays = name in ("traced", "yesterday's posterior")

    def kl(q, own):
        return kl_loss(q, own if of_arrays else prior, reduction="sum")

    value, (of_q, of_prior) = jax.jit(jax.value_and_grad(kl, (0, 1)))(q, prior if of_arrays else 0.0)
    names = [name for name in q if is_posterior(q[name])]
    exact = {name: by_leaf_in_numpy(q[name], prior[name] if isinstance(prior, dict) else prior) for name in names}
    np.testing.assert_allclose(value, sum(kl for kl, *_ in exact.values()), rtol=1e-5)
    assert_close({name: (of_q[name].loc, of_q[name].rho) for name in names}, {name: exact[name][1] for name in names})
    assert not np.any(of_q["bb"])
    if name == "traced":
        sums = [sum(np.sum(exact[name][2][field]) for name in names) for field in range(2)]
        assert_close([of_prior.loc, of_prior.scale], sums)
    if name == "yesterday's posterior":
        slope = {name: 1 / (1 + np.exp(-np.asarray(prior[name].rho, np.float64))) for name in names}
        expected = {name: (exact[name][2][0], exact[name][2][1] * slope[name]) for name in names}
        assert_close({name: (of_prior[name].loc, of_prior[name].rho) for name in names}, expected)


@pytest.mark.promotes
def test_a_sampled_kl_is_that_of_the_leaves():
    def kl(q):
        return kl_loss(q, prior, reduction="sum", key=jax.random.key(1))

    def by_leaf(q):
        return sum(kl_tree(q, prior, key=jax.random.key(1)).values())

    q = without_e()
    prior = {name: dist.Cauchy(0.0, 1.0) if name in "ac" else Normal(0.0, 1.0) for name in q}
    joined, of_leaves = jax.jit(lambda q: [jax.value_and_grad(f)(q) for f in (kl, by_leaf)])(q)
    assert_close(joined, of_leaves)


@pytest.mark.promotes
def test_a_loss_is_that_of_the_leaves(monkeypatch):
    """Of the same draws, whose noise is cut into them in the same way."""
    q, prior = tree(), PRIORS["one for each"]

    def loss(q):
        def apply_fn(w, x):
            return x @ w["a"] @ w["e"].T + w["c"] + w["b"][:3] + w["bb"].sum() * w["d"].sum()

        x, y = np.ones((2, 2, 3), np.float32)
        return elbo_loss(apply_fn, q, x, y, jax.random.key(2), prior=prior(q), num_data=10)

    joined = jax.jit(jax.value_and_grad(loss))(q)
    monkeypatch.setattr(_join, "_SMALL", -1)
    assert_close(joined, jax.jit(jax.value_and_grad(lambda q: loss(q)))(q))


@pytest.mark.promotes
@pytest.mark.parametrize("small", [_join._SMALL, -1])
def test_shapes_of_draws_under_vmap(small, monkeypatch):
    monkeypatch.setattr(_join, "_SMALL", small)
    draws = jax.eval_shape(jax.vmap(sample, (0, None)), jax.random.split(jax.random.key(3), 2), tree())
    assert jax.tree.map(jnp.shape, draws) == jax.tree.map(lambda leaf: (2, *leaf.shape), mean_of(tree()))


def test_forms_of_others_see_their_leaves():
    class FanIn:
        def log_prob(self, w):
            return w

    illia_fn.register_kl(Gaussian, FanIn)(lambda q, p: jnp.float32(q.loc.size**2))
    q = mean_field({"a": normal(0, 4, 3), "b": normal(1, 5, 2)}, scale=1.0)
    assert kl_loss(q, FanIn(), reduction="sum") == 12 * 12 + 10 * 10


def test_the_draws_do_not_depend_on_the_prior_nor_on_jit():
    q, scale = tree(), array(0.5)

    def nll(q, prior):
        model = lambda w, x: x @ w["a"] @ w["e"].T + w["c"] + w["b"][None, :3]  # noqa: E731
        data, options = np.ones((2, 2, 3), np.float32), {"num_data": 10, "return_terms": True}
        return elbo_loss(model, q, *data, jax.random.key(2), prior=prior, **options)[1].nll

    shared = {name: Normal(0.0, scale if name in "ac" else 1.0) for name in q}
    compiled = jax.jit(lambda q, shared: (nll(q, Normal(0.0, 1.0)), nll(q, shared)))(q, shared)
    np.testing.assert_allclose(compiled, nll(q, shared), rtol=1e-5)


def test_a_leaf_adds_little_to_what_xla_compiles():
    def instructions(num_leaves):
        q = mean_field([normal(0, 3, 2)] * num_leaves, scale=0.1)
        data = np.ones((2, 3), np.float32), np.zeros(2, int), jax.random.key(0)
        loss = lambda q: elbo_loss(lambda w, x: x @ sum(w), q, *data, num_samples=4, num_data=9)  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(q).compile().as_text().count(" = ")

    assert instructions(8) - instructions(3) < 5 * 45
