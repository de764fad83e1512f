"""A network of one input, data of the model itself, and the posterior by NUTS, with the model in numpyro's words."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_sample

import illia_fn

UNITS, NUM_DATA, NOISE = 10, 30, 0.2
SCALES = {"hidden": {"kernel": 2.0, "bias": 2.0}, "output": {"kernel": 2.0 / UNITS**0.5, "bias": 1.0}}
SHAPES = {"hidden": {"kernel": (1, UNITS), "bias": (UNITS,)}, "output": {"kernel": (UNITS, 1), "bias": (1,)}}
PRIOR = jax.tree.map(lambda scale: illia_fn.Normal(0.0, scale), SCALES)
REGIONS = {"in data": (0.7, 2.0), "gap": (0.0, 0.6), "outside": (2.2, 3.5)}  # of |x|
POINTS = {name: np.concatenate([side * np.linspace(*ends, 20) for side in (-1, 1)]) for name, ends in REGIONS.items()}
likelihood = partial(illia_fn.gaussian_nll, scale=NOISE)


def network(w: Any, x: jax.Array) -> jax.Array:
    units = jnp.tanh(x[:, None] @ w["hidden"]["kernel"] + w["hidden"]["bias"])
    return (units @ w["output"]["kernel"] + w["output"]["bias"])[:, 0]


def draw_prior(key: jax.Array) -> Any:
    return illia_fn.sample(key, jax.tree.map(_gaussian, SCALES, SHAPES))


def _gaussian(scale: float, shape: tuple[int, ...]) -> illia_fn.Gaussian:
    return illia_fn.mean_field(jnp.zeros(shape), scale=scale)


class Data(NamedTuple):
    """Of every region new targets, (points, repetitions)."""

    x: jax.Array
    y: jax.Array
    tests: dict[str, jax.Array]

    @staticmethod
    def of(key: jax.Array) -> "Data":
        of_truth, of_x, of_y, *of_tests = jax.random.split(key, 3 + len(POINTS))
        truth = draw_prior(of_truth)
        sides = jnp.where(jnp.arange(NUM_DATA) % 2 == 0, -1.0, 1.0)
        low, high = REGIONS["in data"]
        x = sides * jax.random.uniform(of_x, (NUM_DATA,), minval=low, maxval=high)
        y = network(truth, x) + NOISE * jax.random.normal(of_y, x.shape)
        tests = {
            name: network(truth, points)[:, None] + NOISE * jax.random.normal(key, (len(points), 50))
            for key, (name, points) in zip(of_tests, POINTS.items(), strict=True)
        }
        return Data(x, y, tests)


def log_prior(w: dict[str, Any]) -> jax.Array:
    leaves = [(PRIOR[layer][name], leaf) for layer, named in w.items() for name, leaf in named.items()]
    return sum(jnp.sum(prior.log_prob(leaf)) for prior, leaf in leaves)


def model(x: jax.Array, y: jax.Array) -> None:
    """The same network in the words of numpyro."""

    def number(layer: str, name: str) -> jax.Array:
        law = dist.Normal(0.0, SCALES[layer][name]).expand(SHAPES[layer][name]).to_event()
        return numpyro.sample(f"{layer} {name}", law)

    w = {layer: {name: number(layer, name) for name in names} for layer, names in SHAPES.items()}
    numpyro.sample("y", dist.Normal(network(w, x), NOISE), obs=y)


def nuts(num_warmup: int, num_samples: int, num_chains: int = 4) -> MCMC:
    """Several chains from draws of the prior."""
    kernel = NUTS(model, init_strategy=init_to_sample, max_tree_depth=9)
    settings = {"chain_method": "vectorized", "progress_bar": False, "jit_model_args": True}
    return MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains, **settings)


@jax.jit
def functions(samples: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """By region, (chains, draws, points)."""
    w = {layer: {name: samples[f"{layer} {name}"] for name in names} for layer, names in SHAPES.items()}
    return {name: jax.vmap(jax.vmap(network, (0, None)), (0, None))(w, points) for name, points in POINTS.items()}
