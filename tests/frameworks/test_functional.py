"""Models of every framework, each trained by the three lines of its script: noise, statistics, evaluation, and back."""

import functools
import inspect
from functools import partial

import chex
import equinox as eqx
import flax.linen as nn
import framework_scripts as scripts
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from framework_scripts import KEY, LABELS, ROWS, SCRIPTS

import illia_fn
from illia_fn import average_state, divergences, elbo_loss, mean_field
from illia_fn.frameworks import from_equinox, from_functions, from_haiku, from_linen, from_nnx

pytestmark = pytest.mark.promotes

WITH_STATE = ["nnx_cnn", "linen_resnet_block", "equinox_norm", "haiku_convnet"]
WITH_DROPOUT = ["nnx_cnn", "nnx_encoder", "linen_mixer_block", "equinox_mlp", "haiku_mlp", "plain_jax"]


def native_outputs(name, network, made, x):
    """The outputs of what `to_model` made, as the framework calls it."""
    framework = name.partition("_")[0]
    if framework == "nnx":
        return made(x)
    if framework == "linen":
        flags = {"linen_resnet_block": {"train": False}, "linen_mixer_block": {"deterministic": True}}
        return network.apply(made, x, **flags.get(name, {}))
    if framework == "haiku":
        is_mlp = name == "haiku_mlp"
        return network.apply(made, None, x, None) if is_mlp else network.apply(*made, None, x, is_training=False)[0]
    if framework == "plain":
        return network(made, x)
    if isinstance(made, tuple):
        return jax.vmap(made[0], axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, made[1])[0]
    return jax.vmap(made)(x)


def native_state(name, network, made, x):
    """The state after one step of the framework's own in training."""
    if name == "nnx_cnn":
        made.train()
        made(x)
        return nnx.state(made, nnx.BatchStat)
    if name == "linen_resnet_block":
        return network.apply(made, x, train=True, mutable=["batch_stats"])[1]
    if name == "haiku_convnet":
        return network.apply(*made, None, x, is_training=True)[1]
    training = eqx.nn.inference_mode(made[0], value=False)
    return jax.vmap(training, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, made[1])[1]


@functools.cache
def run(name):
    """All that is asked of a script, compiled at once."""
    model, q, loss, x, network = getattr(scripts, name)()
    optimizer = optax.sgd(0.1)

    def step(carry, key):
        q, state, opt_state = carry
        if model.has_state:
            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(q, state, x, LABELS, key)
        else:
            value, grads = jax.value_and_grad(loss)(q, x, LABELS, key)
        updates, opt_state = optimizer.update(grads, opt_state, q)
        return (optax.apply_updates(q, updates), state, opt_state), value

    @jax.jit
    def results(q, state, keys):
        (trained, after, _), values = jax.lax.scan(step, (q, state, optimizer.init(q)), keys)
        mean = illia_fn.mean(trained)
        evaluate = jax.jit(lambda state: model.eval_fn(state)(mean, x))  # traced once
        noisy = jax.lax.map(lambda key: model.train_fn(after)(mean, x, key), keys[:3])
        out = {
            "values": values,
            "trained": trained,
            "after": after,
            "noisy": noisy[0] if model.has_state else noisy,
            "evaluated": [evaluate(state), evaluate(after)],
            "native": native_outputs(name, network, model.to_model(mean, after), x),
        }
        if model.has_state:
            out["state"] = jax.tree.map(lambda leaf: leaf[0], noisy[1])
            out["native_state"] = native_state(name, network, model.to_model(mean, after), x)
        return out

    return model, q, results(q, model.state, jax.random.split(KEY, 30))


def names(scripts):
    return [script.__name__ for script in scripts]


@pytest.mark.parametrize("name", names(SCRIPTS))
def test_three_lines_train_it(name):
    """Under lax.scan, whose carry keeps its structure and types."""
    assert inspect.getsource(getattr(scripts, name)).count("# added") == 3
    model, q, results = run(name)
    values, pair = results["values"], (results["trained"], results["after"])
    assert values[-10:].mean() < values[:10].mean()
    assert model.has_state == (name in WITH_STATE)
    chex.assert_trees_all_equal_shapes_and_dtypes(pair, (q, model.state))
    means = zip(*[jax.tree.leaves(illia_fn.mean(tree)) for tree in (q, pair[0])], strict=True)
    assert not all(np.allclose(*pair) for pair in means)


