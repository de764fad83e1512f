"""Claim: low rank over 1e6 parameters and a matrix normal of 2048 x 2048 train in as many times their own memory as a
mean field does in its own.

python -m benchmarks.families

First each family over all of one network, 32-32-10 with 1386 parameters, a batch of 128 and one sample: what it holds,
what a draw and a step of the negative ELBO take, and whether its KLs are exact. Times and memory are multiples of the
mean field's; memory is XLA's plan for a step (`memory_analysis`), parameters and gradients included. "Coupling" is what
`coupling="decorrelated"` makes of it.

Then large ones, each in a process of its own: how far the first step of the negative ELBO, compiled before, raises the
peak of resident memory, and the parameters of the posterior, in multiples of these. One multiple is the parameters, and
one their gradients; XLA's plan, which has no work space of its libraries, is beside it. XLA has the order for memory of
`benchmarks.large`.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import illia_fn
from benchmarks._memory import in_a_fresh_process, raised_peak
from benchmarks._report import Claim, interleaved, report
from benchmarks.large import OPTIONS
from illia_fn import Normal

KEY = jax.random.key(0)
BATCH, NUM_DATA, ROUNDS = 128, 1000, 60
LARGE = {
    "low rank, rank 10, 1e6 parameters": "low_rank",
    "matrix normal, 2048 x 2048": "matrix_normal",
}


def make_params() -> dict[str, jax.Array]:
    first, second = jax.random.split(KEY)
    return {
        "w0": jax.random.normal(first, (32, 32)) / 4,
        "b0": jnp.zeros(32),
        "w1": jax.random.normal(second, (32, 10)) / 4,
        "b1": jnp.zeros(10),
    }


def apply_fn(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ w["w0"] + w["b0"]) @ w["w1"] + w["b1"]


def of_kernels(family: Callable[..., Any]) -> Callable[..., Any]:
    """A family of kernels, with the mean field for what has one axis."""
    return lambda params: illia_fn.posterior_tree(params, {"w.": family, "b.": illia_fn.mean_field})


FAMILIES = {
    "mean field": illia_fn.mean_field,
    "k-tied, k = 2": of_kernels(illia_fn.k_tied),
    "matrix normal": of_kernels(illia_fn.matrix_normal),
    "eigenbasis": of_kernels(illia_fn.eigenbasis),
    "low rank, rank 1": partial(illia_fn.low_rank, rank=1, key=KEY),
    "low rank, rank 10": partial(illia_fn.low_rank, rank=10, key=KEY),
    "full covariance": illia_fn.full_covariance,
    "mixture of 4 mean fields": partial(illia_fn.mixture, num_components=4, key=KEY),
    "rank-1 factors": illia_fn.rank_one,
}


def model(q: Any) -> tuple[Callable[..., jax.Array], Any]:
    """apply_fn and the prior of a tree of one of these families."""
    if isinstance(q, dict) and "factors" in q:
        return lambda w, x: apply_fn(illia_fn.rank_one_weights(w), x), {"params": None, "factors": Normal(1.0, 0.1)}
    return apply_fn, Normal(0.0, 1.0)


def loss(q: Any, x: jax.Array, y: jax.Array, key: jax.Array, coupling: str = "shared") -> jax.Array:
    f, prior = model(q)
    return illia_fn.elbo_loss(f, q, x, y, key, prior=prior, num_data=NUM_DATA, coupling=coupling)


def strategies(q: Any, x: jax.Array) -> str:
    """What a coupling makes of the nodes."""
    return ", ".join(dict.fromkeys(leaf.strategy for leaf in illia_fn.explain_coupling(model(q)[0], q, x).leaves))


def kind_of_kl(q: Any, prior: Any) -> str:
    if all(illia_fn.kl_is_exact(q, prior).values()):
        return "exact"
    try:
        illia_fn.kl_loss(q, prior)
    except ValueError:  # without a key
        return "sampled"
    return "bound"


def small() -> list[list[Any]]:
    """A row for each family."""
    params = make_params()
    x = jax.random.normal(jax.random.key(1), (BATCH, 32))
    y = jax.random.randint(jax.random.key(2), (BATCH,), 0, 10)
    trees = {name: make(params) for name, make in FAMILIES.items()}
    steps, draws, plans = {}, {}, {}
    for name, q in trees.items():
        for coupling in "shared", "decorrelated":
            step = jax.jit(jax.value_and_grad(partial(loss, coupling=coupling))).lower(q, x, y, KEY).compile()
            steps[name, coupling] = partial(step, q, x, y, KEY)
            plan = step.memory_analysis()
            plans.setdefault(name, plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes)
        draws[name] = partial(jax.jit(illia_fn.sample), KEY, q)
    base, full = "mean field", "full covariance"
    of_step = {}
    for others in ({full}, trees.keys() - {base, full}):  # after the factors of a large matrix small ones take longer
        times = interleaved({key: step for key, step in steps.items() if key[0] in {base, *others}}, ROUNDS)
        of_step |= {key: seconds / times[base, "shared"] for key, seconds in times.items()}
    of_draw = interleaved(draws, ROUNDS)
    return [
        [
            name,
            sum(leaf.size for leaf in jax.tree.leaves(q)) / sum(leaf.size for leaf in jax.tree.leaves(params)),
            of_draw[name] / of_draw[base],
            kind_of_kl(q, model(q)[1]),
            kind_of_kl(q, q),
            strategies(q, x),
            plans[name] / plans[base],
            of_step[name, "shared"],
            of_step[name, "decorrelated"],
        ]
        for name, q in trees.items()
    ]


def large(name: str) -> list[float]:
    """Peak memory of a step and that planned, in multiples of the parameters; to be run in a process of its own."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # noqa: FBT003
    size = 2048 if name == "matrix_normal" else 1000
    options = {"rank": 10, "key": KEY} if name == "low_rank" else {}
    q = getattr(illia_fn, name)({"w": jnp.zeros((size, size))}, **options)

    def step(q: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return illia_fn.elbo_loss(lambda w, x: x @ w["w"], q, x, x, key, num_data=NUM_DATA)

    args = jax.block_until_ready((q, jnp.ones((16, size)), KEY))
    compiled = jax.jit(jax.value_and_grad(step), compiler_options=OPTIONS).lower(*args).compile()
    peak, _ = raised_peak(partial(compiled, *args))
    own, plan = sum(leaf.nbytes for leaf in jax.tree.leaves(q)), compiled.memory_analysis()
    planned = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return [(own + peak) / own, planned / own]


def main() -> None:
    columns = ["family", "numbers / P", "draw", "KL to a Normal", "KL to its own kind", "coupling"]
    columns += ["memory of a step", "time of a step", "time, decorrelated"]
    base, _ = in_a_fresh_process("families", "mean_field")
    claims = []
    for text, name in LARGE.items():
        peak, planned = in_a_fresh_process("families", name)
        text = (
            f"{text}: peak {peak:.1f} times its parameters (planned {planned:.1f}) / {base:.1f} times, a mean field's"
        )
        claims.append(Claim(text, peak / base, at_most=1.25))
    report("families", columns, small(), claims)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(large(sys.argv[1])))
