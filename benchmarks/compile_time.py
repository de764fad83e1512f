"""Claim: a step of the ELBO takes at most 3 times as long to compile as the deterministic step, for 300 leaves.

And where there are few leaves: with noise of each example's own, at most 1.1 times a step by hand with shared noise.

python -m benchmarks.compile_time

Three models with more and more leaves. "transformer" is that of the other benchmarks with 2, 8 and 25 blocks. The other
two are worst cases, with nothing but a matrix product for every two leaves: a deep residual network whose layers go
from 32 units to a wider layer and back. Equal shapes share work in a trace and kernels in the compiled step, so there
are two of it: "two widths" alternates between 32 and 48, and in "all widths" no two wider layers are alike. The claim
is on the transformer; the worst cases are held to 5. Then four models with the few leaves that they have, and four
samples: with noise that the examples share, with noise of each example's own ("decorrelated"), and beside it the
functions that `benchmarks.step_time` has, with all networks at once and with one after another. Each time is that of a
fresh trace and compilation, in turn, without the compilation cache.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._models import MODELS, Model, transformer, transformer_init
from benchmarks._report import Claim, report
from benchmarks.step_time import ours, straightforward, with_numpyro
from illia_fn import Normal, elbo_loss, mean_field

WIDTHS = {"two widths": lambda block: 48, "all widths": lambda block: 33 + block}  # noqa: ARG005
SIZES = {"transformer": (2, 8, 25), "two widths": (6, 30, 100, 300), "all widths": (6, 30, 100, 300)}
NARROW = 32
ROUNDS = 3

BY_HAND = "twenty lines of plain JAX (vmap)", "twenty lines of plain JAX (map)"
FEW = {
    "shared": partial(ours, n=4),
    "decorrelated": partial(ours, n=4, coupling="decorrelated"),
    BY_HAND[0]: partial(straightforward, n=4),
    BY_HAND[1]: partial(straightforward, n=4, over=jax.lax.map),
    "numpyro": partial(with_numpyro, n=4, vectorised=False),
}

Params = list[tuple[jax.Array, jax.Array]]


def lstm_init(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (28, 4 * NARROW), "h": (NARROW, 4 * NARROW), "bias": (4 * NARROW,), "output": (NARROW, 10)}
    return {name: jnp.asarray(0.1 * rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}


def lstm(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Over the rows of an image."""

    def cell(state: tuple[jax.Array, jax.Array], row: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        memory, h = state
        gates = jnp.split(row @ params["x"] + h @ params["h"] + params["bias"], 4, axis=-1)
        kept, added, shown = map(jax.nn.sigmoid, gates[:3])
        memory = kept * memory + added * jnp.tanh(gates[3])
        return (memory, shown * jnp.tanh(memory)), None

    start = jnp.zeros((len(x), NARROW))
    (_, h), _ = jax.lax.scan(cell, (start, start), x.reshape(-1, 28, 28).swapaxes(0, 1))
    return h @ params["output"]


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


def compile_times(steps: dict[str, partial]) -> dict[str, np.ndarray]:
    """The median seconds of (trace and lower, compile, both) of each partial(jax.jit(f), *args)."""
    times = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            jax.clear_caches()
            start = time.perf_counter()
            lowered = step.func.lower(*step.args)
            middle = time.perf_counter()
            lowered.compile()
            end = time.perf_counter()
            times[name].append((middle - start, end - middle, end - start))
    return {name: np.median(rounds, axis=0) for name, rounds in times.items()}


def with_few_leaves() -> tuple[dict[tuple[str, str], float], list[list[Any]]]:
    """The seconds of each model and method, and the rows of the table."""
    seconds, rows = {}, []
    for name, (init, apply) in ({"LSTM": Model(lstm_init, lstm)} | MODELS).items():
        args = apply, init(0), np.ones((128, 784), np.float32), np.zeros(128, np.int32)
        steps = {"": partial(jax.jit(jax.value_and_grad(partial(deterministic_loss, apply))), *args[1:])}
        deterministic, *times = compile_times(steps | {key: make(*args) for key, make in FEW.items()}).values()
        for method, each in zip(FEW, times, strict=True):
            seconds[name, method] = float(each[-1])
            label, leaves = f"{name}, n = 4: {method}", len(jax.tree.leaves(args[1]))
            rows.append([label, leaves, *map(float, [deterministic[-1], each[-1], *(each / deterministic)[::-1]])])
    return seconds, rows


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    x, y, key = jnp.ones((128, 784)), jnp.zeros(128, jnp.int32), jax.random.key(0)
    rows, counts, ratios = [], {name: [] for name in SIZES}, {name: [] for name in SIZES}
    for name, size in ((name, size) for name, sizes in SIZES.items() for size in sizes):
        apply, params = model(name, size)
        losses = [partial(deterministic_loss, apply), partial(bayesian_loss, apply)]
        args = [(params, x, y), (mean_field(params, scale=0.02), x, y, key)]
        both = [partial(jax.jit(jax.value_and_grad(loss)), *each) for loss, each in zip(losses, args, strict=True)]
        deterministic, bayesian = compile_times(dict(enumerate(both))).values()
        ratio = bayesian / deterministic
        counts[name].append(len(jax.tree.leaves(params)))
        ratios[name].append(float(ratio[-1]))
        rows.append([name, counts[name][-1], *map(float, [deterministic[-1], bayesian[-1], *ratio[::-1]])])

    few, more = with_few_leaves()
    rows += more

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
    claims += [
        Claim(
            f"{name}, n = 4: decorrelated / better of plain JAX",
            few[name, "decorrelated"] / min(few[name, method] for method in BY_HAND),
            at_most=1.1,
        )
        for name in ("LSTM", *MODELS)
    ]
    report("compile_time", columns, rows, claims, draw)


if __name__ == "__main__":
    main()
