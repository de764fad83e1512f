"""How many samples run at once where nobody says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from illia_fn import elbo_loss, mean_field
from illia_fn._base.sharding import platform
from illia_fn.engine import auto_chunk_size
from illia_fn.engine.chunks import chosen

PARAMS = {"kernel": np.full((3, 2), 0.3, np.float32), "bias": np.zeros(2, np.float32)}
Q = mean_field(PARAMS, scale=0.2)
X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 0])


@pytest.mark.parametrize("platform", ["gpu", "cuda", "rocm", "tpu"])
def test_an_accelerator_takes_what_a_gibibyte_holds(platform):
    in_a_gib = 2**30 // 16
    assert auto_chunk_size(platform, 8, 100) == 8
    assert auto_chunk_size(platform, 8, in_a_gib // 4) == 4
    assert auto_chunk_size(platform, 8, in_a_gib // 4, one_batch=True) == 4
    assert auto_chunk_size(platform, 8, 10 * in_a_gib) == 1


def test_a_cpu_takes_one_after_another():
    assert auto_chunk_size("cpu", 100, 1) == 1
    assert [auto_chunk_size("cpu", count, 10**9, one_batch=True) for count in (3, 100)] == [3, 8]


@pytest.mark.parametrize(("coupling", "antithetic"), [("shared", True), ("flipout", False), ("decorrelated", False)])
def test_the_platform_says_how_many_samples_run_at_once(coupling, antithetic, monkeypatch):
    def loss_of(q, **options):
        return elbo_loss(
            lambda w, x: jnp.tanh(x @ w["kernel"] + w["bias"][None]),
            q,
            X,
            Y,
            jax.random.key(0),
            16,
            num_data=4,
            loss_fn=lambda outputs, _: jnp.sum(jnp.square(outputs), axis=1),
            coupling=coupling,
            antithetic=antithetic,
            **options,
        )

    def step(**options):
        return jax.jit(jax.value_and_grad(lambda q: loss_of(q, **options))).trace(Q)

    on_cpu, at_once = step(), step(chunk_size=None)
    known = step(chunk_size=8 if coupling == "decorrelated" else 1)
    assert str(on_cpu.jaxpr) == str(known.jaxpr) != str(at_once.jaxpr)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert str(step().jaxpr) == str(at_once.jaxpr)


def test_a_default_device_is_where_jax_computes(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [platform(), chosen("auto", 8, Q, X)] == ["gpu", 8]
    for device in ("cpu", jax.devices("cpu")[0]):
        with jax.default_device(device):
            assert [platform(), chosen("auto", 8, Q, X), chosen(4, 8, Q, X)] == ["cpu", 1, 4]


def test_what_all_samples_share_is_computed_once():
    """The scale, softplus(rho), before the loop over samples: inside, it would cost time and memory in each round."""
    y = np.zeros((4, 2), np.float32)  # whose likelihood has no logarithm
    step = jax.make_jaxpr(lambda q: elbo_loss(lambda w, x: x @ w["kernel"], q, X, y, jax.random.key(0), 8, num_data=4))
    equations = [str(eqn) for eqn in step(Q).eqns]
    (loop,) = [eqn for eqn in equations if " scan[" in eqn and "dot_general" in eqn]
    assert "log1p" not in loop
    assert any("log1p" in eqn for eqn in equations)
