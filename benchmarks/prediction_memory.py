"""Claim: 1e6 examples x 32 networks are predicted, and summarised, in the memory of one batch.

python -m benchmarks.prediction_memory

The inputs are a file that NumPy maps, and the results are three numbers for each example (the probability of the
likeliest class, the entropy, and its epistemic part). "Peak" is that above what the process held before, compilation
included; pages of the file, which the kernel keeps as it likes, are left out (RssAnon, read every millisecond). The
outputs of all networks for all examples would take 1.28 GB.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._memory import in_a_fresh_process
from benchmarks._report import Claim, report
from illia_fn import class_summary, mean_field, predict

NETWORKS, CLASSES, FEATURES = 32, 10, 20
EXAMPLES = (10_000, 100_000, 1_000_000)


def apply_fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["w0"]) @ params["w1"]


def summarise(logits: jax.Array) -> dict[str, jax.Array]:
    found = class_summary(jax.nn.softmax(logits))
    return {"confidence": found.probs.max(axis=1), "total": found.total, "epistemic": found.epistemic}


def anonymous() -> int:
    """Bytes of memory of this process's own, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def measure(count: int, batch_size: int) -> tuple[float, float]:
    """Seconds, and the peak in MB above what was held before the call."""
    params = {"w0": jnp.ones((FEATURES, 64)) / 8, "w1": jnp.ones((64, CLASSES)) / 8}
    q, key = mean_field(params, scale=0.1), jax.random.key(0)
    with tempfile.TemporaryDirectory() as folder:
        x = np.memmap(Path(folder, "x"), np.float32, "w+", shape=(count, FEATURES))
        x[:] = np.random.default_rng(0).normal(size=(1, FEATURES))
        options = {"batch_size": batch_size, "reduce": summarise, "chunk_size": 1}
        peak, done, before = [0], threading.Event(), anonymous()

        def watch() -> None:
            while not done.wait(0.001):
                peak[0] = max(peak[0], anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        found = predict(apply_fn, q, x, key, NETWORKS, **options)
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    assert found["total"].shape == (count,)
    return seconds, (peak[0] - before) / 1e6


def main() -> None:
    rows, peaks = [], {}
    for batch_size in (1000, 10_000):
        for count in EXAMPLES:
            seconds, peak = in_a_fresh_process("prediction_memory", count, batch_size)
            results = 3 * 4 * count / 1e6
            peaks[batch_size, count] = peak - results
            rows.append([batch_size, count, seconds, 1e6 * seconds / count, peak, results])
    outputs = 4 * NETWORKS * EXAMPLES[-1] * CLASSES / 1e6
    whole = max(peaks[size, EXAMPLES[-1]] for size in (1000, 10_000))
    text = "memory beyond the results, 1e6 examples / 1e5 examples, batches of 10 000"
    claims = [
        Claim("memory beyond the results, 1e6 examples / outputs of all networks", whole / outputs, at_most=0.15),
        Claim(text, peaks[10_000, 1_000_000] / peaks[10_000, 100_000], at_most=1.5),
    ]
    columns = ["batch_size", "examples", "seconds", "microseconds per example", "peak (MB)", "of which results (MB)"]
    report("prediction_memory", columns, rows, claims)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(measure(*map(int, sys.argv[1:]))))
