"""On eight (virtual) devices, value and gradient are those of one."""

import os
import subprocess
import sys

PROGRAM = """
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import illia_fn

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("data", "samples"), axis_types=(AxisType.Auto, AxisType.Auto))
place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))

rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / 10, jnp.float32)
q = illia_fn.mean_field({"w": normal(64, 128), "v": normal(128, 5)}, scale=0.1)
x, y = normal(32, 64), jnp.asarray(rng.integers(0, 5, 32))
apply_fn = lambda w, x: jax.nn.relu(x @ w["w"]) @ w["v"]
elbo = partial(illia_fn.elbo_loss, apply_fn, num_data=1000)
keys = jax.random.split(jax.random.key(0), 8)


def over_both_axes(q, x, y, keys):
    return jnp.mean(jax.vmap(lambda key: elbo(q, x, y, key))(keys))


def in_a_loop(q, x, y, keys):
    return elbo(q, x, y, keys[0], 8)


def in_antithetic_chunks(q, x, y, keys):
    return elbo(q, x, y, keys[0], 8, chunk_size=2, antithetic=True)


def decorrelated(q, x, y, keys):
    return elbo(q, x, y, keys[0], 4, coupling="decorrelated")


for loss in (over_both_axes, in_a_loop, in_antithetic_chunks, decorrelated):
    step = jax.jit(jax.value_and_grad(loss))
    one = (q, x, y, keys)
    keys_of = ("samples",) if loss is over_both_axes else ()
    sharded = (place(q), place(x, "data"), place(y, "data"), place(keys, *keys_of))
    expected, found = map(jax.device_get, (step(*one), step(*sharded)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)
    if loss in (over_both_axes, decorrelated):  # the work is shared out, if not all of it
        compiled = [step.lower(*arguments).compile() for arguments in (one, sharded)]
        flops = [one.cost_analysis()["flops"] for one in compiled]
        assert flops[1] < 0.45 * flops[0], flops
    if loss is decorrelated:  # each device has the noise of its own eight examples
        assert ["f32[4,32,133]" in one.as_text() for one in compiled] == [True, False]
        assert "f32[4,8,133]" in compiled[1].as_text()
"""


def test_value_and_gradient_on_a_mesh():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
