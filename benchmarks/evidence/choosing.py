"""What the ELBO does not tell: does it choose among recipes, as the likelihood of held-out data does? Asserted.

python -m benchmarks.evidence.choosing [--quick] [--data FOLDER]

Twenty recipes for one network of fifty units, on every split trained on four fifths of the training rows and judged by
three numbers of the same q: the ELBO per training example, with kl_weight 1 whatever it was trained with, and the
log-likelihood of the last fifth and of the test rows, all in the units of the target. With a FOLDER as that of
uci_regression the data are yacht's, and otherwise diabetes, which scikit-learn ships, with
a table of its own.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from scipy.stats import spearmanr
from sklearn.datasets import load_diabetes

import illia_fn
from benchmarks._report import Claim, report
from benchmarks.evidence._regression import Splits, fit, init, load, network, standardised

STEPS, RATE, SPLITS, NETWORKS, LEVEL = 4000, 5e-3, 10, 100, 0.9


class Recipe(NamedTuple):
    """Everything that one chooses; the defaults are what the others are varied from."""

    scale: float = 0.01
    rate_of_scales: float = 0.2
    gain: float = 2.0
    coupling: str = "decorrelated"
    kl_weight: float = 1.0
    family: str = "mean field"
    empirical_bayes: bool = False
    constant_noise: bool = False
    steps: float = 1.0


RECIPES = {
    "as it is": Recipe(),
    "initial scale 0.001": Recipe(scale=0.001),
    "initial scale 0.1": Recipe(scale=0.1),
    "rate of scales 0.05": Recipe(rate_of_scales=0.05),
    "rate of scales 1": Recipe(rate_of_scales=1.0),
    "prior gain 0.5": Recipe(gain=0.5),
    "prior gain 1": Recipe(gain=1.0),
    "prior gain 4": Recipe(gain=4.0),
    "shared noise": Recipe(coupling="shared"),
    "shared noise, rate of scales 1": Recipe(coupling="shared", rate_of_scales=1.0),
    "kl_weight 0.1": Recipe(kl_weight=0.1),
    "kl_weight 0.3": Recipe(kl_weight=0.3),
    "kl_weight 3": Recipe(kl_weight=3.0),
    "empirical Bayes": Recipe(empirical_bayes=True),
    "low rank": Recipe(family="low rank"),
    "low rank, rate of scales 1": Recipe(family="low rank", rate_of_scales=1.0),
    "constant noise": Recipe(constant_noise=True),
    "constant noise, rate of scales 1": Recipe(constant_noise=True, rate_of_scales=1.0),
    "a quarter of the steps": Recipe(steps=0.25),
    "twice the steps, rate of scales 1": Recipe(steps=2.0, rate_of_scales=1.0),
}


class Judged(NamedTuple):
    """Of one recipe, by split: three numbers in nats per example; the share of validation rows in intervals."""

    elbo: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    coverage: np.ndarray


def constant_noise(params: Any, x: jax.Array) -> Any:
    units = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    loc = (units @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]
    return loc, jnp.broadcast_to(params["noise"], loc.shape)


def start(recipe: Recipe, num_features: int, key: jax.Array) -> Any:
    """q before the first step."""
    params = init(key, num_features)
    if recipe.constant_noise:
        params["output"] = jax.tree.map(lambda leaf: leaf[..., :1], params["output"])
        params["noise"] = jnp.zeros(())
    if recipe.family == "low rank":
        return illia_fn.low_rank(params, 5, scale=recipe.scale, key=key)
    return illia_fn.mean_field(params, scale=recipe.scale)


def negative_elbo(recipe: Recipe, num_features: int, num_data: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The model, and loss(q, x, y, key, ...) per training example."""
    apply_fn = constant_noise if recipe.constant_noise else network
    fan_in = {"hidden": num_features, "output": 50}
    prior = {
        layer: {"kernel": illia_fn.Normal(0.0, recipe.gain / size**0.5), "bias": illia_fn.Normal(0.0, 1.0)}
        for layer, size in fan_in.items()
    }
    if recipe.constant_noise:
        prior["noise"] = illia_fn.Normal(0.0, 1.0)
    if recipe.empirical_bayes:
        prior = illia_fn.priors.EmpiricalBayes(concentration=4.4798, rate=10.0)  # of Wu et al. 2019
    settings = {"loss_fn": illia_fn.gaussian_nll, "num_data": num_data, "prior": prior}
    return apply_fn, partial(illia_fn.elbo_loss, apply_fn, **settings)


