"""Every objective, value and gradient, on several (virtual) devices against one: run by test_mesh.py.

python mesh_program.py (kinds | shared_out | families | collectives)... | processes <address> <number>
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

MODES, ARGUMENTS = (["processes"], sys.argv[2:]) if sys.argv[1] == "processes" else (sys.argv[1:], [])
if ARGUMENTS:  # before there is an array
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(ARGUMENTS[0], num_processes=2, process_id=int(ARGUMENTS[1]))

import illia_fn  # noqa: E402
from tests.quicker import call_in_a_large_frame  # noqa: E402

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


class Laplace:
    """A prior without a closed form."""

    def log_prob(self, w):
        return -jnp.abs(w) - np.log(2.0, dtype=np.float32)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / 3, jnp.float32)


def apply_fn(w, x):
    return jax.nn.relu(x @ w["w"] + w["b"][None]) @ w["v"] + w["deterministic"]


def squared(outputs, y):
    """A loss of few operations, for all that is not about the default one."""
    return 0.1 * jnp.square(jnp.sum(outputs, axis=1) - y)


def loss(f, *args, loss_fn=squared, **options):
    return lambda q, x, y: f(apply_fn, q, x, y, KEY, *args, num_data=100, loss_fn=loss_fn, **options)


def expectation(q, x, y):
    return illia_fn.expectation(lambda w: jnp.mean(jnp.square(apply_fn(w, x))), q, KEY, 5, chunk_size=2)


def expectation_of_a_vector(q, x, y):
    return jnp.sum(illia_fn.expectation(lambda w: jnp.mean(jnp.square(apply_fn(w, x)), axis=0), q, KEY, 2))


def predict(q, x, y):
    return jnp.mean(jnp.square(illia_fn.predict(apply_fn, q, x, KEY, 4, chunk_size=2)))


elbo = partial(loss, illia_fn.elbo_loss)
PRIOR = illia_fn.mean_field({"w": normal(4, 8), "b": normal(8), "v": normal(8, 3)}, scale=0.2)
Q = illia_fn.mean_field({"w": normal(4, 8), "b": normal(8), "v": normal(8, 3)}, scale=0.1)
Q |= {"deterministic": jnp.ones(())}
X, Y = normal(8, 4), jnp.asarray(RNG.integers(0, 3, 8))
LOSSES = {
    "one sample": elbo(loss_fn=None),
    "all at once": elbo(2, chunk_size=None),
    "antithetic chunks": elbo(6, chunk_size=2, antithetic=True),
    "decorrelated": elbo(2, coupling="decorrelated"),
    "flipout": elbo(2, coupling="flipout", loss_fn=None),
    "doubly_reparameterised": elbo(2, estimator="doubly_reparameterised"),
    "score_function": elbo(2, estimator="score_function", chunk_size=None),
    "predictive": loss(illia_fn.predictive_loss, 2),
    "iwae": loss(illia_fn.iwae_loss, 2),
    # all at once: of the same passes over the draws, those of "iwae" and of "antithetic chunks" are in loops
    "renyi": loss(illia_fn.renyi_loss, 2, alpha=0.5, chunk_size=None),
    "cubo": loss(illia_fn.cubo_loss, 2, chunk_size=None),
    "f_divergence": loss(illia_fn.f_divergence_loss, 2, generator=illia_fn.divergences.kl_forward, chunk_size=None),
    "pac_bayes": loss(illia_fn.pac_bayes_loss, 2, loss_fn=None, prior=PRIOR | {"deterministic": None}, chunk_size=None),
    "kl": lambda q, x, y: illia_fn.kl_loss(q),
    "sampled kl": lambda q, x, y: illia_fn.kl_loss(q, Laplace(), key=KEY, num_samples=2),
    "expectation": expectation,
    "expectation of a vector": expectation_of_a_vector,
    "predict": predict,
}


def place(mesh, tree, *axes):
    return jax.device_put(tree, NamedSharding(mesh, P(*axes)))


def gathered(q):
    """The last leaf is spread over the devices, which gather it: it is not joined with the others."""
    return q | {"w": jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, "data", axis=0, tiled=True), q["w"])}


def on_a_mesh(kind, loss):
    """Value and gradient, to be called or looked at, with weights and examples sharded along an axis each."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2, devices=jax.devices()[:4])
    specs = {"w": (None, "model"), "b": ("model",), "v": (), "deterministic": ()}
    q = {name: place(mesh, leaf, *specs[name]) for name, leaf in Q.items()}
    return partial(jax.jit(jax.value_and_grad(loss)), q, place(mesh, X, "data"), place(mesh, Y, "data"))


