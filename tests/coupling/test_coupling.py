"""Couplings, exactly: the output for an example is that of the network which its noise makes, run on it alone."""

from functools import cache, partial
from typing import Any

import chex
import coupling_cases
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from coupling_cases import BATCH, CASES, KEY, PLANNED
from coupling_networks import outputs_and_reference, outputs_and_references

import illia_fn
from illia_fn import explain_coupling, mean_field
from illia_fn._base.trees import frozen_pytree
from illia_fn.posteriors.posterior import Posterior

TOGETHER = 5


@cache
def group(number):
    """Some of the cases, in one program."""
    names = list(CASES)[number * TOGETHER : (number + 1) * TOGETHER]
    cases = {name: CASES[name]() for name in names}
    arguments = {name: (case.apply_fn, mean_field(case.params, scale=0.3), case.x) for name, case in cases.items()}
    return {name: (cases[name].shared, *found) for name, found in outputs_and_references(arguments, "flipout").items()}


@pytest.mark.promotes
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_networks(name):
    shared, it, outputs, reference = group(list(CASES).index(name) // TOGETHER)[name]
    assert {leaf.path for leaf in it.plan.leaves if leaf.strategy == "shared"} == set(shared), it.plan.leaves
    for output, expected in zip(jax.tree.leaves(outputs), jax.tree.leaves(reference), strict=True):
        assert output.shape[:2] == (1, BATCH)
        np.testing.assert_allclose(output, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.promotes
@pytest.mark.optimised
def test_under_jit_and_without():
    """XLA on CPU has miscompiled the signs of a convolution at 512 lanes."""
    q, x = mean_field(coupling_cases.array(3, 3, 4, 5), scale=0.3), coupling_cases.array(512, 6, 6, 4)
    f = illia_fn.decorrelate(lambda w, x: coupling_cases.conv(x, w))
    np.testing.assert_allclose(f(q, x, KEY), jax.jit(f)(q, x, KEY), rtol=2e-5, atol=2e-5)


# For a program beside the one that is looked at.
COMPILED_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def strategies(apply_fn, q, x, **options):
    return {leaf.path.strip("[]'"): leaf.strategy for leaf in explain_coupling(apply_fn, q, x, **options).leaves}


@pytest.mark.promotes
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", {"a": "local_reparam", "b": "local_reparam", "c": "local_reparam"}),
        ("dense on a sequence", {"a": "flipout", "b": "per_example"}),
        ("one token", {"embed": "local_reparam", "a": "local_reparam"}),
        ("tied embedding", {"embed": "flipout"}),
        ("transposed weights", {"a": "flipout"}),
        ("scanned layers", {"w": "local_reparam", "b": "local_reparam"}),
        ("rnn", {"in": "flipout", "h": "flipout", "b": "per_example"}),
        ("while", {"w": "flipout"}),
        (
            "outputs in a dict",
            {"a": "local_reparam", "loc": "local_reparam", "rho": "local_reparam", "noise": "local_reparam"},
        ),
        ("weight norm", {"a": "shared"}),
        ("fused attention", dict.fromkeys("qkvo", "flipout")),
        ("stacked layers", dict.fromkeys("abc", "flipout")),
        ("class token", {"token": "per_example", "qkv": "flipout"}),
        ("temperature", {"a": "local_reparam", "tau": "per_example"}),
    ],
)
def test_the_plan(name, expected):
    apply_fn, params, x, _ = PLANNED[name]()
    assert strategies(apply_fn, mean_field(params, scale=0.3), x) == expected


def test_pieces_of_a_weight_that_do_not_overlap_count_apart():
    def halves(w, x):
        a, b = jnp.split(w["a"], 2, axis=1)
        return jnp.tanh(x @ a) + jnp.sin(x @ b)

    def overlapping(w, x):
        return jnp.tanh(x @ w["a"][:, :4]) + jnp.sin(x @ w["a"][:, 2:])

    q = mean_field({"a": jnp.ones((4, 6))}, scale=0.1)
    assert strategies(halves, q, coupling_cases.VECTOR) == {"a": "local_reparam"}
    assert strategies(lambda w, x: overlapping(w, x), q, coupling_cases.VECTOR) == {"a": "flipout"}


