"""Couplings, statistically: one example sees the law of a network drawn from q, and gradients are unbiased."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coupling_cases import CASES, array, conv, params
from coupling_networks import DRAWS, coupled_draws, direct_draws, draws, largest_deviation, moments

import illia_fn
from illia_fn import decorrelate, explain_coupling, mean_field, sample
from illia_fn.coupling._transform import Coupled
from illia_fn.engine._latin_hypercube import Strata

pytestmark = pytest.mark.promotes


def pooled_cnn(w, x):
    h = jax.nn.relu(conv(x, w["k"]) + w["b"])
    return h.mean(axis=(1, 2)) @ w["d"]


def residual_mlp(w, x):
    h = x @ w["a"] + w["b"]
    return (h + jnp.sin(3.0 * h)) @ w["c"]


def tied(w, x):
    return jnp.tanh(x @ w["a"].T) @ w["a"]


# name -> model, parameters and inputs, when they are asked for
MODELS = {
    "mlp": lambda: (residual_mlp, params(a=(4, 5), b=(5,), c=(5, 3)), array(2, 4)),
    "cnn": lambda: (pooled_cnn, params(k=(3, 3, 2, 3), b=(3,), d=(3, 3)), jnp.abs(array(2, 5, 5, 2))),
    "tied": lambda: (tied, params(a=(5, 3)), array(2, 3)),
    "transformer": lambda: (*CASES["transformer"]()[:2], jnp.array([[1, 2, 2], [3, 1, 4]])),
    "fused attention": lambda: (*CASES["fused attention"]()[:2], array(2, 3, 4)),
    "optimized lstm": lambda: last_of("linen optimized lstm"),
    "rnn": lambda: last_of("rnn"),
}
WRONG = [name for name in MODELS if name not in ("mlp", "optimized lstm")]  # where local_reparam is, by enough to see


def last_of(name):
    apply_fn, w = CASES[name]()[:2]
    return lambda w, x: apply_fn(w, x)[:, -1], w, array(2, 3, 4)


COUPLINGS = "decorrelated", "flipout"


@cache
def laws(name):
    """The moments of what the networks drawn from q give, and each coupling, for noise from NumPy."""
    apply_fn, w, x = MODELS[name]()
    q = mean_field(w, scale=0.4)
    outputs = {"direct": direct_draws(apply_fn, q, x)}
    for coupling in (*COUPLINGS, *["local_reparam"] * (name in WRONG)):
        outputs[coupling] = coupled_draws(apply_fn, q, x, coupling)
    return apply_fn, q, x, {name: moments(some) for name, some in outputs.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_law_within_an_example(name, coupling):
    found = laws(name)[-1]
    deviation, bound = largest_deviation(found[coupling], found["direct"])
    assert deviation < bound


@pytest.mark.parametrize("name", WRONG)
def test_the_test_above_sees_wrong_laws(name):
    """Local reparameterisation where an element of a weight reaches more than one output of an example."""
    apply_fn, q, x, found = laws(name)
    deviation, bound = largest_deviation(found["local_reparam"], found["direct"])
    assert deviation > 1.5 * bound
    assert "APPROXIMATE" in str(explain_coupling(apply_fn, q, x, coupling="local_reparam"))


def test_the_law_of_keys_and_of_one_of_many_samples():
    """Samples are spread over the law of q together, but each of them has this law by itself."""
    apply_fn, q, x, found = laws("mlp")

    def sixth_of_seven(key):
        it = Coupled.of("test", apply_fn, q, x, None, "decorrelated")
        return it.outputs(it.noise(key, Strata(jnp.array([5]), count=7)), 1, x)[0]

    def outputs(direct, coupled, sixth):
        of_each = [decorrelate(apply_fn, coupling=coupling)(q, x, coupled) for coupling in COUPLINGS]
        return [apply_fn(sample(direct, q), x), *of_each, sixth_of_seven(sixth)]

    for some in draws(lambda keys: outputs(*keys), 1, 2, 6):
        deviation, bound = largest_deviation(moments(some), found["direct"])
        assert deviation < bound


def hoisted(w, x):
    """What is projected once is met in every round of the loop."""
    projected = x @ w["a"]
    carry = jnp.zeros_like(projected)
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w["h"] + projected),) * 2, carry, None, length=3)[1].swapaxes(0, 1)


TABLE = np.asarray(array(4, 3))

# What a planner may take for a single use: weights that are broadcast against constants, or meet each other first.
SUBTLE = {
    "scaled table": (lambda w, x: x[:, None] + w["t"] * TABLE, params(t=()), array(2, 3)),
    "scaled matrix": (lambda w, x: x @ (w["t"] * TABLE), params(t=()), array(2, 4)),
    "scaled rows": (lambda w, x: x @ (w["b"][:, None] * TABLE), params(b=(4,)), array(2, 4)),
    "shifted": (lambda w, x: x + (w["t"] + TABLE[0]), params(t=()), array(2, 3)),
    "hoisted": (hoisted, params(a=(3, 2), h=(2, 2)), array(2, 3)),
    "remat": (lambda w, x: x @ (w["a"] + jax.checkpoint(jnp.sin)(w["t"])), params(a=(4, 2), t=(4, 2)), array(2, 3, 4)),
    "offset": (lambda w, x: x @ (w["a"] + jnp.exp(w["t"])), params(a=(4, 2), t=()), array(2, 3, 4)),
    "gate": (lambda w, x: x @ (jnp.exp(w["t"]) * w["a"]), params(a=(4, 2), t=()), array(2, 3, 4)),
    "concatenated": (lambda w, x: jnp.tanh(x @ jnp.hstack([w["a"], w["b"]])), params(a=(4, 2), b=(4, 2)), array(2, 4)),
    "appended": (
        lambda w, x: jnp.tanh(jnp.pad(x, ((0, 0), (0, 1)), constant_values=1.0) @ jnp.vstack([w["a"], w["b"]])),
        params(a=(4, 3), b=(1, 3)),
        array(2, 4),
    ),
    "stacked": (
        lambda w, x: jnp.tanh(jnp.einsum("bf,ifg->big", x, jnp.stack([w["a"], w["b"]])).sum(axis=1)),
        params(a=(4, 2), b=(4, 2)),
        array(2, 4),
    ),
    "stacked twice": (
        lambda w, x: CASES["stacked layers"]().apply_fn(w, x),
        params(a=(3, 3), b=(3, 3), c=(3, 3)),
        array(2, 3),
    ),
    "gate and project": (lambda w, x: jnp.tanh(x * w["b"]) + (x @ w["b"])[:, None], params(b=(4,)), array(2, 4)),
    "fill": (
        lambda w, x: w["e"].at[x].get(mode="fill", fill_value=3.0),
        params(e=(4, 3)),
        jnp.array([[1, 9], [2, 1]]),
    ),
}


@pytest.mark.parametrize("name", SUBTLE)
def test_the_law_of_subtle_uses(name):
    apply_fn, w, x = SUBTLE[name]
    args = apply_fn, mean_field(w, scale=0.4), x
    expected, *found = map(moments, [direct_draws(*args), *[coupled_draws(*args, coupling) for coupling in COUPLINGS]])
    varies = expected.std(axis=0) > 1e-6  # what is filled in does not
    for coupling, some in zip(COUPLINGS, found, strict=True):
        deviation, bound = largest_deviation(some[:, varies], expected[:, varies])
        assert deviation < bound, coupling
        np.testing.assert_allclose(some[:, ~varies], expected[:, ~varies], rtol=1e-5)


def test_examples_are_decorrelated():
    """With one draw for the batch, a network that sees one input twice returns one output twice."""
    apply_fn, w, x = MODELS["mlp"]()
    q, x = mean_field(w, scale=0.4), jnp.stack([x[0], x[0]])
    correlations = {"shared": 1.0, "flipout": 0.0, "decorrelated": 0.0}
    found = draws(lambda key: [decorrelate(apply_fn, coupling=name)(q, x, key) for name in correlations], 3)
    for outputs, expected in zip(found, correlations.values(), strict=True):
        correlation = np.corrcoef(np.asarray(outputs)[..., 0].T)[0, 1]
        assert abs(correlation - expected) < 5 / np.sqrt(DRAWS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"num_samples": 4, "chunk_size": 2}),
        ("cnn", {"num_samples": 4, "antithetic": True, "chunk_size": 1}),
    ],
)
def test_the_gradient_of_the_elbo_is_unbiased(name, options):
    apply_fn, w, x = MODELS[name]()
    q = mean_field(w, scale=0.4)
    options |= {"num_data": 9, "kl_weight": 0.0, "loss_fn": lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=1)}

    def gradients(coupling, key):
        loss = lambda q: illia_fn.elbo_loss(apply_fn, q, x, jnp.eye(2, 3), key, coupling=coupling, **options)  # noqa: E731
        return jax.value_and_grad(loss)(q)

    keys = [jax.random.split(jax.random.key(seed), 2048) for seed in (4, 5)]
    pair = jax.jit(jax.vmap(lambda one, other: (gradients("decorrelated", one), gradients("shared", other))))(*keys)
    some, others = (
        np.concatenate([np.asarray(leaf, np.float64).reshape(2048, -1) for leaf in jax.tree.leaves(half)], 1)
        for half in pair
    )
    deviation, bound = largest_deviation(some, others)
    assert deviation < max(5.0, bound)
    assert some.var(axis=0).sum() < others.var(axis=0).sum()
