"""Claim: a loss and its gradient cost little more than the passes of the network that they are made of.

At n = 8 samples on an MLP: at most 2.8 times, and antithetic 1.8 times, the cost of 8 deterministic passes in a row,
whose parameters stay in the cache; faster than the fastest torch library, and than numpyro in its better mode.

Run it on quiet cores: torch's OpenMP threads spin at their barriers, so that on busy ones they take many times as long.

python -m benchmarks.step_time [--rounds N] [--quick]
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from benchmarks._models import MODELS, Model, Params
from benchmarks._report import Claim, interleaved, report
from illia_fn import Normal, elbo_loss, mean_field

try:
    import numpyro
    import numpyro.distributions as dist
    import torch
    import torchbnn
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss
    from blitz.modules import BayesianLinear
    from blitz.utils import variational_estimator
    from numpyro.infer import TraceMeanField_ELBO
    from torch import nn
except ImportError as error:
    raise SystemExit(f"{error}: pip install -e '.[bench]'") from error

BATCH, NUM_DATA = 128, 60_000
PRIOR_SCALE, SCALE = 0.1, 0.03
RHO = math.log(math.expm1(SCALE))
KEY = jax.random.key(0)

DETERMINISTIC = "n deterministic passes"
DEFAULT, ANTITHETIC, UNCHUNKED = "ours", "ours, antithetic", "ours, chunk_size=None"
STRAIGHTFORWARD = "straightforward JAX (vmap)"
TORCHBNN, BLITZ = "torchbnn", "blitz"
REPARAMETERISED, FLIPOUT = "bayesian-torch", "bayesian-torch, flipout"
MAPPED, VECTORISED = "numpyro", "numpyro, vectorised"
TORCH = (TORCHBNN, REPARAMETERISED, FLIPOUT, BLITZ)
METHODS = (DETERMINISTIC, DEFAULT, ANTITHETIC, UNCHUNKED, STRAIGHTFORWARD, MAPPED, VECTORISED, *TORCH)

Step = Callable[[], tuple[Any, Any]]  # () -> (loss, gradients)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def ours(apply: Callable, params: Params, x: np.ndarray, y: np.ndarray, n: int, **options: Any) -> Step:
    prior = Normal(0.0, PRIOR_SCALE)
    loss = partial(elbo_loss, apply, num_samples=n, num_data=NUM_DATA, loss_fn=cross_entropy, prior=prior, **options)
    step = jax.jit(jax.value_and_grad(loss))
    return partial(step, mean_field(params, scale=SCALE), *map(jnp.asarray, (x, y)), KEY)


def deterministic(apply: Callable, params: Params, x: np.ndarray, y: np.ndarray, n: int) -> Step:
    """n passes in a row."""
    step = jax.jit(jax.value_and_grad(lambda params, x, y: cross_entropy(apply(params, x), y).mean()))
    args = params, *map(jnp.asarray, (x, y))

    def passes() -> tuple[Any, Any]:
        for _ in range(n):
            result = jax.block_until_ready(step(*args))
        return result

    return passes


def straightforward(
    apply: Callable, params: Params, x: np.ndarray, y: np.ndarray, n: int, over: Callable | None = None
) -> Step:
    """What one writes without a library, with all networks at once or `over` them one after another."""
    losses_at = (lambda nll, keys: jax.vmap(nll)(keys)) if over is None else over

    def loss(q: tuple[Params, Params], x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        locs, structure = jax.tree.flatten(q[0])
        rhos = jax.tree.leaves(q[1])

        def nll(key: jax.Array) -> jax.Array:
            leaves = zip(jax.random.split(key, len(locs)), locs, rhos, strict=True)
            draws = [loc + jax.nn.softplus(rho) * jax.random.normal(key, loc.shape) for key, loc, rho in leaves]
            return cross_entropy(apply(structure.unflatten(draws), x), y).mean()

        def kl(loc: jax.Array, rho: jax.Array) -> jax.Array:
            scale = jax.nn.softplus(rho)
            return jnp.sum(jnp.log(PRIOR_SCALE / scale) + (scale**2 + loc**2) / (2 * PRIOR_SCALE**2) - 0.5)

        return losses_at(nll, jax.random.split(key, n)).mean() + sum(map(kl, locs, rhos)) / NUM_DATA

    q = params, jax.tree.map(lambda leaf: jnp.full_like(leaf, RHO), params)
    return partial(jax.jit(jax.value_and_grad(loss)), q, *map(jnp.asarray, (x, y)), KEY)


def with_numpyro(apply: Callable, params: Params, x: np.ndarray, y: np.ndarray, n: int, *, vectorised: bool) -> Step:
    leaves, structure = jax.tree.flatten(params)

    def model(x: jax.Array, y: jax.Array) -> None:
        prior = [dist.Normal(jnp.zeros(leaf.shape), PRIOR_SCALE).to_event(leaf.ndim) for leaf in leaves]
        w = structure.unflatten([numpyro.sample(f"w_{i}", p) for i, p in enumerate(prior)])
        with numpyro.handlers.scale(scale=NUM_DATA / len(x)), numpyro.plate("batch", len(x)):
            numpyro.sample("y", dist.Categorical(logits=apply(w, x)), obs=y)

    def guide(x: jax.Array, y: jax.Array) -> None:  # noqa: ARG001
        for i, leaf in enumerate(leaves):
            scale = jax.nn.softplus(numpyro.param(f"rho_{i}"))
            numpyro.sample(f"w_{i}", dist.Normal(numpyro.param(f"loc_{i}"), scale).to_event(leaf.ndim))

    elbo = TraceMeanField_ELBO(num_particles=n, vectorize_particles=vectorised)
    step = jax.jit(jax.value_and_grad(lambda params, x, y, key: elbo.loss(key, params, model, guide, x, y) / NUM_DATA))
    q = {f"loc_{i}": leaf for i, leaf in enumerate(leaves)}
    q |= {f"rho_{i}": jnp.full_like(leaf, RHO) for i, leaf in enumerate(leaves)}
    return partial(step, q, *map(jnp.asarray, (x, y)), KEY)


def with_torch(name: str, params: Params, x: np.ndarray, y: np.ndarray, n: int) -> Step:
    """Each library as its documentation has it; where that leaves a choice, the cheaper way."""
    criterion, inputs, labels = nn.CrossEntropyLoss(), torch.from_numpy(x), torch.from_numpy(y)
    prior = {"prior_mu": 0.0, "prior_sigma": PRIOR_SCALE}
    if name == TORCHBNN:
        model = torch_cnn() if "conv_0" in params else torch_mlp(partial(torchbnn.BayesLinear, *prior.values()))
        load(model, params, "weight_mu", "weight_log_sigma", math.log(SCALE))
        total_kl = partial(torchbnn.BKLLoss(reduction="sum"), model)
    elif name == BLITZ:
        layer = partial(BayesianLinear, prior_dist=torch.distributions.Normal(*prior.values()))
        model = variational_estimator(type("Blitz", (nn.Sequential,), {}))(*torch_mlp(layer))
        load(model, params, "weight_mu", "weight_rho", RHO)
    else:
        model = torch_mlp(nn.Linear)
        kind = "Flipout" if name == FLIPOUT else "Reparameterization"
        posterior = {"posterior_mu_init": 0.0, "posterior_rho_init": RHO, "type": kind, "moped_enable": False}
        dnn_to_bnn(model, prior | posterior)
        load(model, params, "mu_weight", "rho_weight", RHO)
        total_kl = partial(get_kl_loss, model)

    def step() -> tuple[Any, Any]:
        model.zero_grad()
        if name == BLITZ:
            loss = model.sample_elbo(inputs, labels, criterion, n, complexity_cost_weight=1 / NUM_DATA)
        else:
            loss = sum(criterion(model(inputs), labels) for _ in range(n)) / n + total_kl() / NUM_DATA
        loss.backward()
        return loss.item(), [parameter.grad for parameter in model.parameters()]

    return step


def torch_mlp(layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(layer(784, 400), nn.ReLU(), layer(400, 400), nn.ReLU(), layer(400, 10))


def torch_cnn() -> nn.Sequential:
    conv = partial(torchbnn.BayesConv2d, 0.0, PRIOR_SCALE, kernel_size=3, padding=1)
    dense = partial(torchbnn.BayesLinear, 0.0, PRIOR_SCALE)
    first = [nn.Unflatten(1, (1, 28, 28)), conv(in_channels=1, out_channels=16), nn.ReLU(), nn.MaxPool2d(2)]
    second = [conv(in_channels=16, out_channels=32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, dense(1568, 64), nn.ReLU(), dense(64, 10))


def load(model: nn.Module, params: Params, loc: str, spread: str, raw_scale: float) -> None:
    """Give a torch model the posterior that the JAX models have."""
    layers = [module for module in model.modules() if hasattr(module, loc)]
    for layer, leaves in zip(layers, params.values(), strict=True):
        kernel = np.asarray(leaves["kernel"])
        if len(kernel) == 1568:  # torch flattens the channels first
            kernel = kernel.reshape(49, 32, 64).swapaxes(0, 1).reshape(kernel.shape)
        kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        for kind, values in ("weight", kernel), ("bias", np.asarray(leaves["bias"])):
            getattr(layer, loc.replace("weight", kind)).data.copy_(torch.tensor(values))
            getattr(layer, spread.replace("weight", kind)).data.fill_(raw_scale)


def steps(name: str, model: Model, n: int) -> Iterator[tuple[str, Step]]:
    """Every method that runs this model with n samples."""
    rng, params = np.random.default_rng(0), model.init(0)
    x, y = rng.uniform(size=(BATCH, 784)).astype(np.float32), rng.integers(10, size=BATCH)
    data = (model.apply, params, x, y)
    yield DETERMINISTIC, deterministic(*data, n)
    yield DEFAULT, ours(*data, n)
    if n % 2 == 0:
        yield ANTITHETIC, ours(*data, n, antithetic=True)
    if name != "CNN" or n == 1:  # XLA's CPU backend runs vmapped kernels as grouped convolutions: many times slower
        yield UNCHUNKED, ours(*data, n, chunk_size=None)
        yield STRAIGHTFORWARD, straightforward(*data, n)
    if name != "transformer":
        yield MAPPED, with_numpyro(*data, n, vectorised=False)
    if name == "MLP":
        yield VECTORISED, with_numpyro(*data, n, vectorised=True)
    for library in {"MLP": TORCH, "CNN": (TORCHBNN,)}.get(name, ()):
        yield library, with_torch(library, params, x, y, n)


def measure(rounds: dict[int, int]) -> dict[tuple[str, int], dict[str, float]]:
    """Seconds of each method, for each (model, n)."""
    seconds = {}
    for (name, model), (n, count) in itertools.product(MODELS.items(), rounds.items()):
        functions = dict(steps(name, model, n))
        losses = {method: float(step()[0]) for method, step in functions.items()}
        check_losses(losses)
        # A pass that is not reported keeps the spinning of torch's threads, after their last call, out of what is.
        times = interleaved({"unreported": functions[DETERMINISTIC], **functions}, count, warm_up=1)
        seconds[name, n] = {method: times[method] for method in functions}
        jax.clear_caches()
    return seconds


def check_losses(losses: dict[str, float]) -> None:
    """All methods must estimate the same loss from the same posterior: they differ by their noise."""
    for method, loss in losses.items():
        assert math.isfinite(loss), f"{method}: loss {loss}"
        if method not in (DETERMINISTIC, REPARAMETERISED, FLIPOUT):  # without KL; with a mean in the place of a sum
            assert abs(loss / losses[DEFAULT] - 1) < 0.15, f"{method}: loss {loss}, ours {losses[DEFAULT]}"


def claims_of(seconds: dict[tuple[str, int], dict[str, float]]) -> list[Claim]:
    mlp, transformer = seconds["MLP", 8], seconds["transformer", 8]
    passes, default, antithetic = mlp[DETERMINISTIC], mlp[DEFAULT], mlp[ANTITHETIC]
    torch_best = min(mlp[library] for library in TORCH)
    numpyro_best = min(mlp[MAPPED], mlp[VECTORISED])
    return [
        Claim("ours / 8 deterministic passes", default / passes, at_most=2.8),
        Claim("antithetic / 8 deterministic passes", antithetic / passes, at_most=1.8),
        Claim("ours / fastest torch library", default / torch_best, at_most=1.15),
        Claim("fastest torch library / antithetic", torch_best / antithetic, at_least=1.35),
        Claim("numpyro's better mode / ours", numpyro_best / default, at_least=1.3),
        Claim(
            f"numpyro's better mode / antithetic ({numpyro_best / passes:.2f} for the 8 passes alone)",
            numpyro_best / antithetic,
            at_least=1.6,
        ),
        Claim("ours / better unchunked, MLP", over_unchunked(mlp), at_most=1.1),
        Claim("ours / better unchunked, transformer", over_unchunked(transformer), at_most=1.1),
    ]


def over_unchunked(times: dict[str, float]) -> float:
    return times[DEFAULT] / min(times[UNCHUNKED], times[STRAIGHTFORWARD])


def cell(method: str, seconds: dict[str, float]) -> str:
    if method not in seconds:
        return "-"
    multiple = "" if method == DETERMINISTIC else f" ({seconds[method] / seconds[DETERMINISTIC]:.2f})"
    return f"{1e3 * seconds[method]:.3g}{multiple}"


def draw(seconds: dict[str, float], axes: plt.Axes) -> None:
    """The times of one column, the slowest at the bottom."""
    names = sorted(seconds.keys() - {DETERMINISTIC}, key=seconds.get, reverse=True)
    colours = ["tab:blue" if name in (DEFAULT, ANTITHETIC, UNCHUNKED) else "tab:gray" for name in names]
    bars = axes.barh(names, [1e3 * seconds[name] for name in names], color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.margins(x=0.15)
    axes.axvline(1e3 * seconds[DETERMINISTIC], color="black", linestyle="--", label="8 deterministic passes")
    axes.set_xlabel("MLP, loss and gradient with n = 8 samples (ms)")
    axes.legend(loc="upper right")


def main(rounds: int = 15, *, quick: bool = False) -> None:
    """Time every method in turn, print the table, and check the claims."""
    torch.set_num_threads(2)
    counts = {8: 5} if quick else {1: 3 * rounds, 8: rounds, 32: max(2, rounds // 5)}
    seconds = measure(counts)
    columns = ["ms (multiple of the n passes)", *(f"{name}, n = {n}" for name, n in seconds)]
    rows = [[method, *(cell(method, times) for times in seconds.values())] for method in METHODS]
    name = "step_time_quick" if quick else "step_time"
    report(name, columns, rows, claims_of(seconds), partial(draw, seconds["MLP", 8]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15, help="at n = 8; three times as many at n = 1, a fifth at 32")
    parser.add_argument("--quick", action="store_true", help="n = 8 only, few rounds")
    main(**vars(parser.parse_args()))
