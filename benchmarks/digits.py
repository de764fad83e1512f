"""Claim: the demo's Bayesian network stays accurate, and is less wrong than its deterministic twin where both are lost.

python -m benchmarks.digits [SEEDS]
"""

import sys

import numpy as np

from illia_fn.__main__ import train
from illia_fn._demo import data
from illia_fn._demo.report import class_metrics, predict_classes


def main(num_seeds: int = 4) -> None:
    """Train both networks with each seed, print the mean of each figure and its range, and check the claim."""
    dataset = data.digits()
    scores = {}
    for seed in range(num_seeds):
        apply_fn, networks, _ = train(dataset, "elbo", seed, epochs=100, num_samples=1)
        for name, inputs in predict_classes(dataset, apply_fn, networks, seed).items():
            for kind, probs in inputs.items():
                for metric, value in class_metrics(probs, None if kind == "noise" else dataset.y_test).items():
                    scores.setdefault((kind, metric), {}).setdefault(name, []).append(value)

    print(f"| inputs | | {' | '.join(networks)} |\n|---|---|{'---|' * len(networks)}")
    for (kind, metric), columns in scores.items():
        cells = [f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in columns.values()]
        print(f"| {kind} | {metric} | {' | '.join(cells)} |")

    accuracy = scores["held out", "accuracy"]["Bayesian"]
    assert min(accuracy) >= 0.97, f"held-out accuracy {min(accuracy):.3f}"
    for metric in ("negative log-likelihood (nats)", "expected calibration error"):
        rotated = scores["rotated by 45°", metric]
        for seed, (bayesian, deterministic) in enumerate(zip(*rotated.values(), strict=True)):
            assert bayesian < deterministic, f"{metric}, seed {seed}: {bayesian:.3f} against {deterministic:.3f}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
