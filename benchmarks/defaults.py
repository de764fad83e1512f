"""Claim: with nothing but the defaults, a Bayesian network is as accurate as its deterministic twin, on any network.

python -m benchmarks.defaults [SEEDS]

Thirteen pairs of a network and a data set. The twin maximises the posterior: it has the same prior, rate and steps. The
Bayesian network has the default prior and initial scale and the recommended optimizer; beside it the same without slow
scales, and with N(0, 0.1), the prior of the library that this one grew out of. No choice is made on the test data, but
the defaults themselves were chosen on these pairs, with the first seed.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn import datasets

import illia_fn
from benchmarks._report import Claim, report
from illia_fn import metrics

STEPS, BATCH, RATE, NETWORKS = 1500, 128, 1e-2, 32


class Data(NamedTuple):
    """A quarter is held out; inputs, and targets that are numbers, have mean 0 and standard deviation 1."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array

    @staticmethod
    def of(x: np.ndarray, y: np.ndarray) -> "Data":
        order = np.random.default_rng(0).permutation(len(x))
        test, train = np.split(order, [len(x) // 4])
        return Data(*map(jnp.asarray, (x[train], y[train], x[test], y[test])))


def digits() -> Data:
    bunch = datasets.load_digits()
    return Data.of(np.float32(bunch.data / 16), np.int32(bunch.target))


def table(load: Callable[[], Any]) -> Data:
    bunch = load()
    is_class = bunch.target.dtype.kind == "i"
    y = np.int32(bunch.target) if is_class else np.float32(standardised(bunch.target))
    return Data.of(np.float32(standardised(bunch.data)), y)


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=0)) / x.std(axis=0)


def recall() -> Data:
    """Which symbol came third of twelve?"""
    symbols = np.random.default_rng(0).integers(0, 4, (2000, 12))
    return Data.of(np.eye(4, dtype=np.float32)[symbols], np.int32(symbols[:, 2]))


class MLP(nn.Module):
    widths: tuple[int, ...]
    num_outputs: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    has_norm: bool = False

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = self.activation(nn.LayerNorm()(x) if self.has_norm else x)
        x = nn.Dense(self.num_outputs)(x)
        return x[:, 0] if self.num_outputs == 1 else x


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(64)(x)
        for _ in range(3):
            x = x + nn.Dense(64)(nn.relu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 8, 8, 1)
        x = nn.relu(nn.Conv(32, (3, 3))(nn.relu(nn.Conv(16, (3, 3))(x))))
        return nn.Dense(10)(nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1))


class Recurrent(nn.Module):
    cell: type[nn.RNNCellBase]
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        x = x if x.ndim == 3 else x.reshape(-1, 8, 8)  # the rows of an image, one after another
        return nn.Dense(self.num_outputs)(nn.RNN(self.cell(32))(x)[:, -1])


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32)(x.reshape(-1, 8, 8)) + self.param("position", nn.initializers.normal(0.02), (8, 32))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))


PAIRS: dict[str, tuple[nn.Module, Callable[[], Data]]] = {
    "MLP 1, digits": (MLP((100,), 10), digits),
    "MLP 3, digits": (MLP((100,) * 3, 10), digits),
    "tanh MLP 2, digits": (MLP((100,) * 2, 10, nn.tanh), digits),
    "LayerNorm MLP 2, digits": (MLP((100,) * 2, 10, has_norm=True), digits),
    "residual MLP, digits": (Residual(), digits),
    "CNN, digits": (CNN(), digits),
    "LSTM, rows of digits": (Recurrent(nn.OptimizedLSTMCell, 10), digits),
    "transformer, rows of digits": (Transformer(), digits),
    "GRU, recall": (Recurrent(nn.GRUCell, 4), recall),
    "MLP 2, wine (UCI)": (MLP((50,) * 2, 3), partial(table, datasets.load_wine)),
    "MLP 1, breast cancer (UCI)": (MLP((50,), 2), partial(table, datasets.load_breast_cancer)),
    "MLP 1, diabetes": (MLP((50,), 1), partial(table, datasets.load_diabetes)),
    "MLP 3, diabetes": (MLP((50,) * 3, 1), partial(table, datasets.load_diabetes)),
}


