"""State of many samples as one: numbers that have a mean, and all else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import average_state


def test_every_dtype_stays_and_what_has_a_mean_is_averaged():
    keys = jax.random.split(jax.random.key(0), 3)
    aux = {
        "float": jnp.array([[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]]),
        "half": jnp.full((3000,), 1.0078125, jnp.bfloat16),  # a sum in bfloat16 would stop at 256
        "complex": jnp.array([1.0 + 1.0j, 3.0 - 1.0j, 2.0]),
        "count": jnp.array([[7], [8], [9]]),
        "flag": jnp.array([True, False, False]),
        "key": keys,
    }
    state = jax.jit(average_state)(aux)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, aux)
    np.testing.assert_array_equal(state["float"], [4.0, 2.0])
    assert state["half"] == aux["half"][0]
    np.testing.assert_allclose(state["complex"], 2.0, rtol=1e-6)
    np.testing.assert_array_equal(state["count"], [7])
    assert state["flag"]
    assert state["key"] == keys[0]


def test_of_a_loss():
    def apply_fn(w, x):
        return x * w, {"mean": w, "steps": jnp.int32(4)}

    args = apply_fn, illia_fn.mean_field(jnp.ones(()), scale=0.1), jnp.ones(2), jnp.ones(2), jax.random.key(0), 4
    _, aux = illia_fn.elbo_loss(*args, num_data=2, has_aux=True)
    state = average_state(aux)
    assert state["steps"] == 4
    np.testing.assert_allclose(state["mean"], np.mean(aux["mean"]), rtol=1e-6)


@pytest.mark.parametrize("leaf", [1.0, jnp.ones(()), jnp.ones((0, 2))])
def test_a_leaf_without_samples_is_refused(leaf):
    with pytest.raises(ValueError, match=r"average_state: aux\['a'\] must have a leading axis of samples"):
        average_state({"a": leaf})
