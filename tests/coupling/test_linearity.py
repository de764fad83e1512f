"""Whether outputs are linear in the weights, and their variances if they are, against the whole Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import Posterior, explain_linearity, frozen_pytree, mean_field
from illia_fn.coupling._affine import breaks_of
from illia_fn.coupling._linearity import LinearModel

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
W = {"b": jnp.ones(4), "k": KERNEL}


@jax.custom_jvp
def scaled_backwards(w):
    return 2.0 * w


scaled_backwards.defjvps(lambda tangent, _, __: 0.1 * tangent)


def loop(body, start):
    return jax.lax.scan(lambda carry, _: (body(carry), carry), start, None, 3)[0]


def dense(w):
    return X @ w["k"] + w["b"][None]


# Each of the weights W, and whether it is linear in them; else the operation that is in the way.
MODELS = {
    "a dense layer": (dense, None),
    "scaled, in another dtype": (lambda w: dense(w).astype(jnp.bfloat16).astype(jnp.float32) / 2.0 - X[:, :1], None),
    "as a vector": (lambda w: dense(w).sum(axis=1), None),
    "some of the outputs": (lambda w: dense(w)[:, 1:3], None),
    "row by row": (lambda w: jax.vmap(lambda row: w["k"].T @ row + w["b"])(X), None),
    "under a checkpoint": (jax.checkpoint(dense), None),
    "in a loop over the rows": (lambda w: jax.lax.map(lambda row: row @ w["k"], X), None),
    "added up in a loop": (lambda w: loop(lambda carry: carry + dense(w), jnp.zeros((5, 4))), None),
    "a branch of the data": (lambda w: jax.lax.cond(X[0, 0] > 0, lambda w: dense(w), lambda w: -dense(w), w), None),
    "twice the same product": (lambda w: X @ w["k"] + X[::-1] @ w["k"], None),
    "one number of it in every place": (lambda w: X @ jnp.broadcast_to(w["b"][:1, None], (3, 4)), None),
    "one row of it in every row": (lambda w: jnp.broadcast_to(w["b"], (5, 4)), None),
    "a row in every column": (lambda w: X @ jnp.broadcast_to(w["b"][:3, None], (3, 4)), None),
    "one by one": (lambda w: X * w["b"][None, :3], None),
    "one number": (lambda w: X * w["b"][0], None),
    "two numbers": (lambda w: X[:, 0] * w["k"][0, 0] + w["b"][0], None),
    "mixed after the layer": (lambda w: dense(w) @ KERNEL.T, None),
    "the mean of a sequence": (lambda w: (jnp.stack([X, 2 * X], 1) @ w["k"] + w["b"][None, None]).mean(1), None),
    "a sequence": (lambda w: jnp.stack([X, 2 * X], 1) @ w["k"] + w["b"][None, None], None),
    "a convolution": (lambda w: jax.lax.conv(X[:, None], w["k"][:, None], (1,), "SAME"), None),
    "a look-up": (lambda w: w["k"][jnp.array([0, 2, 2, 1])], None),
    "less the mean of the batch": (lambda w: dense(w) - dense(w).mean(axis=0, keepdims=True), None),
    "concatenated": (lambda w: X @ jnp.concatenate([w["k"], w["b"][:3, None]], axis=1), None),
    "tanh": (lambda w: jnp.tanh(dense(w)), "tanh"),
    "relu": (lambda w: jax.nn.relu(dense(w)), "max"),
    "a product of two": (lambda w: dense(w) * w["b"][None], "mul"),
    "a product in a loop": (lambda w: loop(lambda carry: carry * w["b"], jnp.ones(4)), "scan"),
    "a branch of its own": (lambda w: jnp.where(w["b"] > 0, w["b"], 0.0), "gt"),
    "rounded": (lambda w: jnp.round(dense(w)), "round"),
    "without a gradient": (lambda w: jax.lax.stop_gradient(dense(w)), "stop_gradient"),
    "with a gradient of its own": (lambda w: scaled_backwards(dense(w)), "custom_jvp_call"),
    "divided by": (lambda w: X[:, :1] / w["b"][None], "div"),
    "exp, of which only the dtype is used": (lambda w: X.astype(jnp.exp(w["b"]).dtype), None),
}  # fmt: skip


@frozen_pytree
class FullRank(Posterior):
    """N(loc, factor factor') over a subtree."""

    loc: dict
    factor: jax.Array

    def reparameterise(self):
        flat, unravel = jax.flatten_util.ravel_pytree(self.loc)
        return lambda noise: unravel(flat + self.factor @ noise)

    log_prob = entropy = None

    @property
    def mean(self):
        return self.loc

    stddev = None


def jacobian(f, w):
    """Of the flat weights, (..., P)."""
    flat, unravel = jax.flatten_util.ravel_pytree(w)
    return np.asarray(jax.jit(jax.jacfwd(lambda flat: f(unravel(flat))))(flat), np.float64)


def law(f, q):
    return LinearModel.of("test", lambda w: (f(w), None), q, X)


@pytest.mark.promotes
@pytest.mark.parametrize("name", MODELS)
def test_what_is_linear_and_its_variances(name):
    f, in_the_way = MODELS[name]
    _, breaks = breaks_of(f, [W])
    assert {one.primitive for one in breaks} == ({in_the_way} if in_the_way else set())
    q = mean_field(W, scale={"b": 0.3, "k": 0.2 + jnp.abs(KERNEL)})
    if in_the_way:
        with pytest.raises(
            ValueError, match=rf"test: the outputs must be linear in .*params\['[bk]'\] \({in_the_way}: "
        ):
            law(f, q)
        return
    slopes = jacobian(f, W)
    factor = 0.3 * np.random.default_rng(2).normal(size=(16, 16))
    full = FullRank(W, jnp.asarray(factor, jnp.float32))
    if not np.any(slopes):
        assert law(f, q).is_random == [False]
        return
    by_leaf, jointly = jax.jit(lambda *qs: [law(f, q).law.variances()[0] for q in qs])(q, full)
    scale = np.concatenate([np.full(4, 0.3), 0.2 + np.abs(np.ravel(KERNEL))])
    tolerance = 2e-2 if "dtype" in name else 1e-5
    np.testing.assert_allclose(by_leaf, np.sum((slopes * scale) ** 2, -1), rtol=tolerance, atol=1e-7)
    exact = np.einsum("...p,pr->...r", slopes, factor)
    np.testing.assert_allclose(jointly, np.sum(exact**2, -1), rtol=tolerance, atol=1e-6)


ONE_PRODUCT = {"a dense layer", "scaled, in another dtype", "row by row", "a sequence"}


@pytest.mark.parametrize("name", sorted(ONE_PRODUCT))
def test_a_dense_layer_takes_one_product(name):
    assert law(MODELS[name][0], mean_field(W, scale=0.1)).law.direct == {0, 1}


def shared_bias(w, x):
    return x @ w["k"] + w["b"][:1][None]


def tied(w, x):
    return jnp.stack([x[:, 0] * w["b"][0], x[:, 1] * w["b"][0] + w["b"][1]], axis=1)


OF_COVARIANCES = {
    "a layer": lambda w, x: x @ w["k"] + w["b"][None],
    "a layer of the data, row by row": lambda w, x: jax.vmap(lambda row: w["k"].T @ row + w["b"])(x),
    "a layer of sequences": lambda w, x: jnp.stack([x, 2 * x], 1) @ w["k"] + w["b"][None, None],
    "a layer, then in another shape": lambda w, x: (x @ w["k"]).reshape(10, 2),
    "one bias for all": shared_bias,
    "tied": tied,
    "one by one": lambda w, x: x * w["b"][None, :3],
    "one number": lambda w, x: x * w["b"][0],
    "mixed": lambda w, x: (x @ w["k"]) @ KERNEL.T,
    "backwards": lambda w, x: (x @ w["k"])[:, ::-1] / 2.0 - x[:, :1],
    "of the rows": lambda w, x: (w["k"].T @ x.T).reshape(5, 4),
}


@pytest.mark.promotes
@pytest.mark.parametrize("name", OF_COVARIANCES)
def test_covariances(name):
    apply_fn, q = OF_COVARIANCES[name], mean_field(W, scale=0.3)
    known = jax.jit(lambda q: law(lambda w: apply_fn(w, X), q).law.covariance())(q)
    slopes = jacobian(lambda w: apply_fn(w, X), W)
    exact = 0.09 * np.einsum("...ip,...jp->...ij", slopes, slopes)
    is_diagonal = known.ndim < exact.ndim
    known = np.asarray(known)[..., None] * np.eye(known.shape[-1]) if is_diagonal else known
    np.testing.assert_allclose(known, exact, rtol=1e-5, atol=1e-6)
    assert is_diagonal == name.startswith(("a layer", "backwards", "one by one"))


def test_many_directions_go_in_chunks(monkeypatch):
    q = FullRank(W, jnp.eye(16))
    whole = jax.jit(lambda q: law(dense, q).law.variances()[0])(q)
    monkeypatch.setattr("illia_fn.coupling._variances._AT_ONCE", 100)  # five at once, the last chunk one
    one, other = jax.jit(lambda q: (law(dense, q).law.variances()[0], law(dense, q).law.covariance()))(q)
    np.testing.assert_allclose(one, whole, rtol=1e-6)
    np.testing.assert_allclose(other[2], np.diag(whole[2]), rtol=1e-6)


@frozen_pytree
class Cubic(FullRank):
    def reparameterise(self):
        return lambda noise: jax.tree.map(lambda loc: loc + jnp.sum(noise**3), self.loc)


def test_a_family_that_is_not_gaussian_is_refused():
    with pytest.raises(ValueError, match=r"test: params\['b'\], \['k'\] is a Cubic, .* \(integer_pow\)"):
        law(dense, Cubic(W, jnp.eye(16)))


def test_explanations():
    q = mean_field({"a": KERNEL.T, **W, "unused": jnp.ones(2)}, scale=0.1)
    print_of = lambda apply_fn, q: [tuple(leaf) for leaf in explain_linearity(apply_fn, q, X).leaves]  # noqa: E731
    assert print_of(lambda w, x: (x @ w["k"] + w["b"][None]) @ w["a"], q) == [
        ("a", (4, 3), False, "dot_general: times what depends on b, k"),
        ("b", (4,), False, "dot_general: times what depends on a, k"),
        ("k", (3, 4), False, "dot_general: times what depends on a, b"),
        ("unused", (2,), True, "not used"),
    ]
    assert print_of(lambda w, x: jnp.exp(x @ w["k"]) * x[:, :1] + w["b"][None], mean_field(W, scale=0.1)) == [
        ("b", (4,), True, "where the others are deterministic"),
        ("k", (3, 4), False, "exp: not linear in it"),
    ]
    assert print_of(lambda w, x: w["b"][None] * w["b"][None], mean_field(W, scale=0.1))[0][2:] == (
        False,
        "mul: times what depends on it, too",
    )
    assert print_of(lambda w, x: (x @ w["k"]).sum(1) + w["b"].sum(), FullRank(W, jnp.eye(16))) == [
        ("b, k", ((4,), (3, 4)), True, "its variance takes 16 passes of the linear part")
    ]
    table = str(explain_linearity(lambda w, x, key: x @ w["k"], mean_field(W, scale=0.1), X, needs_key=True))
    assert "k    | (3, 4) | linear  | its variance takes one product" in table
    assert illia_fn.coupling.LeafLinearity._fields == ("path", "shape", "is_linear", "why")