class Score(NamedTuple):
    """Accuracy, or minus the root mean squared error; the negative log-likelihood; and KL / N of the posterior."""

    accuracy: float
    nll: float
    kl: float = 0.0


def train(loss: Callable[..., jax.Array], params: Any, data: Data, optimizer: Any, seed: int) -> Any:
    size = min(BATCH, len(data.x))

    @jax.jit
    def step(params, state, key):
        batch_key, loss_key = jax.random.split(key)
        batch = jax.random.choice(batch_key, len(data.x), (size,), replace=False)
        grads = jax.grad(loss)(params, data.x[batch], data.y[batch], loss_key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(seed), STEPS):
        params, state = step(params, state, key)
    return params


def score(outputs: jax.Array, y: jax.Array) -> Score:
    """Of the mixture of all networks: outputs (S, B, classes), or (S, B) with a Gaussian of unit scale."""
    nll = -float(jnp.mean(illia_fn.predictive_log_prob(None, outputs, y)))
    if outputs.ndim == 3:
        return Score(float(metrics.accuracy(jax.nn.softmax(outputs).mean(axis=0), y)), nll)
    error = illia_fn.predictive_moments(illia_fn.gaussian_nll, outputs).mean - y
    return Score(-float(jnp.sqrt(jnp.mean(jnp.square(error)))), nll)


def scores(module: nn.Module, data: Data, seed: int) -> Iterator[Score]:
    """Of the twin, of the defaults, of the same without slow scales, and of the same with the prior N(0, 0.1)."""
    params = module.init(jax.random.key(seed), data.x[:2])["params"]
    adam = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    slow = optax.chain(adam, illia_fn.slow_scales())

    def apply_fn(params, x):
        return module.apply({"params": params}, x)

    def map_loss(params, x, y, key):
        nll = illia_fn.elbo_loss(apply_fn, params, x, y, key, num_data=len(data.x), kl_weight=0.0)
        return nll + sum(jnp.sum(jnp.square(w)) for w in jax.tree.leaves(params)) / (2 * len(data.x))

    yield score(apply_fn(train(map_loss, params, data, adam, seed), data.x_test)[None], data.y_test)
    elbo = partial(illia_fn.elbo_loss, apply_fn, num_data=len(data.x))
    for optimizer, options in ((slow, {}), (adam, {}), (slow, {"prior": illia_fn.Normal(0.0, 0.1)})):
        q = train(partial(elbo, **options), illia_fn.mean_field(params), data, optimizer, seed)
        outputs = illia_fn.predict(apply_fn, q, data.x_test, jax.random.key(seed), NETWORKS)
        kl = float(illia_fn.kl_loss(q, **options, reduction="sum")) / len(data.x)
        yield score(outputs, data.y_test)._replace(kl=kl)


def main(num_seeds: int = 3) -> None:
    rows, lost = [], []
    for name, (module, load) in PAIRS.items():
        data = load()
        runs = np.array([list(scores(module, data, seed)) for seed in range(num_seeds)])
        print(name, runs.mean(axis=0).round(3).tolist(), flush=True)
        cells = [f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})" for values in runs[:, :2, 0].T]
        nll, kl = runs[:, :, 1].mean(axis=0), runs[:, :, 2].mean(axis=0)
        fast, narrow = runs[:, 2:, 0].mean(axis=0)
        rows.append([name, cells[0], f"{nll[0]:.3f}", cells[1], f"{nll[1]:.3f}", f"{kl[1]:.1f}"])
        rows[-1] += [f"{value:.3f}" for value in (fast, nll[2], kl[2], narrow, nll[3])]
        lost.append(float(np.mean(runs[:, 0, 0] - runs[:, 1, 0])))
    columns = ["network, data", "twin: accuracy", "NLL", "defaults: accuracy", "NLL", "KL / N"]
    columns += ["without slow scales: accuracy", "NLL", "KL / N", "N(0, 0.1): accuracy", "NLL"]
    claim = Claim("accuracy lost by the defaults, worst of all pairs", max(lost), at_most=0.02)
    report("defaults", columns, rows, [claim])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
