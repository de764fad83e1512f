"""What a compiled step sends between eight (virtual) devices: run by mesh_program.py."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import illia_fn

RNG = np.random.default_rng(0)
SIZES = {"w": (512, 256), "v": (256, 512)}
COUNT = sum(map(math.prod, SIZES.values()))
Q = illia_fn.mean_field({name: jnp.asarray(RNG.normal(size=size) / 16, jnp.float32) for name, size in SIZES.items()})
X, Y = jnp.asarray(RNG.normal(size=(16, 512)), jnp.float32), jnp.asarray(RNG.integers(0, 512, 16))
KEY = jax.random.key(0)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def sent(compiled):
    """How often each collective is there, and its numbers in all for each weight, but for some."""
    found, computation = {}, ""
    for line in compiled.as_text().splitlines():
        if start := re.match(r"(ENTRY )?%?\S+ .*\{\s*$", line):
            computation = start[1] or "a loop"
        kinds = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
        if match := re.search(rf"= (.*?) ({kinds})(-start)?\(", line):
            name = match[2] if computation == "ENTRY " else f"{match[2]} in a loop"
            shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"[a-z]+\d+\[([\d,]+)\]", match[1])]
            size = sum(math.prod(shape) for shape in shapes if math.prod(shape) >= 2**10)
            times, numbers = found.get(name, (0, 0))
            found[name] = times + 1, numbers + size / COUNT
    return found


loss_of = partial(illia_fn.elbo_loss, num_data=1000)


def step(apply_fn, q, state, x, y, *, num_samples=1, coupling="shared", mean=lambda value: value):
    def loss(q):
        return mean(loss_of(apply_fn, q, x, y, KEY, num_samples, coupling=coupling))

    value, grads = jax.value_and_grad(loss)(q)
    updates, state = OPTIMIZER.update(grads, state, q)
    return optax.apply_updates(q, updates), state, value


def network(w, x):
    return jax.nn.relu(x @ w["w"]) @ w["v"]


# By the coupling: what the gradient is summed of, and what is gathered where the posterior is sharded, for each weight.
NUMBERS = {"shared": 1, "decorrelated": 2}


def place(mesh, tree, *axes):
    return jax.device_put(tree, NamedSharding(mesh, P(*axes)))


def data_parallel(kind, coupling, num_samples=1):
    """The posterior is on every device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    run = jax.jit(partial(step, network, coupling=coupling, num_samples=num_samples))
    arguments = place(mesh, Q), place(mesh, OPTIMIZER.init(Q)), place(mesh, X, "data"), place(mesh, Y, "data")
    compiled = run.lower(*arguments).compile()
    name = "all-reduce" if num_samples == 1 else "all-reduce in a loop"
    assert sent(compiled) == {name: (1, NUMBERS[coupling])}, (kind, coupling, sent(compiled))
    return jax.device_get(compiled(*arguments))


def sharded(mesh, kind, axis, step, coupling):
    """A step, with q and the optimizer's state sharded along an axis of the mesh before and after."""
    whole = NamedSharding(mesh, P())

    def gathering(w, x):
        gather = jax.sharding.reshard if kind == AxisType.Explicit else jax.lax.with_sharding_constraint
        return network(jax.tree.map(lambda leaf: gather(leaf, whole), w), x)

    q, state = place(mesh, Q, axis), place(mesh, OPTIMIZER.init(Q), axis)
    shardings = *jax.tree.map(lambda leaf: leaf.sharding, (q, state)), whole
    return jax.jit(partial(step, gathering, coupling=coupling), out_shardings=shardings), q, state


def fully_sharded(kind, coupling, expected):
    """Posterior and optimizer's state are sharded like the examples: every device gathers what it computes with."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    run, q, state = sharded(mesh, kind, "data", step, coupling)
    arguments = q, state, place(mesh, X, "data"), place(mesh, Y, "data")
    compiled, numbers = run.lower(*arguments).compile(), NUMBERS[coupling]
    # XLA's CPU backend has no reduce-scatter
    counts = {"all-gather": (len(SIZES) * numbers, numbers), "all-reduce": (1, numbers)}
    assert sent(compiled) == counts, (kind, coupling, sent(compiled))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), jax.device_get(compiled(*arguments)), expected
    )


def step_of_samples(apply_fn, q, state, x, y, keys, *, coupling):
    mean = lambda of: jnp.mean(jax.vmap(of)(keys))  # noqa: E731
    value, grads = jax.value_and_grad(lambda q: mean(lambda key: loss_of(apply_fn, q, x, y, key, coupling=coupling)))(q)
    updates, state = OPTIMIZER.update(grads, state, q)
    return optax.apply_updates(q, updates), state, value


def on_three_axes(coupling):
    """Examples, samples and parameters, each sharded along an axis of its own."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "samples", "model"), axis_types=(AxisType.Auto,) * 3)
    run, q, state = sharded(mesh, AxisType.Auto, "model", step_of_samples, coupling)
    keys = jax.random.split(KEY, 2)
    found = run(q, state, place(mesh, X, "data"), place(mesh, Y, "data"), place(mesh, keys, "samples"))
    assert found[0]["w"].loc.sharding.spec == P("model")
    one = jax.jit(partial(step_of_samples, network, coupling=coupling))(Q, OPTIMIZER.init(Q), X, Y, keys)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *jax.device_get((found, one)))


def in_shard_map(coupling):
    """The loss of each device's examples, averaged: one reduction for any number of samples."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    own = partial(step, network, num_samples=4, coupling=coupling, mean=lambda value: jax.lax.pmean(value, "data"))
    mapped = jax.shard_map(own, mesh=mesh, in_specs=(P(), P(), P("data"), P("data")), out_specs=P())
    compiled = jax.jit(mapped).lower(Q, OPTIMIZER.init(Q), X, Y).compile()
    assert sent(compiled) == {"all-reduce": (1, 2)}, (coupling, sent(compiled))


def run():
    for kind, coupling in ((AxisType.Auto, "shared"), (AxisType.Explicit, "decorrelated")):
        fully_sharded(kind, coupling, expected=data_parallel(kind, coupling))
    data_parallel(AxisType.Auto, "shared", num_samples=4)
    in_shard_map("shared")
    on_three_axes("decorrelated")
