# ruff: noqa: E501  the refusals stand in a table
"""Each rule by which moments propagate, against draws, integrals on a grid and mpmath; whole networks against draws."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import special, stats

import illia_fn
from illia_fn import mean_field
from illia_fn.coupling._elementwise import Pieces, Random, Source
from illia_fn.coupling._propagated import PropagatedModel

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = normal(4, 3)
LAYER = {"k": normal(3, 5), "b": normal(5), "out": normal(5, 2)}
# Leaves stand for activations, too: what their numbers are to the rules, independent Gaussians, they are in truth.
W = LAYER | {
    "x": normal(4, 3),
    "y": normal(4, 3),
    "image": normal(2, 4, 4, 2),
    "filter": normal(3, 3, 2, 3),
    "s": normal(),
}
Q = mean_field(W, scale=0.6)
CONV = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
ROWS = jnp.array([2, 0, 2])


def law(f, q, num_points=20, x=None):
    model = PropagatedModel.of("test", lambda w: (f(w), ()), q, x, num_points)
    return model.mean, model.law.variances()[0]


RULES = {
    "a number of the data times a weight": lambda w: X @ w["k"],
    "a weight times the data": lambda w: w["k"].T @ X.T,
    "a product of random values": lambda w: w["x"] @ w["k"] + w["b"][None],
    "a product with fixed weights": lambda w: w["x"] @ LAYER["k"],
    "products of a batch": lambda w: jax.vmap(lambda x, y: x @ y.T)(w["x"].reshape(2, 2, 3), w["y"].reshape(2, 2, 3)),
    "a convolution": lambda w: jax.lax.conv_general_dilated(w["image"], w["filter"], **CONV),
    "a convolution of the data": lambda w: jax.lax.conv_general_dilated(W["image"], w["filter"], **CONV),
    "element by element": lambda w: w["x"] * w["y"],
    "times one number": lambda w: w["x"] * w["s"],
    "of one number": lambda w: jnp.tanh(w["s"] * X) * w["s"],
    "a sum and a difference": lambda w: 2.0 * w["x"] - w["y"] / 3.0 - X,
    "of which the data choose": lambda w: jnp.where(X > 0, w["x"], w["y"]),
    "the mean": lambda w: w["image"].mean(axis=(1, 2)),
    "pooled by the mean": lambda w: jax.lax.reduce_window(w["image"], 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME") / 4.0,
    "moved": lambda w: jnp.tile(jnp.flip(w["x"].T.reshape(2, 6)[:, None, 1:5].squeeze(1), 1), (1, 2)),
    "joined and padded": lambda w: jnp.pad(jnp.concatenate([w["x"], X, w["y"]], axis=1), ((0, 0), (1, 0))),
    "looked up": lambda w: w["x"][ROWS] + X[:3],
    "split and stacked": lambda w: jnp.stack(jnp.split(w["image"], 2, axis=1)[::-1]) + 0.0,
    "a window": lambda w: jax.lax.dynamic_update_slice(w["x"], w["y"][:2, :2], (ROWS[0], ROWS[1])),
    "added at places": lambda w: w["x"].at[ROWS[:2]].add(w["y"][:2]),
    "summed up": lambda w: jnp.cumsum(w["x"], axis=1),
    "in another layout before its function": lambda w: jax.nn.relu(w["x"]).T @ jax.checkpoint(jnp.tanh)(w["y"]),
    "a unary function of a weight": lambda w: jax.nn.softplus(w["s"]) * w["x"],
}  # fmt: skip


@pytest.fixture(scope="module")
def laws_and_draws():
    """Of all rules in one program, and the moments of 20 000 draws with their standard errors."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        laws = jax.jit(lambda q: {name: law(f, q) for name, f in RULES.items()})(Q)
        outputs = lambda key: {name: f(illia_fn.sample(key, Q)) for name, f in RULES.items()}  # noqa: E731
        draws = jax.jit(jax.vmap(outputs))(jax.random.split(jax.random.key(1), 20_000))
    return laws, draws


@pytest.mark.parametrize("name", RULES)
def test_a_rule(name, laws_and_draws):
    (mean, variance), draws = laws_and_draws[0][name], np.asarray(laws_and_draws[1][name], np.float64)
    assert mean.shape == variance.shape == draws.shape[1:]
    near_draws(mean, variance, draws)


def near_draws(mean, variance, draws):
    """Within five standard errors."""
    center, spread, count = draws.mean(axis=0), draws.var(axis=0), len(draws)
    fourth = np.mean((draws - center) ** 4, axis=0)
    assert np.all(np.abs(mean - center) < 5 * np.sqrt(spread / count) + 1e-6)
    assert np.all(np.abs(variance - spread) < 5 * np.sqrt((fourth - spread**2) / count) + 1e-6)


