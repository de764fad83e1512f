"""Posteriors over numbers that are not independent: their joint law within an example, noise of its own for each."""

import re
from dataclasses import replace
from functools import cache, partial

import chex
import families
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from coupling_cases import BATCH, IMAGE, KEY, SEQUENCE, VECTOR, array, conv, params
from coupling_networks import (
    coupled_draws,
    direct_draws,
    draws,
    largest_deviation,
    moments,
    numpy_noise,
    outputs_and_reference,
    outputs_and_references,
)

import illia_fn
from illia_fn import (
    Eigenbasis,
    FullCovariance,
    LowRank,
    MatrixNormal,
    decorrelate,
    explain_coupling,
    mean_field,
)
from illia_fn.coupling import _transform
from illia_fn.coupling._noise import Noise
from illia_fn.coupling._transform import Coupled

pytestmark = pytest.mark.promotes


def low(tree, rank):
    size = families.flat(tree).size
    return LowRank(tree, array(size, seed=6, scale=0.2) - 1.0, array(size, rank, seed=7, scale=0.3))


def tril(size, diagonal):
    lower = np.tril(array(size, size, seed=9, scale=0.2)) + diagonal * np.eye(size)
    return jnp.asarray(lower, jnp.float32)


def sizes(loc):
    return loc.size // loc.shape[-1], loc.shape[-1]


def matrix(loc):
    return MatrixNormal(loc, *(tril(size, -0.3) for size in sizes(loc)))


def turned(loc):
    bases = (families.basis(seed, size) for seed, size in enumerate(sizes(loc)))
    return Eigenbasis(loc, array(*sizes(loc), seed=5, scale=0.2) - 1.0, *bases)


def matrices(tree, node):
    return jax.tree.map(lambda leaf: node(leaf) if leaf.ndim > 1 else mean_field(leaf, scale=0.3), tree)


FAMILIES = {
    "LowRank": lambda tree: low(tree, 2),
    "of many directions": lambda tree: low(tree, 12),
    "FullCovariance": lambda tree: FullCovariance(tree, tril(families.flat(tree).size, -1.0)),
    "MatrixNormal": lambda tree: matrices(tree, matrix),
    "Eigenbasis": lambda tree: matrices(tree, turned),
}


def layers(w, x):
    """On a sequence, with biases, a number that is met by what is not linear, and a slice."""
    h = jnp.tanh(x @ w["a"] + w["b"]) / jnp.exp(w["tau"])
    return jnp.tanh(h @ w["c"][:, 1:]) + w["c"][0, 0]


def convolutions(w, x):
    h = jax.nn.relu(conv(x, w["k"], strides=(2, 1)) + w["b"])
    return conv(h, w["l"], feature_group_count=2).mean(axis=(1, 2)) @ w["d"]


def moved(w, x):
    """Tied, transposed, masked, and concatenated with each other, with weights of another node, and with zeros."""
    mask = jnp.tril(jnp.ones((4, 5)))
    kernel = jnp.concatenate([-w["a"].T[::-1], w["other"][None], jnp.zeros((1, 4)), w["c"] / 2.0])
    h = jnp.tanh(x @ (w["a"] * mask) + (x @ jnp.concatenate([w["c"], w["c"]])[:4])[:, :1])
    return jnp.concatenate([h, x], axis=1) @ kernel[:9] @ jnp.stack([w["other"], w["b"]], axis=1)


def loops(w, x):
    """A recurrent cell, layers that are scanned, recomputed, and met in branches."""

    def step(h, x):
        return jnp.tanh(x @ w["in"] + h @ w["h"] + w["b"]), None

    h = jax.lax.scan(step, jnp.zeros((len(x), 4)), x.swapaxes(0, 1))[0]
    h = jax.lax.scan(jax.checkpoint(lambda h, layer: (jnp.tanh(h @ layer), None)), h, w["layers"])[0]
    return jax.lax.cond(h[0, 0] > 0, lambda: h @ w["in"], lambda: h @ w["h"] + w["b"])


MODELS = {
    "layers": (layers, params(a=(4, 5), b=(5,), c=(5, 3), tau=()), SEQUENCE),
    "convolutions": (convolutions, params(k=(3, 3, 4, 6), b=(6,), l=(3, 3, 3, 4), d=(4, 2)), IMAGE),
    "moved": (moved, params(a=(4, 5), b=(4,), c=(2, 4), other=(4,)), VECTOR),
    "loops": (loops, params(**{"in": (4, 4), "h": (4, 4), "b": (4,), "layers": (2, 4, 4)}), SEQUENCE),
}


