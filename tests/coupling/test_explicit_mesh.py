"""On a mesh whose axes are explicit, as `jax.make_mesh` makes them, a coupling gives what it gives on one device."""

import os
import subprocess
import sys

PROGRAM = """
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

import illia_fn

mesh = jax.make_mesh((2, 2), ("data", "model"))
normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 10
q = illia_fn.mean_field({"a": normal(0, 4, 6), "b": normal(1, 6), "c": normal(2, 6, 3)}, scale=0.1)
x, y = normal(3, 8, 2, 4), jnp.arange(8) % 3
place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))


def apply_fn(w, x, key):
    h = jnp.tanh(x @ w["a"] + w["b"]).mean(axis=1)
    return (h * jax.random.bernoulli(key, 0.8, h.shape)) @ w["c"]


for coupling, num_samples in (("decorrelated", 1), ("decorrelated", 4), ("flipout", 4)):
    options = {"num_samples": num_samples, "coupling": coupling, "num_data": 8, "needs_key": True}
    step = jax.jit(jax.value_and_grad(partial(illia_fn.elbo_loss, apply_fn, **options)))
    expected = step(q, x, y, jax.random.key(4))
    with jax.set_mesh(mesh):
        found = step(place(q), place(x, "data"), place(y, "data"), jax.random.key(4))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *map(jax.device_get, (found, expected)))
"""


def test_value_and_gradient():
    flags = f"--xla_force_host_platform_device_count=4 {os.environ.get('XLA_FLAGS', '')}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
