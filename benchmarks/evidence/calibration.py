"""Is the inference itself right? Simulation-based calibration of small models, where the truth is known. Asserted.

python -m benchmarks.evidence.calibration [--quick]

Parameters are drawn from the prior and data from the model, q is trained on the data, and the rank of each true
parameter among draws of q must be uniform. The inputs are correlated. The exact posterior of the linear regression is
a Gaussian whose parameters are correlated, too; those of the logistic ones are no Gaussians, but near. What is called
too cold is an exact posterior with 0.7 times the covariance: it shows what the test sees.
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

import illia_fn
from benchmarks._report import Claim, report
from benchmarks.evidence._training import descend
from illia_fn.diagnostics import SBC

NUM_DATA, NUM_INPUTS, NUM_UNITS, NOISE, COLD = 24, 3, 4, 0.5, 0.7
STEPS, SIMULATIONS = 400, 640


class Model(NamedTuple):
    """features @ weights + bias under N(0, 1), the likelihood, and its draws: y given a key and the outputs."""

    features: jax.Array
    loss_fn: Callable[..., jax.Array]
    draw: Callable[[jax.Array, jax.Array], jax.Array]

    @staticmethod
    def apply_fn(w: Any, features: jax.Array) -> jax.Array:
        return features @ w["weights"] + w["bias"]

    def draw_prior(self, key: jax.Array) -> Any:
        numbers = jax.random.normal(key, (self.features.shape[1] + 1,))
        return {"weights": numbers[1:], "bias": numbers[0]}

    def simulate(self, w: Any, key: jax.Array) -> jax.Array:
        return self.draw(key, self.apply_fn(w, self.features))


def models() -> dict[str, Model]:
    own, common = (jax.random.normal(jax.random.key(n), (NUM_DATA, size)) for n, size in ((0, NUM_INPUTS), (1, 1)))
    x = 0.1**0.5 * own + 0.9**0.5 * common + 0.5
    units = jnp.tanh(x @ jax.random.normal(jax.random.key(2), (NUM_INPUTS, NUM_UNITS)))
    gaussian = partial(illia_fn.gaussian_nll, scale=NOISE)
    return {
        "linear regression": Model(x, gaussian, lambda key, f: f + NOISE * jax.random.normal(key, f.shape)),
        "logistic regression": Model(x, illia_fn.bernoulli_nll, _tosses),
        "logistic last layer": Model(units, illia_fn.bernoulli_nll, _tosses),
    }


def _tosses(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)


def variational(model: Model, family: Callable[..., Any], y: jax.Array, key: jax.Array, *, analytic: bool) -> Any:
    """By natural gradients, of the sampled bound or of the one without sampling."""
    objective = illia_fn.analytic_elbo_loss
    if not analytic:
        objective = partial(illia_fn.elbo_loss, num_samples=4, coupling="decorrelated")

    def loss(q: Any, key: jax.Array) -> jax.Array:
        return objective(model.apply_fn, q, model.features, y, key, loss_fn=model.loss_fn, num_data=NUM_DATA)

    rate = optax.cosine_decay_schedule(0.3, STEPS)
    q = family(jax.tree.map(jnp.zeros_like, model.draw_prior(key)), scale=0.1)
    return descend(loss, q, illia_fn.natural_gradient(rate, rate, num_data=NUM_DATA), STEPS, key)


def laplace(model: Model, y: jax.Array, key: jax.Array) -> Any:
    """The curvature at the mode."""
    prior, settings = illia_fn.Normal(0.0, 1.0), {"loss_fn": model.loss_fn}

    def loss(w: Any, key: jax.Array) -> jax.Array:
        nll = illia_fn.elbo_loss(model.apply_fn, w, model.features, y, key, kl_weight=0.0, **settings)
        return nll - sum(jnp.sum(prior.log_prob(leaf)) for leaf in jax.tree.leaves(w)) / NUM_DATA

    start = jax.tree.map(jnp.zeros_like, model.draw_prior(key))
    mode = descend(loss, start, optax.adam(optax.cosine_decay_schedule(0.1, STEPS)), STEPS, key)
    return illia_fn.laplace(model.apply_fn, illia_fn.full_covariance(mode), model.features, y, prior=prior, **settings)


def inferences(model: Model) -> dict[str, Callable[[jax.Array, jax.Array], Any]]:
    """By name, (y, key) -> q."""
    full = partial(variational, model, illia_fn.full_covariance)
    return {
        "full covariance, sampled": partial(full, analytic=False),
        "full covariance, analytic": partial(full, analytic=True),
        "mean field, sampled": partial(variational, model, illia_fn.mean_field, analytic=False),
        "Laplace": partial(laplace, model),
        "too cold": lambda y, key: illia_fn.tempered(full(y, key, analytic=True), COLD),
    }


def of_each(found: SBC) -> dict[str, tuple[float, float]]:
    """p and the spread of the ranks of every parameter; the spread of uniform ones is 1."""
    table = {}
    for name, ranks in found.ranks.items():
        unit = (ranks.reshape(len(ranks), -1) + 0.5) / (found.num_draws + 1)
        spreads, numbers = 12.0**0.5 * unit.std(axis=0), np.ravel(found.p_values[name])
        for index, (p, spread) in enumerate(zip(numbers, spreads, strict=True)):
            table[name if len(numbers) == 1 else f"{name[0]}{index + 1}"] = float(p), float(spread)
    return table


def _p(p: float) -> str:
    return f"{p:.2g}" if p > 1e-30 else "< 1e-30"


def draw(found: dict[tuple[str, str], SBC], ax: Axes) -> None:
    error = (0.2 / len(next(iter(found.values())).ranks["bias"])) ** 0.5  # of the spread of uniform ranks
    ax.axvspan(1.0 - 2.0 * error, 1.0 + 2.0 * error, color="0.9")
    for place, sbc in enumerate(found.values()):
        spreads = [spread for _, spread in of_each(sbc).values()]
        ax.plot(spreads, np.full(len(spreads), place), "ko", fillstyle="none")
    ax.set_yticks(range(len(found)), [f"{model}: {posterior}" for model, posterior in found], fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel("spread of the ranks of each parameter; above 1: too narrow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three posteriors of one model, 80 simulations, no claim")
    quick = parser.parse_args().quick
    found = {}
    for name, model in list(models().items())[: 1 if quick else None]:
        functions = model.draw_prior, model.simulate
        for posterior, infer in list(inferences(model).items())[:: 2 if quick else 1]:
            numbers = {"num_simulations": 80 if quick else SIMULATIONS}
            sbc = illia_fn.simulation_based_calibration(*functions, infer, jax.random.key(5), **numbers)
            found[name, posterior] = sbc
            print(f"{name}, {posterior}\n{sbc}\n", flush=True)
    if quick:
        return
    rows, p_values, spreads, right = [], {}, {}, "full covariance and Laplace"
    for (name, posterior), sbc in found.items():
        each = of_each(sbc)
        of_all = [spread for _, spread in each.values()]
        verdict = "not calibrated" if sbc.smallest < 0.05 else "no sign against it"
        p_of_each = ", ".join(f"{parameter} {_p(p)}" for parameter, (p, _) in each.items())
        rows.append([name, posterior, p_of_each, _p(sbc.smallest), f"{min(of_all):.2f} to {max(of_all):.2f}", verdict])
        kind = posterior if posterior in ("too cold", "mean field, sampled") else right
        p_values.setdefault(kind, []).append(sbc.smallest)
        spreads.setdefault(kind, []).append(max(of_all))
    claims = [
        Claim(
            "full covariance and Laplace: p over all, smallest",
            min(p_values.pop("full covariance and Laplace")),
            at_least=0.05,
        ),
        *(Claim(f"{kind}: p over all, largest", max(p), at_most=0.001) for kind, p in p_values.items()),
        Claim("mean field: the widest spread of a model, smallest", min(spreads["mean field, sampled"]), at_least=1.1),
    ]
    columns = ["model", "posterior", "p of each parameter", "p over all", "spread of the ranks", "verdict"]
    report("calibration", columns, rows, claims, partial(draw, found))


if __name__ == "__main__":
    main()
