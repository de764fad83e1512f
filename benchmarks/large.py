"""Claim: in XLA's order for memory, a step of a transformer of 110M parameters takes little more than what it keeps.

python -m benchmarks.large

That is the posterior, twice the parameters of the network, its gradients, and the two moments of Adam: four times the
posterior. The step donates what it updates. "Planned" is XLA's plan, "resident" the peak of one step after a first, as
in `benchmarks.memory`; both hold all of that, and what comes in between. By itself XLA orders on a CPU what it computes
by how much of it can run at once; the other rows have the order that is made for memory, OPTIONS, an argument of
`jax.jit`. The times of both are taken in turn, in one process.
"""

import json
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import illia_fn
from benchmarks._memory import in_a_fresh_process, raised_peak
from benchmarks._report import Claim, report

OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
WIDTH, HEADS, LAYERS, TOKENS = 768, 12, 12, 32_000
BATCH, LENGTH, ROUNDS = 4, 128, 3
CASES = ("deterministic", "shared", "shared, in bfloat16", "decorrelated")


def init() -> dict[str, Any]:
    """The widths and the depth of GPT-2, with one array for the embedding and for the logits."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(0.02 * rng.standard_normal(shape, np.float32))

    def block() -> dict[str, jax.Array]:
        inner, outer = {"qkv": (WIDTH, 3 * WIDTH), "up": (WIDTH, 4 * WIDTH)}, {"out": WIDTH, "down": 4 * WIDTH}
        weights = {name: normal(*shape) for name, shape in inner.items()}
        weights |= {name: normal(size, WIDTH) for name, size in outer.items()}
        biases = {"up_bias": 4 * WIDTH, "down_bias": WIDTH}
        return weights | {name: jnp.zeros(size) for name, size in biases.items()} | {"norms": jnp.ones((2, WIDTH))}

    blocks = {f"block_{i}": block() for i in range(LAYERS)}
    return blocks | {"tokens": normal(TOKENS, WIDTH), "places": normal(LENGTH, WIDTH), "norm": jnp.ones(WIDTH)}


def normalised(x: jax.Array, gain: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
    return (wide * scale).astype(x.dtype) * gain


@jax.checkpoint
def block(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    heads = (normalised(x, w["norms"][0]) @ w["qkv"]).reshape(*x.shape[:2], 3, HEADS, -1)
    attended = jax.nn.dot_product_attention(*(heads[:, :, i] for i in range(3)), is_causal=True)
    x = x + attended.reshape(x.shape) @ w["out"]
    return x + jax.nn.gelu(normalised(x, w["norms"][1]) @ w["up"] + w["up_bias"]) @ w["down"] + w["down_bias"]


def apply_fn(dtype: Any, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    params = jax.tree.map(lambda w: w.astype(dtype), params)
    x = params["tokens"][tokens] + params["places"]
    for i in range(LAYERS):
        x = block(params[f"block_{i}"], x)
    return (normalised(x, params["norm"]) @ params["tokens"].T).astype(jnp.float32)


def make_step(case: str) -> tuple[Any, Any, Any]:
    """(q, state, x, y, key) -> (q, state, loss), q and the state."""
    params, optimizer = init(), optax.adam(1e-4)
    model = partial(apply_fn, jnp.bfloat16 if case.endswith("bfloat16") else jnp.float32)
    coupling = "decorrelated" if case == "decorrelated" else "shared"

    def loss(q: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        if case == "deterministic":
            return optax.softmax_cross_entropy_with_integer_labels(model(q, x), y).mean()
        return illia_fn.elbo_loss(model, q, x, y, key, num_data=10**6, coupling=coupling)

    def step(q: Any, state: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(q, x, y, key)
        updates, state = optimizer.update(grads, state, q)
        return optax.apply_updates(q, updates), state, value

    q = params if case == "deterministic" else illia_fn.mean_field(params)
    return step, q, optimizer.init(q)


def measure(case: str) -> list[dict[str, float]]:
    """Gigabytes and seconds of a step, as XLA has it by itself and in the order for memory."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # noqa: FBT003
    step, q, state = make_step(case)
    batch = jnp.asarray(np.random.default_rng(1).integers(0, TOKENS, (BATCH, LENGTH)))
    args = batch, jnp.roll(batch, -1, axis=1), jax.random.key(0)
    steps = [
        jax.jit(step, donate_argnums=(0, 1), compiler_options=options).lower(q, state, *args).compile()
        for options in ({}, OPTIONS)
    ]
    kept = 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(q))
    found = []
    for run in steps:
        q, state, _ = run(q, state, *args)
        peak, (q, state, value) = raised_peak(partial(run, q, state, *args))
        assert jnp.isfinite(value)
        plan = run.memory_analysis()
        arguments = plan.argument_size_in_bytes
        planned = arguments + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        found.append({"kept": kept / 1e9, "planned": planned / 1e9, "resident": (arguments + peak) / 1e9})
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for run, seconds in zip(steps, times, strict=True):
            start = time.perf_counter()
            q, state, _ = run(q, state, *args)
            seconds.append(time.perf_counter() - start)
    return [sizes | {"seconds": float(np.median(each))} for sizes, each in zip(found, times, strict=True)]


def main() -> None:
    rows, claims = [], []
    for case in CASES:
        for order, found in zip(("XLA's own", "for memory"), in_a_fresh_process("large", case), strict=True):
            ratios = {figure: found[figure] / found["kept"] for figure in ("planned", "resident")}
            row = [case, order, found["kept"]]
            rows.append([*row, *[f"{found[figure]:.3g} ({ratios[figure]:.2f})" for figure in ratios], found["seconds"]])
            print(*rows[-1], flush=True)
            if case != "deterministic" and order == "for memory":
                claims += [
                    Claim(f"{figure} / kept, {case}, {order}", ratio, at_most=1.5) for figure, ratio in ratios.items()
                ]
    columns = ["step", "order", "kept (GB)", "planned (GB; of kept)", "resident (GB; of kept)", "seconds"]
    report("large", columns, rows, claims)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(measure(sys.argv[1])))
