"""Claim: a step of the ELBO takes at most 3 times as long to compile as the deterministic step, for 300 leaves.

python -m benchmarks.compile_time

Three models. "transformer" is that of the other benchmarks with 2, 8 and 25 blocks. The other two are worst cases, with
nothing but a matrix product for every two leaves: a deep residual network whose layers go from 32 units to a wider
layer and back. Equal shapes share work in a trace and kernels in the compiled step, so there are two of it: "two
widths" alternates between 32 and 48, and in "all widths" no two wider layers are alike. The claim is on the
transformer; the worst cases are held to 5. Each time is that of a fresh trace and compilation, in turn, without the
compilation cache.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._models import transformer, transformer_init
from benchmarks._report import Claim, report
from illia_fn import Normal, elbo_loss, mean_field

WIDTHS = {"two widths": lambda block: 48, "all widths": lambda block: 33 + block}  # noqa: ARG005
SIZES = {"transformer": (2, 8, 25), "two widths": (6, 30, 100, 300), "all widths": (6, 30, 100, 300)}
NARROW = 32
ROUNDS = 2

Params = list[tuple[jax.Array, jax.Array]]


def residual_init(num_leaves: int, width_of: Callable[[int], int]) -> Params:
    params = []
    for layer in range(num_leaves // 2):
        wide = width_of(layer // 2)
        rows, columns = (wide, NARROW) if layer % 2 else (NARROW, wide)
        params.append((jnp.zeros((rows, columns)), jnp.zeros(columns)))
    return params


def residual(params: Params, x: jax.Array) -> jax.Array:
    skip = x = x[:, :NARROW]
    for layer, (w, b) in enumerate(params):
        x = jax.nn.relu(x @ w + b)
        if layer % 2:
            x = skip = skip + x
    return x


def model(name: str, size: int) -> tuple[Callable, Any]:
    """(apply, params)."""
    if name == "transformer":
        return transformer, transformer_init(0, size)
    return residual, residual_init(size, WIDTHS[name])


def deterministic_loss(apply: Callable, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()


def bayesian_loss(apply: Callable, q: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    return elbo_loss(apply, q, x, y, key, 8, prior=Normal(0.0, 0.1), num_data=60_000)


def compile_times(losses: dict[str, tuple[Callable[..., Any], tuple]]) -> dict[str, np.ndarray]:
    """The median seconds of (trace and lower, compile, both) of the value and gradient of each loss(*args)."""
    times = {name: [] for name in losses}
    for _ in range(ROUNDS):
        for name, (loss, args) in losses.items():
            jax.clear_caches()
            start = time.perf_counter()
            lowered = jax.jit(jax.value_and_grad(loss)).lower(*args)
            middle = time.perf_counter()
            lowered.compile()
            end = time.perf_counter()
            times[name].append((middle - start, end - middle, end - start))
    return {name: np.median(rounds, axis=0) for name, rounds in times.items()}


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    x, y, key = jnp.ones((128, 784)), jnp.zeros(128, jnp.int32), jax.random.key(0)
    rows, counts, ratios = [], {name: [] for name in SIZES}, {name: [] for name in SIZES}
    for name, size in ((name, size) for name, sizes in SIZES.items() for size in sizes):
        apply, params = model(name, size)
        losses = {"deterministic": (partial(deterministic_loss, apply), (params, x, y))}
        losses["ELBO"] = (partial(bayesian_loss, apply), (mean_field(params, scale=0.02), x, y, key))
        deterministic, bayesian = compile_times(losses).values()
        ratio = bayesian / deterministic
        counts[name].append(len(jax.tree.leaves(params)))
        ratios[name].append(float(ratio[-1]))
        rows.append([name, counts[name][-1], *map(float, [deterministic[-1], bayesian[-1], *ratio[::-1]])])

    def draw(axes: Any) -> None:
        for name, values in ratios.items():
            axes.semilogx(counts[name], values, "o-", label=name)
        axes.set(ylim=0, xlabel="leaves", ylabel="compile time, ELBO / deterministic")
        axes.legend()

    columns = ["model", "leaves", "deterministic (s)", "ELBO (s)", "ratio", "of XLA alone", "of the trace alone"]
    bounds = {"transformer": 3.0, "two widths": 5.0, "all widths": 5.0}
    claims = [
        Claim(f"ELBO / deterministic, {counts[name][-1]} leaves, {name}", ratios[name][-1], at_most=bound)
        for name, bound in bounds.items()
    ]
    report("compile_time", columns, rows, claims, draw)


if __name__ == "__main__":
    main()
