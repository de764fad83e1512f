"""Models that meet a mesh in ways of their own, on several virtual devices against one: run by test_meshes.py."""

import contextlib
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import illia_fn
from tests.quicker import call_in_a_large_frame

KEY = jax.random.key(4)
RNG = np.random.default_rng(0)
SHAPE, AXES = (2, 2), ("data", "model")
MESH = jax.make_mesh(SHAPE, AXES, axis_types=(AxisType.Explicit,) * 2)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / 3, jnp.float32)


def place(tree, *axes):
    return jax.device_put(tree, NamedSharding(MESH, P(*axes)))


def is_explicit(x):
    return bool(jax.typeof(x).sharding.mesh.explicit_axes)


def layers(w, x):
    return jnp.tanh(x @ w["a"] + w["b"]) @ w["c"]


def with_dropout(w, x, key):
    h = jnp.tanh(x @ w["a"] + w["b"])
    return (h * jax.random.bernoulli(key, 0.8, h.shape)) @ w["c"]


def gathering(w, x):
    return layers(jax.sharding.reshard(w, P()) if is_explicit(x) else w, x)


def automatic(w, x):
    if not is_explicit(x):
        return layers(w, x)
    return jax.sharding.auto_axes(layers, out_sharding=P(jax.typeof(x).sharding.spec[0]))(w, x)


def look_up(w, x):
    places = jnp.argsort(x, axis=1)
    rows = w["a"].at[places].get(out_sharding=jax.typeof(places).sharding.spec if is_explicit(x) else None)
    return jnp.tanh(rows.mean(axis=1) + w["b"]) @ w["c"]


def factors(w, x):
    return jnp.tanh(x @ (KERNEL * (w["a"][:, :1] * w["b"]))) @ w["c"]


KERNEL = normal(4, 6)
WEIGHTS = {"a": normal(4, 6), "b": normal(6), "c": normal(6, 3)}
X, Y = normal(8, 4), jnp.asarray(RNG.integers(0, 3, 8))
Q = illia_fn.mean_field(WEIGHTS, scale=0.1)
SHARDED = {"a": ("data", "model"), "b": ("data",), "c": ("model",)}  # as only what gathers its weights can have them
# With how its weights are sharded, a number of samples, and couplings: some run, and some are traced, as what is not
# right for explicit axes is an error there, and what is reads the same noise.
MODELS = {
    layers: ({"a": (None, "model"), "b": ("model",)}, 1, {"decorrelated": "run", "flipout": "traced"}),
    with_dropout: ({}, 4, {"decorrelated": "run on a mesh that is set"}),
    gathering: (SHARDED, 2, {"flipout": "run"}),
    automatic: (SHARDED, 2, {"decorrelated": "run"}),
    look_up: ({}, 2, {"flipout": "run"}),
    factors: ({}, 2, {"decorrelated": "traced"}),
}


def squared(outputs, y):
    """A loss of few operations, as a coupling ends with the outputs."""
    return jnp.square(jnp.sum(outputs, axis=1) - y)


def same(name, found, expected):
    for pair in zip(*map(jax.tree.leaves, jax.device_get((found, expected))), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-5, err_msg=str(name))


def objectives():
    """Value and gradient, whether or not the mesh is set."""
    cases = [(model, *rest, *how) for model, (*rest, couplings) in MODELS.items() for how in couplings.items()]
    for model, specs, num_samples, coupling, how in cases:
        options = {"num_samples": num_samples, "coupling": coupling, "num_data": 8, "needs_key": model is with_dropout}
        options["loss_fn"] = None if model is layers else squared
        step = jax.jit(jax.value_and_grad(partial(illia_fn.elbo_loss, model, **options)))
        q = {name: place(leaf, *specs.get(name, ())) for name, leaf in Q.items()}
        arguments = q, place(X, "data"), place(Y, "data"), KEY
        jax.eval_shape(step, *arguments)
        with jax.set_mesh(MESH) if how == "run on a mesh that is set" else contextlib.nullcontext():
            found = None if how == "traced" else step(*arguments)
        if found is not None:
            same((model, coupling), found, step(Q, X, Y, KEY))


def families():
    """Posteriors over numbers that are not independent, whose means may be sharded as the model's weights are."""
    tree = {name: WEIGHTS[name] for name in "bc"}
    q = {"a": illia_fn.matrix_normal(WEIGHTS["a"]), "rest": illia_fn.low_rank(tree, 2, key=KEY)}
    q["full"] = illia_fn.full_covariance(normal(3))

    def model(w, x):
        return layers({"a": w["a"], **w["rest"]}, x) * w["full"]

    options = {"coupling": "decorrelated", "num_data": 8, "loss_fn": squared}
    step = jax.jit(jax.value_and_grad(partial(illia_fn.elbo_loss, model, **options)))
    sharded = place(q)
    sharded["a"] = dataclasses.replace(sharded["a"], loc=place(q["a"].loc, None, "model"))
    means = {"b": place(tree["b"], "model"), "c": place(tree["c"])}
    sharded["rest"] = dataclasses.replace(sharded["rest"], loc=means)
    same("families", step(sharded, place(X, "data"), place(Y, "data"), KEY), step(q, X, Y, KEY))


def outputs():
    """Outside of a jit, and with a closure that varies along an axis of its own."""
    f, of_one = illia_fn.decorrelate(layers), illia_fn.decorrelate(lambda w, x: x @ w["a"])
    expected, one = jax.jit(lambda *arguments: (f(*arguments), of_one(*arguments)))(Q, X, KEY)
    same("eager", f(place(Q), place(X, "data"), KEY), expected)

    mesh = jax.make_mesh(SHAPE, AXES, axis_types=(AxisType.Auto,) * 2)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("model", "data"))
    def scaled(q, x):
        factor = 1.0 + jax.lax.axis_index("model").astype(jnp.float32)
        return illia_fn.decorrelate(lambda w, x: x @ (factor * w["a"]))(q, x, KEY)[None]

    both = np.concatenate([one, one])
    same("closure", scaled(Q, jnp.concatenate([X, X])), np.stack([both, 2 * both]))
    auto = NamedSharding(mesh, P(None, "model"))
    constrained = illia_fn.decorrelate(
        lambda w, x: layers(w | {"a": jax.lax.with_sharding_constraint(w["a"], auto)}, x)
    )
    same("constraint", jax.jit(constrained)(*jax.device_put((Q, X, KEY), NamedSharding(mesh, P()))), expected)


if __name__ == "__main__":
    call_in_a_large_frame(objectives)
    call_in_a_large_frame(families)
    call_in_a_large_frame(outputs)
