"""Claims: decorrelated noise lowers the variance of the gradient by more than it costs, and training takes fewer steps.

python -m benchmarks.coupling

The gradient of the ELBO on one batch of scanned digits, of networks that are partly trained, at equal n: its variance
over keys, summed over all parameters, for the means (loc) and for the scales (rho) apart, and variance x time, the time
to reach a given variance by averaging. The spread is that of the ratio over three seeds. Then the demo's network is
trained with each coupling.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import illia_fn
from benchmarks._models import MODELS
from benchmarks._report import Claim, interleaved, report
from benchmarks.gradient_quality import digits, trained
from illia_fn._demo import data, models

COUPLINGS = ("shared", "flipout", "decorrelated")
NUM_SAMPLES = (1, 8)
EVERY = 25  # steps between two looks at the ELBO


def measure(name: str, seed: int, steps: int, num_keys: int, rounds: int) -> dict[tuple[int, str], dict[str, float]]:
    """Variances and seconds of each coupling, for each number of samples."""
    init, apply = MODELS[name]
    x, y = digits()
    loss = partial(illia_fn.elbo_loss, apply, num_data=len(x), prior=illia_fn.Normal(0.0, 0.5))
    q = trained(loss, illia_fn.mean_field(init(seed), scale=0.05), x, y, seed, steps)
    batch = (q, x[:128], y[:128])
    gradients = {
        (n, coupling): jax.jit(jax.grad(partial(loss, num_samples=n, coupling=coupling)))
        for n, coupling in itertools.product(NUM_SAMPLES, COUPLINGS)
    }
    seconds = interleaved({str(way): partial(f, *batch, jax.random.key(0)) for way, f in gradients.items()}, rounds)
    return {
        way: {**variances(f, *batch, num_keys=num_keys), "seconds": seconds[str(way)]} for way, f in gradients.items()
    }


def variances(gradient: Callable[..., Any], *batch: Any, num_keys: int) -> dict[str, float]:
    """The variance of the gradient, summed over all parameters."""
    add = jax.jit(lambda sums, g: jax.tree.map(lambda total, leaf: total + jnp.stack([leaf, leaf * leaf]), sums, g))
    sums = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape)), batch[0])
    for key in jax.random.split(jax.random.key(99), num_keys):
        sums = add(sums, gradient(*batch, key))
    result = {"loc": 0.0, "rho": 0.0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(sums):
        total, squares = np.asarray(leaf, np.float64)
        result[path[-1].name] += float(np.sum(squares - total**2 / num_keys)) / (num_keys - 1)
    return result


def rows_of(name: str, runs: list[dict[tuple[int, str], dict[str, float]]]) -> tuple[list[list[Any]], list[Claim]]:
    """How many times lower than with one draw for the batch: mean and range over the seeds."""
    rows, ratios = [], {}
    for n, coupling in itertools.product(NUM_SAMPLES, COUPLINGS):
        for kind in ("loc", "rho", "seconds"):
            ratios[n, coupling, kind] = [run[n, "shared"][kind] / run[n, coupling][kind] for run in runs]
        lower = zip(ratios[n, coupling, "loc"], ratios[n, coupling, "seconds"], strict=True)
        ratios[n, coupling, "both"] = [variance * time for variance, time in lower]
        kinds = ("loc", "rho", "seconds", "both")
        rows.append([name, n, coupling, *(spread(ratios[n, coupling, kind]) for kind in kinds)])
    targets = {"loc": 1.5 if name == "MLP" else 3.0, "rho": 20.0, "both": 2.0}
    texts = {"loc": "variance of loc", "rho": "variance of rho", "both": "variance x time of loc"}
    claims = [
        Claim(
            f"{name}, n = 8: {texts[kind]}, times lower",
            float(np.mean(ratios[8, "decorrelated", kind])),
            at_least=least,
        )
        for kind, least in targets.items()
    ]
    return rows, claims


def spread(ratios: list[float]) -> str:
    return f"{np.mean(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"


def curve(coupling: illia_fn.coupling.Coupling, seed: int, num_steps: int) -> list[float]:
    """The negative ELBO per example of the demo's network on all training data, every few steps of its training."""
    dataset = data.digits()
    x, y = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)
    graphdef, params = nnx.split(models.ConvNet(10, nnx.Rngs(seed)))
    apply_fn = partial(_apply, graphdef)
    loss = partial(illia_fn.elbo_loss, apply_fn, num_data=len(x), prior=illia_fn.Normal(0.0, 0.5))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))

    @jax.jit
    def step(q, state, key):
        batch_key, loss_key = jax.random.split(key)
        batch = jax.random.choice(batch_key, len(x), (128,), replace=False)
        updates, state = optimizer.update(jax.grad(loss)(q, x[batch], y[batch], loss_key, coupling=coupling), state, q)
        return optax.apply_updates(q, updates), state

    exact = jax.jit(lambda q: loss(q, x, y, jax.random.key(0), 4, coupling="decorrelated"))
    q = illia_fn.mean_field(params, scale=0.05)
    state, values = optimizer.init(q), []
    for number, key in enumerate(jax.random.split(jax.random.key(seed), num_steps), start=1):
        q, state = step(q, state, key)
        if number % EVERY == 0:
            values.append(float(exact(q)))
    return values


def _apply(graphdef: Any, params: Any, x: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params)(x)


def steps_to(values: list[float], target: float) -> int:
    """The steps after which the curve is at the target or below it."""
    return EVERY * (1 + next((index for index, value in enumerate(values) if value <= target), len(values)))


def draw(curves: dict[str, list[list[float]]]) -> Callable[[Any], None]:
    def on(axes: Any) -> None:
        for coupling, values in curves.items():
            mean = np.mean(values, axis=0)
            axes.plot(EVERY * np.arange(1, len(mean) + 1), mean, label=coupling)
        axes.axhline(np.mean(curves["shared"], axis=0)[-1], color="black", linewidth=0.8, linestyle="--")
        axes.set(xlabel="training step", ylabel="negative ELBO per example (nats)", yscale="log")
        axes.legend()

    return on


def main(seeds: int = 3, steps: int = 200, num_keys: int = 50, rounds: int = 7, training_steps: int = 600) -> None:
    """Print the variances and the steps of training, and check the claims."""
    rows, claims = [], []
    for name in ("MLP", "CNN"):
        more_rows, more_claims = rows_of(name, [measure(name, seed, steps, num_keys, rounds) for seed in range(seeds)])
        rows, claims = rows + more_rows, claims + more_claims
    curves = {way: [curve(way, seed, training_steps) for seed in range(seeds)] for way in ("shared", "decorrelated")}
    pairs = list(zip(curves["shared"], curves["decorrelated"], strict=True))
    fewer = [steps_to(values, shared[-1]) / training_steps for shared, values in pairs]
    claims.append(
        Claim(
            f"training: steps to the final ELBO of shared, of its {training_steps}; {spread(fewer)}",
            max(fewer),
            at_most=1.0,
        )
    )
    columns = ["model; how many times lower than shared:", "n", "coupling"]
    columns += ["variance of loc", "variance of rho", "time", "variance x time of loc"]
    report("coupling", columns, rows, claims, draw(curves))


if __name__ == "__main__":
    main()
