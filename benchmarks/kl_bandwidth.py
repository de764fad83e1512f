"""Claim: the KL with its gradient moves at least 0.30 of the bytes per second of a plain copy, at 1e7 parameters.

python -m benchmarks.kl_bandwidth

Counted are the bytes that must move: 4 for each number of loc and rho that is read, and of their gradients that is
written. The yardstick is the jitted (loc + 1, rho + 1), which moves the same 16 bytes per parameter. At 1e7 and above,
fresh outputs are fresh pages of memory, and to map these limits them all: the two "in place" columns, a copy and a
step of gradient descent on the KL, write over their (donated) inputs and so are free of it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from benchmarks._report import Claim, interleaved, report
from illia_fn import Gaussian, Normal, kl_loss

ROUNDS = {10_000: 500, 100_000: 200, 1_000_000: 60, 10_000_000: 15, 100_000_000: 3}


def ours(q: Gaussian) -> jax.Array:
    return kl_loss(q, Normal(0.0, 0.1), reduction="sum")


def numpyros(q: Gaussian) -> jax.Array:
    return dist.kl_divergence(dist.Normal(q.loc, jax.nn.softplus(q.rho)), dist.Normal(0.0, 0.1)).sum()


FUNCTIONS = {  # with the bytes per parameter that each reads and writes
    "copy": (lambda q: Gaussian(q.loc + 1, q.rho + 1), 16),
    "illia_fn": (jax.value_and_grad(ours), 16),
    "illia_fn, gradient alone": (jax.grad(ours), 16),
    "illia_fn, value alone": (ours, 8),
    "numpyro": (jax.value_and_grad(numpyros), 16),
}
IN_PLACE = {
    "copy in place": lambda q: Gaussian(q.loc + 1, q.rho + 1),
    "illia_fn in place": lambda q: jax.tree.map(lambda x, slope: x - 1e-6 * slope, q, jax.grad(ours)(q)),
}
BYTES = {name: count for name, (_, count) in FUNCTIONS.items()} | dict.fromkeys(IN_PLACE, 16)


def bandwidths(size: int, rounds: int) -> list[float]:
    """GB/s of each function."""
    loc_key, rho_key = jax.random.split(jax.random.key(0))
    q = Gaussian(0.1 * jax.random.normal(loc_key, (size,)), jax.random.normal(rho_key, (size,)) - 3.0)
    calls = {name: lambda f=jax.jit(f): f(q) for name, (f, _) in FUNCTIONS.items()}
    state = {name: jax.tree.map(jnp.copy, q) for name in IN_PLACE}
    steps = {name: jax.jit(f, donate_argnums=0) for name, f in IN_PLACE.items()}

    def step(name: str) -> Gaussian:
        state[name] = steps[name](state[name])
        return state[name]

    seconds = interleaved({**calls, **{name: partial(step, name) for name in IN_PLACE}}, rounds)
    return [size * count / seconds[name] / 1e9 for name, count in BYTES.items()]


def main() -> None:
    rows = [[f"{size:.0e}", *bandwidths(size, rounds)] for size, rounds in ROUNDS.items()]
    at_1e7 = dict(zip(BYTES, next(row[1:] for row in rows if row[0] == "1e+07"), strict=True))

    def draw(axes: Any) -> None:
        for index, name in enumerate(BYTES, start=1):
            axes.plot(list(ROUNDS), [row[index] for row in rows], "o-", label=name)
        axes.set(xscale="log", ylim=0, xlabel="parameters", ylabel="GB/s")
        axes.legend()

    claims = [
        Claim("KL and gradient against a copy, 1e7 parameters", at_1e7["illia_fn"] / at_1e7["copy"], at_least=0.3)
    ]
    report("kl_bandwidth", ["parameters", *(f"{name} (GB/s)" for name in BYTES)], rows, claims, draw)


if __name__ == "__main__":
    main()