@pytest.mark.parametrize("name", names(SCRIPTS))
def test_noise_is_of_the_key(name):
    noisy = run(name)[2]["noisy"]
    assert len(np.unique(noisy, axis=0)) == (3 if name in WITH_DROPOUT else 1)


@pytest.mark.parametrize("name", names(SCRIPTS))
def test_the_mean_as_the_frameworks_own_model(name):
    results = run(name)[2]
    np.testing.assert_allclose(results["native"], results["evaluated"][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_STATE)
def test_statistics_move_to_those_of_the_framework(name):
    """To the values of one step of its own in training."""
    model, _, results = run(name)
    chex.assert_trees_all_equal_shapes_and_dtypes(results["state"], model.state)
    state, expected, before = map(jax.tree.leaves, (results["state"], results["native_state"], results["after"]))
    chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-6)
    assert not all(np.allclose(*pair) for pair in zip(state, before, strict=True))
    assert not np.allclose(*results["evaluated"])


def test_an_nnx_model_stays_as_it_is():
    network = nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    before = jax.tree.map(jnp.copy, nnx.split(network))
    model = from_nnx(network)
    jax.eval_shape(model.train_fn(model.state), model.params, ROWS, KEY)
    jax.eval_shape(model.eval_fn(model.state), model.params, ROWS)
    graphdef, state = nnx.split(network)
    assert graphdef == before[0]
    chex.assert_trees_all_equal(*(jax.tree.map(key_data, tree) for tree in (state, before[1])))


def key_data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


# --- noise --------------------------------------------------------------------------------------------------------


class ThreeMasks(nnx.Module):
    """Three layers of dropout, two of whose streams have the same name, and one without a stream."""

    def __init__(self):
        rngs = nnx.Rngs(dropout=0, noise=0)
        self.scale = nnx.Param(jnp.ones(()))
        layers = [nnx.Dropout(0.5, rng_collection=name, rngs=rngs) for name in ("dropout", "dropout", "noise")]
        self.layers = nnx.List([*layers, nnx.Dropout(0.0)])

    def __call__(self, x):
        return self.scale * jnp.stack([layer(x) for layer in self.layers], axis=1)


def test_every_nnx_stream_has_a_key_of_its_own():
    model, ones = from_nnx(ThreeMasks()), jnp.ones((8, 16))
    q = mean_field(model.params, scale=1e-6)
    outputs = illia_fn.predict(model.train_fn(), q, ones, KEY, 4, needs_key=True)
    masks = np.asarray(outputs > 0.5)
    assert masks.shape == (4, 8, 4, 16)
    assert masks[:, :, 3].all()
    mixed = np.moveaxis(masks[:, :, :3], 1, 2).reshape(12, -1)  # a row for each sample and layer
    assert len(np.unique(mixed, axis=0)) == 12
    assert abs(mixed.mean() - 0.5) < 5 * 0.5 / np.sqrt(mixed.size)
    legacy = model.train_fn()(model.params, ones, jax.random.PRNGKey(0))
    np.testing.assert_array_equal(legacy, model.train_fn()(model.params, ones, KEY))


def test_nnx_streams_of_many_keys():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    class Stack(nnx.Module):
        def __init__(self):
            self.linear, self.dropout = make(nnx.Rngs(0))

        def __call__(self, x):
            return nnx.vmap(lambda linear, dropout: dropout(linear(x)), out_axes=1)(self.linear, self.dropout)

    model = from_nnx(Stack())
    dropped = np.asarray(model.train_fn()(model.params, ROWS, KEY) == 0.0)
    assert len(np.unique(np.moveaxis(dropped, 1, 0).reshape(3, -1), axis=0)) == 3


def test_linen_streams_by_name():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            draw = (
                [jax.random.normal(self.make_rng(name), x.shape) for name in ("noise", "more")] if train else [0.0] * 2
            )
            return nn.Dense(3)(x + draw[0] - draw[1])

    flags = {"train": {"train": True}, "evaluate": {"train": False}}
    variables = Noisy().init(KEY, ROWS, train=False)
    model = from_linen(Noisy(), variables, **flags, rngs=("noise", "more"))
    outputs = [model.train_fn()(model.params, ROWS, key) for key in jax.random.split(KEY)]
    assert not np.allclose(*outputs)
    assert not np.allclose(outputs[0], model.eval_fn()(model.params, ROWS))  # the draws differ


