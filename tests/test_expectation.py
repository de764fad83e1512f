import jax
import jax.numpy as jnp
import numpy as np
import pytest

from illia_fn import expectation, mean_field, predict

KEY = jax.random.key(0)
Q = mean_field({"w": jnp.array([1.0, -2.0])}, scale=0.3)


def test_moments_and_their_gradients():
    n = 20_000

    def square(q, key):
        return expectation(lambda w: jnp.square(w["w"]), q, key, n)

    # E[w^2] = loc^2 + s^2 with variance 4 loc^2 s^2 + 2 s^4
    variance = 4 * np.array([1.0, 4.0]) * 0.09 + 2 * 0.0081
    np.testing.assert_array_less(np.abs(square(Q, KEY) - np.array([1.09, 4.09])), 5 * np.sqrt(variance / n))
    grads = jax.grad(lambda q: square(q, KEY).sum())(Q)["w"]
    np.testing.assert_array_less(np.abs(grads.loc - 2 * np.array([1.0, -2.0])), 5 * 2 * 0.3 / np.sqrt(n))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("num_samples", [1, 2, 7])
def test_trees_aux_and_keys(num_samples, wrap):
    def f(w, key):
        return {"a": w["w"].sum(), "b": (w["w"],)}, (w["w"], jax.random.uniform(key), 3)

    value, (draws, noise, constant) = wrap(
        lambda key: expectation(f, Q, key, num_samples, needs_key=True, has_aux=True)
    )(KEY)
    assert draws.shape == (num_samples, 2)
    assert len(np.unique(noise)) == num_samples
    np.testing.assert_array_equal(constant, [3] * num_samples)
    np.testing.assert_allclose(value["b"][0], draws.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(value["a"], draws.sum(axis=1).mean(), rtol=1e-6)


def test_half_precision_is_averaged_in_float32():
    value = expectation(lambda w: w["w"].astype(jnp.bfloat16), Q, KEY, 3)
    assert value.dtype == jnp.float32


def test_predict_stacks_the_networks():
    x = jnp.ones((5, 2))
    outputs = predict(lambda w, x: (x @ w["w"], jnp.sum(w["w"])), Q, x, KEY, 3)
    assert outputs[0].shape == (3, 5)
    assert outputs[1].shape == (3,)
    np.testing.assert_allclose(outputs[0], jnp.tile(outputs[1][:, None], (1, 5)), rtol=1e-6)  # one network for all rows
    assert len(np.unique(outputs[1])) == 3


def test_predict_in_chunks_uses_the_same_networks():
    x = jnp.arange(10.0).reshape(5, 2)
    whole = predict(lambda w, x: x @ w["w"], Q, x, KEY, 4)
    parts = [predict(lambda w, x: x @ w["w"], Q, x[i : i + 2], KEY, 4) for i in range(0, 5, 2)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-6)


def test_predict_with_a_key():
    noise = predict(lambda w, x, key: jax.random.uniform(key, (1,)), Q, jnp.ones((1, 2)), KEY, 5, needs_key=True)
    assert len(np.unique(noise)) == 5
