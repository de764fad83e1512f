"""Claim: a planned step costs what one writes by hand for one model, and less than torch's Bayesian layers.

python -m benchmarks.coupling_time

Loss and gradient of the MLP with n = 8 samples, against local reparameterisation written for this MLP alone, against
one draw for the batch, and against the torch libraries. Run it on quiet cores: see `step_time`.
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks._models import MODELS, Params
from benchmarks._report import Claim, interleaved, report
from benchmarks.step_time import (
    BATCH,
    KEY,
    NUM_DATA,
    SCALE,
    TORCH,
    Step,
    cross_entropy,
    deterministic,
    ours,
    with_torch,
)
from illia_fn import Gaussian, Normal, kl_loss, mean_field

NUM_SAMPLES = 8
HAND, PLANNED, FLIPOUT, SHARED = "written by hand", "ours, decorrelated", "ours, flipout", "ours, shared"
UNREPORTED = "a pass after torch's last call"  # whose threads still spin


def by_hand(params: Params, x: np.ndarray, y: np.ndarray, n: int) -> Step:
    """Local reparameterisation of this MLP."""

    def layer(q: dict[str, Gaussian], x: jax.Array, key: jax.Array) -> jax.Array:
        mean = x @ q["kernel"].loc + q["bias"].loc
        variance = jnp.square(x) @ jnp.square(q["kernel"].scale) + jnp.square(q["bias"].scale)
        return mean + jnp.sqrt(variance) * jax.random.normal(key, mean.shape)

    def loss(q: Params, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        def nll(key: jax.Array) -> jax.Array:
            keys = jax.random.split(key, 3)
            h = jax.nn.relu(layer(q["dense_0"], x, keys[0]))
            h = jax.nn.relu(layer(q["dense_1"], h, keys[1]))
            return cross_entropy(layer(q["dense_2"], h, keys[2]), y).mean()

        kl = kl_loss(q, Normal(0.0, 0.1), reduction="sum") / NUM_DATA
        return jax.vmap(nll)(jax.random.split(key, n)).mean() + kl

    step = jax.jit(jax.value_and_grad(loss))
    return partial(step, mean_field(params, scale=SCALE), *map(jnp.asarray, (x, y)), KEY)


def steps() -> dict[str, Step]:
    rng, (init, apply) = np.random.default_rng(0), MODELS["MLP"]
    params = init(0)
    x, y = rng.uniform(size=(BATCH, 784)).astype(np.float32), rng.integers(10, size=BATCH)
    functions: dict[str, Callable] = {UNREPORTED: deterministic(apply, params, x, y, NUM_SAMPLES)}
    functions[HAND] = by_hand(params, x, y, NUM_SAMPLES)
    for name, coupling in (PLANNED, "decorrelated"), (FLIPOUT, "flipout"), (SHARED, "shared"):
        functions[name] = ours(apply, params, x, y, NUM_SAMPLES, coupling=coupling)
    return functions | {name: with_torch(name, params, x, y, NUM_SAMPLES) for name in TORCH}


def main(rounds: int = 21) -> None:
    """Time every method in turn, print the table, and check the claims."""
    torch.set_num_threads(2)
    seconds = interleaved(steps(), rounds)
    del seconds[UNREPORTED]
    rows = [[name, 1e3 * time, f"{time / seconds[PLANNED]:.2f}"] for name, time in seconds.items()]
    fastest = min(TORCH, key=seconds.__getitem__)
    claims = [
        Claim("decorrelated / written by hand", seconds[PLANNED] / seconds[HAND], at_most=1.3),
        Claim(
            f"{fastest}, the fastest torch library / decorrelated", seconds[fastest] / seconds[PLANNED], at_least=1.6
        ),
    ]

    def draw(axes: plt.Axes) -> None:
        axes.bar_label(axes.barh(list(seconds), [1e3 * time for time in seconds.values()]), fmt="%.0f", padding=2)
        axes.invert_yaxis()
        axes.set_xlabel("MLP, loss and gradient with n = 8 samples (ms)")

    report("coupling_time", ["MLP, n = 8", "ms", "of decorrelated"], rows, claims, draw)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=21)
    main(**vars(parser.parse_args()))