def test_an_equinox_call_that_insists_on_a_key():
    class Net(eqx.Module):
        linear: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x, key, extra):
            first, second = jax.random.split(key)
            return self.dropout(self.linear(self.dropout(x, key=first)), key=second) + extra

    flags = {"train": {"extra": 1.0}, "evaluate": {"extra": 0.0}}
    model = from_equinox(Net(eqx.nn.Linear(4, 3, key=KEY), eqx.nn.Dropout(0.5, inference=True)), **flags)
    same = jnp.ones((8, 4))
    masked = model.train_fn()(model.params, same, KEY)
    assert len(np.unique(masked, axis=0)) > 1  # a key for each example
    assert len(np.unique(model.eval_fn()(model.params, same), axis=0)) == 1


def test_haiku_without_apply_rng():
    network = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3)(x)))
    params = network.init(KEY, ROWS)
    model = from_haiku(network, params)
    np.testing.assert_array_equal(model.train_fn()(params, ROWS, KEY), network.apply(params, ROWS))


# --- objectives ---------------------------------------------------------------------------------------------------


def stateful(params, state, x, key):
    keep = jax.random.bernoulli(key, 0.8, x.shape)
    outputs = keep * (x - state["mean"]) @ params
    moved = 0.9 * state["mean"].astype(jnp.float32) + 0.1 * (x @ params).mean()
    return outputs, {"mean": moved, "steps": state["steps"] + 1}


STATE = {"mean": jnp.ones(4, jnp.bfloat16), "steps": jnp.array(3)}
MODEL = from_functions(stateful, lambda params, state, x: (x - state["mean"]) @ params, jnp.ones((4, 3)), STATE)
Q = mean_field(MODEL.params, scale=0.1)
SQUARES = {"loss_fn": lambda outputs, _: jnp.sum(jnp.square(outputs), axis=1)}
OBJECTIVES = {
    "elbo": partial(elbo_loss, **SQUARES),
    "predictive": partial(illia_fn.predictive_loss, **SQUARES),
    "iwae": partial(illia_fn.iwae_loss, **SQUARES),
    "cubo": partial(illia_fn.cubo_loss, **SQUARES),
    "f_divergence": partial(illia_fn.f_divergence_loss, generator=divergences.jensen_shannon, **SQUARES),
    "pac_bayes": illia_fn.pac_bayes_loss,
}


def of_the_model(name, q, state):
    return MODEL.loss(OBJECTIVES[name], num_samples=2, num_data=8)(q, state, ROWS, LABELS, KEY)


def of_train_fn(name, q, state):
    options = {"num_data": 8, "needs_key": True, "has_aux": True}
    return OBJECTIVES[name](MODEL.train_fn(state), q, ROWS, LABELS, KEY, 2, **options)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_take_a_model_with_state(name):
    """The program is that of train_fn, and then the mean of the states."""

    def by_hand(q, state):
        value, states = of_train_fn(name, q, state)
        return value, average_state(states)

    assert str(jax.make_jaxpr(partial(of_the_model, name))(Q, STATE)) == str(jax.make_jaxpr(by_hand)(Q, STATE))


def test_a_state_moves_once_a_step_however_many_samples():
    (value, state), (expected, states) = jax.jit(lambda *args: [f("elbo", *args) for f in (of_the_model, of_train_fn)])(
        Q, STATE
    )
    assert value == expected
    chex.assert_trees_all_equal(state, average_state(states))
    assert (state["mean"].dtype, state["steps"].dtype, state["steps"]) == (jnp.bfloat16, jnp.int32, 4)
    assert len(np.unique(np.asarray(states["mean"], np.float32), axis=0)) > 1


def with_aux(params, state, x, key):
    outputs, state = stateful(params, state, x, key)
    return (outputs, {"norm": jnp.sum(outputs**2)}), state