@pytest.mark.parametrize(("look_ups", "expected"), [(1, "local_reparam"), (2, "flipout"), (3, "flipout")])
def test_a_number_that_is_looked_up_twice_reaches_two_outputs(look_ups, expected):
    q = mean_field({"a": jnp.ones(5)}, scale=0.1)
    assert strategies(lambda w, x: w["a"][x], q, jnp.zeros((4, look_ups), int)) == {"a": expected}


class Skewed(illia_fn.Gaussian):
    """A posterior of another kind, of which nothing is known but how to draw."""

    def reparameterise(self):
        return lambda noise: self.loc + self.scale * jnp.expm1(noise)


def test_other_posteriors_are_shared_and_an_explanation_prints():
    jax.tree_util.register_dataclass(Skewed, ["loc", "rho"], [])
    q = {"a": Skewed(jnp.ones((4, 2)), jnp.zeros((4, 2))), "b": mean_field(jnp.ones((2, 3)), scale=0.1)}
    explanation = explain_coupling(lambda w, x: x @ w["a"] @ w["b"], q, coupling_cases.VECTOR)
    assert [leaf.strategy for leaf in explanation.leaves] == ["shared", "local_reparam"]
    lines = str(explanation).splitlines()
    assert len(lines) == 4
    assert lines[2] == "a    | (4, 2) | shared        | a Skewed posterior, whose draws are not linear in their noise"


@frozen_pytree
class LowRank(Posterior):
    """w = loc + softplus(rho) * noise + factor @ noise', over all leaves of a subtree; factor has a last axis more."""

    loc: Any
    rho: Any
    factor: Any

    @property
    def mean(self):
        return self.loc

    @property
    def stddev(self):
        raise NotImplementedError

    @property
    def noise_shape(self):
        rank = jax.tree.leaves(self.factor)[0].shape[-1]
        return (rank + sum(leaf.size for leaf in jax.tree.leaves(self.loc)),)

    def reparameterise(self):
        loc, unravel = jax.flatten_util.ravel_pytree(self.loc)
        scale = jax.nn.softplus(jax.flatten_util.ravel_pytree(self.rho)[0])
        factor = jnp.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in jax.tree.leaves(self.factor)])
        return lambda noise: unravel(loc + scale * noise[: loc.size] + factor @ noise[loc.size :])

    def log_prob(self, w):
        raise NotImplementedError

    def entropy(self):
        raise NotImplementedError


def over_a_subtree():
    """One posterior over a kernel and a bias, beside others of one leaf each, before and after it."""
    loc = coupling_cases.params(kernel=(4, 5), bias=(5,))
    factor = jax.tree.map(lambda leaf: 0.3 * coupling_cases.array(*leaf.shape, 2), loc)
    rho = jax.tree.map(lambda leaf: jnp.full(leaf.shape, -1.0), loc)
    others = mean_field(coupling_cases.params(a=(4, 4), z=(5, 2)), scale=0.3)
    return others | {"layer": LowRank(loc, rho, factor)}


def two_layers(w, x):
    return jnp.tanh(jnp.sin(x @ w["a"]) @ w["layer"]["kernel"] + w["layer"]["bias"]) @ w["z"]


@pytest.mark.promotes
def test_a_posterior_over_a_subtree():
    """It has one sign, and the leaves beside it have those of their axes."""
    q, x = over_a_subtree(), coupling_cases.SEQUENCE
    it, outputs, reference = outputs_and_reference(two_layers, q, x, "decorrelated")
    assert [leaf.strategy for leaf in it.plan.leaves] == ["flipout", "flipout", "flipout"]
    np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)
    grads = jax.jit(jax.grad(lambda q: jnp.sum(illia_fn.decorrelate(two_layers)(q, x, KEY))))(q)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))
    (row,) = (line for line in str(explain_coupling(two_layers, q, x)).splitlines() if "layer" in line)
    path = "layer/bias, layer/kernel"
    assert row == f"{path} | (5,), (4, 5) | flipout  | linear in every use; one sign for all of it"