def judged(recipe: Recipe, data: Splits, steps: int) -> Judged:
    """Train on all splits at once, and look."""
    kept, num_features = data.validation(), data.x.shape[2]
    apply_fn, loss = negative_elbo(recipe, num_features, kept.num_data)
    steps = int(recipe.steps * steps)
    rate = optax.cosine_decay_schedule(RATE, steps)
    optimizer = optax.chain(optax.adam(rate), illia_fn.slow_scales(recipe.rate_of_scales))
    q = jax.vmap(partial(start, recipe, num_features))(jax.random.split(jax.random.key(0), len(data.x)))
    training = partial(loss, coupling=recipe.coupling, kl_weight=recipe.kl_weight)
    q = fit(training, q, kept, optimizer, steps, kept.num_data, jax.random.key(1))

    def of_split(q: Any, kept: Splits, x_test: jax.Array, y_test: jax.Array, key: jax.Array) -> Any:
        def log_prob(x: jax.Array, y: jax.Array) -> jax.Array:
            outputs = illia_fn.predict(apply_fn, q, x, key, NETWORKS)
            return jnp.mean(illia_fn.predictive_log_prob(illia_fn.gaussian_nll, outputs, y))

        outputs = illia_fn.predict(apply_fn, q, kept.x_test, key, NETWORKS)
        draws = illia_fn.predictive_draws(illia_fn.gaussian_nll, outputs, key, 20)
        in_nats = jnp.stack(
            [
                -loss(q, kept.x, kept.y, key, 200, coupling="decorrelated"),
                log_prob(kept.x_test, kept.y_test),
                log_prob(x_test, y_test),
            ]
        )
        return *(in_nats - jnp.log(kept.scale)), illia_fn.metrics.coverage(draws, kept.y_test, LEVEL)

    keys = jax.random.split(jax.random.key(2), len(data.x))
    return Judged(*map(np.asarray, jax.jit(jax.vmap(of_split))(q, kept, data.x_test, data.y_test, keys)))


def by(found: dict[str, Judged]) -> dict[str, np.ndarray]:
    """What recipes may be ranked by, the higher the better: (recipes, splits)."""
    elbo, validation, test, coverage = (np.stack(part) for part in zip(*found.values(), strict=True))
    return {"ELBO": elbo, "validation": validation, "test": test, "coverage": -np.abs(coverage - LEVEL)}


def correlations(ranked: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Spearman's, of the ranks of the recipes on each split."""
    return np.array([spearmanr(*columns).statistic for columns in zip(ranked.T, test.T, strict=True)])


def chosen(ranked: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The test log-likelihood of the recipe that is ranked first on each split."""
    return test[ranked.argmax(axis=0), np.arange(test.shape[1])]


def cell(numbers: np.ndarray) -> str:
    return f"{numbers.mean():.2f} ± {error(numbers):.2f}"


def error(numbers: np.ndarray) -> float:
    return float(numbers.std(ddof=1) / len(numbers) ** 0.5)


def draw(found: dict[str, Judged], ax: Axes) -> None:
    ranked = {name: numbers.mean(axis=1) for name, numbers in by(found).items()}
    for name, marker in (("ELBO", "x"), ("validation", "o")):
        ranks = len(found) - ranked[name].argsort().argsort()
        label = f"{name}: rank correlation {spearmanr(ranked[name], ranked['test']).statistic:.2f}"
        ax.plot(ranks, ranked["test"], marker, color="k", fillstyle="none", label=label)
    ax.set_xticks([1, *range(5, len(found) + 1, 5)])
    ax.set_xlabel("rank of the recipe, 1 is the best")
    ax.set_ylabel("test log-likelihood (nats per example)")
    ax.legend()


def tabulate(name: str, found: dict[str, Judged]) -> None:
    ranked = by(found)
    order = sorted(found, key=lambda recipe: -found[recipe].test.mean())
    rows = [[recipe, *map(cell, found[recipe])] for recipe in order]
    looked_at = [ranked[what] for what in ("ELBO", "validation", "test", "coverage")]
    test, (of_elbo, of_validation) = ranked["test"], (correlations(ranked[k], ranked["test"]) for k in list(ranked)[:2])
    rows.append(["**rank correlation with test**", *(cell(correlations(numbers, test)) for numbers in looked_at)])
    rows.append(["**test of the first by it**", *(cell(chosen(numbers, test)) for numbers in looked_at)])
    gain = chosen(ranked["validation"], test) - chosen(ranked["ELBO"], test)
    claims = [
        Claim("rank correlation with test: validation", of_validation.mean(), at_least=0.5),
        Claim(
            "rank correlation with test: validation less ELBO, in standard errors",
            (of_validation - of_elbo).mean() / error(of_validation - of_elbo),
            at_least=2.0,
        ),
        Claim(
            "test of the first by validation less by ELBO, in standard errors", gain.mean() / error(gain), at_least=2.0
        ),
    ]
    columns = [f"recipe, {name}", "ELBO", "validation", "test", f"validation rows in {LEVEL:.0%} intervals"]
    report("choosing" if name == "yacht" else f"choosing_{name}", columns, rows, claims, partial(draw, found))


def diabetes(num_splits: int) -> Splits:
    x, y = load_diabetes(return_X_y=True)
    orders = [np.random.default_rng(split).permutation(len(x)) for split in range(num_splits)]
    return standardised(x, y, [order[: len(x) // 10] for order in orders], num_splits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, two recipes and splits, no claim")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with yacht.npz, or the public UCI_Datasets")
    arguments = parser.parse_args()
    num_splits = 2 if arguments.quick else SPLITS
    name = "yacht" if arguments.data else "diabetes"
    data = load(arguments.data, name, num_splits) if arguments.data else diabetes(num_splits)
    found = results(data, quick=arguments.quick)
    if not arguments.quick:
        tabulate(name, found)


def results(data: Splits, *, quick: bool) -> dict[str, Judged]:
    found = {}
    for recipe in ["as it is", "constant noise"] if quick else RECIPES:
        found[recipe] = judged(RECIPES[recipe], data, STEPS // 100 if quick else STEPS)
        print(f"{recipe:35}", *map(cell, found[recipe]), flush=True)
    return found


if __name__ == "__main__":
    main()