def test_what_the_loss_returns_beside_its_value():
    model = from_functions(with_aux, MODEL.evaluate, MODEL.params, STATE)
    options = {"num_samples": 2, "num_data": 8, "chunk_size": None} | SQUARES

    @jax.jit
    def losses(*args):
        return (
            MODEL.loss(elbo_loss, **options)(*args),
            MODEL.loss(partial(elbo_loss, return_terms=True), **options)(*args),
            model.loss(partial(elbo_loss, has_aux=True), **options)(*args),
            model.loss(elbo_loss, has_aux=True, return_terms=True, **options)(*args),
            MODEL.loss(illia_fn.iwae_loss, return_log_weights=True, **options)(*args),
        )

    plain, of_terms, of_aux, of_both, of_weights = losses(Q, STATE, ROWS, LABELS, KEY)
    value, state = plain
    (state_of_terms, terms), (state_of_aux, aux), (state_of_both, both_terms, both_aux) = (
        extras for _, extras in (of_terms, of_aux, of_both)
    )
    assert value == of_terms[0] == of_aux[0] == of_both[0] == terms.loss == both_terms.loss
    chex.assert_trees_all_equal(state, state_of_terms, state_of_aux, state_of_both)
    assert aux["norm"].shape == both_aux["norm"].shape == of_weights[1][1].shape == (2,)


def test_aux_of_a_model_without_state():
    model = from_functions(lambda w, x, key: (x @ w, x.sum()), lambda w, x: x @ w, MODEL.params)
    value, aux = model.loss(elbo_loss, num_samples=2, num_data=8, has_aux=True)(Q, ROWS, LABELS, KEY)
    assert aux.shape == (2,)
    assert np.isfinite(value)


def test_a_state_of_python_numbers_goes_through_a_scan():
    def train(params, state, x, key):
        return x @ params, {"scale": 0.9 * state["scale"], "steps": state["steps"] + 1}

    model = from_functions(train, lambda params, state, x: x @ params, MODEL.params, {"scale": 1.0, "steps": 0})
    assert not any(leaf.weak_type for leaf in model.state.values())  # it would be traced twice
    loss = model.loss(elbo_loss, num_data=8)

    def step(state, key):
        return loss(Q, state, ROWS, LABELS, key)[::-1]

    state, _ = jax.lax.scan(step, model.state, jax.random.split(KEY, 3))
    np.testing.assert_allclose([state["scale"], state["steps"]], [0.9**3, 3], rtol=1e-6)


def test_options_of_the_step():
    loss = MODEL.loss(elbo_loss, num_data=8, kl_weight=1.0, **SQUARES)
    of_weight = jax.jit(lambda **options: loss(Q, STATE, ROWS, LABELS, KEY, **options)[0])
    values = [of_weight(kl_weight=kl_weight) for kl_weight in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(values[2], of_weight(), rtol=1e-6)
    np.testing.assert_allclose(values[1], (values[0] + values[2]) / 2, rtol=1e-6)


# --- other parameters ---------------------------------------------------------------------------------------------


def test_a_model_with_state_as_a_function_of_the_latent_parameters_of_its_prior():
    """The program is that of the model at `to_params`, in training and in evaluation, and of `wrap`."""
    latent = illia_fn.priors.horseshoe(MODEL.params, scale=0.1)
    model, q = MODEL.reparameterise(latent.params, latent.to_params), mean_field(latent.params, scale=0.1)
    options = {"num_samples": 2, "num_data": 8, "prior": latent.prior}

    def by_hand(q, state):
        wrapped = latent.wrap(MODEL.train_fn(state))
        value, states = elbo_loss(wrapped, q, ROWS, LABELS, KEY, needs_key=True, has_aux=True, **SQUARES, **options)
        return value, average_state(states)

    def of_the_model(q, state):
        return model.loss(OBJECTIVES["elbo"], **options)(q, state, ROWS, LABELS, KEY)

    assert str(jax.make_jaxpr(of_the_model)(q, STATE)) == str(jax.make_jaxpr(by_hand)(q, STATE))
    found = model.eval_fn(STATE)(latent.params, ROWS), model.to_model(latent.params, STATE)
    params = latent.to_params(latent.params)
    chex.assert_trees_all_equal(found, (MODEL.eval_fn(STATE)(params, ROWS), (params, STATE)))


class Density(eqx.nn.Linear):
    """It has the method of a prior, and is none."""

    def log_prob(self, x):
        return -jnp.square(self(x)).sum()


LINEAR, TRANSFORMED = nn.Dense(3), hk.transform(lambda x: hk.Linear(3)(x))
LINEARS = {
    "nnx": lambda: from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0))),
    "linen": lambda: from_linen(LINEAR, LINEAR.init(KEY, ROWS)),
    "equinox": lambda: from_equinox(eqx.nn.Linear(4, 3, key=KEY)),
    "equinox with a density": lambda: from_equinox(Density(4, 3, key=KEY)),
    "haiku": lambda: from_haiku(TRANSFORMED, TRANSFORMED.init(KEY, ROWS)),
}


