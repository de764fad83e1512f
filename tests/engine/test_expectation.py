"""The engine: every way to take the samples gives the value and the gradients of the plain mean over the draws."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import illia_fn
from illia_fn import expectation, mean_field, predict

KEY = jax.random.key(0)
Q = mean_field({"w": jnp.array([1.0, -2.0])}, scale=0.3)
X = jnp.array([[0.5, -1.0], [2.0, 0.3], [1.0, 1.0]])
LABELS = jnp.array([0, 1, 1])

NUM_SAMPLES = 10
# chunk_size and antithetic, which leaves half as many pairs
ALL, ONE_BY_ONE, LOOP_AND_REST, TWO_PARTS = (99, False), (1, False), (4, False), (6, False)
PAIRS_LOOP_AND_REST = 2, True
EVERY_WAY = [ALL, LOOP_AND_REST, TWO_PARTS, PAIRS_LOOP_AND_REST]


def ways(*which):
    return pytest.mark.parametrize(("chunk_size", "antithetic"), which)


def curved(w, x, labels=LABELS):
    """A scalar, curved in w and x, with integer inputs."""
    logits = x @ w["w"]
    return jnp.mean(jnp.where(labels == 1, jnp.sin(logits), jnp.square(logits)))


def draws_of(q, antithetic, num_samples=NUM_SAMPLES, key=KEY):
    """The draws themselves, from an f that returns what it is given."""
    _, w = expectation(
        lambda w: (jnp.zeros(()), w), q, key, num_samples, chunk_size=None, antithetic=antithetic, has_aux=True
    )
    return w


def plain(q, x, antithetic, f=curved, key=KEY):
    """The mean over the draws, with nothing but a vmap."""
    w = draws_of(q, antithetic, key=key)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(lambda w: f(w, x))(w))


def engine(q, x, chunk_size, antithetic, f=curved, key=KEY):
    return expectation(lambda w: f(w, x), q, key, NUM_SAMPLES, chunk_size=chunk_size, antithetic=antithetic)


assert_close = partial(chex.assert_trees_all_close, rtol=2e-5, atol=1e-6)


def test_moments_and_their_gradients():
    n = 20_000

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def square(q):
        value = expectation(lambda w: jnp.square(w["w"]), q, KEY, n, chunk_size=5000)
        return value.sum(), value

    (_, value), grads = square(Q)
    # E[w^2] = loc^2 + s^2 with variance 4 loc^2 s^2 + 2 s^4
    variance = 4 * np.array([1.0, 4.0]) * 0.09 + 2 * 0.0081
    np.testing.assert_array_less(np.abs(value - np.array([1.09, 4.09])), 5 * np.sqrt(variance / n))
    np.testing.assert_array_less(np.abs(grads["w"].loc - 2 * np.array([1.0, -2.0])), 5 * 2 * 0.3 / np.sqrt(n))


def test_the_draws_do_not_depend_on_the_chunks():
    @jax.jit
    def draws(q):
        return [expectation(lambda w: (0.0, w["w"]), q, KEY, 7, chunk_size=s, has_aux=True)[1] for s in (None, 1, 3)]

    whole, *others = draws(Q)
    assert len(np.unique(whole)) == 2 * 7
    for some in others:
        np.testing.assert_allclose(some, whole, rtol=1e-6)


def value_and_gradients(f, q, x):
    """In both modes, to q and x alike."""
    tangents = jax.tree.map(lambda leaf: jnp.cos(leaf + 1.0), (q, x))
    return jax.value_and_grad(f, (0, 1))(q, x), jax.jvp(f, (q, x), tangents)


def gradient_norm(f, q):
    """Its gradient is reverse over reverse, through q."""
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(jax.grad(f)(q, X)))


@cache
def of_the_plain_mean(what, antithetic, **options):
    """What a transformation makes of the plain mean, once for all ways to take the samples."""
    return jax.jit(partial(what, partial(plain, antithetic=antithetic, **options)))(Q, X)


def of_the_engine(what, chunk_size, antithetic, **options):
    return partial(what, partial(engine, chunk_size=chunk_size, antithetic=antithetic, **options))


@ways(ALL, LOOP_AND_REST, TWO_PARTS)
def test_value_and_gradients_in_both_modes(chunk_size, antithetic):
    """Those of pairs are below, with their aux."""
    run = jax.jit(of_the_engine(value_and_gradients, chunk_size, antithetic))
    assert_close(run(Q, X), of_the_plain_mean(value_and_gradients, antithetic))


def test_they_are_the_same_outside_of_a_jit():
    found = jax.value_and_grad(partial(engine, chunk_size=4, antithetic=False), (0, 1))(Q, X)
    assert_close(found, of_the_plain_mean(value_and_gradients, antithetic=False)[0])


def second_derivatives(f, q, x):
    """To x, reverse over reverse and forward over reverse (`jax.hessian`); to q, reverse over reverse."""
    of_x = partial(f, q)
    hessians = [of(of_x)(x) for of in (lambda f: jax.jacrev(jax.jacrev(f)), lambda f: jax.jacfwd(jax.jacrev(f)))]
    return hessians, jax.grad(partial(gradient_norm, f))(q)


def test_second_derivatives():
    """Of the loop, which has a rule of its own."""
    run = of_the_engine(second_derivatives, *ONE_BY_ONE)
    assert_close(jax.jit(run)(Q, X), of_the_plain_mean(second_derivatives, antithetic=False), rtol=1e-4, atol=1e-5)


def for_a_batch(f):
    """Over inputs and keys; and over labels, integers that f closes over."""
    of_one = jax.value_and_grad(lambda x, key: f(Q, x, key=key))
    of_labels = jax.grad(lambda x, y: f(Q, x, f=partial(curved, labels=y)))
    return of_one, of_labels


BATCH = jnp.stack([X, X + 1.0]), jax.random.split(KEY, 2), jnp.array([[0, 1, 1], [1, 1, 0]])


def test_under_vmap():
    of_one, of_labels = for_a_batch(partial(engine, chunk_size=4, antithetic=False))
    run = jax.jit(lambda xs, keys, labels: (jax.vmap(of_one)(xs, keys), jax.vmap(of_labels)(xs, labels)))
    of_one, of_labels = for_a_batch(partial(plain, antithetic=False))
    alone = jax.jit(lambda x, key, labels: (of_one(x, key), of_labels(x, labels)))
    expected = [alone(*(args[index] for args in BATCH)) for index in range(2)]
    assert_close(run(*BATCH), jax.tree.map(lambda *leaves: np.stack(leaves), *expected))


def jacobians(f, q, x):
    return f(q, x), jax.jacrev(f)(q, x), jax.jacfwd(f, 1)(q, x)


def in_a_tree(w, x):
    return {"a": curved(w, x), "b": (x @ w["w"],)}


def test_a_pytree_value():
    run = of_the_engine(jacobians, *LOOP_AND_REST, f=in_a_tree)
    assert_close(jax.jit(run)(Q, X), of_the_plain_mean(jacobians, antithetic=False, f=in_a_tree))


def test_aux_is_stacked_and_differentiable():
    """And so are values and gradients of pairs: against the plain mean of the draws and a function of them all."""

    def f(w, x):
        return curved(w, x), {"draw": w["w"], "constant": 3, "labels": LABELS}

    def run(q, x):
        chunk_size, antithetic = PAIRS_LOOP_AND_REST
        options = {"chunk_size": chunk_size, "antithetic": antithetic, "has_aux": True}
        value, aux = expectation(lambda w: f(w, x), q, KEY, NUM_SAMPLES, **options)
        return value + jnp.sum(jnp.square(jnp.sum(aux["draw"], axis=0))), aux

    def by_hand(q, x):
        draws = draws_of(q, antithetic=True)["w"]
        return plain(q, x, antithetic=True) + jnp.sum(jnp.square(jnp.sum(draws, axis=0))), draws

    both = jax.jit(lambda *args: [jax.value_and_grad(of, (0, 1), has_aux=True)(*args) for of in (run, by_hand)])
    ((value, aux), grads), ((expected, draws), slopes) = both(Q, X)
    np.testing.assert_allclose(aux["draw"], draws, rtol=1e-6)
    np.testing.assert_array_equal(aux["constant"], [3] * NUM_SAMPLES)
    assert aux["labels"].shape == (NUM_SAMPLES, 3)
    assert_close((value, grads), (expected, slopes), rtol=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_antithetic_draws_are_pairs(chunk_size):
    def f(w, key):
        return w["w"], (w["w"], jax.random.uniform(key))

    options = {"chunk_size": chunk_size, "antithetic": True, "needs_key": True, "has_aux": True}
    value, aux = jax.jit(lambda q: expectation(f, q, KEY, 6, **options))(Q)
    draws, uniforms = map(np.asarray, aux)
    np.testing.assert_allclose(draws[::2] + draws[1::2], np.tile(2 * Q["w"].loc, (3, 1)), rtol=1e-6)
    assert len(np.unique(draws)) == 12
    assert len(np.unique(uniforms)) == 6  # but f has keys of its own
    np.testing.assert_allclose(value, Q["w"].loc, rtol=1e-6)  # what is odd in the noise cancels


def test_antithetic_pairs_are_unbiased_and_of_lower_variance():
    @jax.jit
    @jax.vmap
    def estimates(key):
        return [expectation(lambda w: jnp.exp(w["w"][0]), Q, key, 2, antithetic=pairs) for pairs in (True, False)]

    pairs, independent = np.asarray(estimates(jax.random.split(KEY, 20_000)))
    exact = np.exp(1.0 + 0.09 / 2)
    assert abs(pairs.mean() - exact) < 5 * pairs.std() / np.sqrt(20_000)
    # Var[mean of a pair] / Var[mean of two] = 1 + corr(e^z, e^-z) = 1 - e^{-s^2}: 0.086
    np.testing.assert_allclose(pairs.var() / independent.var(), 1 - np.exp(-0.09), rtol=0.1)


def test_keys_of_every_implementation():
    """One of the old kind has the draws of its new one; of another implementation the draws are others."""
    keys = KEY, jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")

    @jax.jit
    def run(q):
        f = lambda w: (jnp.sum(jnp.square(w["w"])), w["w"])  # noqa: E731
        return [expectation(f, q, key, 6, chunk_size=2, antithetic=True, has_aux=True) for key in keys]

    (value, draws), *old, (_, others) = run(Q)
    assert_close(old, [(value, draws)])
    assert len(np.unique([draws, others])) == 2 * 2 * 6


def test_a_gradient_for_all_that_f_closes_over():
    """The prior's scale, a deterministic leaf, a half-precision and a complex array: none is silently 0."""
    q = {"w": Q["w"], "b": jnp.array(0.5)}
    closed_over = {"half": jnp.ones(2, jnp.bfloat16), "complex": jnp.array(1.0 + 2.0j), "scale": jnp.array(2.0)}

    def loss(q, closed_over, chunk_size):
        def f(w):
            prior = illia_fn.Normal(0.0, closed_over["scale"])
            wave = jnp.exp(1j * closed_over["complex"] * w["w"][0].astype(jnp.complex64))
            half = jnp.sum(w["w"] * closed_over["half"].astype(jnp.float32))
            return jnp.sum(prior.log_prob(w["w"])) + jnp.real(wave) * half + w["b"]

        return expectation(f, q, KEY, 5, chunk_size=chunk_size)

    every = jax.jit(lambda *args: [jax.grad(loss, (0, 1))(*args, chunk_size) for chunk_size in (2, None)])
    grads, exact = every(q, closed_over)
    assert grads[1]["half"].dtype == jnp.bfloat16
    wide = partial(jax.tree.map, lambda leaf: np.asarray(leaf).astype(np.complex64))
    assert_close(wide(grads), wide(exact), rtol=1e-2)
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(wide(grads)))


