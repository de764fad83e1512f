"""How long until the first step? Asserted.

Every figure is of processes that start from nothing, without a compilation cache: the import, and then what the first
call of each function costs, with the number of programs that XLA compiles for it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._report import Claim, report

IMPORTS = """
import json, time
start = time.process_time()
import jax, optax
others = time.process_time() - start
import illia_fn
print(json.dumps([others, time.process_time() - start]))
"""
STEPS = ("deterministic", "shared", "decorrelated")
ROUNDS = 5
CALLS = ("elbo_loss", "kl_loss", "check_setup", "predict", "summary")


def fresh(*command: str) -> Any:
    """What a new process prints, whose bytecode is compiled as that of an installed package is."""
    with_bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": tempfile.gettempdir() + "/illia_fn-bytecode"}
    without_cache = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = os.environ | with_bytecode | without_cache
    return json.loads(
        subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True).stdout
    )


def parts() -> tuple[Any, ...]:
    """The model and the data of the README's first example."""
    import jax.numpy as jnp
    from flax import nnx
    from sklearn.datasets import load_digits

    import illia_fn

    digits = load_digits()
    x, y = jnp.asarray(digits.data / 16.0, jnp.float32), jnp.asarray(digits.target)
    network = nnx.Sequential(nnx.Linear(64, 100, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(100, 10, rngs=nnx.Rngs(1)))
    return illia_fn.frameworks.from_nnx(network), x, y


def first_step(kind: str) -> float:
    """Seconds from parameters to the parameters after one step."""
    import jax
    import jax.numpy as jnp
    import optax

    import illia_fn

    model, x, y = parts()
    num_data = len(x)
    optimizer, apply_fn = optax.adam(optax.cosine_decay_schedule(1e-2, 1000)), model.eval_fn()
    start = time.perf_counter()
    q, key = model.params, jax.random.key(0)
    if kind != "deterministic":
        q = illia_fn.mean_field(q)
        optimizer = optax.chain(optimizer, illia_fn.slow_scales())

    def loss(q: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        if kind == "deterministic":
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(apply_fn(q, x), y))
        return illia_fn.elbo_loss(apply_fn, q, x, y, key, num_data=num_data, coupling=kind)

    @jax.jit
    def step(q: Any, state: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(q, x, y, key), state, q)
        return optax.apply_updates(q, updates), state

    jax.block_until_ready(step(q, optimizer.init(q), x[:128], y[:128], key))
    return time.perf_counter() - start


def eager(name: str) -> list[float]:
    """Seconds and programs of the first call and of the second one, outside of a jit."""
    import jax

    import illia_fn

    programs: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: programs.append(event) if "backend_compile" in event else None
    )
    model, x, y = parts()
    q, key, f = illia_fn.mean_field(model.params), jax.random.key(0), model.eval_fn()
    batch = x[:128], y[:128]
    calls: dict[str, Callable[[], Any]] = {
        "elbo_loss": lambda: illia_fn.elbo_loss(f, q, *batch, key, num_data=len(x)),
        "kl_loss": lambda: illia_fn.kl_loss(q),
        "check_setup": lambda: illia_fn.check_setup(f, q, *batch, key, num_data=len(x)).nll,
        "predict": lambda: illia_fn.predict(f, q, batch[0], key, 32),
        "summary": lambda: illia_fn.summary(q).kl,
    }
    jax.block_until_ready((q, batch))
    found: list[float] = []
    for _ in range(2):
        before, start = len(programs), time.perf_counter()
        jax.block_until_ready(calls[name]())
        found += [time.perf_counter() - start, len(programs) - before]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, name = arguments.child
        print(json.dumps(first_step(name) if kind == "step" else eager(name)))
        return
    fresh("-c", IMPORTS)  # writes the bytecode
    child = ("-m", "benchmarks.cold_start", "--child")
    imports = np.array([fresh("-c", IMPORTS) for _ in range(2 * ROUNDS + 1)])
    steps = np.array([[fresh(*child, "step", kind) for kind in STEPS] for _ in range(ROUNDS)])
    calls = np.array([[fresh(*child, "call", name) for name in CALLS] for _ in range(ROUNDS)])
    ratio = float(np.median(imports[:, 1] / imports[:, 0]))
    rows = [["`import jax, optax, illia_fn`, over `import jax, optax`", f"{ratio:.2f}", ""]]
    medians = np.median(steps, axis=0)
    for kind, seconds in zip(STEPS, medians, strict=True):
        rows.append([f"first step, {kind}", f"{seconds:.2f} s ({seconds / medians[0]:.1f} of deterministic)", ""])
    for name, (first, programs, second, more) in zip(CALLS, np.median(calls, axis=0), strict=True):
        rows.append(
            [
                f"`{name}` outside of a jit",
                f"{first:.2f} s, then {1e3 * second:.0f} ms",
                f"{programs:.0f}, then {more:.0f}",
            ]
        )
    once = [number for name, (*_, number) in zip(CALLS, calls.max(axis=0), strict=True) if name != "check_setup"]
    claims = [
        Claim("`import illia_fn` with jax and optax / without", ratio, at_most=1.15),
        Claim("programs compiled by a second call of the same functions and shapes", max(once), at_most=0),
    ]
    report("cold_start", ["what", "time", "programs compiled"], rows, claims)


if __name__ == "__main__":
    main()
