"""Networks drawn from q: in batches, evenly spread, linearised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from illia_fn import class_summary, mean, mean_field, predict

KEY = jax.random.key(0)
Q = mean_field({"w": jnp.array([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]]), "b": jnp.zeros(2)}, scale=0.3)
X = np.random.default_rng(0).normal(size=(103, 3)).astype(np.float32)


def apply_fn(w, x):
    return jnp.tanh(x @ w["w"] + w["b"][None])


def with_noise(w, x, key):
    return apply_fn(w, x) + jax.random.normal(key, (1, 2))


@pytest.mark.parametrize(
    ("batch_size", "sampling"),
    [
        (40, "independent"),
        (40, "antithetic"),
        (40, "latin_hypercube"),
        (1, "independent"),
        (103, "independent"),
        (1000, "independent"),
    ],
)
def test_batches_are_predicted_by_the_same_networks(batch_size, sampling):
    whole = predict(apply_fn, Q, X, KEY, 4, sampling=sampling)
    parts = predict(apply_fn, Q, X, KEY, 4, sampling=sampling, batch_size=batch_size, chunk_size=2)
    assert isinstance(parts, np.ndarray)
    assert parts.dtype == np.float32
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_trees_and_reductions_in_batches():
    def two_outputs(w, x):
        return {"mean": apply_fn(w, x["rows"]), "sign": (x["shift"] > 0).astype(jnp.int32)}

    x = {"rows": X, "shift": X[:, 0]}
    whole = jax.tree.map(np.asarray, predict(two_outputs, Q, x, KEY, 3))
    parts = predict(two_outputs, Q, x, KEY, 3, batch_size=20)
    assert parts["sign"].dtype == np.int32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, dict(whole))

    def spread(outputs):
        return outputs["mean"].std(axis=0), outputs["sign"][0]

    for batch_size in (None, 20):
        stddev, sign = predict(two_outputs, Q, x, KEY, 3, batch_size=batch_size, reduce=spread)
        np.testing.assert_allclose(stddev, whole["mean"].std(axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(sign, whole["sign"][0])


def test_a_file_is_read_batch_by_batch(tmp_path):
    rows = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    rows[:] = X
    parts = predict(apply_fn, Q, rows, KEY, 2, batch_size=30)
    np.testing.assert_allclose(parts, predict(apply_fn, Q, X, KEY, 2), rtol=1e-5, atol=1e-6)


def test_batches_compile_once_and_so_do_calls():
    traces = []

    def counted(w, x):
        traces.append(x.shape)
        return apply_fn(w, x)

    predict(counted, Q, X, KEY, 2, batch_size=10)
    shapes = set(traces)
    assert shapes <= {(1, 3), (10, 3)}  # one example to look for frozen randomness; the last batch is filled up
    before = len(traces)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
    predict(counted, Q, X, KEY, 2, batch_size=10)
    assert len(traces) - before < 11  # traced once, not for each batch
    assert not compilations


def test_a_reduction_does_not_have_the_networks_compiled_twice():
    def shapes(reduce):
        traced = []

        def counted(w, x):
            traced.append(x.shape)
            return apply_fn(w, x)

        predict(counted, Q, X, KEY, 2, batch_size=10, reduce=reduce)
        return traced

    assert shapes(lambda outputs: outputs.mean(axis=0)) == shapes(None)


@pytest.mark.parametrize(
    ("model", "reduce"),
    [
        (lambda w, x: (apply_fn(w, x).T, w["b"]), lambda outputs: (outputs[0] * outputs[1][..., None]).mean(axis=0).T),
        (lambda w, x: (apply_fn(w, x), w["b"]), lambda outputs: (outputs[0] * outputs[1][:, None]).mean(axis=0)),
    ],
)
def test_a_reduction_knows_where_the_examples_are(model, reduce):
    whole = predict(model, Q, X, KEY, 2, reduce=reduce)
    parts = predict(model, Q, X, KEY, 2, batch_size=40, reduce=reduce)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_evenly_spread_networks_have_the_right_law():
    """Each network by itself is a draw from q, whatever its place among the others."""
    q = mean_field(jnp.array(1.0), scale=0.5)
    keys = jax.random.split(KEY, 2000)
    one = lambda key: predict(lambda w, x: w * x, q, jnp.ones(1), key, 6, sampling="latin_hypercube")  # noqa: E731
    draws = jax.jit(jax.vmap(one))(keys)
    for place in range(6):
        assert stats.kstest(np.asarray(draws[:, place, 0], np.float64), stats.norm(1.0, 0.5).cdf).pvalue > 1e-4


def test_evenly_spread_networks_are_closer_to_all():
    noise = np.random.default_rng(1).normal(size=(2, 40_000, 3, 2))
    w, b = np.asarray(Q["w"].loc) + 0.3 * noise[0], 0.3 * noise[1, :, :1]
    expected = np.tanh(X[:5] @ w + b).mean(axis=0)

    def error(sampling):
        outputs = jax.jit(jax.vmap(lambda key: predict(apply_fn, Q, X[:5], key, 16, sampling=sampling)))
        means = np.asarray(outputs(jax.random.split(KEY, 9))).mean(axis=1)
        return np.sqrt(np.mean((means - expected) ** 2))

    errors = {name: error(name) for name in ("independent", "antithetic", "latin_hypercube")}
    assert errors["latin_hypercube"] < errors["antithetic"] < 0.7 * errors["independent"]


@pytest.mark.parametrize("sampling", ["independent", "antithetic", "latin_hypercube"])
def test_the_key_of_a_network_is_its_own(sampling):
    q = mean_field({"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}, scale=1e-9)
    outputs = np.asarray(predict(with_noise, q, X[:1], KEY, 4, sampling=sampling, needs_key=True))
    assert len(np.unique(outputs)) == 8


def test_a_reduction_refuses_in_batches_what_it_refuses_without():
    for batch_size in (None, 10):
        with pytest.raises(ValueError, match="class_summary: "):
            predict(lambda w, x: 10.0 + apply_fn(w, x), Q, X, KEY, 2, batch_size=batch_size, reduce=class_summary)


def test_the_linearised_model():
    q = mean_field({"w": Q["w"].loc, "b": np.ones(2, np.float32)}, scale=0.3, mask={"w": True, "b": False})

    @jax.jit
    def outputs(q):
        linear = [predict(lambda w, x: x @ w["w"], q, X, KEY, 3, linearised=flag) for flag in (True, False)]
        whole = predict(lambda w, _: w["w"], q, X, KEY, 3)  # the same draws
        return predict(apply_fn, q, X, KEY, 3, linearised=True), whole, linear

    draws, whole, linear = outputs(q)
    at = np.asarray(q["w"].loc)
    middle = np.tanh(X @ at + 1.0)
    expected = middle + (1.0 - middle**2) * (X @ (np.asarray(whole) - at))
    np.testing.assert_allclose(draws, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*linear, rtol=1e-5, atol=1e-5)


def test_outputs_that_are_no_numbers_to_differentiate():
    labels = predict(lambda w, x: apply_fn(w, x).argmax(axis=1), Q, X, KEY, 3, linearised=True)
    np.testing.assert_array_equal(labels[0], np.asarray(apply_fn(mean(Q), X)).argmax(axis=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict(apply_fn, Q, X, KEY, 2, batch_size=0), "batch_size must be an int of at least 1"),
        (lambda: jax.jit(lambda x: predict(apply_fn, Q, x, KEY, 2, batch_size=9))(X), "Call it outside of them"),
        (
            lambda: predict(apply_fn, Q, (X, X[:4]), KEY, 2, batch_size=9),
            r"share a leading axis .*\(103, 3\), \(4, 3\)",
        ),
        (lambda: predict(apply_fn, Q, X[:0], KEY, 2, batch_size=9), "at least one example"),
        (lambda: predict(lambda w, x: w["b"][:1], Q, X, KEY, 2, batch_size=9), r"apply_fn must .* got shape \(1,\)"),
        (lambda: predict(apply_fn, Q, X, KEY, 2, batch_size=9, reduce=jnp.mean), r"reduce must .* got shape \(\)"),
        (
            lambda: predict(apply_fn, Q, X, KEY, 9, batch_size=9, reduce=jnp.exp),
            r"reduce must .* got shape \(9, 1, 2\)",
        ),
        (lambda: predict(apply_fn, Q, X, KEY, 2, sampling="sobol"), "sampling must be one of"),
        (lambda: predict(apply_fn, Q, X, KEY, 3, sampling="antithetic"), "num_samples must be even"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"predict: .*{message}"):
        call()