def test_half_precision_is_summed_in_float32():
    @jax.jit
    def both(q):
        value = expectation(lambda w: w["w"].astype(jnp.bfloat16), Q, KEY, 3)
        mean = lambda q: expectation(lambda w: w["w"].astype(jnp.float32), q, KEY, 300)  # noqa: E731
        return value, jax.grad(lambda q: 300.0 * mean(q))(q)

    # 1 + 2^-8 is not a bfloat16: a sum of 256 gradients of 1 in bfloat16 would stop at 256
    value, grads = both({"w": jnp.ones((), jnp.bfloat16), "v": Q["w"]})
    assert value.dtype == jnp.float32
    assert grads["w"] == 300.0


def test_a_tree_without_posterior_nodes():
    def mean(w, chunk_size, antithetic):
        return expectation(jnp.sum, w, KEY, NUM_SAMPLES, chunk_size=chunk_size, antithetic=antithetic)

    assert jax.jit(lambda w: [mean(w, *way) for way in EVERY_WAY])(jnp.ones(2)) == [2.0] * len(EVERY_WAY)


def test_the_gradient_of_a_python_number():
    def loss(shift, chunk_size):
        return expectation(lambda w: jnp.sum(jnp.square(w["w"] + shift)), Q, KEY, 4, chunk_size=chunk_size)

    grads = jax.jit(lambda: [jax.grad(loss)(1.0, chunk_size) for chunk_size in (1, None)])()
    np.testing.assert_allclose(*grads, rtol=1e-5)
    assert abs(grads[0]) > 0.1


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("NHWC HWIO NHWC", {}),
        ("NHWC OIHW NCHW", {"rhs_dilation": (2, 2)}),
        ("NCHW OIHW NCHW", {"feature_group_count": 2, "window_strides": (2, 1), "rhs_dilation": (1, 2)}),
    ],
)
def test_convolutions_in_the_loop(spec, options):
    """The loop has convolutions in another layout than f, forward and backward."""
    specs = spec.split()
    groups = options.get("feature_group_count", 1)
    x_shape = {"N": 3, "H": 6, "W": 5, "C": 4}
    kernel_shape = {"H": 3, "W": 2, "I": 4 // groups, "O": 6}
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=[x_shape[axis] for axis in specs[0]]), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=[kernel_shape[axis] for axis in specs[1]]), jnp.float32)
    q = mean_field({"kernel": kernel}, scale=0.1)

    @jax.jit  # a convolution in a function under jit
    def convolve(w, x):
        arguments = {"window_strides": (1, 1), "padding": "SAME", **options}
        return jax.lax.conv_general_dilated(x, w["kernel"], dimension_numbers=tuple(specs), **arguments)

    def f(w, x):
        return jnp.mean(jnp.square(jax.nn.relu(convolve(w, x))))

    ways = partial(engine, chunk_size=1, antithetic=False, f=f), partial(plain, antithetic=False, f=f)
    both = jax.jit(lambda q, x: [jax.value_and_grad(way, (0, 1))(q, x) for way in ways])
    assert_close(*both(q, x), rtol=1e-4)