def test_weights_that_are_concatenated_are_explained_as_one():
    apply_fn, params, x, _ = CASES["linen optimized lstm"]()
    leaves = explain_coupling(apply_fn, mean_field(params, scale=0.3), x).leaves
    assert {leaf.why for leaf in leaves if "kernel" in leaf.path} == {
        "concatenated, as one weight: linear in every use; signs along axes 0, 1"
    }
    assert {leaf.strategy for leaf in leaves if "bias" in leaf.path} == {"per_example"}


@pytest.mark.parametrize(("size", "expected"), [(3, "local_reparam"), (4, "flipout")])
def test_a_kernel_that_meets_one_patch_reaches_one_output(size, expected):
    def apply_fn(w, x):
        return jax.lax.conv_general_dilated(x, w["a"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    q = mean_field({"a": jnp.ones((3, 3, 2, 4))}, scale=0.3)
    assert strategies(apply_fn, q, coupling_cases.array(5, size, size, 2)) == {"a": expected}


# kernels that are made of weights, with equal columns
MADE = {
    "a low-rank change": lambda w: 1.0 + w["a"] @ np.ones((2, 4), np.float32),
    "an offset of rows": lambda w: np.ones((3, 4), np.float32) + w["a"][:, :1],
    "an offset": lambda w: np.ones((3, 4), np.float32) + w["a"][:1, :1],
    "rows one after another": lambda w: jnp.repeat(w["a"][:, :1], 4, axis=1),
    "columns side by side": lambda w: jnp.tile(w["a"][:, :1], (1, 4)),
    "a scale of rows": lambda w: np.ones((3, 4), np.float32) * w["a"][:, :1],
}


@pytest.mark.parametrize("kernel", MADE)
@pytest.mark.parametrize("coupling", ["decorrelated", "flipout", "local_reparam"])
def test_a_kernel_made_of_weights_is_not_drawn_as_if_its_numbers_were_independent(coupling, kernel):
    x = coupling_cases.array(5, 3)
    apply_fn = lambda w, x: x @ MADE[kernel](w)  # noqa: E731
    q = mean_field({"a": coupling_cases.array(3, 2)}, scale=0.5)
    assert strategies(apply_fn, q, x, coupling=coupling) == {"a": "flipout"}
    outputs = np.asarray(jax.jit(illia_fn.decorrelate(apply_fn, coupling=coupling))(q, x, KEY))
    np.testing.assert_allclose(outputs, np.repeat(outputs[:, :1], 4, axis=1), rtol=1e-4)
    assert len(np.unique(outputs[:, 0])) == 5


def test_one_concatenation_made_twice_is_one_weight():
    def twice(w, x):
        one, other = (jnp.concatenate([w["a"].T, w["b"]], axis=1) for _ in range(2))
        return jnp.tanh(x @ one) + jnp.sin(x @ other)

    q = mean_field({"a": jnp.ones((2, 4)), "b": jnp.ones((4, 3))}, scale=0.3)
    assert strategies(twice, q, coupling_cases.VECTOR) == {"a": "flipout", "b": "flipout"}


def test_elements_that_stand_twice_in_a_concatenation_have_one_sign():
    def tiled(w, x):
        return x @ jnp.concatenate([jnp.tile(w["a"], (1, 2)), w["b"]], axis=1)

    q = mean_field({"a": jnp.ones((4, 2)), "b": jnp.ones((4, 3))}, scale=0.3)
    assert strategies(tiled, q, coupling_cases.VECTOR) == {"a": "flipout", "b": "local_reparam"}


def test_a_concatenation_that_nothing_reads_is_no_use():
    def apply_fn(w, x):
        jnp.concatenate([w["b"], w["a"]], axis=1)
        return coupling_cases.concatenated(w, x)

    q = mean_field(PLANNED["concatenated weights"]().params, scale=0.3)
    assert strategies(apply_fn, q, coupling_cases.VECTOR) == {"a": "local_reparam", "b": "local_reparam"}


LINEAR = {"w": mean_field(jnp.ones((4, 2)), scale=0.5)}
Y = jnp.array([0, 1, 1])


def linear(w, x):
    return x @ w["w"]


def squares(outputs, _):
    return jnp.sum(jnp.square(outputs), axis=1)


@pytest.mark.parametrize(
    ("coupling", "chunk_size", "antithetic"),
    [("decorrelated", "auto", True), ("flipout", None, True), ("flipout", None, False)],
)
def test_antithetic_samples_mirror_each_other(coupling, chunk_size, antithetic):
    """All that is odd in the noise cancels; in samples that are only spread, it does if it is in one number."""
    q = {"w": mean_field(jnp.zeros((4, 2)), scale=0.5)}

    def of_each(outputs):
        return jnp.sum(outputs, axis=1)

    def of_both(outputs):
        return outputs[:, 0] ** 2 * outputs[:, 1]

    @jax.jit
    def largest(keys):
        """Of either function of the outputs."""

        def loss(key, chosen):
            odd = lambda outputs, _: chosen @ jnp.stack([of_each(outputs), of_both(outputs)])  # noqa: E731
            options = {"coupling": coupling, "chunk_size": chunk_size, "antithetic": antithetic, "loss_fn": odd}
            args = linear, q, coupling_cases.VECTOR, jnp.zeros((3, 2)), key, 4
            return illia_fn.elbo_loss(*args, num_data=3, kl_weight=0.0, **options)

        losses = jax.vmap(jax.vmap(loss, (0, None)), (None, 0))(keys, jnp.eye(2))
        return jnp.max(jnp.abs(losses), axis=1)

    each, both = largest(jax.random.split(KEY, 8))
    assert each < 1e-6
    assert both < 1e-6 if antithetic else both > 1e-3


@pytest.mark.parametrize(("num_samples", "antithetic"), [(4, True), (130, False)])
def test_no_two_samples_are_the_same(num_samples, antithetic):
    """Pairs that mirror each other on top of samples that do would come twice; 130 are spread in three parts."""
    outputs = []

    def loss_fn(values, _):
        jax.debug.callback(lambda value: outputs.append(round(float(value), 6)), values[0, 0])
        return jnp.sum(values, axis=1)

    options = {"loss_fn": loss_fn, "num_data": 3, "coupling": "flipout", "antithetic": antithetic}
    options["kl_weight"] = 0.0
    loss = jax.jit(partial(illia_fn.elbo_loss, linear, num_samples=num_samples, **options))
    loss(LINEAR, coupling_cases.VECTOR, jnp.zeros((3, 2)), KEY)
    jax.effects_barrier()
    assert len(set(outputs)) == len(outputs) == num_samples


@pytest.mark.promotes
def test_chunks_change_nothing():
    """Leaves of every strategy, and a model that takes a key: the draws are those of the key, whatever the chunks."""

    def apply_fn(w, x, key):
        h = jnp.tanh(x @ (w["k"] / jnp.sqrt(jnp.sum(w["n"] ** 2))) + w["b"]).mean(axis=1)
        return jax.random.bernoulli(key, 0.7, (len(x), 5)) * h @ w["d"]

    q = mean_field(coupling_cases.params(k=(4, 5), n=(7,), b=(5,), d=(5, 2)), scale=0.3)
    x, y = coupling_cases.SEQUENCE, jnp.zeros((3, 2))
    options = {"num_data": 3, "coupling": "decorrelated", "antithetic": True, "needs_key": True, "kl_weight": 0.0}
    options["loss_fn"] = squares

    @jax.jit
    def losses(q):
        loss = lambda q, size: illia_fn.elbo_loss(apply_fn, q, x, y, KEY, 10, chunk_size=size, **options)  # noqa: E731
        return [jax.value_and_grad(loss)(q, size) for size in (3, 1)]

    chex.assert_trees_all_close(*losses(q), rtol=1e-4, atol=1e-5)
    expected = {"k": "flipout", "n": "shared", "b": "per_example", "d": "local_reparam"}
    assert strategies(apply_fn, q, x, needs_key=True) == expected


def test_no_variance_no_nan():
    """The standard deviation of an output of zero variance has a gradient of 0, not 0 / 0."""
    f = illia_fn.decorrelate(linear)
    grads = jax.jit(jax.grad(lambda q, x: jnp.sum(f(q, x, KEY)), (0, 1)))(LINEAR, jnp.zeros((3, 4)))
    chex.assert_tree_all_finite(grads)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_has_variances_in_float32(dtype):
    q = jax.tree.map(lambda leaf: leaf.astype(dtype), LINEAR)
    x = jnp.full((512, 4), 300.0, dtype)  # whose square is no float16
    outputs = jax.jit(illia_fn.decorrelate(linear))(q, x, KEY)
    assert outputs.dtype == dtype
    np.testing.assert_allclose(outputs.astype(jnp.float32).std(), 2 * 300 * 0.5, rtol=0.1)


def test_under_vmap_over_keys_and_a_checkpoint():
    def loss(q, key):
        options = {"num_data": 3, "coupling": "decorrelated", "loss_fn": squares}
        return illia_fn.elbo_loss(linear, q, coupling_cases.VECTOR, Y, key, 2, **options)

    keys = jax.random.split(KEY, 2)
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(jax.checkpoint(loss)), (None, 0)))(LINEAR, keys)
    value, grad = jax.jit(jax.value_and_grad(loss))(LINEAR, keys[1])
    np.testing.assert_allclose(values[1], value, rtol=1e-5)
    np.testing.assert_allclose(grads["w"].rho[1], grad["w"].rho, rtol=1e-4, atol=1e-6)


