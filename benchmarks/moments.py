"""Claim: propagated moments of one hidden layer are exact; they train to within 5 % of the bound that draws train to.

python -m benchmarks.moments [SEEDS]

Digits of 8 x 8 pixels: networks of one and of three hidden layers of 100, and a CNN (two convolutions of 8 and 16
channels, each with relu and pooled by the mean, then a dense layer), fresh from `mean_field` and trained. The
propagated law of the outputs of held-out examples is compared with that of many networks: the error of the mean in
standard deviations, root mean square, of which .016 is the noise of the draws; the ratio of the standard deviations,
its mean and its 5 and 95 % quantiles; and the expected negative log-likelihood, for which Knowles and Minka's bound
is taken. All train from the same start, with Adam, for as many steps on the same batches. The negative ELBO per
example of all training data is by 64 draws for each example, the held-out likelihood of 64 networks. The mean of SEEDS
runs, of three unless told.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import illia_fn
from benchmarks._report import Claim, interleaved, report
from illia_fn._demo import data

DRAWS, BATCH = 4096, 128


class Network(NamedTuple):
    sizes: tuple[tuple[int, ...], ...]
    apply: Callable[[Any, jax.Array], jax.Array]

    def init(self, seed: int) -> Any:
        """He's initial kernels, and biases of 0."""
        rng = np.random.default_rng(seed)
        kernels = [rng.normal(size=shape) * (2.0 / np.prod(shape[:-1])) ** 0.5 for shape in self.sizes]
        return [{"kernel": jnp.asarray(k, jnp.float32), "bias": jnp.zeros(k.shape[-1])} for k in kernels]