def test_a_fixed_key_makes_an_ordinary_function(x64):
    """Deterministic ADVI: the same draws at every call, so that L-BFGS with a line search converges."""
    start, unravel = jax.flatten_util.ravel_pytree(mean_field({"w": jnp.array([1.0, -2.0])}, scale=0.3))
    x, y = X.astype(start.dtype), jnp.array([1.0, -1.0, 0.5])

    @jax.jit
    @jax.value_and_grad
    def loss(flat):
        return illia_fn.elbo_loss(lambda w, x: x @ w["w"], unravel(flat), x, y, KEY, 16, num_data=3, antithetic=True)

    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 30, "gtol": 0, "ftol": 0})
    # The prior's scale is 0.1: the sampled ELBO is strictly convex in loc, and its gradient vanishes at the end.
    assert np.linalg.norm(found.jac) < 1e-4 * np.linalg.norm(loss(start)[1])


def test_predict_stacks_the_networks():
    x = jnp.ones((5, 2))
    outputs = predict(lambda w, x: (x @ w["w"], jnp.sum(w["w"])), Q, x, KEY, 3)
    assert outputs[0].shape == (3, 5)
    assert outputs[1].shape == (3,)
    np.testing.assert_allclose(outputs[0], jnp.tile(outputs[1][:, None], (1, 5)), rtol=1e-6)  # one network for all rows
    assert len(np.unique(outputs[1])) == 3


def test_predict_in_parts_uses_the_same_networks():
    x = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    whole = predict(lambda w, x: x @ w["w"], Q, x, KEY, 4)
    parts = [predict(lambda w, x: x @ w["w"], Q, x[i : i + 2], KEY, 4, chunk_size=3) for i in range(0, 5, 2)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-6)


def test_predict_with_a_key():
    noise = predict(lambda w, x, key: jax.random.uniform(key, (1,)), Q, jnp.ones((1, 2)), KEY, 5, needs_key=True)
    assert len(np.unique(noise)) == 5
