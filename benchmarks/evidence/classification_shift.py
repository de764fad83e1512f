"""Is there one recipe that beats MAP, and is not behind a deep ensemble of equal training, also under shift?

python -m benchmarks.evidence.classification_shift [--quick] [--seeds 5] [SET ...]

Two hidden layers of 100 units on digits and on MNIST-1D. Each seed splits the data anew and holds two of ten classes
out, others for each of five; the networks are trained on clean examples of the other eight, and predict clean ones,
rotated (or sheared) and noisy ones of four levels, and the classes that were held out. All choices are made by the
negative log-likelihood of clean validation examples: those of `BASELINES` for each set by itself, that of the one
recipe, of `CANDIDATES`, once for both. The scores of each seed are kept in results/classification_shift_seeds.json, and
what is there is not run again: delete what is to be. It takes half an hour.
"""

import argparse
import json
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from benchmarks._report import RESULTS, Claim, report
from benchmarks.evidence._classification import LEVELS, SCORES, SHIFTS, Recipe, run, scores, task_of

KEPT = RESULTS / "classification_shift_seeds.json"
OURS, FRONTIER = "4 mean fields", "4 mean fields, kl_weight 1"
PRIORS = (2.0, 1.0, 0.6, 0.4, 0.3)
BASELINES = {
    "MAP": (*(Recipe("point", prior=prior) for prior in PRIORS), Recipe("point", prior=0.6, steps=6000)),
    "ensemble of 4": tuple(Recipe("point", 4, prior=prior) for prior in PRIORS),
    "ensemble of 10": tuple(Recipe("point", 10, prior=prior) for prior in PRIORS[1:-1]),
    "MC dropout": tuple(Recipe("dropout", steps=6000, rate=rate) for rate in (0.1, 0.2, 0.3)),
    "last layer": tuple(Recipe("last layer", kl_weight=weight) for weight in (1.0, 0.3)),
    "mean field": (Recipe("mean field"),),
    "rank-1": tuple(Recipe("rank-1", steps=6000, prior=prior) for prior in (1.0, 0.6)),
    FRONTIER: (Recipe("mean field", 4),),
}
CANDIDATES = (
    *(Recipe("mean field", 4, kl_weight=weight) for weight in (1.0, 0.3, 0.1)),
    Recipe("mean field", 4, kl_weight=0.3, coupling="decorrelated"),
    Recipe("mean field", steps=6000, kl_weight=0.3),
    Recipe("last layer", 4, kl_weight=0.3),
    *BASELINES["rank-1"],
)
RECIPE = Recipe("mean field", 4, kl_weight=0.3)  # the best of the candidates, which a claim repeats
MEASURED = {
    OURS: {"digits": ("level", "behind", "ahead"), "MNIST-1D": ("ahead", "ahead", "ahead")},
    FRONTIER: {"digits": ("behind", "ahead", "ahead"), "MNIST-1D": ("ahead", "ahead", "ahead")},
}  # on clean, rotated or sheared, and noisy inputs
BOUNDS = {"ahead": {"at_most": -2.0}, "level": {"at_most": 2.0}, "behind": {"at_least": 2.0}}

Scores = dict[str, dict[str, list[float]]]  # inputs -> score -> value of each seed


