"""What the trained networks know and how well they know it: a table for the terminal and a figure."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.table import Column, Table

import illia_fn
from illia_fn import metrics
from illia_fn._demo.data import Dataset
from illia_fn._demo.figures import classification_figure, regression_figure
from illia_fn._demo.recipes import Ensemble

NUM_NETWORKS = 32  # draws from the posterior
NUM_DRAWS = 4096  # of a predicted value
SHORT = {  # in a terminal of 80 columns
    "negative log-likelihood (nats)": "NLL (nats)",
    "expected calibration error": "ECE",
    "predictive entropy (nats)": "entropy (nats)",
}
Networks = dict[str, Any]  # name -> parameters, variational or not


def report(data: Dataset, apply_fn: Callable, networks: Networks, seed: int) -> tuple[Table, Figure]:
    """Compare the networks on held-out data."""
    if data.classes is None:
        return _report_values(data, apply_fn, networks, seed)
    return _report_classes(data, data.classes, apply_fn, networks, seed)


def _predict(apply_fn: Callable, params: Any, x: np.ndarray, seed: int) -> Any:
    """Outputs of networks drawn from the posterior, (networks, examples, ...), the same networks for all examples."""
    if isinstance(params, Ensemble):
        members = [_predict(apply_fn, member, x, seed) for member in params.members]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *members)
    num_samples = NUM_NETWORKS if illia_fn.num_params(params) else 1
    return illia_fn.predict(apply_fn, params, x, jax.random.key(seed + 1), num_samples, batch_size=1000)


def predict_classes(
    data: Dataset, apply_fn: Callable, networks: Networks, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Predict the class probabilities of each network for each set of inputs, (examples, classes)."""
    inputs = {"held out": data.x_test, **data.shifted}
    if data.noise is not None:
        inputs["noise"] = data.noise

    def probs(params: Any, x: np.ndarray) -> np.ndarray:
        of_networks = illia_fn.class_probs(illia_fn.categorical_nll, _predict(apply_fn, params, x, seed))
        return np.asarray(illia_fn.class_summary(of_networks).probs)

    return {name: {kind: probs(params, x) for kind, x in inputs.items()} for name, params in networks.items()}


def class_metrics(probs: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
    """Score predicted probabilities; without labels there is only their entropy."""
    scores = {}
    if labels is not None:
        scores["accuracy"] = metrics.accuracy(probs, labels)
        scores["negative log-likelihood (nats)"] = metrics.negative_log_likelihood(probs, labels)
        scores["expected calibration error"] = metrics.calibration_error(probs, labels)
    scores["predictive entropy (nats)"] = metrics.predictive_entropy(probs).mean()
    return {name: float(score) for name, score in scores.items()}


def _report_classes(
    data: Dataset, classes: list[str], apply_fn: Callable, networks: Networks, seed: int
) -> tuple[Table, Figure]:
    predictions = predict_classes(data, apply_fn, networks, seed)
    table = _table("", networks, "NLL: negative log-likelihood, ECE: expected calibration error")
    for kind in next(iter(predictions.values())):
        labels = None if kind == "noise" else data.y_test
        columns = [class_metrics(predictions[name][kind], labels) for name in networks]
        table.add_row(f"[bold]{kind}")
        for metric in columns[0]:
            table.add_row(SHORT.get(metric, metric), *[f"{column[metric]:.3f}" for column in columns])
        table.add_section()
    images = data.x_test if data.x_test.ndim == 3 else None
    return table, classification_figure(shown(predictions), data.y_test, classes, images)


def _table(head: str, networks: Networks, caption: str) -> Table:
    """A column for each network, as wide as its longest word, for a terminal of 80 columns."""
    columns = [Column(name, width=max(map(len, name.split()))) for name in networks]
    return Table(head, *columns, caption=caption)


def shown(networks: dict[str, Any]) -> dict[str, Any]:
    """The first Bayesian network and its deterministic twin: more would crowd a picture."""
    return {name: networks[name] for name in (next(iter(networks)), "deterministic")}


def _report_values(data: Dataset, apply_fn: Callable, networks: Networks, seed: int) -> tuple[Table, Figure]:
    mean, scale = data.unit
    targets, law = mean + scale * data.y_test, illia_fn.gaussian_nll
    columns, draws = [], {}
    for name, params in networks.items():
        outputs = _predict(apply_fn, params, data.x_test, seed)
        key, num_draws = jax.random.key(seed + 2), NUM_DRAWS // len(outputs[0])
        draws[name] = mean + scale * np.asarray(illia_fn.predictive_draws(law, outputs, key, num_draws))
        error = scale * (illia_fn.predictive_moments(law, outputs).mean - data.y_test)
        log_prob = illia_fn.predictive_log_prob(law, outputs, data.y_test) - np.log(scale)  # a density per unit
        columns.append(
            {
                "RMSE": f"{np.sqrt(np.mean(error**2)):.4g}",
                "NLL (nats)": f"{-np.mean(log_prob):.3f}",
                "coverage of 90 % intervals": f"{100 * metrics.coverage(draws[name], targets, 0.9):.0f} %",
                "width of 90 % intervals": f"{_width(draws[name]):.4g}",
            }
        )
    table = _table("held out", networks, "RMSE: root mean squared error, NLL: negative log-likelihood")
    for metric in columns[0]:
        table.add_row(metric, *[column[metric] for column in columns])
    return table, regression_figure(shown(draws), targets, data.target)


def _width(draws: np.ndarray) -> float:
    return float(metrics.interval_width(*illia_fn.central_interval(draws, 0.9)))