CASES = [(name, family) for name in MODELS for family in FAMILIES if name == "layers" or "many" not in family]


@cache
def found(name):
    """Of all families of a model, in one program."""
    apply_fn, tree, x = MODELS[name]
    others = {key: mean_field(leaf, scale=0.3) for key, leaf in tree.items() if key == "other"}
    inner = {key: leaf for key, leaf in tree.items() if key != "other"}
    model = lambda w, x: apply_fn(w["node"] | w, x)  # noqa: E731
    cases = {family: (model, {"node": FAMILIES[family](inner)} | others, x) for case, family in CASES if case == name}
    return outputs_and_references(cases, "flipout")


@pytest.mark.parametrize(("name", "family"), CASES)
def test_outputs_are_those_of_the_networks(name, family):
    it, outputs, reference = found(name)[family]
    assert all(leaf.strategy != "shared" for leaf in it.plan.leaves), it.plan.leaves
    assert not it.plan.hindrances
    assert outputs.shape[:2] == (1, BATCH)
    np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)


MEMBERS = {
    "mixture": lambda: illia_fn.mixture(
        params(r=(4, 1), s=(1, 5), b=(5,)), 3, lambda tree: mean_field(tree, scale=0.2), spread=0.5, key=KEY
    ),
    "foreign": lambda: illia_fn.from_distribution(
        lambda loc: dist.Laplace(loc, 0.2).to_event(1),
        jnp.ones(9),
        {"r": jnp.ones((4, 1)), "s": jnp.ones((1, 5))},
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_factors_of_any_family_have_a_draw_for_each_example(name):
    """All that the node stands for, of one draw: of one component, of a mixture."""
    kernel, node = array(4, 5), MEMBERS[name]()

    def factors(w, x):
        w = w["node"]
        return jnp.tanh(x @ (kernel * (w["r"] * w["s"])) + w.get("b", 0.0))

    def exponential(w, x):
        return factors(w, x) + x @ jnp.exp(w["node"]["r"])

    for apply_fn, strategy in ((factors, "per_example"), (exponential, "shared")):
        it, outputs, reference = outputs_and_reference(apply_fn, {"node": node}, SEQUENCE, "decorrelated")
        assert [leaf.strategy for leaf in it.plan.leaves] == [strategy]
        np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)


def node_of(**shapes):
    @jax.jit
    def node(tree):
        return illia_fn.mixture(tree, 2, lambda tree: mean_field(tree, scale=0.3), spread=0.3, key=KEY)

    return node({name: jnp.ones(shape) for name, shape in shapes.items()})


SHARED = {  # a draw of all numbers for each example would not be right, or not be small
    "stacked scalars": (lambda w, x: x[:, :2] @ jnp.stack([w["a"], w["b"]]), partial(node_of, a=(), b=())),
    "a slice": (lambda w, x: x + w["p"][0, :4], partial(node_of, p=(50, 4))),
    "a slice, as a factor": (
        lambda w, x: x @ (jnp.ones((4, 4)) * (w["p"][0, :, None] * w["s"])),
        partial(node_of, p=(50, 4), s=(4,)),
    ),
    "a scalar on a kernel": (lambda w, x: x @ (jnp.ones((4, 5)) * jnp.exp(w["g"])), partial(node_of, g=())),
}


@pytest.mark.parametrize(("apply_fn", "node"), SHARED.values(), ids=SHARED)
def test_other_uses_of_any_family_share_a_draw(apply_fn, node):
    it, outputs, reference = outputs_and_reference(apply_fn, node(), VECTOR, "decorrelated")
    assert [leaf.strategy for leaf in it.plan.leaves] == ["shared"]
    np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)


def test_factors_of_size_zero_and_of_none_of_their_axes():
    node = node_of(r=(4, 1), s=(1, 3), z=(0, 1), t=(1,))

    def apply_fn(w, x):
        empty = x[..., :0] @ (jnp.ones((0, 3)) * (w["z"] * w["s"]))
        return x @ (jnp.ones((4, 3)) * (w["r"] * w["s"])) + empty + (w["t"] * w["s"][0])[jnp.array([0, 2, 1])]

    _, outputs, reference = outputs_and_reference(apply_fn, node, SEQUENCE, "decorrelated")
    np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)