def test_a_jitted_step_is_traced_once():
    traces = []

    def apply_fn(w, x):
        traces.append(x.shape)
        return linear(w, x)

    options = {"num_samples": 2, "num_data": 3, "coupling": "decorrelated", "loss_fn": squares}
    step = jax.jit(jax.grad(partial(illia_fn.elbo_loss, apply_fn, **options)))
    q = step(LINEAR, coupling_cases.VECTOR, Y, KEY)
    count = len(traces)
    step(q, coupling_cases.VECTOR, Y, jax.random.key(1))
    assert len(traces) == count == 2  # of the batch, and of one example


@pytest.mark.promotes
@pytest.mark.optimised
def test_a_gradient_in_a_loop_is_that_outside():
    """XLA on CPU has fused the gradient of a max-pooling with the two that reach its output, wrongly."""

    def apply_fn(w, x):
        for name in ("a", "b"):
            x = jax.nn.relu(coupling_cases.conv(x, w[name]["kernel"]) + w[name]["bias"])
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max(axis=(2, 4))
        return x.reshape(len(x), -1) @ w["c"]["kernel"] + w["c"]["bias"]

    shapes = {"a": (3, 3, 1, 16), "b": (3, 3, 16, 32), "c": (1568, 64)}
    kernels = {name: coupling_cases.array(*shape) for name, shape in shapes.items()}
    layers = lambda w: {name: {"kernel": 0.1 * k, "bias": jnp.zeros(k.shape[-1])} for name, k in w.items()}  # noqa: E731
    q = jax.jit(lambda w: mean_field(layers(w), scale=0.05), compiler_options=COMPILED_QUICKLY)(kernels)
    x = np.abs(coupling_cases.array(16, 28, 28, 1))
    f = illia_fn.decorrelate(apply_fn)
    keys = jax.random.split(KEY, 2)
    grad = jax.grad(lambda q, key: jnp.mean(jnp.square(f(q, x, key))))
    looped = jax.jit(partial(jax.lax.map, partial(grad, q)))(keys)
    alone = jax.jit(grad, compiler_options=COMPILED_QUICKLY)(q, keys[1])
    for leaf, expected in zip(jax.tree.leaves(looped), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(leaf[1], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.promotes
@pytest.mark.optimised
def test_a_maximum_passes_its_gradient_on():
    """XLA may compute noise twice, with other rounding; the gradient of max then loses what it does not find again."""

    def apply_fn(w, x):
        x = coupling_cases.conv(x, w["a"]) + w["b"]
        return x.reshape(len(x), 7, 2, 7, 2, -1).max(axis=(1, 2, 3, 4))

    q = mean_field({"a": 0.2 * coupling_cases.array(3, 3, 1, 16), "b": jnp.zeros(16)}, scale=0.1)
    data = jnp.abs(coupling_cases.array(16, 14, 14, 1)), jnp.zeros(16)
    options = {"num_data": 16, "coupling": "decorrelated", "loss_fn": lambda outputs, _: outputs.sum(axis=1)}
    loss = lambda q: illia_fn.elbo_loss(apply_fn, q, *data, KEY, 2, kl_weight=0.0, **options)  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(q)["b"].loc, 1.0, rtol=1e-5)


def test_every_example_has_a_key_of_its_own():
    def apply_fn(w, x, key):
        return x @ w["w"] + jax.random.normal(key, (len(x), 2))

    q = {"w": mean_field(jnp.ones((4, 2)), scale=1e-6)}
    outputs = jax.jit(illia_fn.decorrelate(apply_fn, needs_key=True))(q, jnp.ones((3, 4)), KEY)
    assert len(np.unique(np.round(outputs, 3))) == 6


def test_keys_among_the_inputs(x64):
    """Noise of the model's own from keys of the examples; in float64 throughout."""

    def apply_fn(w, x):
        return x["x"] @ w + jax.vmap(lambda key: jax.random.normal(key, (2,), jnp.float64))(x["key"])

    q = mean_field(jnp.ones((4, 2), jnp.float64), scale=1e-9)
    x = {"x": jnp.ones((3, 4), jnp.float64), "key": jax.random.split(KEY, 3)}
    outputs, expected = jax.jit(lambda: (illia_fn.decorrelate(apply_fn)(q, x, KEY), apply_fn(q.loc, x)))()
    np.testing.assert_allclose(outputs, expected, atol=1e-7)
    options = {"num_data": 3, "antithetic": True, "coupling": "flipout", "loss_fn": squares, "kl_weight": 0.0}
    value = jax.jit(partial(illia_fn.elbo_loss, apply_fn, num_samples=2, **options))(q, x, Y, KEY)
    np.testing.assert_allclose(value, np.square(outputs).sum(axis=1).mean(), atol=1e-7)


@pytest.mark.parametrize("over", [lambda f: jax.vmap(f), lambda f: partial(jax.lax.map, f)])
def test_what_does_not_depend_on_the_example_may_be_random(over):
    """A fixed random projection, and noise whose keys are folded with a number that the example brings along."""

    def apply_fn(w, x):
        fixed = jax.random.normal(KEY, (4, 4))
        own = over(lambda number: jax.random.normal(jax.random.fold_in(KEY, number), (4,)))(x["number"])
        return linear(w, jnp.tanh(x["x"] @ fixed) + own)

    q = {"w": mean_field(jnp.ones((4, 2)), scale=1e-7)}
    x = {"x": coupling_cases.VECTOR, "number": jnp.arange(3)}
    fs = jax.jit(lambda: (illia_fn.decorrelate(apply_fn)(q, x, KEY), apply_fn({"w": q["w"].loc}, x)))
    np.testing.assert_allclose(*fs(), rtol=1e-4)


def test_padding_does_not_count():
    @jax.jit
    def loss(x, y, weights):
        options = {"num_data": 3, "weights": weights, "coupling": "decorrelated"}
        return illia_fn.elbo_loss(linear, LINEAR, x, y, KEY, **options)

    x, weights = np.array(coupling_cases.VECTOR), np.float32([1, 1, 0])
    expected = loss(x, np.array([0, 1, 1]), weights)
    x[2] = 5.0
    np.testing.assert_allclose(expected, loss(x, np.array([0, 1, -1]), weights), rtol=1e-6)


def test_examples_that_interact_are_refused():
    def normalised(w, x):
        h = x @ w["w"]
        return (h - h.mean(axis=0)[None]) / h.std(axis=0)[None]

    x = coupling_cases.VECTOR
    illia_fn.check_separable(linear, LINEAR, x)
    with pytest.raises(ValueError, match=r"check_separable: the examples interact: the output of example \d is off by"):
        illia_fn.check_separable(normalised, LINEAR, x)
    with pytest.raises(ValueError, match="Its first axis must be the batch"):
        illia_fn.check_separable(lambda w, x: x.sum(axis=0) @ w["w"], LINEAR, x)
    with pytest.raises(ValueError, match="size at least 2"):
        illia_fn.check_separable(linear, LINEAR, x[:1])


def elbo(apply_fn=linear, **options):
    options = {"num_data": 3, "coupling": "decorrelated"} | options
    return lambda: illia_fn.elbo_loss(apply_fn, LINEAR, coupling_cases.VECTOR, Y, KEY, 2, **options)


def with_closed_over_key(w, x):
    return linear(w, x * jax.random.bernoulli(KEY, 0.5, x.shape).astype(x.dtype))


def with_closed_over_keys(w, x):
    keys = jax.random.split(KEY, len(x))
    return linear(w, x * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys))