# --- element-wise functions, against a grid ---------------------------------------------------------------------------

STRAIGHT = {
    "relu": jax.nn.relu,
    "leaky relu": jax.nn.leaky_relu,
    "leaky relu, as a maximum": lambda z: jnp.maximum(0.3 * z, z) / 2.0 + 1.0,
    "a jump": lambda z: jnp.where(1.0 - 2.0 * z > 0.0, -2.0 * z, z),
    "abs": lambda z: jnp.abs(1.0 - z),
    "min": lambda z: z - jnp.minimum(z, 0.7),
    "a jump of the slope alone": lambda z: jnp.where(z < 0.5, 1.0 - z, z),
    "a step": lambda z: (z < 0.2).astype(z.dtype),
    "affine": lambda z: (3.0 - z) * 2.0 + z,
    "less itself": lambda z: z - z,
}
SMOOTH = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "erf": jax.lax.erf,
    "gelu": jax.nn.gelu,
    "gelu, exactly": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "its square": lambda z: z * z + z,
    "exp": lambda z: jnp.exp(0.5 * z),
}
SCALES = np.array([0.05, 0.3, 1.0])


@pytest.fixture(scope="module")
def functions():
    """Laws by the rules, and on a grid, at means from -3 to 3."""
    mean, stddev = np.tile(np.linspace(-3.0, 3.0, 25), 3), np.repeat(SCALES, 25)
    z = np.linspace(-9.0, 9.0, 4001)
    with jax.enable_x64(True):
        q = mean_field(jnp.asarray(mean), scale=jnp.asarray(stddev))
        both = STRAIGHT | SMOOTH
        laws = jax.jit(lambda q: {name: law(f, q) for name, f in both.items()})(q)
        laws = jax.tree.map(np.asarray, laws)
        grid = jnp.asarray(mean + z[:, None] * stddev)
        values = jax.jit(lambda z: {name: f(z) for name, f in both.items()})(grid)
        shares = stats.norm.pdf(z)[:, None] * (z[1] - z[0])
        means = {name: np.sum(shares * value, axis=0) for name, value in values.items()}
        variances = {name: np.sum(shares * (value - means[name]) ** 2, axis=0) for name, value in values.items()}
    return laws, means, variances


@pytest.mark.parametrize("name", STRAIGHT | SMOOTH)
def test_a_function(name, functions):
    laws, means, variances = functions
    tolerance = {"a jump": 4e-3, "a step": 4e-3}.get(name, 2e-5 if name in STRAIGHT else 1e-4)  # at jumps, the grid's
    np.testing.assert_allclose(laws[name][0], means[name], atol=tolerance)
    np.testing.assert_allclose(laws[name][1], variances[name], atol=tolerance)
    assert np.all(laws[name][1] >= 0)


def test_the_accuracy_of_quadrature_is_as_told(x64):
    """Of the docstring of propagate_moments: tanh, its mean and standard deviation."""
    z, mean = np.linspace(-9.0, 9.0, 4001), np.linspace(-4.0, 4.0, 33)
    shares = (stats.norm.pdf(z) * (z[1] - z[0]))[:, None]
    laws = jax.jit(lambda scales: [law(jnp.tanh, mean_field(jnp.asarray(mean), scale=scale)) for scale in scales])
    bounds = {1.0: 7e-5, 2.0: 8e-3, 4.0: 0.06}
    for (scale, bound), (center, variance) in zip(bounds.items(), laws(tuple(bounds)), strict=True):
        values = np.tanh(mean + scale * z[:, None])
        exact = np.sum(shares * values, axis=0)
        assert np.abs(center - exact).max() < bound
        assert np.abs(np.sqrt(variance) - np.sqrt(np.sum(shares * (values - exact) ** 2, axis=0))).max() < bound


def rectified(mean, variance):
    zero, side = (lambda z: jnp.zeros_like(z)), (lambda z: z)
    source = Source(mean, variance, mean.dtype, frozenset())
    return Random(source, jax.nn.relu, mean.dtype, Pieces(zero, side, side)).law(1)


