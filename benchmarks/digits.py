"""Claim: the demo's Bayesian network stays accurate, and is less wrong than its deterministic twin where both are lost.

python -m benchmarks.digits [SEEDS]
"""

import sys

import numpy as np

from benchmarks._report import RESULTS, Claim, report
from illia_fn import plots
from illia_fn.__main__ import train
from illia_fn._demo import data
from illia_fn._demo.report import class_metrics, predict_classes

NETWORKS = ("Bayesian", "deterministic")


def main(num_seeds: int = 4) -> None:
    """Train both networks with each seed; the mean of each figure and its range, and the picture of the first seed."""
    dataset = data.digits()
    scores = {}
    for seed in range(num_seeds):
        apply_fn, networks, _ = train(dataset, "elbo", seed, epochs=100, num_samples=1)
        predictions = predict_classes(dataset, apply_fn, networks, seed)
        if seed == 0:
            figure = plots.classification_figure(predictions, dataset.y_test, dataset.classes, dataset.x_test)
            figure.savefig(RESULTS / "digits.png", dpi=90)
        for name, inputs in predictions.items():
            for kind, probs in inputs.items():
                for metric, value in class_metrics(probs, None if kind == "noise" else dataset.y_test).items():
                    scores.setdefault((kind, metric), {}).setdefault(name, []).append(value)

    rows = [
        [
            kind,
            metric,
            *[f"{np.mean(columns[n]):.3f} ({min(columns[n]):.3f} to {max(columns[n]):.3f})" for n in NETWORKS],
        ]
        for (kind, metric), columns in scores.items()
    ]
    report("digits", ["inputs", "", *NETWORKS], rows, list(claims(scores)))


def claims(scores):
    """What must hold for every seed."""
    yield Claim(
        "held out: accuracy of the Bayesian network", min(scores["held out", "accuracy"]["Bayesian"]), at_least=0.97
    )
    for metric in ("negative log-likelihood (nats)", "expected calibration error"):
        of = scores["rotated by 45°", metric]
        worst = max(np.divide(of["Bayesian"], of["deterministic"]))
        yield Claim(f"rotated by 45°: {metric}, Bayesian / deterministic", float(worst), at_most=1.0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
