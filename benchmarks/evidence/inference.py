"""How near are the posteriors of this library to that of long NUTS, in what they say of the function? Asserted.

python -m benchmarks.evidence.inference [--quick]

A network of one hidden layer and one input, data of the model itself: the true function is one of its prior, with known
noise, seen on either side of a gap. In the place of weights, which are not identified, values f(x) of the function are
compared, in the data, in the gap and outside: how far the mean is off, in standard deviations of NUTS; the standard
deviation, as a share of NUTS' one; and the log-likelihood of new data there. NUTS and its model are numpyro's.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from numpyro.diagnostics import split_gelman_rubin

import illia_fn
from benchmarks._report import Claim, report
from benchmarks.evidence._one_input import (
    NUM_DATA,
    POINTS,
    PRIOR,
    REGIONS,
    Data,
    draw_prior,
    functions,
    likelihood,
    log_prior,
    network,
    nuts,
)
from benchmarks.evidence._training import descend

MEMBERS, RANK = 5, 5
ORDER = (
    "NUTS",
    *(f"{family}{kind}" for family in ("mean field", "low rank", "full covariance") for kind in ("", ", mixture")),
    "last layer",
    "Laplace, linearised",
    "ensemble",
)


class Budget(NamedTuple):
    data_sets: int
    steps: int
    warm_up: int
    draws: int


FULL, QUICK = Budget(5, 3000, 500, 1000), Budget(1, 20, 20, 20)


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def negative_elbo(data: Data, q: Any, key: jax.Array, num_samples: int = 4, **options: Any) -> jax.Array:
    settings = {"loss_fn": likelihood, "prior": PRIOR, "num_data": NUM_DATA, "coupling": "decorrelated"} | options
    return illia_fn.elbo_loss(network, q, data.x, data.y, key, num_samples, **settings)


def maximised(data: Data, steps: int, key: jax.Array) -> Any:
    """The parameters of the highest posterior density from one start."""

    def loss(w: Any, key: jax.Array) -> jax.Array:
        nll = negative_elbo(data, w, key, 1, kl_weight=0.0, coupling="shared")
        return nll - log_prior(w) / NUM_DATA

    return descend(loss, draw_prior(key), adam(0.02, steps), steps, key)


def mean_field(data: Data, steps: int, w: Any, key: jax.Array) -> Any:
    return descend(partial(negative_elbo, data), illia_fn.mean_field(w), adam(0.02, steps), steps, key)


def low_rank(data: Data, steps: int, w: Any, key: jax.Array) -> Any:
    q = illia_fn.low_rank(w, RANK, key=key)
    return descend(partial(negative_elbo, data), q, adam(0.02, steps), steps, key)


def full_covariance(data: Data, steps: int, q: Any, key: jax.Array) -> Any:
    """From where the low rank ended."""
    rates = optax.cosine_decay_schedule(0.05, steps), optax.cosine_decay_schedule(0.005, steps)
    optimizer = illia_fn.natural_gradient(*rates, num_data=NUM_DATA)
    q = illia_fn.moment_match(q, {"": illia_fn.full_covariance})
    return descend(partial(negative_elbo, data, num_samples=16), q, optimizer, steps, key)


def last_layer(data: Data, steps: int, w: Any, key: jax.Array) -> Any:
    """The hidden layer has its prior as a penalty, and the expectation over the output layer no noise."""
    settings = {"loss_fn": likelihood, "prior": PRIOR | {"hidden": None}, "num_data": NUM_DATA}

    def loss(q: Any, key: jax.Array) -> jax.Array:
        del key
        bound = illia_fn.analytic_elbo_loss(network, q, data.x, data.y, **settings)
        return bound - log_prior({"hidden": q["hidden"]}) / NUM_DATA

    q = illia_fn.posterior_tree(w, {"output": illia_fn.full_covariance})
    return descend(loss, q, adam(0.02, steps), steps, key)


class Posterior(NamedTuple):
    """draws(x, key) are values of many functions at x, (functions, points); the ELBO in nats, where there is one."""

    draws: Callable[[jax.Array, jax.Array], jax.Array]
    elbo: jax.Array | float = float("nan")


FITS = {"mean field": mean_field, "low rank": low_rank, "full covariance": full_covariance}


def trained(data: Data, steps: int, key: jax.Array, *, quick: bool) -> dict[str, Posterior]:
    """All posteriors of this library on one set of data, from the same networks of highest posterior density."""
    keys = jax.random.split(key, MEMBERS)
    members = jax.vmap(partial(maximised, data, steps))(keys)
    first = jax.tree.map(lambda leaf: leaf[0], members)
    curvature = illia_fn.laplace(
        network, illia_fn.full_covariance(first), data.x, data.y, loss_fn=likelihood, prior=PRIOR
    )

    def drawn(q: Any, **options: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda x, key: illia_fn.predict(network, q, x, key, 2000, **options)

    def variational(q: Any) -> Posterior:
        return Posterior(drawn(q), -NUM_DATA * negative_elbo(data, q, key, 2000, coupling="shared"))

    found = {
        "ensemble": Posterior(lambda x, _: jax.vmap(network, (0, None))(members, x)),
        "Laplace, linearised": Posterior(drawn(curvature, linearised=True)),
    }
    if not quick:
        found["last layer"] = Posterior(drawn(last_layer(data, steps, first, key)))
    several = members
    for name in list(FITS)[: 1 if quick else None]:
        begin = several if name == "full covariance" else members
        several = jax.vmap(partial(FITS[name], data, steps))(begin, keys)
        found[name] = variational(jax.tree.map(lambda leaf: leaf[0], several))
        found[f"{name}, mixture"] = variational(illia_fn.Mixture(several))
    return found


class Scores(NamedTuple):
    """Of one posterior on one set of data, by region."""

    elbo: float
    off: np.ndarray
    spread: np.ndarray
    log_prob: np.ndarray


def values(posterior: Posterior, key: jax.Array) -> dict[str, jax.Array]:
    return {name: posterior.draws(points, key) for name, points in POINTS.items()}


def scores(data: Data, found: dict[str, jax.Array], elbo: Any, truth: dict[str, jax.Array]) -> Scores:
    """Against values of NUTS."""

    def log_prob(name: str, f: jax.Array) -> jax.Array:
        of_targets = jax.vmap(partial(illia_fn.predictive_log_prob, likelihood, f), 1)
        return jnp.mean(of_targets(data.tests[name]))

    pairs = [(found[name], truth[name]) for name in REGIONS]
    off = [jnp.mean(jnp.abs(f.mean(0) - of_nuts.mean(0)) / of_nuts.std(0)) for f, of_nuts in pairs]
    spread = [jnp.mean(f.std(0) / of_nuts.std(0)) for f, of_nuts in pairs]
    return Scores(elbo, *map(jnp.stack, (off, spread, [log_prob(name, found[name]) for name in REGIONS])))


# --- the table ----------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("steps", "quick"))
def of_one(data: Data, steps: int, key: jax.Array, truth: dict[str, jax.Array], *, quick: bool) -> dict[str, Scores]:
    reference = jax.tree.map(lambda f: f.reshape(-1, f.shape[-1]), truth)
    found = {"NUTS": scores(data, reference, jnp.nan, reference)}
    for name, posterior in trained(data, steps, key, quick=quick).items():
        found[name] = scores(data, values(posterior, key), posterior.elbo, reference)
    return found


def error(numbers: np.ndarray) -> np.ndarray:
    """The standard error over the sets of data."""
    return numbers.std(axis=0, ddof=1) / len(numbers) ** 0.5


def cell(numbers: np.ndarray, digits: int = 2) -> str:
    return f"{numbers.mean():.{digits}f} ± {error(numbers):.{digits}f}"


def draw(found: dict[str, Scores], ax: Axes) -> None:
    for number, region in enumerate(REGIONS):
        spreads = np.stack([result.spread[:, number] for result in found.values()], axis=1)
        places = np.arange(len(found)) + 0.15 * (number - 1)
        style = {"marker": "osD"[number], "color": "k", "fillstyle": "none", "linestyle": "none"}
        ax.errorbar(spreads.mean(axis=0), places, xerr=error(spreads), label=region, **style)
    ax.axvline(1.0, color="0.7", linewidth=1)
    ax.set_yticks(range(len(found)), found)
    ax.invert_yaxis()
    ax.set_xlabel("standard deviation of f(x), as a share of that of NUTS")
    ax.legend(loc="upper left")


def results(budget: Budget, *, quick: bool) -> tuple[dict[str, Scores], float]:
    """Scores of all sets of data, by posterior, and the largest R-hat of a value f(x) of NUTS."""
    chains, of_all, r_hat = nuts(budget.warm_up, budget.draws), [], 0.0
    for number in range(budget.data_sets):
        data = Data.of(jax.random.key(number))
        chains.run(jax.random.key(100 + number), data.x, data.y)
        truth = functions(chains.get_samples(group_by_chain=True))
        r_hat = max(r_hat, *(float(split_gelman_rubin(np.asarray(f)).max()) for f in truth.values()))
        found = of_one(data, budget.steps, jax.random.key(200 + number), truth, quick=quick)
        of_all.append({name: found[name] for name in sorted(found, key=ORDER.index)})
        print(f"data {number}: R-hat {r_hat:.3f}", flush=True)
        for name, result in of_all[-1].items():
            print(f"{name:30}", *(np.round(part, 2) for part in result), flush=True)
    return {name: Scores(*map(np.stack, zip(*(of[name] for of in of_all), strict=True))) for name in of_all[0]}, r_hat


def claims(found: dict[str, Scores], r_hat: float) -> list[Claim]:
    """Two standard errors are on the side of the bound that is harder to keep."""
    in_data, gap, outside = range(len(REGIONS))

    def spread(name: str, region: int, errors: float) -> float:
        numbers = found[name].spread[:, region]
        return float(numbers.mean() + errors * error(numbers))

    richer = found["full covariance"].elbo - found["mean field"].elbo
    ahead = [result.log_prob.mean(axis=1) - found["NUTS"].log_prob.mean(axis=1) for result in list(found.values())[1:]]
    of_laplace = [abs(spread("Laplace, linearised", in_data, errors) - 1.0) for errors in (-2.0, 2.0)]
    gaussians = "mean field", "low rank", "full covariance"
    return [
        Claim("NUTS: R-hat of f(x), largest of all x and sets of data", r_hat, at_most=1.05),
        Claim(
            "log-likelihood, mean of the regions: best posterior less NUTS, in standard errors",
            max(numbers.mean() / error(numbers) for numbers in ahead),
            at_most=2.0,
        ),
        Claim("ELBO: full covariance less mean field, in nats", richer.mean() - 2.0 * error(richer), at_least=0.0),
        Claim("trained Gaussians, gap: spread, largest", max(spread(n, gap, 2.0) for n in gaussians), at_most=1.0),
        Claim("the same, outside", max(spread(n, outside, 2.0) for n in gaussians), at_most=1.0),
        Claim("the same, in the data: smallest", min(spread(n, in_data, -2.0) for n in gaussians), at_least=1.0),
        Claim("Laplace, in the data: spread, distance from 1", max(of_laplace), at_most=0.2),
    ]


def tabulate(found: dict[str, Scores], r_hat: float) -> None:
    rows = []
    for name, result in found.items():
        elbo = cell(result.elbo, 1) if np.isfinite(result.elbo).all() else "-"
        cells = [cell(part[:, number]) for part in result[1:] for number in range(len(REGIONS))]
        rows.append([name, elbo, *cells])
    parts = "mean off by", "spread", "log-likelihood"
    columns = ["posterior", "ELBO (nats)", *(f"{part}, {region}" for part in parts for region in REGIONS)]
    report("inference", columns, rows, claims(found, r_hat), partial(draw, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, draws and posteriors, no claim")
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_x64", True)  # noqa: FBT003
    found = results(QUICK if quick else FULL, quick=quick)
    if not quick:
        tabulate(*found)


if __name__ == "__main__":
    main()