def test_relu_at_both_ends():
    """s r and s^2 (Phi(t) + t r - r^2), r = phi(t) + t Phi(t), and its derivatives, in float32 against mpmath."""
    t = np.concatenate([-np.logspace(2, -3, 12), [0.0], np.logspace(-3, 2, 12)])
    scale = np.repeat([1e-12, 1e-3, 1.0, 1e6], len(t))
    mean = np.tile(t, 4) * scale
    arguments = jnp.asarray(mean, jnp.float32), jnp.asarray(scale**2, jnp.float32)
    found = jax.jit(rectified)(*arguments)
    slopes = jax.jit(
        lambda *args: [jax.grad(lambda *args, k=k: rectified(*args)[k].sum(), (0, 1))(*args) for k in (0, 1)]
    )(*arguments)
    exact = np.array([_exact(t) for t in np.tile(t, 4)])
    for value, r, unit in zip(found, exact.T[:2], (scale, scale**2), strict=True):
        np.testing.assert_allclose(value / unit, r, rtol=3e-6, atol=1e-6)
        assert np.all(value >= 0)
    units = [(1.0, 1 / scale), (scale, 1.0)]
    for slope, columns, unit in zip(slopes, (exact.T[2:4], exact.T[4:]), units, strict=True):
        for one, known, size in zip(slope, columns, unit, strict=True):
            np.testing.assert_allclose(one / size, known, rtol=1e-5, atol=1e-6)


def _exact(t):
    """Mean, variance, d mean / d m, d mean / d s^2, d variance / d m, d variance / d s^2, for s = 1."""
    with mpmath.workdps(60):
        t = mpmath.mpf(float(np.float32(t)))
        inside, density = mpmath.ncdf(t), mpmath.npdf(t)
        r = density + t * inside
        return [
            float(value)
            for value in (r, inside + t * r - r * r, inside, density / 2, 2 * r * (1 - inside), inside - r * density)
        ]


# --- networks ---------------------------------------------------------------------------------------------------------


def network(w, x=X):
    return jax.nn.relu(x @ w["k"] + w["b"][None]) @ w["out"]


def test_the_first_layer_and_a_network_of_one_hidden_layer_are_exact():
    q = mean_field(LAYER, scale=0.5)
    mean, variance = law(lambda w: X @ w["k"] + w["b"][None], q)
    np.testing.assert_allclose(mean, X @ LAYER["k"] + LAYER["b"][None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        variance, np.broadcast_to(0.25 * (np.sum(np.square(X), 1) + 1)[:, None], (4, 5)), rtol=1e-5
    )

    # its units are independent: E[relu] and E[relu^2] of each, in numpy
    m, c = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
    t = m / np.sqrt(c)
    first = np.sqrt(c) * stats.norm.pdf(t) + m * special.ndtr(t)
    second = (m**2 + c) * special.ndtr(t) + m * np.sqrt(c) * stats.norm.pdf(t)
    out = np.asarray(LAYER["out"], np.float64)
    mean, variance = jax.jit(partial(law, network))(q)
    np.testing.assert_allclose(mean, first @ out, rtol=1e-5)
    np.testing.assert_allclose(variance, second @ (out**2 + 0.25) - first**2 @ out**2, rtol=1e-5)
    draws = jax.jit(jax.vmap(lambda key: network(illia_fn.sample(key, q))))(jax.random.split(jax.random.key(2), 40_000))
    near_draws(mean, variance, np.asarray(draws, np.float64))


def test_residual_connections_keep_their_means():
    """x + f(x): the mean is right, and the variance without 2 Cov(x, f(x))."""
    q = mean_field({"x": W["x"], "k": normal(3, 3)}, scale=0.3)
    mean, variance = law(lambda w: w["x"] + w["x"] @ w["k"], q)
    n = np.asarray(q["k"].loc)
    np.testing.assert_allclose(mean, W["x"] + W["x"] @ n, rtol=1e-4, atol=1e-6)
    alone = 0.09 + np.sum(np.square(W["x"]), 1, keepdims=True) * 0.09 + 0.09 * np.sum(n**2 + 0.09, axis=0)
    np.testing.assert_allclose(variance, alone, rtol=1e-5)


def test_gradients_are_those_of_the_values(x64):
    q = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), mean_field(LAYER, scale=0.5))
    flat, unravel = jax.flatten_util.ravel_pytree(q)
    direction = jnp.asarray(np.random.default_rng(3).normal(size=flat.shape))
    x = X.astype(jnp.float64)

    def value(flat):
        deep = lambda w: jnp.tanh(network(w, x)) @ jnp.ones((2, 1))  # noqa: E731
        mean, variance = law(deep, unravel(flat))
        return jnp.sum(jnp.sin(mean)) + jnp.sum(variance)

    value = jax.jit(value)
    slope = (value(flat + 1e-5 * direction) - value(flat - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(value))(flat) @ direction, slope, rtol=1e-7)
    assert value(flat).dtype == jnp.float64


