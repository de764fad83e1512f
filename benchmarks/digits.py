"""Claim: the demo's Bayesian networks are as good as their deterministic twin, and less wrong where all are lost.

python -m benchmarks.digits [SEEDS]

The twin has the same prior, rate and steps; the ensemble has four of it, and four times its training, and so has the
mixture of Bayesian networks. The recipe of the first network is chosen on a fifth of the training digits, upright ones
only. Digits are turned in the test alone, and no network is rescaled by a temperature, which would make them all less
sure of what they have not seen.
"""

import dataclasses
import sys

import numpy as np

from benchmarks._report import RESULTS, Claim, report
from illia_fn.__main__ import train
from illia_fn._demo import data
from illia_fn._demo.figures import classification_figure
from illia_fn._demo.recipes import Recipe, last_layer, recipes_of
from illia_fn._demo.report import class_metrics, predict_classes, shown

NLL = "negative log-likelihood (nats)"
CANDIDATES = {
    "all layers": Recipe(),
    "all layers, scales as fast as means": Recipe(scale_rate=1.0),
    "all layers, kl_weight 0.3, scales as fast as means": Recipe(kl_weight=0.3, scale_rate=1.0),
    "mixture of 4": Recipe(members=4),
    "mixture of 4, kl_weight 0.3, scales as fast as means": Recipe(kl_weight=0.3, scale_rate=1.0, members=4),
    "last layer": Recipe(last_layer),
    "last layer, kl_weight 0.3, scales as fast as means": Recipe(last_layer, 0.3, 1.0),
}


def main(num_seeds: int = 4) -> None:
    """Choose, then train all networks with each seed; the mean of each figure and its range, and a picture."""
    dataset = data.digits()
    rows, chosen = choose(dataset)
    scores = {}
    for seed in range(num_seeds):
        apply_fn, networks, _ = train(dataset, "elbo", seed, epochs=100, num_samples=1)
        predictions = predict_classes(dataset, apply_fn, networks, seed)
        if seed == 0:
            figure = classification_figure(shown(predictions), dataset.y_test, dataset.classes, dataset.x_test)
            figure.savefig(RESULTS / "digits.png", dpi=90)
        for name, inputs in predictions.items():
            for kind, probs in inputs.items():
                for metric, value in class_metrics(probs, None if kind == "noise" else dataset.y_test).items():
                    scores.setdefault((kind, metric), {}).setdefault(name, []).append(value)
    rows += [
        [kind, metric, *[f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in by.values()]]
        for (kind, metric), by in scores.items()
    ]
    names = list(next(iter(scores.values())))
    report("digits", ["inputs", "", *names], rows, [chosen, *claims(scores)])


def choose(dataset: data.Dataset) -> tuple[list[list[str]], Claim]:
    """The NLL of each candidate on validation digits; and that the demo has the best."""
    x, y = dataset.x_train, dataset.y_train
    (x_test, x_train), (y_test, y_train) = (np.split(array, [len(x) // 5]) for array in (x, y))
    parts = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    split = dataclasses.replace(dataset, **parts, noise=None, shifted={})
    apply_fn, networks, _ = train(split, "elbo", 0, epochs=100, num_samples=1, recipes=CANDIDATES)
    predictions = predict_classes(split, apply_fn, networks, 0)
    nll = {name: np.mean([class_metrics(p, y_test)[NLL] for p in by.values()]) for name, by in predictions.items()}
    for name in CANDIDATES:
        print(f"validation, {name}: {nll[name]:.3f} nats", flush=True)
    (ours,) = [name for name, recipe in CANDIDATES.items() if recipe == next(iter(recipes_of(dataset, 4).values()))]
    best_other = min(nll[name] for name in CANDIDATES if name != ours)
    row = [f"{nll[name]:.3f}" for name in (ours, "mixture of 4", "all layers", "deterministic", "ensemble of 4")]
    text = f"validation: NLL of the chosen recipe ({ours}) / best other candidate"
    return [["validation", NLL, *row]], Claim(text, nll[ours] / best_other, at_most=1.0)


def claims(scores):
    """Of accuracy for every seed; of likelihoods for the mean of the seeds."""
    ours = "Bayesian last layer"
    accuracy = min(min(scores["held out", "accuracy"][name]) for name in (ours, "Bayesian"))
    yield Claim("held out: accuracy of both Bayesian networks", accuracy, at_least=0.97)
    means = {key: {name: np.mean(values) for name, values in by.items()} for key, by in scores.items()}
    for kind, others in (
        ("held out", {"deterministic": 1.1}),
        ("rotated by 45°", {"deterministic": 1.0, "ensemble of 4": 1.0}),
    ):
        for other, bound in others.items():
            ratio = means[kind, NLL][ours] / means[kind, NLL][other]
            yield Claim(f"{kind}: {NLL}, {ours} / {other}", float(ratio), at_most=bound)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
