"""A step whose convolutions are in the layout that stays fast in a loop: the same numbers, and no other layout."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from illia_fn.engine import fast_convolutions

GENERATOR = np.random.default_rng(0)
X = jnp.asarray(GENERATOR.normal(size=(2, 3, 6, 5)), jnp.float32)
W = jnp.asarray(GENERATOR.normal(size=(3, 3, 3, 3)) / 5, jnp.float32)


def convolve(w, x):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


@jax.custom_vjp
def with_a_rule(w, x):
    return convolve(w, x)


with_a_rule.defvjp(lambda w, x: (convolve(w, x), (w, x)), lambda _, g: (jnp.full_like(W, 3.0), convolve(W, g)))


@jax.custom_jvp
def with_a_tangent(w, x):
    return convolve(w, x)


with_a_tangent.defjvp(lambda primals, tangents: (convolve(*primals), 7 * convolve(primals[0], tangents[1])))

FUNCTIONS = {
    "plain": convolve,
    "jit": jax.jit(convolve),
    "checkpoint": jax.checkpoint(convolve),
    "scan": lambda w, x: jax.lax.scan(lambda h, _: (jnp.tanh(convolve(w, h)), None), x, length=3)[0],
    "fori_loop": lambda w, x: jax.lax.fori_loop(0, 2, lambda _, h: convolve(w, h), x),
    "cond": lambda w, x: jax.lax.cond(x[0, 0, 0, 0] > 0, convolve, lambda w, x: x + w[0, 0, 0, 0], w, x),
    "custom_vjp": with_a_rule,
    "custom_jvp": with_a_tangent,
    "constants in a checkpoint": jax.checkpoint(
        lambda w, x: jax.jit(lambda h: h - jnp.arange(5.0)[None, None, None])(convolve(w, x))
    ),
    "linear solve": lambda w, x: (
        jax.lax.custom_linear_solve(
            lambda v: v + convolve(w, jax.lax.stop_gradient(x)) * 0.0, x, lambda _, b: b, symmetric=True
        )
        + convolve(w, x)
    ),
    "nested": lambda w, x: jax.lax.scan(lambda h, _: (jax.checkpoint(convolve)(w, h), None), x, length=2)[0],
}


def loss(f, w, x):
    return jnp.mean(jnp.square(f(w, x)))


def layouts(f, *args):
    """The dimension numbers of all convolutions, wherever they are."""
    found = re.findall(r"lhs_spec=\((.*?)\), rhs_spec=\((.*?)\), out_spec=\((.*?)\)", str(jax.make_jaxpr(f)(*args)))
    assert found
    return set(found)


FAST = ("0, 3, 1, 2", "3, 2, 0, 1", "0, 3, 1, 2")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_value_and_gradient(function):
    step = jax.value_and_grad(partial(loss, FUNCTIONS[function]), (0, 1))
    both = jax.jit(lambda w, x: (fast_convolutions(step)(w, x), step(w, x)))
    (value, grads), (exact, exact_grads) = both(W, X)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(grad, exact_grad, rtol=1e-4, atol=1e-6)
    assert FAST not in layouts(step, W, X)
    assert layouts(fast_convolutions(step), W, X) == {FAST}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_rules_of_differentiation_stay(function):
    """A gradient that is taken afterwards has the same numbers, too."""
    f = partial(loss, FUNCTIONS[function])
    grads, exact = jax.jit(lambda *args: [jax.grad(f, (0, 1))(*args) for f in (fast_convolutions(f), f)])(W, X)
    for grad, exact_grad in zip(grads, exact, strict=True):
        np.testing.assert_allclose(grad, exact_grad, rtol=1e-4, atol=1e-6)


def test_loops_and_branches_stay():
    def step(w, x):
        return sum(jnp.sum(FUNCTIONS[name](w, x)) for name in ("scan", "cond", "checkpoint", "custom_vjp"))

    primitives = [eqn.primitive.name for eqn in jax.make_jaxpr(fast_convolutions(step))(W, X).eqns]
    assert {"scan", "cond", "custom_vjp_call"} < set(primitives)
    assert {"checkpoint", "remat2"} & set(primitives)


def test_a_training_loop():
    """State with keys, counters, numbers of weak type and nothing at all; keyword arguments."""

    def step(state, x, *, rate):
        value, grad = jax.value_and_grad(partial(loss, convolve))(state["w"], x)
        key, noise = jax.random.split(state["key"])
        w = state["w"] - rate * grad + 0.01 * jax.random.normal(noise, grad.shape)
        return {"w": w, "key": key, "count": state["count"] + 1, "none": None, "rate": state["rate"] * 0.9}, value

    state = {"w": W, "key": jax.random.key(0), "count": 0, "none": None, "rate": 1.0}
    xs = jnp.stack([X, 2 * X, 3 * X])
    run = [jax.lax.scan(partial(wrap(step), rate=0.1), state, xs) for wrap in (fast_convolutions, lambda f: f)]
    for found, exact in zip(*map(jax.tree.leaves, run), strict=True):
        if not jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)
        assert jax.typeof(found) == jax.typeof(exact)


def test_under_vmap_and_shard_map():
    f = jax.grad(partial(loss, convolve))
    xs = jnp.stack([X, 2 * X])
    pair = jax.jit(lambda w, xs: [jax.vmap(f, (None, 0))(w, xs) for f in (fast_convolutions(f), f)])(W, xs)
    np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-6)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))

    def mapped(f):
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")))

    exact = convolve(W, X)
    np.testing.assert_allclose(mapped(fast_convolutions(convolve))(W, X), exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fast_convolutions(mapped(convolve))(W, X), exact, rtol=1e-5, atol=1e-6)
    assert layouts(mapped(fast_convolutions(convolve)), W, X) == {FAST}


def test_another_platform(monkeypatch):
    monkeypatch.setattr("illia_fn.engine.convolutions.platform", lambda: "gpu")
    assert FAST not in layouts(fast_convolutions(convolve), W, X)


def test_leaves_that_are_no_arrays():
    def step(x, kind, *, repeats):
        for _ in range(repeats):
            x = convolve(W, x) if kind == "convolve" else x
        return x

    run = jax.jit(fast_convolutions(step), static_argnames=("kind", "repeats"))
    np.testing.assert_allclose(run(X, "convolve", repeats=2), convolve(W, convolve(W, X)), rtol=1e-4, atol=1e-6)


def test_functions_under_jit_keep_what_they_ask_for():
    sharding = NamedSharding(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
    assert fast_convolutions(jax.jit(convolve, out_shardings=sharding))(W, X).sharding == sharding


def test_refusals():
    with pytest.raises(TypeError, match="fast_convolutions: step must be a function, got"):
        fast_convolutions(W)
