"""Regression on tables: the standard splits, a network that predicts (loc, rho), and training on all splits at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import illia_fn

WIDTH = 50


class Splits(NamedTuple):
    """S splits of one data set, standardised by their training rows; every array has a leading axis of splits.

    Attributes:
        x, y: the training rows, (S, N, F) and (S, N).
        x_test, y_test: what is scored.
        scale: the standard deviation of y in its own units, (S,).
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    scale: np.ndarray

    @property
    def num_data(self) -> int:
        return self.x.shape[1]

    def validation(self) -> "Splits":
        """A fifth of the training rows in the place of the test rows, which are not looked at."""
        held_out = self.num_data // 5
        parts = [np.random.default_rng(split).permutation(self.num_data) for split in range(len(self.x))]
        index = np.stack(parts)
        rows = [np.take_along_axis(self.x, index[:, :, None], axis=1), np.take_along_axis(self.y, index, axis=1)]
        (x_test, x), (y_test, y) = (np.split(array, [held_out], axis=1) for array in rows)
        return Splits(x, y, x_test, y_test, self.scale)


def load(folder: Path, name: str, num_splits: int) -> Splits:
    """FOLDER/NAME.npz with x, y and test_index; or FOLDER/NAME/data/ in the layout of the public UCI_Datasets."""
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz") as file:
            x, y, tests = file["x"], file["y"], list(file["test_index"])
    else:
        data = folder / name / "data"
        table = np.loadtxt(data / "data.txt")
        columns, target = (np.loadtxt(data / f"index_{what}.txt", dtype=int) for what in ("features", "target"))
        x, y = table[:, columns], table[:, int(target)]
        count = int(np.loadtxt(data / "n_splits.txt"))
        tests = [np.loadtxt(data / f"index_test_{split}.txt", dtype=int) for split in range(count)]
    return standardised(x, y, tests, num_splits)


def standardised(x: np.ndarray, y: np.ndarray, tests: Sequence[np.ndarray], num_splits: int) -> Splits:
    """The first splits of a table whose test rows are known; as many of these as the smallest has."""
    size = min(map(len, tests))
    splits = []
    for test in tests[:num_splits]:
        train = np.setdiff1d(np.arange(len(x)), test)
        of_x, of_y = (_standard(array[train]) for array in (x, y))
        rows = [x[train] - of_x.mean, y[train] - of_y.mean, x[test[:size]] - of_x.mean, y[test[:size]] - of_y.mean]
        scales = [of_x.scale, of_y.scale] * 2
        parts = [np.float32(array / scale) for array, scale in zip(rows, scales, strict=True)]
        splits.append((*parts, np.float32(of_y.scale)))
    return Splits(*map(np.stack, zip(*splits, strict=True)))


class _Standard(NamedTuple):
    mean: np.ndarray
    scale: np.ndarray


def _standard(array: np.ndarray) -> _Standard:
    scale = array.std(axis=0)
    return _Standard(array.mean(axis=0), np.where(scale > 0, scale, 1.0))


def init(key: jax.Array, num_features: int) -> dict[str, dict[str, jax.Array]]:
    """One hidden layer of fifty units, as in every published table; two outputs, a mean and the rho of a scale."""
    hidden, output = jax.random.split(key)
    return {
        "hidden": {
            "kernel": jax.random.normal(hidden, (num_features, WIDTH)) / num_features**0.5,
            "bias": jnp.zeros(WIDTH),
        },
        "output": {"kernel": jax.random.normal(output, (WIDTH, 2)) / WIDTH**0.5, "bias": jnp.zeros(2)},
    }


def network(params: Any, x: jax.Array, hidden: Callable[[jax.Array], jax.Array] = lambda h: h) -> Any:
    units = hidden(jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"]))
    outputs = units @ params["output"]["kernel"] + params["output"]["bias"]
    return outputs[:, 0], outputs[:, 1]


def fit(
    loss: Callable[..., jax.Array],
    params: Any,
    data: Splits,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int,
    key: jax.Array,
) -> Any:
    """Minimise loss(params, x, y, key) on every split; params have a leading axis of splits."""
    size = min(batch_size, data.num_data)

    def of_split(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        def step(carry: Any, key: jax.Array) -> Any:
            params, state = carry
            batch_key, loss_key = jax.random.split(key)
            batch = jnp.arange(len(x))
            if size < len(x):
                batch = jax.random.randint(batch_key, (size,), 0, len(x))
            grads = jax.grad(loss)(params, x[batch], y[batch], loss_key)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), ()

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]

    return jax.jit(jax.vmap(of_split))(params, data.x, data.y, jax.random.split(key, len(data.x)))


def score(outputs_of: Callable[..., Any], params: Any, data: Splits, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The mean log-likelihood of the test rows in the units of y, and the root mean squared error, each (S,).

    outputs_of(params, x, key) are those of several networks, (networks, B).
    """

    def of_split(params: Any, x: jax.Array, y: jax.Array, scale: jax.Array, key: jax.Array) -> Any:
        outputs = outputs_of(params, x, key)
        log_prob = illia_fn.predictive_log_prob(illia_fn.gaussian_nll, outputs, y)
        error = illia_fn.predictive_moments(illia_fn.gaussian_nll, outputs).mean - y
        return jnp.mean(log_prob) - jnp.log(scale), scale * jnp.sqrt(jnp.mean(jnp.square(error)))

    parts = data.x_test, data.y_test, data.scale, jax.random.split(key, len(data.x))
    log_prob, error = jax.jit(jax.vmap(of_split))(params, *parts)
    return np.asarray(log_prob), np.asarray(error)