def test_factors_whose_directions_are_held_back():
    """They have a mean beside their own numbers, and are no factors."""
    q = {"low": low({"r": jnp.ones(4), "u": jnp.ones(3)}, 1), "n": node_of(m=())}

    def apply_fn(w, x):
        held = jnp.exp(w["low"]["u"]).sum()
        return x @ (jnp.ones((4, 3)) * (w["low"]["r"][:, None] * w["n"]["m"])) + held

    _, outputs, reference = outputs_and_reference(apply_fn, q, VECTOR, "decorrelated")
    np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)


def test_factors_are_not_rounded_to_the_data():
    q = mean_field({"r": jnp.ones((64, 1)), "s": jnp.ones((1, 3))}, scale=1e-3)
    kernel, x = array(64, 3), array(2, 64, seed=1)

    def spread(dtype):
        f = lambda w, x: (x @ (kernel * (w["r"] * w["s"])).astype(dtype)).astype(jnp.float32)  # noqa: E731
        return np.asarray(coupled_draws(f, q, x.astype(dtype), "decorrelated")).std(axis=0)

    # outputs in half precision have a noise of their own
    np.testing.assert_allclose(spread(jnp.float16), spread(jnp.float32), rtol=0.1)


def test_small_uses_of_any_family_have_a_draw_for_each_example():
    node = illia_fn.mixture(params(a=(4,), b=(4,)), 2, lambda tree: mean_field(tree, scale=0.2), key=KEY)

    def apply_fn(w, x):
        return jnp.tanh(x * w["a"]) + w["b"]

    it, outputs, reference = outputs_and_reference(apply_fn, node, VECTOR, "decorrelated")
    assert [leaf.strategy for leaf in it.plan.leaves] == ["per_example"]
    np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)


def test_factors_cost_one_product():
    """Not two, and not a kernel for each example."""
    q = illia_fn.rank_one({"w": array(64, 48)})
    f = decorrelate(lambda w, x: x @ illia_fn.rank_one_weights(w)["w"])
    text = jax.jit(f).lower(q, array(32, 64), KEY).as_text()
    assert text.count("stablehlo.dot_general") == 1
    assert not re.search("32x(1x)?64x48", text)


def whole(w, x):
    """All that the layers give, as a wrong law of the weights together need not show in the last of them alone."""
    h = jnp.sin(x @ w["a"] + w["b"])
    return jnp.concatenate([h, jnp.tanh(h @ w["c"])], axis=-1)


X = array(2, 3)


@cache
def small(family):
    return FAMILIES[family](params(a=(3, 2), b=(2,), c=(2, 2)))


@cache
def laws(family):
    """First and second moments of all outputs of both layers, of networks drawn from q and of couplings."""
    q = small(family)
    outputs = {"direct": direct_draws(whole, q, X)}
    outputs |= {name: coupled_draws(whole, q, X, name) for name in COUPLINGS[family]}
    return {name: moments(of) for name, of in outputs.items()}


COUPLINGS = {family: ["decorrelated", *["flipout"] * (family == "LowRank")] for family in FAMILIES}


@pytest.mark.parametrize(("family", "coupling"), [(family, name) for family in FAMILIES for name in COUPLINGS[family]])
def test_the_law_within_an_example(family, coupling):
    deviation, bound = largest_deviation(laws(family)[coupling], laws(family)["direct"])
    assert deviation < bound


@pytest.mark.parametrize("family", ["LowRank", "FullCovariance"])
def test_the_test_above_sees_a_leaf_with_noise_of_its_own(family, monkeypatch):
    """Each leaf by itself has the right law: other signs, or coefficients in another order, in one of them."""

    def other(moves):
        c = moves.coefficients
        return moves._replace(coefficients=jnp.square(c) if len(c) == 1 else c[::-1])

    def wrong(*args):
        *values, last = weights(*args)
        return [*values, replace(last, directions={number: other(moves) for number, moves in last.directions.items()})]

    weights = _transform.weights
    expected = laws(family)["direct"]
    monkeypatch.setattr(_transform, "weights", wrong)
    outputs = coupled_draws(whole, small(family), X, "flipout")
    deviation, bound = largest_deviation(moments(outputs), expected)
    assert deviation > 1.5 * bound