@pytest.mark.parametrize("name", LINEARS)
def test_latent_parameters_in_the_containers_of_every_framework(name):
    model = LINEARS[name]()
    latent = illia_fn.priors.horseshoe(model.params, scale=0.1)
    sparse = model.reparameterise(latent.params, latent.to_params)
    q = mean_field(latent.params, scale=0.1)
    loss = sparse.loss(elbo_loss, num_samples=2, num_data=8, prior=latent.prior)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(jax.grad(loss), q, ROWS, LABELS, KEY), q)
    predict = partial(illia_fn.predict, sparse.eval_fn(), num_samples=4)
    assert jax.eval_shape(predict, q, ROWS, KEY).shape == (4, 8, 3)
    made, expected = sparse.to_model(latent.params), model.to_model(model.params)
    assert type(made) is type(expected)
    assert type(illia_fn.priors.centred(model.params, 0.1)) is type(model.params)
    pairs = zip(*[jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (made, expected)], strict=True)
    assert all(np.allclose(*pair, rtol=1e-5) for pair in pairs)


def test_a_low_rank_change_to_a_network_that_stays():
    """Its mean, as the framework's own model, is the network with the change in it."""
    network = Normed(0.0)
    model = from_nnx(network)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 2), (2, 3)))
    chosen = illia_fn.by_path("last/kernel/value")(model.params)
    changes = jax.tree.map(lambda here: {"a": a, "b": b} if here else None, chosen)

    def to_params(changes):
        changed = lambda w, change: w if change is None else w + change["a"] @ change["b"]  # noqa: E731
        return jax.tree.map(changed, model.params, changes)

    adapted = model.reparameterise(changes, to_params)
    q = mean_field(adapted.params, scale=0.1, mask=illia_fn.by_path(".*/a"))
    assert illia_fn.num_params(q) == a.size
    found = adapted.to_model(illia_fn.mean(q))
    np.testing.assert_allclose(found.last.kernel[...], network.last.kernel[...] + a @ b, rtol=1e-5)
    np.testing.assert_array_equal(found.first.kernel[...], network.first.kernel[...])


# --- couplings ----------------------------------------------------------------------------------------------------


class Normed(nnx.Module):
    def __init__(self, rate):
        rngs = nnx.Rngs(0)
        self.first, self.norm, self.last = (
            nnx.Linear(4, 6, rngs=rngs),
            nnx.LayerNorm(6, rngs=rngs),
            nnx.Linear(6, 3, rngs=rngs),
        )
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))


def test_layer_normalisation_under_a_coupling():
    model = from_nnx(Normed(0.0))
    loss = model.loss(elbo_loss, num_data=8, coupling="decorrelated", kl_weight=0.0, **SQUARES)
    value, grads = jax.jit(jax.value_and_grad(loss))(mean_field(model.params, scale=1e-6), ROWS, LABELS, KEY)
    expected = np.square(jax.jit(model.eval_fn())(model.params, ROWS)).sum(axis=1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    chex.assert_tree_all_finite(grads)


def test_dropout_under_a_coupling_is_of_each_example():
    model = from_nnx(Normed(0.5))
    q, same = mean_field(model.params, scale=1e-6), jnp.ones((8, 4))
    outputs = jax.jit(illia_fn.decorrelate(model.train_fn(), needs_key=True))(q, same, KEY)
    assert len(np.unique(outputs.round(3), axis=0)) > 4
    loss = model.loss(elbo_loss, num_samples=2, num_data=8, coupling="decorrelated")
    assert jax.eval_shape(loss, q, same, LABELS, KEY).shape == ()
