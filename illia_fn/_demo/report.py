"""What the trained networks know and how well they know it: a table for the terminal and a figure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

import illia_fn
from illia_fn import plots
from illia_fn._demo.data import Dataset
from illia_fn._demo.recipes import Ensemble
from illia_fn.predictions.metrics import calibration_error, coverage, predictive_entropy

NUM_NETWORKS = 32  # draws from the posterior
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
    predict = jax.jit(lambda x: illia_fn.predict(apply_fn, params, x, jax.random.key(seed + 1), num_samples))
    chunks = [predict(jnp.asarray(x[i : i + 1000])) for i in range(0, len(x), 1000)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *chunks)


def predict_classes(
    data: Dataset, apply_fn: Callable, networks: Networks, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Predict the class probabilities of each network for each set of inputs, (examples, classes)."""
    inputs = {"held out": data.x_test, **data.shifted}
    if data.noise is not None:
        inputs["noise"] = data.noise
    return {
        name: {
            kind: np.asarray(jax.nn.softmax(_predict(apply_fn, params, x, seed)).mean(axis=0))
            for kind, x in inputs.items()
        }
        for name, params in networks.items()
    }


def class_metrics(probs: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
    """Score predicted probabilities; without labels there is only their entropy."""
    metrics = {}
    if labels is not None:
        log_probs = np.log(np.maximum(probs[np.arange(len(labels)), labels], np.finfo(np.float32).tiny))
        metrics["accuracy"] = float(np.mean(probs.argmax(axis=1) == labels))
        metrics["negative log-likelihood (nats)"] = -float(np.mean(log_probs))
        metrics["expected calibration error"] = float(calibration_error(probs, labels))
    metrics["predictive entropy (nats)"] = float(np.mean(predictive_entropy(probs)))
    return metrics


def _report_classes(
    data: Dataset, classes: list[str], apply_fn: Callable, networks: Networks, seed: int
) -> tuple[Table, Figure]:
    predictions = predict_classes(data, apply_fn, networks, seed)
    table = Table("inputs", "", *networks)
    for kind in next(iter(predictions.values())):
        labels = None if kind == "noise" else data.y_test
        columns = [class_metrics(predictions[name][kind], labels) for name in networks]
        for metric in columns[0]:
            table.add_row(kind, metric, *[f"{column[metric]:.3f}" for column in columns])
        table.add_section()
    images = data.x_test if data.x_test.ndim == 3 else None
    return table, plots.classification_figure(shown(predictions), data.y_test, classes, images)


def shown(networks: dict[str, Any]) -> dict[str, Any]:
    """The first Bayesian network and its deterministic twin: more would crowd a picture."""
    return {name: networks[name] for name in (next(iter(networks)), "deterministic")}


def _report_values(data: Dataset, apply_fn: Callable, networks: Networks, seed: int) -> tuple[Table, Figure]:
    mean, scale = data.unit
    targets = mean + scale * data.y_test
    outputs = {name: _predict(apply_fn, params, data.x_test, seed) for name, params in networks.items()}
    draws = {name: mean + scale * _draw(*output, seed) for name, output in outputs.items()}
    columns = []
    for name, (loc, rho) in outputs.items():
        nll = jax.vmap(illia_fn.gaussian_nll, (0, None))((loc, rho), jnp.asarray(data.y_test))
        log_prob = jax.nn.logsumexp(-nll, axis=0) - np.log(len(loc)) - np.log(scale)  # of the mixture, in nats
        low, high = np.quantile(draws[name], (0.05, 0.95), axis=0)
        columns.append(
            {
                "root mean squared error": f"{np.sqrt(np.mean((mean + scale * loc.mean(axis=0) - targets) ** 2)):.4g}",
                "negative log-likelihood (nats)": f"{-np.mean(log_prob):.3f}",
                "coverage of 90 % intervals": f"{100 * coverage(draws[name], targets, 0.9):.0f} %",
                "width of 90 % intervals": f"{np.mean(high - low):.4g}",
            }
        )
    table = Table("held out", *networks)
    for metric in columns[0]:
        table.add_row(metric, *[column[metric] for column in columns])
    return table, plots.regression_figure(shown(draws), targets, data.target)


def _draw(loc: np.ndarray, rho: np.ndarray, seed: int) -> np.ndarray:
    """Draws from the predictive distribution, (draws, examples)."""
    noise = np.random.default_rng(seed).normal(size=(4096 // len(loc), *loc.shape))
    return (loc + np.asarray(jax.nn.softplus(rho)) * noise).reshape(-1, loc.shape[1])