@pytest.mark.parametrize("act", [jax.nn.relu, jnp.tanh])
def test_gradients_at_extreme_scales_are_finite(act):
    def loss(q, x):
        mean, variance = law(lambda w: act(act(x @ w["k"]) @ w["out"]), q)
        return jnp.sum(mean) + jnp.sum(variance)

    grad = jax.jit(jax.grad(loss))
    for rho in (-200.0, -60.0, -20.0, 40.0):
        q = jax.tree.map(lambda leaf, rho=rho: illia_fn.Gaussian(leaf, jnp.full_like(leaf, rho)), LAYER)
        for x in (X, jnp.zeros_like(X), 1e6 * X):
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grad(q, x))), (rho, x)


def test_under_vmap_and_in_half_precision():
    q = mean_field(LAYER, scale=0.5)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), q)
    pair = jax.jit(jax.vmap(partial(law, network)))(two)
    for known, found in zip(law(network, q), pair, strict=True):
        np.testing.assert_allclose(found[0], known, rtol=1e-5)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), q)
    mean, variance = law(lambda w: network(w, X.astype(jnp.bfloat16)), half)
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(mean, pair[0][0], rtol=2e-2, atol=5e-2)
    np.testing.assert_allclose(variance, pair[1][0], rtol=3e-2)


def test_its_own_derivative_of_a_function_is_kept():
    @jax.custom_jvp
    def rounded(z):
        return jnp.round(z)

    rounded.defjvps(lambda tangent, _, __: tangent)
    q = mean_field(jnp.array([0.4]), scale=0.1)
    assert jax.grad(lambda q: law(rounded, q)[0][0])(q).loc == pytest.approx(1.0)


def test_what_is_not_used_need_not_be_known():
    q = mean_field(LAYER, scale=0.5)

    def with_a_maximum(w):
        hidden = X @ w["k"]
        _ = jnp.max(hidden)
        return hidden

    assert law(with_a_maximum, q)[0].shape == (4, 5)


def norm(x):
    return (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-6)


def loop(w):
    return jax.lax.scan(lambda carry, _: (carry + X @ w["k"], ()), jnp.zeros((4, 5)), None, 3)[0]


REFUSED = {
    "max pooling": (lambda w: (X @ w["k"]).max(axis=1), r"not propagated through reduce_max, here of what depends on params\['k'\]: a maximum\. Pool by the mean"),
    "softmax": (lambda w: jax.nn.softmax(network(w)), r"through reduce_max.* return the logits.* elbo_loss, predict"),
    "a normalisation": (lambda w: norm(X @ w["k"]), r"through div, .*: a quotient, such as a normalisation"),
    "a gate": (lambda w: jax.nn.sigmoid(X @ w["k"]) * (-X @ w["k"]), r"through mul, .* that both depend on params\['k'\], whose covariance"),
    "attention": (lambda w: (X @ w["k"]) @ (X @ w["k"]).T, r"through dot_general, .*both depend on params\['k'\]"),
    "the larger of two": (lambda w: jnp.maximum(X @ w["k"], w["b"][None]), r"through max, here of what depends on params\['b'\], params\['k'\]: the larger of two random values"),
    "a loop": (loop, r"through scan, .*: a loop"),
    "a sorted output": (lambda w: jnp.sort(X @ w["k"]), r"through sort, .*: no rule for it"),
    "a choice that is random": (lambda w: jnp.where(X @ w["k"] > 0, w["b"][None], 0.0), r"through select_n, .*: what it takes is not continuous"),
    "a whole number": (lambda w: LAYER["b"][jnp.round(w["b"]).astype(int)], "not continuous"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.promotes
def test_refusals(name):
    f, message = REFUSED[name]
    with pytest.raises(ValueError, match="test: moments are.*" + message):
        law(f, mean_field(LAYER, scale=0.1))


def test_families():
    tied = illia_fn.k_tied({"k": LAYER["k"]}, scale=0.5)
    for known, found in zip(
        law(lambda w: X @ w["k"], mean_field({"k": LAYER["k"]}, scale=0.5)),
        law(lambda w: X @ w["k"], tied),
        strict=True,
    ):
        np.testing.assert_allclose(found, known, rtol=1e-5)
    with pytest.raises(ValueError, match=r"test: params\['k'\] is a MatrixNormal, whose numbers are not independent"):
        law(lambda w: X @ w["k"], {"k": illia_fn.matrix_normal(LAYER["k"], scale=0.3)})