def in_shard_map(loss):
    """The mean over two devices, each with its examples, and its part of one leaf: to be called or looked at."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    specs = {"w": P("data"), "b": P(), "v": P(), "deterministic": P()}

    @partial(jax.shard_map, mesh=mesh, in_specs=(specs, P("data"), P("data")), out_specs=P())
    def mean(q, x, y):
        return jax.lax.pmean(loss(gathered(q), x, y), "data")

    both = jnp.concatenate([X, -X]), jnp.concatenate([Y, Y])
    return partial(jax.jit(jax.value_and_grad(mean)), Q, *both)


def check(name, found, expected, rtol=1e-3, atol=1e-5):
    try:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), *jax.device_get((found, expected)))
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error


# Every objective is traced: what is not right for explicit axes, or for what varies in a shard_map, is an error there.
# With automatic axes XLA is given the same program as without a mesh. Of each way through the draws one runs.
SAME_WAY = {"all at once", "renyi", "cubo", "f_divergence", "expectation of a vector"}  # as "predictive", "iwae", ...
RUN = {
    AxisType.Auto: {"antithetic chunks", "decorrelated"},
    AxisType.Explicit: {"one sample", "antithetic chunks", "flipout", "score_function", "iwae", "sampled kl"},
}


def kinds():
    for name, loss in LOSSES.items():
        explicit, mapped = on_a_mesh(AxisType.Explicit, loss), in_shard_map(loss)
        if name in SAME_WAY:
            jax.eval_shape(explicit)
            jax.eval_shape(mapped)
            continue
        one = jax.jit(jax.value_and_grad(loss))
        whole = one(Q, X, Y)
        jax.eval_shape(explicit)
        for kind in (kind for kind, names in RUN.items() if name in names):
            check((name, kind), on_a_mesh(kind, loss)(), whole)
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 2, whole, one(Q, -X, Y))
        check((name, "shard_map"), mapped(), mean)
    sums_within()


def in_parts(q, x):
    """What takes examples, which are sharded, some at a time."""
    network = lambda w, x: jnp.tanh(x @ w["w"][:, :2])  # noqa: E731
    q = {"w": q["w"]}
    of_data = partial(illia_fn.laplace, network, loss_fn=illia_fn.gaussian_nll, batch_size=3)
    jax.eval_shape(of_data, q, x, x[:, :2])
    jax.eval_shape(partial(illia_fn.linearise, network, chunk_size=3), q, x)
    return illia_fn.predict(network, q, x, KEY, 2, batch_size=3)


def sums_within():
    """What varies otherwise: keys of each device's own for a function of what is the same on all, and sums within."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def own_keys(q, device, mean):
        keys = jax.random.fold_in(KEY, device)
        return mean(illia_fn.expectation(lambda w: jnp.sum(jnp.sin(w["w"]) * q["deterministic"]), q, keys, 3))

    def summed(q, x, mean):
        return illia_fn.expectation(lambda w: mean(jnp.mean(jnp.square(apply_fn(w, x)))), q, KEY, 3)

    def pmean(value):
        return jax.lax.pmean(value, "data")

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    def sharded(q, x):
        return own_keys(q, jax.lax.axis_index("data"), pmean) + summed(q, x, pmean)

    def plain(q, x):
        keys = sum(own_keys(q, device, lambda value: value) for device in range(2)) / 2
        return keys + summed(q, x, lambda value: value)

    check("sums within", *(jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(Q, X) for f in (sharded, plain)))

    def of_derivatives(x):
        """What differentiates the network by weights that are the same on all devices: each has its own result."""
        q, network = illia_fn.mean_field({"w": Q["w"].loc}, scale=0.1), lambda w, x: jnp.tanh(x @ w["w"][:, :2])
        of_data = illia_fn.laplace(network, q, x, x[:, :2], loss_fn=illia_fn.gaussian_nll)["w"]
        return of_data.stddev[None], illia_fn.linearise(network, q, x).covariance

    mapped = jax.shard_map(of_derivatives, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    parts = [of_derivatives(half) for half in jnp.split(X, 2)]
    whole = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    check("in parts", in_parts(place(whole, Q), place(whole, X, "data")), in_parts(Q, X))
    keys, sample = jax.random.split(KEY, 2), jax.vmap(illia_fn.mean_field(jnp.ones((128, 128))).sample)  # in one pass
    check("large draws", jax.jit(sample)(place(whole, keys, "data")), sample(keys))
    auto = place(mesh, {"w": Q["w"]}, "data")
    assert illia_fn.laplace(lambda w, x: x @ w["w"], auto, X, Y)["w"].rho.sharding == auto["w"].rho.sharding
    check("derivatives", jax.jit(mapped)(X), jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))


