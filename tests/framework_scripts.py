"""Models as their frameworks' users write them; the lines that make each of them Bayesian are marked."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

from illia_fn import elbo_loss, mean_field
from illia_fn.frameworks import from_equinox, from_functions, from_haiku, from_linen, from_nnx

KEY = jax.random.key(0)
IMAGES, SEQUENCES = jax.random.normal(KEY, (8, 4, 4, 2)), jax.random.normal(KEY, (8, 5, 4))
ROWS, LABELS = SEQUENCES[:, 0], jnp.arange(8) % 3


def nnx_cnn():
    class CNN(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.dropout(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))

    network = CNN(nnx.Rngs(0))
    model = from_nnx(network)  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, IMAGES, network


def nnx_encoder():
    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs) for _ in range(2)])
            self.attention = nnx.MultiHeadAttention(2, 4, dropout_rate=0.2, decode=False, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            x = x + self.dropout(self.attention(self.norms[0](x)))
            return self.head(self.norms[1](x).mean(1))

    network = Encoder(nnx.Rngs(0, dropout=1))
    model = from_nnx(network)  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, SEQUENCES, network


def nnx_rnn():
    class RNN(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.SimpleCell(4, 6, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.rnn(x)[:, -1])

    network = RNN(nnx.Rngs(0))
    model = from_nnx(network)  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, SEQUENCES, network


def nnx_mlp():
    rngs = nnx.Rngs(0)
    network = nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 3, rngs=rngs))
    model = from_nnx(network)  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, ROWS, network


def linen_resnet_block():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            y = nn.Conv(4, (3, 3), use_bias=False)(x)
            y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)
            return nn.Dense(3)(nn.relu(y + nn.Conv(4, (1, 1))(x)).mean((1, 2)))

    network = Block()
    variables = jax.jit(partial(network.init, train=False))(KEY, IMAGES)
    model = from_linen(network, variables, train={"train": True}, evaluate={"train": False})  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, IMAGES, network


def linen_mixer_block():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            y = nn.Dense(5)(nn.LayerNorm()(x).swapaxes(1, 2)).swapaxes(1, 2)
            x = x + nn.Dropout(0.2, deterministic=deterministic)(y)
            return nn.Dense(3)(nn.Dropout(0.2, deterministic=deterministic)(x).mean(1))

    network = Block()
    variables = jax.jit(partial(network.init, deterministic=True))(KEY, SEQUENCES)
    model = from_linen(network, variables, train={"deterministic": False}, evaluate={"deterministic": True})  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, SEQUENCES, network


class EquinoxNorm(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(4, 6, key=keys[0]), eqx.nn.Linear(6, 3, key=keys[1])
        self.norm = eqx.nn.BatchNorm(6, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.last(jax.nn.relu(x)), state


def equinox_norm():
    network, state = eqx.nn.make_with_state(EquinoxNorm)(KEY)
    model = from_equinox(network, state)  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, ROWS, network


def equinox_mlp():
    network = eqx.nn.Sequential(
        [
            eqx.nn.Linear(4, 6, key=KEY),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.2),
            eqx.nn.Linear(6, 3, key=KEY),
        ]
    )
    model = from_equinox(network)  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, ROWS, network


def haiku_convnet():
    def convnet(x, is_training):
        x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(hk.Conv2D(4, 3)(x), is_training)
        return hk.Linear(3)(jax.nn.relu(x).mean((1, 2)))

    network = hk.transform_with_state(convnet)
    params, state = jax.jit(partial(network.init, is_training=True))(KEY, IMAGES)
    modes = {"train": {"is_training": True}, "evaluate": {"is_training": False}}
    model = from_haiku(network, params, state, **modes)  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, IMAGES, network


def haiku_mlp():
    def mlp(x, rate):
        return hk.nets.MLP([6, 3])(x, dropout_rate=rate, rng=hk.next_rng_key() if rate else None)

    network = hk.transform(mlp)
    params = jax.jit(network.init)(KEY, ROWS, None)
    model = from_haiku(network, params, train={"rate": 0.2}, evaluate={"rate": None})  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, ROWS, network


def plain_jax():
    def network(params, x, key=None):
        x = jnp.tanh(x @ params["w1"])
        keep = 1.0 if key is None else jax.random.bernoulli(key, 0.8, x.shape) / 0.8
        return keep * x @ params["w2"]

    params = {"w1": jax.random.normal(KEY, (4, 6)), "w2": jax.random.normal(KEY, (6, 3))}
    model = from_functions(network, network, params)  # added
    q = mean_field(model.params, scale=0.05)  # added
    loss = model.loss(elbo_loss, num_samples=2, num_data=8)  # added
    return model, q, loss, ROWS, network


# What is trained: each way to have noise and statistics. The others have neither.
SCRIPTS = [
    *(nnx_cnn, nnx_encoder, nnx_rnn),
    *(linen_resnet_block, linen_mixer_block),
    *(equinox_norm, equinox_mlp),
    *(haiku_convnet, haiku_mlp, plain_jax),
]
