"""Calls outside of a jit: traced every time, compiled once, with memory that does not grow."""

import gc
import tracemalloc
import weakref
from functools import partial

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import pac_bayes
from illia_fn.engine import _eager
from illia_fn.engine._eager import compiled_once

KEY = jax.random.key(0)
Q = illia_fn.mean_field({"w": jnp.ones((3, 2))}, scale=0.1)
X, Y = np.ones((4, 3), np.float32), np.array([0, 1, 1, 0])
COMPILATIONS = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: COMPILATIONS.append(event) if event.endswith("backend_compile_duration") else None
)


class Laplace:
    def log_prob(self, w):
        return -jnp.abs(w)


def model(factor):
    """Another function for every factor, which closes over an array and a function with a rule of its own."""
    factor = jnp.float32(factor)
    return lambda w, x: factor * jax.nn.relu(x @ w["w"])


def squares(outputs, _):
    return jnp.sum(jnp.square(outputs), axis=1)


def loss(f, **options):
    return lambda q, factor: f(model(factor), q, X, Y, KEY, 2, num_data=4, loss_fn=squares, **options)


def expectation(q, factor):
    f = model(factor)
    return illia_fn.expectation(lambda w: f(w, X).sum(), q, KEY, 5, chunk_size=2)


CALLS = {
    "expectation": expectation,
    "elbo_loss": loss(illia_fn.elbo_loss),
    "a sampled KL": loss(illia_fn.elbo_loss, prior=Laplace()),
    "doubly_reparameterised": loss(illia_fn.elbo_loss, estimator="doubly_reparameterised"),
    "predictive_loss": loss(illia_fn.predictive_loss),
    "iwae_loss": loss(illia_fn.iwae_loss),
    "predict": lambda q, factor: illia_fn.predict(model(factor), q, X, KEY, 3, chunk_size=2).sum(),
    "decorrelated": loss(illia_fn.elbo_loss, coupling="decorrelated"),
    "decorrelate": lambda q, factor: illia_fn.decorrelate(model(factor))(q, X, KEY).sum(),
    "pac_bayes_loss": lambda q, factor: illia_fn.pac_bayes_loss(model(factor), q, X, Y, KEY, 2, num_data=4, prior=Q),
    "kl_inverse": lambda q, factor: pac_bayes.kl_inverse(0.1 * factor, 0.1),
    "diagnose": lambda q, factor: loss(illia_fn.diagnose)(q, factor).nll,
    "pruning_curve": lambda q, factor: loss(illia_fn.pruning_curve)(q, factor).nll.sum(),
    "check_setup": lambda q, factor: loss(lambda *args, **call: illia_fn.check_setup(*args[:5], **call))(q, factor).nll,
    "sample": lambda q, factor: illia_fn.sample(KEY, q)["w"].sum() * factor,
}
GRADIENTS = {
    "elbo_loss": CALLS["elbo_loss"],
    "score_function": loss(illia_fn.elbo_loss, estimator="score_function"),
    "flipout": loss(illia_fn.elbo_loss, coupling="flipout"),
    "iwae_loss": CALLS["iwae_loss"],
}


def of_one_compilation(call):
    """call(0.5), whose second call compiles nothing; between them is one with another number, and so another value.

    Two calls are compiled, as what a first one makes of weak types may be.
    """
    first, other = call(0.5), call(1.0)
    count = len(COMPILATIONS)
    found = call(0.5)
    assert len(COMPILATIONS) == count
    assert jax.tree.leaves(found)[0] != jax.tree.leaves(other)[0]
    jax.tree.map(np.testing.assert_array_equal, found, first)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_a_value_is_compiled_once(name):
    of_one_compilation(lambda factor: CALLS[name](Q, factor))


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_is_compiled_once(name):
    """And is, with its value, that under jit."""
    found = of_one_compilation(lambda factor: jax.value_and_grad(GRADIENTS[name])(Q, factor))
    expected = jax.jit(lambda q: jax.value_and_grad(GRADIENTS[name])(q, 0.5))(Q)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)


