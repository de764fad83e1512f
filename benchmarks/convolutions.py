"""Claim: in a loop over steps, a convolutional network trains as fast as step by step, if its step is wrapped.

The steps of a CNN within one `jax.lax.scan`, as they are and under `engine.fast_convolutions`, against the same steps
one call each: a deterministic network, and one sample of the ELBO.

python -m benchmarks.convolutions [--rounds N] [--quick]
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._models import CLASSES, MODELS, SIDE
from benchmarks._report import Claim, interleaved, report
from illia_fn import elbo_loss, mean_field
from illia_fn.engine import fast_convolutions

BATCH, NUM_DATA, STEPS = 64, 60_000, 4
KINDS = ("deterministic", "ELBO, n = 1", "ELBO, n = 1, decorrelated")


def runs(kind: str) -> dict[str, Callable[[], Any]]:
    """`STEPS` steps: one by one, in a loop, and in a loop with fast convolutions."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(STEPS, BATCH, SIDE * SIDE)), jnp.float32)
    y = jnp.asarray(generator.integers(0, CLASSES, (STEPS, BATCH)))
    keys = jax.random.split(jax.random.key(0), STEPS)
    init, apply_fn = MODELS["CNN"]
    optimizer = optax.adam(1e-3)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss(q: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        if kind == "deterministic":
            return jnp.mean(cross_entropy(apply_fn(q, x), y))
        coupling = "decorrelated" if "decorrelated" in kind else "shared"
        return elbo_loss(apply_fn, q, x, y, key, num_data=NUM_DATA, loss_fn=cross_entropy, coupling=coupling)

    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        q, optimizer_state = state
        value, grads = jax.value_and_grad(loss)(q, *batch)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, q)
        return (optax.apply_updates(q, updates), optimizer_state), value

    q = init(0) if kind == "deterministic" else mean_field(init(0))
    state, batches = (q, optimizer.init(q)), (x, y, keys)
    one, batch_list = jax.jit(step), list(zip(x, y, keys, strict=True))

    def one_by_one() -> Any:
        current = state
        for batch in batch_list:
            current, _ = jax.block_until_ready(one(current, batch))
        return current

    loop = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches)[0])
    fast_loop = jax.jit(lambda state, batches: jax.lax.scan(fast_convolutions(step), state, batches)[0])
    in_loops = {"scan": partial(loop, state, batches), "scan, fast": partial(fast_loop, state, batches)}
    return {"one by one": one_by_one, **in_loops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="3 rounds, and no claims")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    rows, claims = [], []
    for kind in KINDS:
        seconds = interleaved(runs(kind), rounds)
        alone = seconds["one by one"]
        rows.append([kind, 1e3 * alone / STEPS, *(seconds[name] / alone for name in ("scan", "scan, fast"))])
        claims.append(Claim(f"{kind}: under scan with fast convolutions / one by one", rows[-1][-1], at_most=1.25))
        claims.append(
            Claim(f"{kind}: under scan as it is / with fast convolutions", rows[-1][2] / rows[-1][3], at_least=3.0)
        )
    columns = ["CNN, 64 images of 28x28", "ms per step, one by one", "under scan, times that", "fast_convolutions"]
    report("convolutions", columns, rows, () if options.quick else claims)


if __name__ == "__main__":
    main()