@jax.jit
def with_keys_folded_in_a_call(w, x):
    keys = jax.vmap(lambda number: jax.random.fold_in(KEY, number))(jnp.arange(len(x)))
    return linear(w, x * jax.checkpoint(jax.vmap(lambda key: jax.random.normal(key, x.shape[1:])))(keys))


def with_keys_in_a_loop(w, x):
    keys = jax.random.split(KEY, len(x))
    return jax.lax.map(lambda row: linear(w, row[0] * jax.random.normal(row[1], row[0].shape)), (x, keys))


def with_a_key_that_a_loop_splits(w, x):
    def step(key, row):
        key, own = jax.random.split(key)
        return key, linear(w, row * jax.random.normal(own, row.shape))

    return jax.lax.scan(step, KEY, x)[1]


def with_another_key(w, x, key):
    return with_closed_over_keys(w, x) + jax.random.normal(key, (len(x), 2))


OWN_KEYS = "elbo_loss: apply_fn draws random numbers for the batch.*needs_key=True"

ERRORS = {
    "keys of the examples in a loop": (elbo(with_keys_in_a_loop), OWN_KEYS),
    "a key that a loop splits for the examples": (elbo(with_a_key_that_a_loop_splits), OWN_KEYS),
    "another key than the one that is passed": (elbo(with_another_key, needs_key=True), OWN_KEYS),
    "scalar output": (
        elbo(lambda w, x: jnp.sum(x @ w["w"])),
        r"elbo_loss: .*first axis is the batch.* returns \(\) for",
    ),
    "squeeze": (
        elbo(lambda w, x: jnp.squeeze(x @ w["w"])),
        r"returns \(3, 2\) for a batch of 3 and \(2,\) for a batch of 1.*squeeze",
    ),
    "batch last": (elbo(lambda w, x: (x @ w["w"]).T), r"returns \(2, 3\)"),
    "a batch size in the model": (
        elbo(lambda w, x: x.reshape(3, 4) @ w["w"]),
        "elbo_loss: apply_fn fails on a batch of one example.*len",
    ),
    "a key that is closed over": (
        elbo(with_closed_over_key),
        OWN_KEYS,
    ),
    "closed-over keys of the examples": (
        elbo(with_closed_over_keys),
        OWN_KEYS,
    ),
    "keys of the examples that a call folds": (
        elbo(with_keys_folded_in_a_call),
        OWN_KEYS,
    ),
    "unknown coupling": (
        elbo(coupling="flip"),
        "elbo_loss: coupling must be one of shared, decorrelated, .*got 'flip'",
    ),
    "aux": (elbo(lambda w, x: (linear(w, x), 0), has_aux=True), 'elbo_loss: has_aux=True needs coupling="shared"'),
    "no batch axis": (
        lambda: illia_fn.decorrelate(linear)(LINEAR, jnp.ones(()), KEY),
        r"decorrelate: the arrays of x must share .*got shapes \(\)",
    ),
    "two batch sizes": (
        lambda: explain_coupling(linear, LINEAR, (jnp.ones((2, 4)), jnp.ones((3, 4)))),
        r"explain_coupling: the arrays of x must share .*\(2, 4\), \(3, 4\)",
    ),
    "a loss of all examples together": (
        elbo(loss_fn=lambda outputs, y: jnp.mean(outputs) ** 2),
        "elbo_loss: coupling=.decorrelated. needs a loss_fn with one value per example",
    ),
    "not finite": (
        lambda: illia_fn.check_separable(linear, LINEAR, coupling_cases.VECTOR * jnp.nan),
        "check_separable: the output is not finite",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        call()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["predictive_loss", "iwae_loss", "renyi_loss", "cubo_loss", "f_divergence_loss"])
def test_what_needs_one_network_takes_no_coupling(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'coupling'"):
        getattr(illia_fn, name)(linear, LINEAR, coupling_cases.VECTOR, Y, KEY, num_data=3, coupling="shared")
