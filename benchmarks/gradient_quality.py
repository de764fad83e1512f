"""Claim: antithetic pairs give a gradient of lower variance x time than independent draws.

python -m benchmarks.gradient_quality

An MLP and a CNN are trained for a while on scanned digits; then the gradient of the ELBO on one batch is estimated from
many keys, by each way to draw, and its variance is summed over all parameters, for the means (loc) and for the scales
(rho) apart. Variance x time is what an estimator costs: the time to reach a given variance by averaging. The spread is
that of the ratio over three seeds.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import illia_fn
from benchmarks._models import MODELS
from benchmarks._report import Claim, interleaved, report
from illia_fn._demo import data

WAYS = {
    "n = 2": {"num_samples": 2},
    "n = 2, antithetic": {"num_samples": 2, "antithetic": True},
    "n = 8": {"num_samples": 8},
    "n = 8, antithetic": {"num_samples": 8, "antithetic": True},
}


def digits() -> tuple[jax.Array, jax.Array]:
    """The digits, scaled up to the 28 x 28 pixels that the models take."""
    dataset = data.digits()
    images = jnp.asarray(dataset.x_train, jnp.float32).reshape(-1, 8, 8)
    return jax.image.resize(images, (len(images), 28, 28), "bilinear").reshape(-1, 784), jnp.asarray(dataset.y_train)


def trained(loss, q, x, y, seed: int, steps: int):
    """q after some steps of Adam, far from its start and from its end."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(q, state, key):
        batch = jax.random.choice(key, len(x), (128,), replace=False)
        updates, state = optimizer.update(jax.grad(loss)(q, x[batch], y[batch], key), state, q)
        return optax.apply_updates(q, updates), state

    state = optimizer.init(q)
    for key in jax.random.split(jax.random.key(seed), steps):
        q, state = step(q, state, key)
    return q


def variances(gradient, q, x, y, num_keys: int) -> dict[str, float]:
    """The variance of the gradient, summed over all parameters."""

    @jax.jit
    def add(totals, key):
        grads = gradient(q, x, y, key)
        return jax.tree.map(lambda total, g: (total[0] + g, total[1] + g * g), totals, grads, is_leaf=is_pair)

    def is_pair(node):
        return isinstance(node, tuple)

    totals = jax.tree.map(lambda leaf: (jnp.zeros_like(leaf), jnp.zeros_like(leaf)), q)
    for key in jax.random.split(jax.random.key(99), num_keys):  # in a loop of XLA convolutions are slow
        totals = add(totals, key)
    sums = {"loc": 0.0, "rho": 0.0}
    for path, (total, squares) in jax.tree_util.tree_leaves_with_path(totals, is_leaf=is_pair):
        variance = (np.asarray(squares, np.float64) - np.asarray(total, np.float64) ** 2 / num_keys) / (num_keys - 1)
        sums[path[-1].name] += float(variance.sum())
    return sums


def measure(name: str, seed: int, steps: int, num_keys: int, rounds: int) -> dict[str, dict[str, float]]:
    """Variances and seconds of every way to draw."""
    init, apply = MODELS[name]
    x, y = digits()
    q = illia_fn.mean_field(init(seed), scale=0.05)
    loss = partial(illia_fn.elbo_loss, apply, num_data=len(x), prior=illia_fn.Normal(0.0, 0.5))
    q = trained(loss, q, x, y, seed, steps)
    gradients = {way: jax.jit(jax.grad(partial(loss, **options))) for way, options in WAYS.items()}
    batch = (q, x[:128], y[:128])
    seconds = interleaved({way: partial(f, *batch, jax.random.key(0)) for way, f in gradients.items()}, rounds)
    return {way: {**variances(f, *batch, num_keys), "seconds": seconds[way]} for way, f in gradients.items()}


def main(seeds: int = 3, steps: int = 200, num_keys: int = 200, rounds: int = 15) -> None:
    """Print the variances, and check the claim."""
    rows, claims, costs = [], [], {}
    for name in ("MLP", "CNN"):
        runs = [measure(name, seed, steps, num_keys, rounds) for seed in range(seeds)]
        for way in WAYS:
            reference = f"n = {WAYS[way]['num_samples']}"
            cells = []
            for kind in ("loc", "rho"):
                ratios = [run[way][kind] / run[reference][kind] for run in runs]
                cells.append(f"{np.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            slower = np.mean([run[way]["seconds"] / run[reference]["seconds"] for run in runs])
            cost = [
                run[way]["loc"] * run[way]["seconds"] / (run[reference]["loc"] * run[reference]["seconds"])
                for run in runs
            ]
            costs[f"{name}, {way}"] = float(np.mean(cost))
            rows.append([name, way, *cells, float(slower), f"{np.mean(cost):.2f} ({min(cost):.2f} to {max(cost):.2f})"])
        claims.append(
            Claim(
                f"{name}: variance x time of loc, antithetic against independent, n = 8",
                costs[f"{name}, n = 8, antithetic"],
                at_most=1.0,
            )
        )
    columns = ["model", "draws", "variance of loc", "variance of rho", "time", "variance x time of loc"]

    def draw(axes):
        axes.barh(list(costs), list(costs.values()))
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set_xlabel("variance x time of the gradient of loc, against independent draws at equal n")

    report("gradient_quality", columns, rows, claims, draw)


if __name__ == "__main__":
    main()