def shared_out():
    """The work is shared out between eight devices, if not all of it."""
    mesh = jax.make_mesh((4, 2), ("data", "samples"), axis_types=(AxisType.Auto,) * 2)
    q = illia_fn.mean_field({"w": normal(64, 128), "v": normal(128, 5)}, scale=0.1)
    x, y = normal(32, 64), jnp.asarray(RNG.integers(0, 5, 32))
    elbo = partial(illia_fn.elbo_loss, lambda w, x: jax.nn.relu(x @ w["w"]) @ w["v"], num_data=1000)
    keys = jax.random.split(KEY, 8)

    def over_both_axes(q, x, y, keys):
        return jnp.mean(jax.vmap(lambda key: elbo(q, x, y, key))(keys))

    def decorrelated(q, x, y, keys):
        return elbo(q, x, y, keys[0], 4, coupling="decorrelated")

    for loss in (over_both_axes, decorrelated):
        step = jax.jit(jax.value_and_grad(loss))
        keys_of = ("samples",) if loss is over_both_axes else ()
        sharded = place(mesh, q), place(mesh, x, "data"), place(mesh, y, "data"), place(mesh, keys, *keys_of)
        compiled = [step.lower(*arguments).compile() for arguments in ((q, x, y, keys), sharded)]
        check(loss.__name__, compiled[1](*sharded), compiled[0](q, x, y, keys))
        flops = [one.cost_analysis()["flops"] for one in compiled]
        assert flops[1] < 0.45 * flops[0], flops
        if loss is decorrelated:  # each device has the noise of its own eight examples
            assert ["f32[4,32,133]" in one.as_text() for one in compiled] == [True, False]
            assert "f32[4,8,133]" in compiled[1].as_text()


def logistic(loc):
    return dist.Logistic(loc, 0.1)


def families():
    """A tree of all families, on eight devices: one node over two arrays, of which one is sharded."""
    q = {
        "w": illia_fn.matrix_normal(normal(4, 8), scale=0.1),
        "joint": illia_fn.low_rank({"b": normal(8), "u": normal(8, 8)}, rank=2, scale=0.1, key=KEY),
        "v": illia_fn.k_tied(normal(8, 3), scale=0.1),
        "c": illia_fn.full_covariance(normal(3), scale=0.1),
        "mixture": illia_fn.mixture({"m": normal(8, 8), "k": normal(8)}, 3, key=KEY),
        "foreign": illia_fn.from_distribution(logistic, normal(3), normal(3)),
    }

    def apply_fn(w, x):
        h = jax.nn.relu(x @ w["w"] + w["joint"]["b"][None])
        h = jax.nn.relu(h @ w["joint"]["u"])
        return jax.nn.relu(h @ w["mixture"]["m"] + w["mixture"]["k"][None]) @ w["v"] + (w["c"] + w["foreign"])[None]

    x, y = normal(16, 4), jnp.asarray(RNG.integers(0, 3, 16))

    def loss(q, x, y, key):
        return illia_fn.elbo_loss(apply_fn, q, x, y, key, 2, num_data=100, estimator="doubly_reparameterised")

    step = jax.jit(jax.value_and_grad(loss))
    expected = step(q, x, y, KEY)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    sharded = {name: place(mesh, node) for name, node in q.items()}
    sharded["w"] = illia_fn.MatrixNormal(place(mesh, q["w"].loc, None, "model"), *vars_of(sharded["w"])[1:])
    loc = sharded["joint"].loc | {"u": place(mesh, q["joint"].loc["u"], None, "model")}
    sharded["joint"] = illia_fn.LowRank(loc, *vars_of(sharded["joint"])[1:])
    members = sharded["mixture"].components
    members = members | {"m": place(mesh, members["m"], None, None, "model")}
    sharded["mixture"] = illia_fn.Mixture(members)
    found = step(sharded, place(mesh, x, "data"), place(mesh, y, "data"), place(mesh, KEY))
    check("families", found, expected)


def collectives():
    from tests import collectives_program  # it has arrays of its own

    collectives_program.run()


def vars_of(node):
    return list(vars(node).values())


def processes():
    """Two processes of four devices each, which hold the examples between them."""
    assert (jax.device_count(), jax.local_device_count()) == (8, 4)
    host = jax.device_put((Q, X, Y), jax.local_devices()[0])
    for kind, name in {AxisType.Auto: "antithetic chunks", AxisType.Explicit: "decorrelated"}.items():
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        sharded = place(mesh, Q), place(mesh, X, "data"), place(mesh, Y, "data")
        step = jax.value_and_grad(LOSSES[name])
        found = jax.jit(step, out_shardings=NamedSharding(mesh, P()))(*sharded)
        check((name, kind), jax.tree.map(lambda leaf: leaf.addressable_data(0), found), jax.jit(step)(*host))


if __name__ == "__main__":
    modes = {f.__name__: f for f in (kinds, shared_out, families, collectives, processes)}
    for mode in MODES:
        call_in_a_large_frame(modes[mode])
