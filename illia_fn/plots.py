"""Pictures of predictive distributions."""

from collections.abc import Mapping

import numpy as np

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    message = f"illia_fn.plots needs {error.name}: pip install 'illia_fn[plots]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from illia_fn.predictions.metrics import calibration_error, coverage, predictive_entropy, reliability

COLORS = {"Bayesian": "#1f6fb4", "Bayesian last layer": "#1f6fb4", "deterministic": "#d1602a"}
INPUT_COLORS = ("#2b8a3e", "#e8890c", "#8a8f98")

Predictions = Mapping[str, Mapping[str, np.ndarray]]  # network -> inputs -> probabilities (examples, classes)


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
    left, *rest = np.ravel(top.subplots(1, 1 + len(predictions), width_ratios=(1.2, *[1] * len(predictions))))
    for name, inputs in predictions.items():
        for style, (kind, probs) in zip(("-", ":"), _labelled(inputs).items(), strict=False):
            plot_reliability(left, probs, labels, label=f"{name}, {kind}", color=COLORS.get(name), linestyle=style)
    for axes, (name, inputs) in zip(rest, predictions.items(), strict=True):
        plot_entropy(axes, inputs, len(classes))
        axes.set_title(f"How unsure? {name}", fontsize=11)
    rest[0].legend(frameon=False, fontsize=9)
    return figure


def plot_reliability(
    axes: Axes, probs: np.ndarray, labels: np.ndarray, *, label: str = "", num_bins: int = 10, **style
) -> None:
    """Draw accuracy against confidence, with the expected calibration error in the legend.

    >>> axes = Figure().subplots()
    >>> plot_reliability(axes, np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 1]), label="Bayesian")
    >>> axes.get_legend().get_texts()[0].get_text()
    'Bayesian (ECE 0.25)'
    """
    diagram = reliability(probs, labels, num_bins=num_bins)
    error = float(calibration_error(probs, labels))
    axes.plot([0, 1], [0, 1], color="0.75", linewidth=1, zorder=0)
    axes.plot(diagram.confidence, diagram.accuracy, label=f"{label} (ECE {error:.2f})", **style)
    sizes = 12 + 250 * np.asarray(diagram.fraction)
    axes.scatter(diagram.confidence, diagram.accuracy, sizes, color=style.get("color"), alpha=0.6, linewidths=0)
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy")
    axes.set_title("Does it know when it is right?", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def plot_entropy(axes: Axes, inputs: Mapping[str, np.ndarray], num_classes: int) -> None:
    """Draw a histogram of the predictive entropy for each set of inputs.

    >>> axes = Figure().subplots()
    >>> plot_entropy(axes, {"held out": np.array([[0.9, 0.1], [0.4, 0.6]])}, num_classes=2)
    >>> axes.get_xlabel()
    'predictive entropy in nats (lost: 0.7)'
    """
    bins = np.linspace(0.0, np.log(num_classes), 25).tolist()
    for color, (name, probs) in zip(INPUT_COLORS, inputs.items(), strict=False):
        weights = np.full(len(probs), 1.0 / len(probs))
        entropy = np.clip(predictive_entropy(probs), 0.0, bins[-1])
        axes.hist(entropy, bins, weights=weights, color=color, alpha=0.25)
        axes.hist(entropy, bins, weights=weights, color=color, histtype="step", linewidth=1.5, label=name)
    axes.set(xlabel=f"predictive entropy in nats (lost: {bins[-1]:.1f})", ylabel="fraction of the inputs")


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
    order = np.argsort(first.mean(axis=0))
    low, middle, high = np.quantile(first[:, order], (0.05, 0.5, 0.95), axis=0)
    rank, truth = np.arange(len(order)), targets[order]
    inside = (low <= truth) & (truth <= high)
    left.fill_between(rank, low, high, color=COLORS.get(name), alpha=0.2, linewidth=0, label="90 % predictive interval")
    left.plot(rank, middle, color=COLORS.get(name), label="median")
    left.scatter(rank[inside], truth[inside], 14, color="0.25", label="truth, inside", zorder=3)
    if not inside.all():
        left.scatter(rank[~inside], truth[~inside], 22, color="#c92a2a", marker="D", label="truth, outside", zorder=3)
    left.set(xlabel="held-out rows, by predicted value", ylabel=target_name, title=f"What the {name} network expects")
    left.legend(frameon=False, fontsize=9)
    right.plot([0, 1], [0, 1], color="0.75", linewidth=1)
    for name, samples in draws.items():
        levels = np.linspace(0.05, 0.95, 19)
        right.plot(
            levels,
            [coverage(samples, targets, level) for level in levels],
            "o-",
            markersize=4,
            color=COLORS.get(name),
            label=name,
        )
    right.set(
        xlabel="promised coverage", ylabel="coverage on held-out rows", title="Do its intervals keep their promise?"
    )
    right.legend(frameon=False)
    return figure


def _labelled(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: probs for name, probs in inputs.items() if name != "noise"}


def _draw_least_sure(
    figure, network, labels: np.ndarray, classes: list[str], images: np.ndarray, count: int = 8
) -> None:
    name, inputs = network
    probs = np.asarray(next(iter(inputs.values())))
    least_sure = np.argsort(-np.asarray(predictive_entropy(probs)))[:count]
    figure.suptitle(
        f"The images that the {name} network is least sure of, and what it thinks of them (green: the truth)",
        fontsize=11,
    )
    rows = figure.subplots(2, count, height_ratios=(1.6, 1))
    for image_axes, bar_axes, i in zip(*rows, least_sure, strict=True):
        image_axes.imshow(images[i], cmap="gray_r", interpolation="nearest")
        image_axes.set_title(f"is {classes[labels[i]]}, thinks {classes[probs[i].argmax()]}", fontsize=9)
        image_axes.set_axis_off()
        colors = np.where(np.arange(len(classes)) == labels[i], "#2b8a3e", "0.65")
        bar_axes.bar(range(len(classes)), probs[i], color=colors)
        bar_axes.set(ylim=(0, 1), yticks=[], xticks=range(len(classes)))
        bar_axes.set_xticklabels(classes, fontsize=7)
        bar_axes.spines[["top", "right", "left"]].set_visible(False)
