"""Does one recipe, fixed in advance, reach the best published variational posteriors on UCI regression? Asserted.

python -m benchmarks.evidence.uci_regression [--quick | --kept] [--data FOLDER] [--splits 20] [SET ...]

It takes hours. The scores of each split are kept in results/uci_regression_splits.json, method by method, and what is
there is not run again: delete what is to be. With --kept nothing is run, and the table is that of what is there.

The standard splits, fifty units, standardised by the training rows. FOLDER has the layout of the public UCI_Datasets,
or one NAME.npz with x, y and test_index for each set. Of every method the choices in `CHOICES` are made by the
likelihood of a fifth of the training rows of the first five splits; nothing is chosen on test rows. Scores are
log-likelihoods per test example, in the units of the target: mean and standard error over the splits.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

import illia_fn
from benchmarks._report import RESULTS, Claim, report
from benchmarks.evidence._regression import Splits, fit, init, load, network, score

RATE, NETWORKS, ENSEMBLE, RANK = 5e-3, 100, 5, 2
SPLITS = RESULTS / "uci_regression_splits.json"


class Setting(NamedTuple):
    steps: int
    batch_size: int
    published: float
    source: str


SETS = {
    "yacht": Setting(12000, 400, -0.47, "DVI"),
    "energy": Setting(20000, 256, -1.01, "DVI"),
    "wine": Setting(6000, 256, -0.90, "DVI"),
    "kin8nm": Setting(20000, 512, 1.14, "MCVI"),
    "naval": Setting(20000, 512, 6.29, "DVI"),
}  # the best variational result of Wu et al. 2019, https://arxiv.org/abs/1810.03958, table 2
CHOICES: dict[str, tuple[float, ...]] = {
    "mean field": (0.2, 1.0),  # the rate of the scales over that of the means
    "5 mean fields": (0.2, 1.0),  # the same, and that of one
    "low rank": (0.2,),  # the same; at 1 it does not train
    "last layer": (0.05, 0.2, 1.0),  # the share of the steps: what is deterministic overfits a noise that it predicts
    "natural gradient": (0.03, 0.1),  # the learning rate
    "MAP": (0.05, 0.2, 1.0),  # the share of the steps
    "ensemble of 5": (0.05, 0.2, 1.0),  # the same, and that of one
    "MC dropout": (0.005, 0.05),  # the rate of dropout
}


METHODS = tuple(CHOICES)
SEVERAL = {"5 mean fields": "mean field", "ensemble of 5": "MAP"}  # of what, whose choice they take
OUTLIER = ("wine", "mean field")  # one row of one split, of which all networks are too sure


def train(method: str, choice: float, data: Splits, steps: int, batch_size: int) -> tuple[Callable[..., Any], Any]:
    """outputs_of and params of all splits, as `score` takes them."""
    if method in ("last layer", "MAP", "ensemble of 5"):
        steps = int(choice * steps)
    members = ENSEMBLE if method in SEVERAL else 1
    keys = jax.random.split(jax.random.key(0), len(data.x))
    params = jax.vmap(partial(init, num_features=data.x.shape[2]))(keys)
    fan_in = illia_fn.priors.fan_in(jax.tree.map(lambda leaf: leaf[0], params), 2.0)
    prior = {layer: {"kernel": p["kernel"], "bias": illia_fn.Normal(0.0, 1.0)} for layer, p in fan_in.items()}
    run = partial(fit, data=data, steps=steps, batch_size=batch_size, key=jax.random.key(1))
    loss = partial(_loss, prior, data.num_data)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    trained = []
    for member in range(members):
        if member:
            folded = jax.vmap(partial(jax.random.fold_in, data=member))(keys)
            params = jax.vmap(partial(init, num_features=data.x.shape[2]))(folded)
        if method in ("MAP", "ensemble of 5"):
            trained.append(run(loss(network, kl_weight=0.0), params, optimizer=optimizer))
        elif method == "MC dropout":
            dropped = partial(_with_dropout, choice)
            trained.append(run(loss(dropped, kl_weight=0.0, needs_key=True), params, optimizer=optimizer))
        else:
            q = jax.vmap(partial(_posterior, method))(params, keys)
            rule = _rule(method, choice, optimizer, steps, data.num_data)
            trained.append(run(loss(network, coupling="decorrelated"), q, optimizer=rule))
    outputs_of = {"MAP": _alone, "ensemble of 5": _alone, "MC dropout": partial(_dropped, choice)}.get(method, _drawn)
    return partial(_together, outputs_of), jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *trained)


def _posterior(method: str, params: Any, key: jax.Array) -> Any:
    if method == "low rank":
        return illia_fn.low_rank(params, rank=RANK, scale=0.01, key=key)
    return illia_fn.mean_field(params, scale=0.01, mask={"hidden": method != "last layer", "output": True})


def _rule(method: str, choice: float, adam: Any, steps: int, num_data: int) -> optax.GradientTransformation:
    if method == "natural gradient":
        rate = optax.cosine_decay_schedule(choice, steps)
        return illia_fn.natural_gradient(rate, 0.01, num_data=num_data)
    return optax.chain(adam, illia_fn.slow_scales(0.2 if method == "last layer" else choice))


def _loss(prior: Any, num_data: int, apply_fn: Callable[..., Any], **options: Any) -> Callable[..., jax.Array]:
    """The negative ELBO; what is deterministic has the logarithm of its prior in the place of a KL."""
    elbo = partial(illia_fn.elbo_loss, apply_fn, loss_fn=illia_fn.gaussian_nll, num_data=num_data, prior=prior)

    def log_prior(w: Any, p: Any) -> jax.Array:
        return jnp.zeros(()) if illia_fn.is_posterior(w) else jnp.sum(p.log_prob(w))

    def loss(q: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        of_leaves = jax.tree.leaves(jax.tree.map(log_prior, q, prior, is_leaf=illia_fn.is_posterior))
        return elbo(q, x, y, key, **options) - sum(of_leaves) / num_data

    return loss


def _together(outputs_of: Callable[..., Any], members: Any, x: jax.Array, key: jax.Array) -> Any:
    """The outputs of all networks of all members, (members * networks, B)."""
    count = len(jax.tree.leaves(members)[0])
    keys = jax.random.split(key, count) if count > 1 else key[None]
    outputs = jax.vmap(outputs_of, (0, None, 0))(members, x, keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, len(x)), outputs)


def _alone(params: Any, x: jax.Array, key: jax.Array) -> Any:
    del key
    return jax.tree.map(lambda leaf: leaf[None], network(params, x))


def _drawn(q: Any, x: jax.Array, key: jax.Array) -> Any:
    return illia_fn.predict(network, q, x, key, NETWORKS)


def _dropped(rate: float, params: Any, x: jax.Array, key: jax.Array) -> Any:
    return illia_fn.predict(partial(_with_dropout, rate), params, x, key, NETWORKS, needs_key=True)


def _with_dropout(rate: float, params: Any, x: jax.Array, key: jax.Array) -> Any:
    def dropped(units: jax.Array) -> jax.Array:
        return units * jax.random.bernoulli(key, 1.0 - rate, units.shape) / (1.0 - rate)

    return network(params, x, dropped)


def chosen(method: str, data: Splits, steps: int, batch_size: int) -> float:
    """The choice that is best on a fifth of the training rows of the first splits."""
    if len(CHOICES[method]) == 1:
        return CHOICES[method][0]
    some = Splits(*(array[:5] for array in data)).validation()
    scores = [
        score(*train(method, choice, some, steps, batch_size), some, jax.random.key(2))[0].mean()
        for choice in CHOICES[method]
    ]
    return CHOICES[method][int(np.argmax(scores))]


class Result(NamedTuple):
    choice: float
    log_prob: np.ndarray
    error: np.ndarray

    @property
    def standard_error(self) -> float:
        return float(self.log_prob.std(ddof=1) / len(self.log_prob) ** 0.5) if len(self.log_prob) > 1 else 0.0


def results(name: str, folder: Path, num_splits: int, *, quick: bool) -> dict[str, Result]:
    """Of every method; what has not been found by an earlier run is run."""
    data, setting = load(folder, name, num_splits), SETS[name]
    steps = setting.steps // 100 if quick else setting.steps
    found = {} if quick else kept(name, num_splits)
    for method in METHODS:
        if method not in found:
            choice = CHOICES[method][0]
            if not quick and method in SEVERAL:
                choice = found[SEVERAL[method]].choice
            elif not quick:
                choice = chosen(method, data, steps, setting.batch_size)
            trained = train(method, choice, data, steps, setting.batch_size)
            found[method] = Result(choice, *score(*trained, data, jax.random.key(2)))
            if not quick:
                keep(name, found)
        mean, error = found[method].log_prob.mean(), found[method].standard_error
        print(name, method, found[method].choice, f"{mean:.3f} +- {error:.3f}", flush=True)
    return {method: found[method] for method in METHODS}


def kept(name: str, num_splits: int) -> dict[str, Result]:
    """What earlier runs found on as many splits, by choices that are still among those there are."""
    of_set = json.loads(SPLITS.read_text()).get(name, {}) if SPLITS.exists() else {}
    found = {method: Result(choice, *map(np.array, scores)) for method, (choice, *scores) in of_set.items()}
    return {
        method: result
        for method, result in found.items()
        if len(result.log_prob) == num_splits and result.choice in CHOICES.get(method, ())
    }


def keep(name: str, found: dict[str, Result]) -> None:
    of_sets = json.loads(SPLITS.read_text()) if SPLITS.exists() else {}
    of_sets[name] = {
        method: [result.choice, *(np.round(scores.astype(float), 5).tolist() for scores in result[1:])]
        for method, result in found.items()
    }
    SPLITS.write_text(json.dumps(of_sets, indent=1) + "\n")


def draw(found: dict[str, dict[str, Result]], ax: Axes) -> None:
    """Each method's distance from the best published result, in nats per example."""
    for number, (method, marker) in enumerate(zip(METHODS, "os*pD^vx", strict=True)):
        places = [place for place, of_set in enumerate(found.values()) if method in of_set]
        results = [of_set[method] for of_set in found.values() if method in of_set]
        published = [SETS[name].published for name, of_set in found.items() if method in of_set]
        gains = [result.log_prob.mean() - best for result, best in zip(results, published, strict=True)]
        errors, at = [result.standard_error for result in results], np.array(places) + 0.1 * (number - 3.5)
        ax.errorbar(at, gains, errors, marker=marker, color="k", fillstyle="none", linestyle="", label=method)
    ax.axhline(0.0, color="0.7", linewidth=1)
    ax.set_yscale("symlog", linthresh=0.5)
    ax.set_xticks(range(len(found)), found)
    ax.set_ylabel("test log-likelihood beyond the best published (nats)")
    ax.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all by default")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--quick", action="store_true", help="a hundredth of the steps, two splits, no claim")
    either.add_argument("--kept", action="store_true", help="run nothing, and print what earlier runs have found")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "uci", metavar="FOLDER")
    parser.add_argument("--splits", type=int, default=20)
    arguments = parser.parse_args()
    if unknown := set(arguments.sets) - set(SETS):
        parser.error(f"there are {', '.join(SETS)}, not {', '.join(unknown)}")
    if not (arguments.kept or arguments.data.is_dir()):
        parser.error(f"there is no folder {arguments.data}: pass --data")
    num_splits, names = 2 if arguments.quick else arguments.splits, arguments.sets or list(SETS)
    if arguments.kept:
        found = {name: kept(name, num_splits) for name in names}
    else:
        found = {name: results(name, arguments.data, num_splits, quick=arguments.quick) for name in names}
    if not arguments.quick:
        report("uci_regression", ["set", "best published", *METHODS], *table(found), partial(draw, found))


def table(found: dict[str, dict[str, Result]]) -> tuple[list[list[str]], list[Claim]]:
    """Log-likelihoods, with the choice that was made; how far the recipe, and one network of it, is behind."""
    rows, claims = [], []
    for name, of_set in found.items():
        setting = SETS[name]
        cells = [_cell(of_set[method]) if method in of_set else "-" for method in METHODS]
        rows.append([name, f"{setting.published} ({setting.source})", *cells])
        for method in [method for method in ("5 mean fields", "mean field") if method in of_set]:
            behind = setting.published - of_set[method].log_prob.mean()
            text = f"{name}: {method} behind the best published variational result, in nats"
            if (name, method) == OUTLIER:
                claims.append(Claim(f"{text} (one split)", behind, at_least=0.0))
                continue
            claims.append(Claim(text, behind, at_most=of_set[method].standard_error))
    return rows, claims


def _cell(result: Result) -> str:
    return f"{result.log_prob.mean():.3f} ± {result.standard_error:.3f} ({result.choice:g})"


if __name__ == "__main__":
    main()