def results(source: str, num_seeds: int) -> dict[Recipe, Scores]:
    """Of all recipes, with their CPU seconds among the scores."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    found = {}
    for recipe in dict.fromkeys(recipe for recipes in (CANDIDATES, *BASELINES.values()) for recipe in recipes):
        of_recipe = kept.get(source, {}).get(str(recipe), {})
        if len(of_recipe.get("training", {}).get("seconds", [])) != num_seeds:
            of_recipe = measured(recipe, source, num_seeds)
            kept.setdefault(source, {})[str(recipe)] = of_recipe
            KEPT.write_text(json.dumps(kept) + "\n")
        found[recipe] = of_recipe
        print(f"{source}, {recipe}: {np.mean(of_recipe['validation']['NLL']):.4f} nats on validation", flush=True)
    return found


def measured(recipe: Recipe, source: str, num_seeds: int) -> Scores:
    found: Scores = {}
    for seed in range(num_seeds):
        probs, seconds = run(recipe, source, seed)
        of_seed = scores(probs, task_of(source, seed)) | {"training": {"seconds": seconds}}
        for inputs, values in of_seed.items():
            for score, value in values.items():
                found.setdefault(inputs, {}).setdefault(score, []).append(round(value, 5))
    return found


def on_validation(recipe: Recipe, *of_sets: dict[Recipe, Scores]) -> float:
    """The negative log-likelihood on validation, a geometric mean over the sets."""
    return float(np.exp(np.mean([np.log(np.mean(found[recipe]["validation"]["NLL"])) for found in of_sets])))


def chosen(recipes: tuple[Recipe, ...], found: dict[Recipe, Scores]) -> Recipe:
    return min(recipes, key=lambda recipe: on_validation(recipe, found))


def of_kind(found: Scores, kind: str, score: str) -> np.ndarray:
    """The score of each seed on one kind of inputs, a mean over levels."""
    names = [kind] if kind in found else [f"{kind} {level}" for level in LEVELS]
    return np.mean([found[name][score] for name in names], axis=0)


def cell(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {standard_error(values):.3f}"


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def rows_of(source: str, found: dict[str, Scores], recipes: dict[str, Recipe]) -> list[list[str]]:
    labelled = [("validation", "NLL")]
    labelled += [(kind, score) for kind in ("clean", SHIFTS[source], "noisy") for score in SCORES]
    rows = [
        [source, kind, score, *(cell(of_kind(of, kind, score)) for of in found.values())]
        for kind, score in [*labelled, ("other classes", "AUROC")]
    ]
    seconds = [f"{min(of['training']['seconds']):.1f}" for of in found.values()]  # the first seed compiles
    rows.append([source, "training", "CPU seconds", *seconds])
    rows.append([source, "training", "gradient passes", *(recipe.passes for recipe in recipes.values())])
    rows.append([source, "training", "setting", *(recipe.setting for recipe in recipes.values())])
    return rows


def claims_of(source: str, found: dict[str, Scores]) -> list[Claim]:
    """Of the difference in NLL on the same seeds, in its standard errors; also where it is not as one would hope."""
    claims = []
    for ours, others in ((OURS, ("MAP", "ensemble of 4", "ensemble of 10")), (FRONTIER, ("ensemble of 4",))):
        for kind, sign in zip(("clean", SHIFTS[source], "noisy"), MEASURED[ours][source], strict=True):
            for other in others:
                difference = of_kind(found[ours], kind, "NLL") - of_kind(found[other], kind, "NLL")
                text = f"{source}, {kind}: NLL of {ours} less that of {other}, in standard errors ({sign})"
                claims.append(Claim(text, float(difference.mean() / standard_error(difference)), **BOUNDS[sign]))
    return claims


def draw(found: dict[str, dict[str, Scores]], ax: Axes) -> None:
    """The likelihood of each method on every level of each shift, against that of MAP."""
    names, ticks = [name for name in next(iter(found.values())) if name != "MAP"], []
    for source, of_set in found.items():
        for kind in (SHIFTS[source], "noisy"):
            inputs = ["clean", *(f"{kind} {level}" for level in LEVELS)]
            at = len(ticks) * (len(inputs) + 1) + np.arange(len(inputs))
            nll = {name: np.array([np.mean(of[i]["NLL"]) for i in inputs]) for name, of in of_set.items()}
            for number, name in enumerate(names):
                style = {"marker": "osD^vx+P"[number], "color": "k" if name == OURS else "0.6", "fillstyle": "none"}
                ax.plot(at, nll[name] / nll["MAP"], linewidth=1, label=None if ticks else name, **style)
            ticks.append((at.mean(), f"{source},\nclean, then {kind}"))
    ax.axhline(1.0, color="0.8", linewidth=1, zorder=0)
    ax.set_ylim(bottom=0.4)
    ax.set_xticks(*zip(*ticks, strict=True), fontsize=8)
    ax.set_ylabel("negative log-likelihood / that of MAP")
    ax.legend(fontsize=7, ncols=2, loc="lower left")


def quick(sets: list[str]) -> None:
    for source in sets:
        recipes = *(BASELINES[name][0] for name in ("ensemble of 4", "MC dropout", "rank-1")), RECIPE
        for recipe in (recipe._replace(steps=30) for recipe in recipes):
            found = measured(recipe, source, 1)
            print(f"{source}, {recipe}: {found['validation']['NLL'][0]:.3f} nats on validation", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SHIFTS)}; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="thirty steps of four methods on digits, one seed, no claim"
    )
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := set(arguments.sets) - set(SHIFTS):
        parser.error(f"there are {', '.join(SHIFTS)}, not {', '.join(unknown)}")
    if arguments.quick:
        quick(arguments.sets or ["digits"])
        return
    if arguments.seeds < 2:
        parser.error("--seeds: a standard error needs two")
    found = {source: results(source, arguments.seeds) for source in arguments.sets or SHIFTS}
    best_other = min(on_validation(recipe, *found.values()) for recipe in CANDIDATES if recipe != RECIPE)
    ratio = on_validation(RECIPE, *found.values()) / best_other
    rows, claims, shown = [], [Claim(f"validation: NLL of {OURS} / best other candidate", ratio, at_most=1.0)], {}
    for source, of_set in found.items():
        recipes = {name: chosen(some, of_set) for name, some in BASELINES.items()} | {OURS: RECIPE}
        shown[source] = {name: of_set[recipe] for name, recipe in recipes.items()}
        rows += rows_of(source, shown[source], recipes)
        claims += claims_of(source, shown[source])
    columns = ["set", "inputs", "", *BASELINES, OURS]
    report("classification_shift", columns, rows, claims, partial(draw, shown))


if __name__ == "__main__":
    main()
