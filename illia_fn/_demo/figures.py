"""The demo's figures: pictures of `illia_fn.plots` side by side, and images that only it has."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from illia_fn import metrics, plots

OURS, TWINS = "#1f6fb4", "#d1602a"
INPUT_COLORS = ("#2b8a3e", "#e8890c", "#8a8f98")

Predictions = Mapping[str, Mapping[str, np.ndarray]]  # network -> inputs -> probabilities (examples, classes)


def _color_of(name: str) -> str:
    return TWINS if name == "deterministic" else OURS


def classification_figure(
    predictions: Predictions, labels: np.ndarray, classes: list[str], images: np.ndarray | None = None
) -> Figure:
    """Reliability and entropy of each network, and the images that the first network is least sure of.

    Args:
        predictions: for each network, for each set of inputs, predicted probabilities, (B, C). The first set has the
            `labels`; sets of another name than "noise" are the same examples in another form.
        labels: class labels, (B,).
        classes: names of the classes.
        images: the first set of inputs as images, (B, height, width), if they are images.

    Returns:
        A matplotlib figure.

    >>> probs = np.array([[0.9, 0.1], [0.4, 0.6]])
    >>> figure = classification_figure({"Bayesian": {"held out": probs}}, np.array([0, 1]), ["cat", "dog"])
    >>> [axes.get_title() for axes in figure.axes]
    ['Does it know when it is right?', 'How unsure? Bayesian']
    """
    figure = Figure(figsize=(13, 4.4 if images is None else 7.6), layout="constrained")
    top = bottom = figure
    if images is not None:
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.5, 1))  # ty: ignore[not-iterable]
        _draw_least_sure(bottom, next(iter(predictions.items())), labels, classes, images)
    left, *rest = np.ravel(top.subplots(1, 1 + len(predictions), width_ratios=(1.8, *[1] * len(predictions))))
    for name, inputs in predictions.items():
        for kind, probs in inputs.items():
            if kind != "noise":
                text = f"{name}, {kind}"
                plots.reliability(probs, labels, num_bins=10, ax=left, label=text, color=_color_of(name))
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    left.set_title("Does it know when it is right?", fontsize=11)
    for ax, (name, inputs) in zip(rest, predictions.items(), strict=True):
        for color, (kind, probs) in zip(INPUT_COLORS, inputs.items(), strict=False):
            plots.entropy_histogram(probs, ax=ax, label=kind, color=color)
        ax.set_title(f"How unsure? {name}", fontsize=11)
    return figure


def regression_figure(draws: Mapping[str, np.ndarray], targets: np.ndarray, target_name: str) -> Figure:
    """Predictive intervals of the first network, and how often each network's intervals hold the truth.

    Args:
        draws: for each network, draws from its predictive distribution, (draws, B).
        targets: true values, (B,).
        target_name: what is predicted.

    Returns:
        A matplotlib figure.

    >>> draws = np.random.default_rng(0).normal(size=(100, 3))
    >>> figure = regression_figure({"Bayesian": draws}, np.zeros(3), "y")
    >>> [axes.get_title() for axes in figure.axes]
    ['What the Bayesian network expects', 'Do its intervals keep their promise?']
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    name, first = next(iter(draws.items()))
    rank = np.argsort(np.argsort(first.mean(axis=0)))
    plots.predictive_intervals(rank, first, targets, ax=left, color=_color_of(name))
    left.set(xlabel="held-out rows, by predicted value", ylabel=target_name, title=f"What the {name} network expects")
    for name, samples in draws.items():
        plots.coverage(samples, targets, ax=right, label=name, color=_color_of(name))
    right.set_title("Do its intervals keep their promise?")
    return figure


def _draw_least_sure(
    figure: Any, network: Any, labels: np.ndarray, classes: list[str], images: np.ndarray, count: int = 8
) -> None:
    name, inputs = network
    probs = np.asarray(next(iter(inputs.values())))
    least_sure = np.argsort(-np.asarray(metrics.predictive_entropy(probs)))[:count]
    figure.suptitle(
        f"The images that the {name} network is least sure of, and what it thinks of them (dark: the truth)",
        fontsize=11,
    )
    rows = figure.subplots(2, count, height_ratios=(1.6, 1))
    for image_axes, bar_axes, i in zip(*rows, least_sure, strict=True):
        image_axes.imshow(images[i], cmap="gray_r", interpolation="nearest")
        image_axes.set_title(f"is {classes[labels[i]]}, thinks {classes[probs[i].argmax()]}", fontsize=9)
        image_axes.set_axis_off()
        colors = np.where(np.arange(len(classes)) == labels[i], "#1b5e2a", "0.75")
        bar_axes.bar(range(len(classes)), probs[i], color=colors)
        bar_axes.set(ylim=(0, 1), yticks=[], xticks=range(len(classes)))
        bar_axes.set_xticklabels(classes, fontsize=7)
        bar_axes.spines[["top", "right", "left"]].set_visible(False)
