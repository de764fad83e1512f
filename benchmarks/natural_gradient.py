"""Claim: the rates of natural gradients matter little: at their worst the bound is within twice that of Adam's best.

python -m benchmarks.natural_gradient [SEEDS]

Three networks, noise of its own for each example, one sample, N(0, 1), scales that start at 0.05, rates of the means
that decay as a cosine. Adam has seven settings, natural gradients six, of which one is their default; each has 300 and
then 1500 steps. What is compared is the negative ELBO per example on all training data, which both minimise, and the
negative log-likelihood of held-out data at the same setting. Then the same rule, at its defaults, on kernels in bases
of their own, a richer family. "Steps to it" is when a run comes within 0.1 nats of the ELBO, or 0.01 of the held-out
likelihood, that Adam ends with at its best setting.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

import illia_fn
from benchmarks._report import Claim, report
from benchmarks.defaults import PAIRS

NETWORKS = ("MLP 1, digits", "MLP 3, digits", "MLP 1, breast cancer (UCI)")
BUDGETS, BATCH, LOOKS = (300, 1500), 128, 15
ADAM = ((0.01, 0.2), (0.01, 1.0), (0.03, 0.2), (0.03, 1.0), (0.03, 3.0), (0.1, 0.2), (0.1, 1.0))
NATURAL = ((0.2, 0.05), (0.1, 0.03), (0.1, 0.1), (0.3, 0.03), (0.3, 0.1), (1.0, 0.05))  # the first is the default


class Problem(NamedTuple):
    """A network and its data: the gradient of a minibatch, the scores of q, and q before the first step."""

    q: Any
    num_data: int
    gradient: Callable[..., Any]
    scores: Callable[[Any], jax.Array]

    @staticmethod
    def of(name: str) -> "Problem":
        module, load = PAIRS[name]
        data = load()
        params = module.init(jax.random.key(0), data.x[:2])["params"]
        size = min(BATCH, len(data.x))

        def apply_fn(params, x):
            return module.apply({"params": params}, x)

        loss = partial(illia_fn.elbo_loss, apply_fn, num_data=len(data.x))

        def gradient(q, key, coupling):
            batch_key, loss_key = jax.random.split(key)
            batch = jax.random.choice(batch_key, len(data.x), (size,), replace=False)
            return jax.grad(loss)(q, data.x[batch], data.y[batch], loss_key, coupling=coupling)

        @jax.jit
        def scores(q):
            outputs = illia_fn.predict(apply_fn, q, data.x_test, jax.random.key(5), 32)
            nll = -jnp.mean(illia_fn.predictive_log_prob(None, outputs, data.y_test))
            return jnp.stack([loss(q, data.x, data.y, jax.random.key(6), 16, coupling="decorrelated"), nll])

        return Problem(illia_fn.mean_field(params), len(data.x), gradient, scores)

    def in_eigenbases(self) -> "Problem":
        """With kernels whose posteriors have bases of their own."""

        def node(w: jax.Array) -> Any:
            return illia_fn.eigenbasis(w) if w.ndim > 1 else illia_fn.mean_field(w)

        return self._replace(q=jax.tree.map(node, illia_fn.mean(self.q)))


def adam(rates: jax.Array, steps: int, problem: Problem) -> optax.GradientTransformation:
    del problem
    return optax.chain(optax.adam(cosine(rates[0], steps)), illia_fn.slow_scales(rates[1]))


def natural(rates: jax.Array, steps: int, problem: Problem) -> optax.GradientTransformation:
    return illia_fn.natural_gradient(cosine(rates[0], steps), rates[1], num_data=problem.num_data)


def cosine(rate: jax.Array, steps: int) -> optax.Schedule:
    return lambda count: 0.5 * rate * (1.0 + jnp.cos(jnp.pi * count / steps))


class Runs(NamedTuple):
    """Scores (settings, seeds, looks, 2) on the way, and the seconds of one step."""

    scores: np.ndarray
    seconds: float

    @property
    def ends(self) -> np.ndarray:
        """Negative ELBO and held-out NLL at the end, means over the seeds, (settings, 2)."""
        return self.scores[:, :, -1].mean(axis=1)

    def steps_to(self, setting: int, column: int, target: float, steps: int) -> float:
        """The mean over seeds of the steps until a score is at most the target; infinite if one does not get there."""
        reached = self.scores[setting, :, :, column] <= target
        first = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, np.inf)
        return float(first.mean()) * steps / LOOKS


def run(
    problem: Problem,
    optimizer_of: Callable[..., optax.GradientTransformation],
    settings: Sequence[tuple[float, float]],
    steps: int,
    num_seeds: int,
    coupling: str = "decorrelated",
) -> Runs:
    @jax.jit
    def part(rates, q, state, keys):  # the rates are arguments: one compilation for all settings
        optimizer = optimizer_of(rates, steps, problem)

        def step(carry, key):
            q, state = carry
            updates, state = optimizer.update(problem.gradient(q, key, coupling), state, q)
            return (optax.apply_updates(q, updates), state), ()

        return jax.lax.scan(step, (q, state), keys)[0]

    scores, seconds = np.zeros((len(settings), num_seeds, LOOKS, 2)), []
    for number, setting in enumerate(settings):
        rates = jnp.asarray(setting)
        for seed in range(num_seeds):
            q, state = problem.q, optimizer_of(rates, steps, problem).init(problem.q)
            for look, keys in enumerate(jnp.split(jax.random.split(jax.random.key(seed), steps), LOOKS)):
                start = time.perf_counter()
                q, state = jax.block_until_ready(part(rates, q, state, keys))
                seconds.append((time.perf_counter() - start) / len(keys))
                scores[number, seed, look] = problem.scores(q)
    return Runs(scores, float(np.median(seconds)))


def main(num_seeds: int = 3) -> None:
    rows, claims, drawn = [], [], {}
    for name in NETWORKS:
        problem = Problem.of(name)
        for steps in BUDGETS:
            of_adam, of_natural = (
                run(problem, optimizer_of, settings, steps, num_seeds)
                for optimizer_of, settings in ((adam, ADAM), (natural, NATURAL))
            )
            shared = run(problem, natural, NATURAL[:1], steps, num_seeds, "shared")
            turned = run(problem.in_eigenbases(), natural, NATURAL[:1], steps, num_seeds)
            best = int(np.nanargmin(of_adam.ends[:, 0]))
            targets = of_adam.ends[best] + [0.1, 0.01]
            for label, runs, setting in (
                ("Adam, best setting", of_adam, best),
                ("natural gradient, default", of_natural, 0),
                ("the same, shared noise", shared, 0),
                ("natural gradient, eigenbases", turned, 0),
            ):
                to = [runs.steps_to(setting, column, targets[column], steps) for column in (0, 1)]
                cells = [
                    f"{steps_to:.0f} ({steps_to * runs.seconds:.1f} s)" if np.isfinite(steps_to) else "-"
                    for steps_to in to
                ]
                spread = f"{runs.ends[:, 0].min():.2f} to {runs.ends[:, 0].max():.2f}" if len(runs.ends) > 1 else ""
                rows.append([name, steps, label, *runs.ends[setting], *cells, spread, 1e3 * runs.seconds])
            worst, of_best = of_natural.ends[:, 0].max(), of_adam.ends[best, 0]
            where = f"{name}, {steps} steps: negative ELBO,"
            claims += [
                Claim(f"{where} natural at its worst / Adam at its best", worst / of_best, at_most=2),
                Claim(
                    f"{where} Adam at its worst / natural at its worst", of_adam.ends[:, 0].max() / worst, at_least=3
                ),
                Claim(
                    f"{where} natural, shared noise / noise of its own",
                    shared.ends[0, 0] / of_natural.ends[0, 0],
                    at_least=1.1,
                ),
            ]
            if steps > 300 and not name.startswith("MLP 3"):
                ratio = turned.ends[0, 0] / of_best
                claims.append(Claim(f"{where} natural, eigenbases / Adam's best mean field", ratio, at_most=1))
            drawn[name, steps] = of_adam.ends[:, 0], of_natural.ends[:, 0]
            print(
                name,
                steps,
                of_adam.ends.round(3).tolist(),
                of_natural.ends.round(3).tolist(),
                shared.ends.round(3).tolist(),
                turned.ends.round(3).tolist(),
                flush=True,
            )
    columns = [
        "network",
        "steps",
        "optimizer",
        "negative ELBO",
        "held-out NLL",
        "steps to Adam's ELBO",
        "to its NLL",
        "over all settings",
        "ms / step",
    ]
    report("natural_gradient", columns, rows, claims, partial(draw, drawn))


def draw(drawn: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]], ax: Axes) -> None:
    for place, (adams, naturals) in enumerate(drawn.values()):
        for values, marker, shift, label in ((adams, "o", -0.1, "Adam"), (naturals, "x", 0.1, "natural gradient")):
            ax.plot(
                np.full(len(values), place + shift),
                values,
                marker,
                color="k",
                fillstyle="none",
                label=label if not place else None,
            )
    ax.set_yscale("log")
    ax.set_xticks(range(len(drawn)), [f"{name.partition(' (')[0]}\n{steps} steps" for name, steps in drawn], fontsize=7)
    ax.set_ylabel("negative ELBO (nats per example)")
    ax.legend()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