@pytest.mark.parametrize("family", ["MatrixNormal", "Eigenbasis"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_outputs_of_a_matrix_are_drawn(family, is_transposed):
    """x W with W = M + A f(Z) B^T is N(x M, B diag(sum_j (x A)_j^2 f_jk^2) B^T), whichever side meets data."""
    q = FAMILIES[family](params(a=(4, 3)))["a"]
    apply_fn = (lambda w, x: (w @ x.T).T) if is_transposed else (lambda w, x: x @ w)
    x = jnp.concatenate([array(2, 3 if is_transposed else 4), jnp.zeros((1, 3 if is_transposed else 4))])
    x, size = jnp.concatenate([x, x, x]), jnp.repeat(jnp.array([1.0, 1e-25, 1e25]), 3)[:, None]

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def outputs(q):
        it = Coupled.of("test", apply_fn, q, size * x, None, "decorrelated")
        noise = jax.tree.map(jnp.asarray, numpy_noise(it))
        found = it.outputs(noise, 1, size * x)[0] / size
        return jnp.sum(jnp.square(found)), (found, noise.examples[0][0])

    slopes, (found, noise) = outputs(q)
    (rows, columns), scales = q.roots(), q.reparameterise_noise()(jnp.ones((4, 3)))
    mean = q.loc
    if is_transposed:
        rows, columns, scales, mean = columns, rows, scales.T, mean.T
    stddev = np.sqrt(np.square(x @ rows) @ np.square(scales))
    np.testing.assert_allclose(found, x @ mean + (stddev * noise) @ columns.T, rtol=2e-5, atol=2e-5)
    chex.assert_tree_all_finite(slopes)  # an input of zeros has no spread
    (leaf,) = explain_coupling(apply_fn, q, x).leaves
    assert (leaf.strategy, leaf.why) == ("local_reparam", "an element reaches one output of an example")


BESIDE = {  # where an element reaches one output, and an example has others beside those along its columns
    "heads": (lambda w, x: jnp.einsum("bhi,hio->bho", x[:, :2], w), (2, 4, 2)),
    "halves of its rows": (lambda w, x: jnp.einsum("bhi,hio->bho", x[:, :2], w.reshape(2, 4, 2)), (8, 2)),
    "rounds": (lambda w, x: jax.lax.scan(lambda h, w: (h, x[:, 0] @ w), 0.0, w)[1].swapaxes(0, 1), (2, 4, 2)),
    "channels": (lambda w, x: conv(x[:, None, :1], w, feature_group_count=4), (1, 1, 1, 4)),
    "a look-up": (lambda w, x: w[(x[:, 0, 0] > 0).astype(int)], (1, 4)),
}


def test_outputs_that_would_share_a_draw_have_signs():
    """With a draw for each column alone they would move together."""
    cases = {name: (f, FAMILIES["Eigenbasis"](params(a=shape))["a"], SEQUENCE) for name, (f, shape) in BESIDE.items()}
    for name, (it, outputs, reference) in outputs_and_references(cases, "decorrelated").items():
        assert [leaf.strategy for leaf in it.plan.leaves] == ["flipout"], name
        np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("family", ["LowRank", "MatrixNormal"])
def test_examples_are_uncorrelated(family):
    """Of outputs that are odd in the noise: two examples with one input."""
    f = decorrelate(lambda w, x: (x @ w["a"]).sum(axis=1, keepdims=True))
    outputs = draws(lambda key: f(small(family), X[:1].repeat(2, axis=0), key), 3)[..., 0]
    assert abs(np.corrcoef(np.asarray(outputs).T)[0, 1]) < 5 / np.sqrt(len(outputs))


def test_an_explanation_of_each_family():
    tree = params(a=(4, 5), b=(5,), c=(5, 2))

    def apply_fn(w, x):
        return jnp.tanh(x @ w["a"] + w["b"]) @ w["c"]

    def table(q, apply_fn=apply_fn):
        return [line.split(" | ") for line in str(explain_coupling(apply_fn, q, SEQUENCE)).splitlines()[2:]]

    ((path, shapes, strategy, why),) = table(FAMILIES["FullCovariance"](tree))
    assert (path, shapes, strategy.strip()) == ("a, b, c", "(4, 5), (5,), (5, 2)", "flipout")
    assert why == "linear in every use; one sign for all of it"

    reasons = {path.strip(): why for path, _, _, why in table(FAMILIES["LowRank"](tree))}
    assert reasons == {
        "a": "linear in every use; signs along axes 0, 1; 2 directions: coefficients of each example's own",
        "b": "a draw is no larger than the activations it meets, element-wise; "
        "2 directions: coefficients of each example's own",
        "c": "linear in every use; signs along axes 0, 1; 2 directions: coefficients of each example's own",
    }
    assert table(FAMILIES["of many directions"](tree))[0][-1].endswith("12 directions: one sign of each example's own")
    rows = {path.strip(): why for path, _, _, why in table(FAMILIES["MatrixNormal"](tree))}
    assert rows["a"] == "linear in every use; signs along the rows of its noise"
    assert rows["c"] == "linear in every use; signs along the columns of its noise"
    tied = FAMILIES["MatrixNormal"]({"a": tree["a"]})
    assert table(tied, lambda w, x: x @ (w["a"] * 2.0))[0][-1] == "linear in every use; one sign for all of it"


@pytest.mark.parametrize("family", ["LowRank", "FullCovariance", "MatrixNormal"])
def test_where_one_leaf_is_not_used_linearly_all_share_a_draw_and_say_so(family):
    def normed(w, x):
        return jnp.tanh(x @ w["a"] / jnp.linalg.norm(w["c"])) @ w["c"]

    q = FAMILIES[family](params(a=(4, 5), c=(5, 2)))
    it, outputs, reference = outputs_and_reference(normed, q, VECTOR, "flipout")
    np.testing.assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)
    why = {leaf.path: leaf.why for leaf in it.plan.leaves}
    if family == "MatrixNormal":  # of which each leaf is a node of its own
        assert why["a"] == "linear in every use; signs along the rows of its noise"
    elif family == "FullCovariance":
        assert why == {"a, c": "mul: not linear in it, or no rule for it"}
    else:
        assert [leaf.strategy for leaf in it.plan.leaves] == ["flipout", "shared"]
        end = " directions: one draw for all examples, as mul: not linear in it, or no rule for it"
        assert all(reason.endswith(end) for reason in why.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_mirrored_noise_is_that_of_the_other_side_of_the_mean(family):
    """Signs stay, draws and coefficients change theirs: the outputs of a linear model add up to twice the mean."""
    q = FAMILIES[family](params(a=(4, 5), b=(5,)))
    apply_fn = lambda w, x: x @ w["a"] + w["b"]  # noqa: E731

    @jax.jit
    def both_sides(q):
        it = Coupled.of("test", apply_fn, q, SEQUENCE, None, "decorrelated")
        noise = jax.tree.map(jnp.asarray, numpy_noise(it, 2))
        both = it.outputs(noise, 2, SEQUENCE) + it.outputs(noise.mirrored(), 2, SEQUENCE)
        return both, 2 * apply_fn(illia_fn.mean(q), SEQUENCE)

    both, expected = both_sides(q)
    np.testing.assert_allclose(both, np.stack([expected] * 2), rtol=1e-4, atol=1e-5)


def test_samples_together_are_those_one_by_one():
    """As chunks of samples make them: one by one, what all examples share is not mapped over."""
    tree = params(a=(4, 5), b=(5,), c=(5, 3), d=(3,))
    q = {"matrix": FAMILIES["MatrixNormal"]({"a": tree["a"]}), "low": FAMILIES["LowRank"]({"b": tree["b"]})}
    q["full"] = FAMILIES["FullCovariance"]({"c": tree["c"], "d": tree["d"]})

    def apply_fn(w, x):
        w = {**w["matrix"], **w["low"], **w["full"]}
        return jnp.tanh(x @ w["a"] + w["b"]).mean(axis=1) @ w["c"] + w["d"]

    @jax.jit
    def samples(q):
        it = Coupled.of("test", apply_fn, q, SEQUENCE, None, "decorrelated")
        noise = jax.tree.map(jnp.asarray, numpy_noise(it, 2))
        second = Noise(*jax.tree.map(lambda leaf: leaf[1:], tuple(noise[:3])), noise.signs)
        return it.outputs(noise, 2, SEQUENCE), it.outputs(second, 1, SEQUENCE)

    together, alone = samples(q)
    np.testing.assert_allclose(together[1:], alone, rtol=1e-5, atol=1e-6)
    assert np.all(together[0] != together[1])
