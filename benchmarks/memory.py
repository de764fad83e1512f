"""Claim: the memory of an ELBO step does not grow with the number of samples, from the second one on.

python -m benchmarks.memory

Two figures for each case, both of one jitted value_and_grad, and both of all that it holds: parameters and data,
gradients, and intermediate results. "Planned" is XLA's plan (`memory_analysis`). "Resident" is measured in a process of
its own: how far the peak (VmHWM) of a few steps lies above what the process held before them, and the arguments. A
first step warms up, then the peak is reset through /proc/self/clear_refs, so compilation does not count; glibc maps
every large block on its own, so what is freed does not hide the next peak; dispatch is synchronous, or the buffers of
the warm-up would still be there.

The second sample costs something that the first does not: the sums of the gradients (of loc and of rho), each as large
as the parameters. With one sample none of them has to exist at the peak. "Floor" is the plan for n=1 and these two.
"""

import ast
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.infer import TraceMeanField_ELBO

from benchmarks._memory import in_a_fresh_process, raised_peak
from benchmarks._report import Claim, report
from illia_fn import Normal, elbo_loss, mean_field, num_params

SIZES = (784, 400, 400, 10)
BATCH, NUM_DATA = 128, 60_000
STEPS = 5

CASES = {f"illia_fn, chunk_size={chunk}": [f"illia {n} {chunk}" for n in (1, 8, 64)] for chunk in (1, 8, None)}
CASES["illia_fn, chunk_size=1, antithetic"] = [f"antithetic {n} 1" for n in (2, 8, 64)]
CASES["numpyro"] = [f"numpyro {n} False" for n in (1, 8, 64)]
CASES["numpyro, vectorised"] = [f"numpyro {n} True" for n in (1, 8, 64)]


def apply_fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    for layer in range(len(SIZES) - 1):
        x = (jax.nn.relu(x) if layer else x) @ params[f"w{layer}"] + params[f"b{layer}"]
    return x


def make_params(key: jax.Array) -> dict[str, jax.Array]:
    params = {}
    for layer, (rows, columns) in enumerate(itertools.pairwise(SIZES)):
        params[f"w{layer}"] = jax.random.normal(jax.random.fold_in(key, layer), (rows, columns)) / rows**0.5
        params[f"b{layer}"] = jnp.zeros(columns)
    return params


def numpyro_loss(vectorised: bool, n: int, q: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> ArrayLike:  # noqa: FBT001
    def model() -> None:
        shapes = {name: node["loc"].shape for name, node in q.items()}
        prior = {name: dist.Normal(0.0, 0.1).expand(shape).to_event() for name, shape in shapes.items()}
        w = {name: numpyro.sample(name, prior[name]) for name in shapes}
        with numpyro.plate("data", NUM_DATA, subsample_size=BATCH):
            numpyro.sample("y", dist.Categorical(logits=apply_fn(w, x)), obs=y)

    def guide() -> None:
        for name, node in q.items():
            loc, rho = (numpyro.param(f"{name}_{field}", node[field]) for field in ("loc", "rho"))
            numpyro.sample(name, dist.Normal(loc, jax.nn.softplus(rho)).to_event())

    params = {f"{name}_{field}": value for name, node in q.items() for field, value in node.items()}
    return TraceMeanField_ELBO(n, vectorize_particles=vectorised).loss(key, params, model, guide) / NUM_DATA


def make_step(kind: str, n: int, option: Any) -> tuple[Callable[..., Any], Any]:
    """The loss of a case, and its variational parameters."""
    q = mean_field(make_params(jax.random.key(0)), scale=0.02)
    if kind == "numpyro":
        return partial(numpyro_loss, option, n), {name: {"loc": g.loc, "rho": g.rho} for name, g in q.items()}
    options = {"prior": Normal(0.0, 0.1), "num_data": NUM_DATA, "chunk_size": option}
    options["antithetic"] = kind == "antithetic"
    return lambda q, x, y, key: elbo_loss(apply_fn, q, x, y, key, n, **options), q


def measure(kind: str, n: int, option: Any) -> dict[str, float]:
    """Both figures of one case, in MB; to be run in a process of its own."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # noqa: FBT003
    loss, q = make_step(kind, n, option)
    x = jax.random.normal(jax.random.key(1), (BATCH, SIZES[0]))
    y = jax.random.randint(jax.random.key(2), (BATCH,), 0, SIZES[-1])
    args = jax.block_until_ready((q, x, y, jax.random.key(3)))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*args).compile()
    jax.block_until_ready(compiled(*args))

    def steps() -> None:
        for _ in range(STEPS):
            jax.block_until_ready(compiled(*args))

    peak, _ = raised_peak(steps)
    plan = compiled.memory_analysis()
    arguments = plan.argument_size_in_bytes
    planned = arguments + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return {"planned": planned / 1e6, "resident": (arguments + peak) / 1e6}


def main() -> None:
    sizes = {case: in_a_fresh_process("memory", *case.split()) for cases in CASES.values() for case in cases}

    def ratio(figure: str, case: str, base: str) -> float:
        return sizes[case][figure] / sizes[base][figure]

    sums = 2 * 4 * num_params(mean_field(make_params(jax.random.key(0)), scale=0.02)) / 1e6
    floor = 1 + sums / sizes["illia 1 1"]["planned"]
    claims = []
    for figure in ("planned", "resident"):
        for kind in ("illia", "antithetic"):
            text = f"{figure}, {'antithetic ' * (kind == 'antithetic')}n=64 against n=8, chunk_size=1"
            claims.append(Claim(text, ratio(figure, f"{kind} 64 1", f"{kind} 8 1"), at_most=1.05))
        text = f"{figure}, n=64 against n=1, chunk_size=1 (floor {floor:.2f})"
        claims.append(Claim(text, ratio(figure, "illia 64 1", "illia 1 1"), at_most=1.5))

    def draw(axes: Any) -> None:
        for name, cases in CASES.items():
            axes.loglog([int(case.split()[1]) for case in cases], [sizes[case]["resident"] for case in cases], "o-")
            axes.lines[-1].set_label(name)
        axes.set(xlabel="samples", ylabel="peak resident memory of a step (MB)")
        axes.legend()

    rows = [
        [
            name,
            case.split()[1],
            *sizes[case].values(),
            ratio("planned", case, cases[0]),
            ratio("resident", case, cases[0]),
        ]
        for name, cases in CASES.items()
        for case in cases
    ]
    columns = [
        "step",
        "samples",
        "planned (MB)",
        "resident (MB)",
        "planned, ratio to first",
        "resident, ratio to first",
    ]
    report("memory", columns, rows, claims, draw)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        kind, n, option = sys.argv[1:]
        print(json.dumps(measure(kind, int(n), ast.literal_eval(option))))