def mlp(params, x):
    x = x.reshape(len(x), -1)
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def cnn(params, x):
    x = x[..., None]
    for layer in params[:-1]:
        x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        count, side, _, channels = x.shape
        x = jax.nn.relu(x + layer["bias"]).reshape(count, side // 2, 2, side // 2, 2, channels).mean((2, 4))
    return x.reshape(len(x), -1) @ params[-1]["kernel"] + params[-1]["bias"]


NETWORKS = {
    "MLP 1": Network(((64, 100), (100, 10)), mlp),
    "MLP 3": Network(((64, 100), (100, 100), (100, 100), (100, 10)), mlp),
    "CNN": Network(((3, 3, 1, 8), (3, 3, 8, 16), (64, 10)), cnn),
}
DRAWN = "elbo_loss, decorrelated"
METHODS = {
    DRAWN: partial(illia_fn.elbo_loss, coupling="decorrelated"),
    "moments": partial(illia_fn.analytic_elbo_loss, method="moments"),
}


def trained(loss, q, x, y, seed: int, steps: int):
    """q after some steps of Adam at rates that decay as a cosine."""
    optimizer = optax.chain(optax.adam(optax.cosine_decay_schedule(1e-2, steps)), illia_fn.slow_scales())

    def step(carry, key):
        q, state = carry
        batch_key, loss_key = jax.random.split(key)
        batch = jax.random.choice(batch_key, len(x), (BATCH,), replace=False)
        updates, state = optimizer.update(jax.grad(loss)(q, x[batch], y[batch], loss_key), state, q)
        return (optax.apply_updates(q, updates), state), None

    keys = jax.random.split(jax.random.key(seed), steps)
    return jax.jit(lambda q: jax.lax.scan(step, (q, optimizer.init(q)), keys)[0][0])(q)


def errors(apply, q, x, y) -> dict[str, float]:
    """Of the propagated law, and of the expected loss."""
    law = illia_fn.propagate_moments(apply, q, x)
    outputs = illia_fn.predict(apply, q, x, jax.random.key(7), DRAWS, chunk_size=64)
    mean, stddev = jnp.mean(outputs, axis=0), jnp.std(outputs, axis=0)
    ratios = jnp.sqrt(law.variance) / stddev
    bounded = illia_fn.analytic_elbo_loss(apply, q, x, y, num_data=len(x), kl_weight=0.0, method="moments")
    losses = jax.vmap(lambda logits: jnp.mean(illia_fn.categorical_nll(logits, y)))(outputs)
    return {
        "mean": float(jnp.sqrt(jnp.mean(jnp.square((law.mean - mean) / stddev)))),
        "ratio": float(jnp.mean(ratios)),
        "low": float(jnp.quantile(ratios, 0.05)),
        "high": float(jnp.quantile(ratios, 0.95)),
        "nll": float(jnp.mean(losses)),
        "bound": float(bounded),
    }


def scores(apply, q, x, y, x_test, y_test) -> dict[str, float]:
    """The negative ELBO per example of all training data, and the score of 64 networks on the others."""
    loss = illia_fn.elbo_loss(apply, q, x, y, jax.random.key(9), 64, coupling="decorrelated", num_data=len(x))
    outputs = illia_fn.predict(apply, q, x_test, jax.random.key(5), 64)
    nll = -jnp.mean(illia_fn.predictive_log_prob(None, outputs, y_test))
    return {"negative_elbo": float(loss), "held_out": float(nll)}


def step_times(apply, q, x, y, rounds: int) -> dict[str, float]:
    """Seconds of a loss with its gradient, by each method and of a deterministic pass."""
    steps = {
        name: jax.jit(jax.value_and_grad(lambda q, key, loss=loss: loss(apply, q, x, y, key, num_data=1000)))
        for name, loss in METHODS.items()
    }
    plain = jax.jit(jax.value_and_grad(lambda w, _: jnp.mean(illia_fn.categorical_nll(apply(w, x), y))))
    calls = {name: partial(step, q, jax.random.key(0)) for name, step in steps.items()}
    return interleaved(calls | {"fresh": partial(plain, illia_fn.mean(q), None)}, rounds)


def measure(network: Network, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """What becomes of one start by each method."""
    dataset = data.digits()
    x, y, x_test, y_test = map(jnp.asarray, (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test))
    start = illia_fn.mean_field(network.init(seed))
    found = {"fresh": errors(network.apply, start, x_test[:100], y_test[:100])}
    for name, loss in METHODS.items():
        q = trained(partial(loss, network.apply, num_data=len(x)), start, x, y, seed, steps)
        found[name] = errors(network.apply, q, x_test[:100], y_test[:100])
        found[name] |= scores(network.apply, q, x, y, x_test, y_test)
    return found


def main(seeds: int = 3, steps: int = 500, rounds: int = 15) -> None:
    """Print errors, scores and times, and check the claims."""
    rows, claims, batch = [], [], (jnp.ones((BATCH, 8, 8)), jnp.zeros(BATCH, int))
    for name, network in NETWORKS.items():
        runs = [measure(network, seed, steps) for seed in range(seeds)]
        found = {way: {key: np.mean([run[way][key] for run in runs]) for key in of} for way, of in runs[0].items()}
        seconds = step_times(network.apply, illia_fn.mean_field(network.init(0)), *batch, rounds)
        for way, of in found.items():
            ratio = f"{of['ratio']:.2f} ({of['low']:.2f} to {of['high']:.2f})"
            trained_to = [f"{of[key]:.3f}" if key in of else "-" for key in ("negative_elbo", "held_out")]
            cost = [1e3 * seconds[way], seconds[way] / seconds["fresh"]] if way != "fresh" else ["-", "-"]
            rows.append([name, way, *cost, *trained_to, float(of["mean"]), ratio, float(of["nll"]), float(of["bound"])])
        elbos = [found[way]["negative_elbo"] for way in ("moments", DRAWN)]
        claims.append(
            Claim(f"{name}: negative ELBO, trained by moments / by {DRAWN}", elbos[0] / elbos[1], at_most=1.05)
        )
        if name == "MLP 1":
            times = seconds["moments"] / seconds[DRAWN]
            claims.append(Claim(f"{name}: time of a step, moments / {DRAWN}", times, at_most=1.5))
            worst = max(abs(of["ratio"] - 1.0) for of in found.values())
            claims.append(
                Claim(f"{name}: error of the standard deviation, mean ratio, worst of all", worst, at_most=0.01)
            )
    columns = [
        "network", "trained by", "ms", "of a deterministic pass", "negative ELBO", "held-out NLL", "error of the mean",
        "standard deviation / that of draws", "expected NLL, by draws", "by moments",
    ]  # fmt: skip
    report("moments", columns, rows, claims)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