@pytest.fixture
def only_what_is_new():
    """What there is already is not looked through for garbage, seconds after a thousand tests."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_what_is_new")
def test_memory_does_not_grow():
    def calls(count):
        for number in range(count):
            CALLS["elbo_loss"](Q, float(number))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    start = calls(3)
    grown = calls(8) - start
    tracemalloc.stop()
    assert grown < 8 * 20_000  # a compilation each would be some 3 MB


KEEP_NOTHING = {
    "elbo_loss": lambda x: illia_fn.elbo_loss(model(1.0), Q, x, Y, KEY, 2, num_data=4),
    "its gradient": lambda x: jax.grad(lambda q: illia_fn.elbo_loss(model(1.0), q, x, Y, KEY, 2, num_data=4))(Q),
    "iwae_loss": lambda x: illia_fn.iwae_loss(model(1.0), Q, x, Y, KEY, 2, num_data=4),
    "expectation": lambda x: illia_fn.expectation(lambda w: model(1.0)(w, x).sum(), Q, KEY, 2),
    "predict": lambda x: illia_fn.predict(model(1.0), Q, x, KEY, 2),
}


@pytest.mark.usefixtures("only_what_is_new")
@pytest.mark.parametrize("call", KEEP_NOTHING.values(), ids=KEEP_NOTHING)
def test_what_is_compiled_does_not_keep_the_data(call):
    x = jnp.asarray(X)
    alive = weakref.ref(x)
    call(x)
    del x
    gc.collect()
    assert alive() is None


@pytest.mark.usefixtures("only_what_is_new")
def test_few_functions_that_closed_over_arrays_are_kept():
    def kept(number):
        array = jnp.full(3, float(number))
        compiled_once(jax.jit(lambda x: x + array), jnp.zeros(3))
        return weakref.ref(array)

    arrays = [kept(number) for number in range(12)]
    gc.collect()
    assert sum(array() is not None for array in arrays) <= 8


# --- what tells two functions apart -----------------------------------------------------------------------------------

X4 = jnp.arange(4.0)


def scan(factor):
    return lambda x: jax.lax.scan(lambda carry, x: (carry * factor + x, carry), 1.0, x)[0]


def plus(array):
    return jax.jit(lambda x: x + jnp.asarray(array))


SAME_BUT_FOR_ONE_THING = {
    "a number": [lambda x: x * 2.0, lambda x: x * 3.0],
    "a sign": [lambda x: jnp.copysign(1.0, x * 0.0), lambda x: jnp.copysign(1.0, x * -0.0)],
    "an operation": [jnp.sin, jnp.cos],
    "a parameter": [lambda x: x.reshape(2, 2).sum(axis=0), lambda x: x.reshape(2, 2).sum(axis=1)],
    "an operand": [lambda x: jnp.sin(x) - jnp.cos(x), lambda x: jnp.cos(x) - jnp.sin(x)],
    "an output": [lambda x: (jnp.sin(x), x), lambda x: (x, jnp.sin(x))],
    "an array": [lambda x: x + jnp.arange(4.0), lambda x: x + jnp.ones(4)],
    "the body of a loop": [scan(2.0), scan(3.0)],
    "a function under jit": [lambda x: jax.jit(lambda x: x * 2.0)(x), lambda x: jax.jit(lambda x: x * 3.0)(x)],
    "a constant of it": [plus(np.float32([1, 1, 1, 1])), plus(np.float32([1, 0, 0, 1]))],
    "a rule for a derivative": [jax.nn.relu, jax.nn.softplus],
}


@pytest.mark.parametrize("functions", SAME_BUT_FOR_ONE_THING.values(), ids=SAME_BUT_FOR_ONE_THING)
def test_functions_that_differ_are_not_mixed_up(functions):
    for f in functions * 2:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), compiled_once(f, X4), f(X4))


def test_what_changes_between_the_calls_is_seen():
    state = {"array": np.ones(4, np.float32), "number": 1.0}

    def f(x):
        return x * jnp.asarray(state["array"]) + state["number"]

    np.testing.assert_array_equal(compiled_once(f, X4), X4 + 1.0)
    state["array"][:] = 2.0
    np.testing.assert_array_equal(compiled_once(f, X4), 2.0 * X4 + 1.0)
    state["number"] = 3.0
    np.testing.assert_array_equal(compiled_once(f, X4), 2.0 * X4 + 3.0)


def test_of_a_callback_the_result_is_its_own():
    def calling(scale):
        def f(x):
            return jax.pure_callback(lambda x: scale * x, jax.ShapeDtypeStruct((4,), jnp.float32), x)

        return f

    for scale in (np.float32(2.0), np.float32(3.0)):
        np.testing.assert_array_equal(compiled_once(calling(scale), X4), scale * X4)


def test_no_more_compilations_are_kept_than_so_many():
    for number in range(_eager._KEPT + 5):
        _eager._evaluation(jax.make_jaxpr(lambda x, number=number: x + float(number))(1.0).jaxpr)
    assert _eager._compiled.cache_info().currsize == _eager._KEPT


def test_within_a_jit_nothing_is_added():
    assert str(jax.make_jaxpr(lambda x: compiled_once(jnp.sin, x))(X4)) == str(jax.make_jaxpr(jnp.sin)(X4))
    with jax.disable_jit():
        np.testing.assert_allclose(compiled_once(jnp.sin, X4), jnp.sin(X4))


FIRST_CALLS = {  # of shapes that nothing else here has: how many programs there may be, whatever runs before
    "elbo_loss": (lambda q, x, y: illia_fn.elbo_loss(net, q, x, y, KEY, num_data=99), 16),
    "decorrelated": (lambda q, x, y: illia_fn.elbo_loss(net, q, x, y, KEY, num_data=99, coupling="decorrelated"), 14),
    "iwae_loss": (lambda q, x, y: illia_fn.iwae_loss(net, q, x, y, KEY, 2, num_data=99), 22),
    "f_divergence_loss": (
        lambda q, x, y: illia_fn.f_divergence_loss(
            net, q, x, y, KEY, 2, num_data=99, generator=illia_fn.divergences.amari_alpha(0.3)
        ),
        26,
    ),
    "kl_loss": (lambda q, x, y: illia_fn.kl_loss(q), 6),
    "kl_loss of joint nodes": (lambda q, x, y: illia_fn.kl_loss(joint(len(x))), 10),
    "predict": (lambda q, x, y: illia_fn.predict(net, q, x, KEY, 2), 8),
    "summary": (lambda q, x, y: illia_fn.summary(q), 4 + 3 * 2),
    "check_setup": (lambda q, x, y: illia_fn.check_setup(net, q, x, y, KEY, num_data=99), 10 + 3 * 2),
    "laplace": (lambda q, x, y: illia_fn.laplace(net, q, x, y, batch_size=4), 4),
    "product": (lambda q, x, y: illia_fn.product(gaussian(x), gaussian(x)), 2),
    "moment_match": (lambda q, x, y: illia_fn.moment_match(q, {"w": illia_fn.full_covariance}), 8),
    "categorical_nll": (lambda q, x, y: illia_fn.categorical_nll(x, y), 2),
    "gaussian_nll": (lambda q, x, y: illia_fn.gaussian_nll((x, x), x), 4),
}


def net(w, x):
    return jnp.tanh(x @ w["w"]) @ w["v"]


def joint(width):
    """A node of each family with a KL of many operations."""
    loc, eye = np.ones((3, width), np.float32), partial(np.eye, dtype=np.float32)
    rho, factor = np.ones(3 * width, np.float32), np.ones((3 * width, 2), np.float32)
    return {
        "matrix": illia_fn.MatrixNormal(loc, eye(3), eye(width)),
        "eigen": illia_fn.Eigenbasis(loc, loc, eye(3), eye(width)),
        "low": illia_fn.LowRank(loc, rho, factor),
        "full": illia_fn.FullCovariance(loc[0], eye(width)),
    }


def gaussian(x):
    """A joint node that products take."""
    return {"low": joint(len(x))["low"], "full": joint(len(x))["full"]}


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_a_first_call_compiles_few_programs(name):
    """Not one for every operation on every leaf: outside of a jit that would be most of what a user waits for."""
    f, at_most = FIRST_CALLS[name]
    width = 11 + sorted(FIRST_CALLS).index(name)
    q = illia_fn.mean_field({"w": np.ones((3, width), np.float32), "v": np.ones((width, 2), np.float32)})
    x, y = jnp.asarray(np.ones((width, 3), np.float32)), jnp.asarray(np.arange(width) % 2)
    before = len(COMPILATIONS)
    f(q, x, y)
    assert 0 < len(COMPILATIONS) - before <= at_most
