"""Natural-gradient steps, against the formulas of the papers and posteriors in closed form."""

from dataclasses import replace
from functools import cache, partial

import chex
import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import array

import illia_fn
from illia_fn import Gaussian, Normal, elbo_loss, mean_field, natural_gradient
from illia_fn._base.numerics import log_softplus

pytestmark = pytest.mark.promotes  # as optax does

KEY = jax.random.key(0)
FREE = {"max_step": None, "max_kl": None, "max_change": None}
X = np.asarray(families.normal(0, 40, 3))
Y = X @ np.float32([1.0, -2.0, 0.5]) + np.float32(0.1)


def linear(w, x):
    return x @ w["w"] + w["b"]


def run(optimizer, loss, q, steps=1, key=KEY):
    def step(state, key):
        q, opt_state = state
        value, grads = jax.value_and_grad(loss)(q, key)
        updates, opt_state = optimizer.update(grads, opt_state, q)
        return (optax.apply_updates(q, updates), opt_state), value

    (q, _), values = jax.jit(lambda q, keys: jax.lax.scan(step, (q, optimizer.init(q)), keys))(
        q, jax.random.split(key, steps)
    )
    return q, values


def exact_loss(q, _):
    """The negative ELBO per example of one weight under unit noise and prior, in closed form."""
    x, y = X[:, 0], Y
    nll = 0.5 * jnp.mean(jnp.square(q.loc * x - y)) + 0.5 * jnp.mean(jnp.square(x)) * jnp.square(q.stddev)
    return nll + illia_fn.kl_divergence(q, Normal(0.0, 1.0)) / 40


def test_one_step_is_exact_on_conjugate_regression():
    optimizer = natural_gradient(1.0, 1.0, num_data=40, momentum=0.0, **FREE, retraction=False)
    q, _ = run(optimizer, exact_loss, Gaussian(array(0.3), array(np.log(np.expm1(0.5)))))
    precision = 1.0 + np.sum(np.square(X[:, 0]))
    np.testing.assert_allclose(q.loc, np.sum(X[:, 0] * Y) / precision, rtol=1e-5)
    np.testing.assert_allclose(q.stddev, precision**-0.5, rtol=1e-5)


DESIGN = np.insert(X, 3, 1.0, axis=1)
PRECISION = DESIGN.T @ DESIGN + np.eye(4, dtype=np.float32)


def exact_joint_loss(q, _):
    """The negative ELBO per example of a linear regression, in closed form; q is over all its weights together."""
    w, root = q.loc, q.scale_tril
    nll = 0.5 * jnp.mean(jnp.square(DESIGN @ w - Y)) + 0.5 * jnp.sum(jnp.square(DESIGN @ root)) / 40
    return nll + illia_fn.kl_divergence(q, Normal(0.0, 1.0)) / 40


def test_one_joint_step_is_exact_too():
    optimizer = natural_gradient(1.0, 1.0, num_data=40, momentum=0.0, **FREE, retraction=False)
    start = illia_fn.FullCovariance(array([0.3, -0.1, 0.2, 1.0]), families.raw(np.eye(4) + 0.3))
    q, _ = run(optimizer, exact_joint_loss, start)
    np.testing.assert_allclose(q.loc, np.linalg.solve(PRECISION, DESIGN.T @ Y), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(families.covariance(q), np.linalg.inv(PRECISION), rtol=1e-3, atol=1e-6)


def test_joint_steps_of_a_diagonal_are_those_of_it():
    """Where the curvature is diagonal, also with limits, momentum and the retraction."""
    design = np.concatenate([np.eye(4), 2.0 * np.eye(4)[:1]]).astype(np.float32)

    def loss(q, _):
        loc, variance = (q.loc, jnp.square(q.stddev))
        nll = 0.5 * jnp.sum(jnp.square(design @ loc - 3.0)) + 0.5 * jnp.sum(jnp.square(design) @ variance)
        return (nll + illia_fn.kl_divergence(q, Normal(0.0, 1.0))) / 5

    zeros, small = array(np.zeros(4)), np.log(np.expm1(0.1))
    starts = Gaussian(zeros, array(np.full(4, small))), illia_fn.FullCovariance(zeros, array(small * np.eye(4)))
    optimizer = natural_gradient(0.3, 0.2, num_data=5, max_kl=0.5)
    one, other = (run(optimizer, loss, q, 12)[0] for q in starts)
    np.testing.assert_allclose(other.loc, one.loc, rtol=1e-4)
    stddevs = [np.sqrt(np.diag(families.covariance(q))) for q in (other, one)]
    np.testing.assert_allclose(*stddevs, rtol=1e-4)


def test_joint_nodes_find_the_posterior_from_draws():
    q = {"w": illia_fn.FullCovariance(array(np.zeros(3)), array(np.log(np.expm1(0.05)) * np.eye(3))), "b": Q["b"]}

    def loss(q, key):
        return elbo_loss(linear, q, X, Y, key, 64, num_data=40, antithetic=True, chunk_size=None)

    q, _ = run(natural_gradient(0.2, 0.05, num_data=40), loss, q, 300)
    np.testing.assert_allclose(families.covariance(q["w"]), np.linalg.inv(PRECISION[:3, :3]), atol=0.2 * 0.03)


def test_small_steps_get_there_too():
    optimizer = natural_gradient(0.2, 0.2, num_data=40)
    q, _ = run(optimizer, exact_loss, mean_field(jnp.array(0.3), scale=0.05), 300)
    precision = 1.0 + jnp.sum(jnp.square(X[:, 0]))
    np.testing.assert_allclose(q.loc, jnp.sum(X[:, 0] * Y) / precision, rtol=1e-4)
    np.testing.assert_allclose(q.stddev, precision**-0.5, rtol=1e-4)


def ivon(theta, noise, gradient_of, steps, *, n, delta, h0, rate, b1=0.9, b2=0.99999):
    """Shen et al. 2024, algorithm 1, in float64: the mean, h and the momentum after some steps of one sample each."""
    m, h, g = theta, np.full_like(theta, h0), np.zeros_like(theta)
    for t, eps in enumerate(noise[:steps], 1):
        sigma = 1.0 / np.sqrt(n * (h + delta))
        ghat = gradient_of(m + sigma * eps)
        hhat = ghat * eps / sigma
        g = b1 * g + (1 - b1) * ghat
        h = b2 * h + (1 - b2) * hhat + 0.5 * (1 - b2) ** 2 * (h - hhat) ** 2 / (h + delta)
        m = m - rate * (h0 + delta) * (g / (1 - b1**t) + delta * m) / (h + delta)
    return m, h


@pytest.mark.parametrize("b2", [0.99999, 0.9])
def test_the_steps_of_ivon(b2):
    n, delta, h0, rate = 40, 1e-2, 1.0, 0.1
    theta = np.array([0.2, -0.3, 0.1])
    noise = np.random.default_rng(0).normal(size=(5, 3))
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    expected, h = ivon(theta, noise, lambda w: x.T @ (x @ w - y) / n, 5, n=n, delta=delta, h0=h0, rate=rate, b2=b2)
    with jax.enable_x64(True):
        prior = Normal(0.0, float((n * delta) ** -0.5))
        scale = (n * (h0 + delta)) ** -0.5
        q = Gaussian(jnp.asarray(theta), jnp.full(3, np.log(np.expm1(scale))))
        optimizer = natural_gradient(rate * (h0 + delta), 1 - b2, num_data=n, momentum=0.9, prior=prior, **FREE)

        def loss(q, eps):
            nll = 0.5 * jnp.mean(jnp.square(x @ (q.loc + q.scale * eps) - y))
            return nll + illia_fn.kl_loss(q, prior, reduction="sum") / n

        @jax.jit
        def step(q, state, eps):
            updates, state = optimizer.update(jax.grad(loss)(q, eps), state, q)
            return optax.apply_updates(q, updates), state

        state = jax.tree.map(jnp.asarray, optimizer.init(q))
        for eps in noise:
            q, state = step(q, state, eps)
        np.testing.assert_allclose(q.loc, expected, rtol=1e-10)
        np.testing.assert_allclose(q.scale**-2 / n - delta, h, rtol=1e-7)


RHO = np.log(np.expm1(0.1))
Q = {"w": Gaussian(array(np.zeros(3)), array(np.full(3, RHO))), "b": Gaussian(array(0.0), array(RHO))}


def loss(q, _):
    """The negative ELBO per example of a linear regression with independent weights, in closed form."""
    variance = jnp.square(X) @ jnp.square(q["w"].scale) + jnp.square(q["b"].scale)
    nll = 0.5 * jnp.mean(jnp.square(linear(illia_fn.mean(q), X) - Y) + variance)
    return nll + illia_fn.kl_loss(q, reduction="sum") / 40


OPTIMIZERS = {
    "schedules": natural_gradient(optax.cosine_decay_schedule(0.3, 300), optax.constant_schedule(0.1), num_data=40),
    "chain": optax.chain(natural_gradient(0.1, 0.1, num_data=40), optax.scale(1.0)),
    "MultiSteps": optax.MultiSteps(natural_gradient(0.3, 0.2, num_data=40), 2),
    "inject_hyperparams": optax.inject_hyperparams(natural_gradient, static_args=("num_data",))(
        learning_rate=0.1, precision_rate=0.1, num_data=40
    ),
    "clipped": optax.chain(optax.clip_by_global_norm(5.0), natural_gradient(0.1, 0.1, num_data=40)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_composes_and_finds_the_posterior(name):
    q, _ = run(OPTIMIZERS[name], loss, Q, 300)
    middle = np.linalg.solve(PRECISION, DESIGN.T @ Y)
    stddev = np.diagonal(PRECISION) ** -0.5  # what a mean field has
    np.testing.assert_allclose(np.append(q["w"].loc, q["b"].loc), middle, atol=0.05)
    np.testing.assert_allclose(stddevs(q), stddev, rtol=0.15)


def stddevs(q):
    return families.softplus(np.append(q["w"].rho, q["b"].rho))


def test_plain_leaves_take_the_inner_optimizer():
    q = {"w": Q["w"], "b": array(0.0)}
    grads = jax.tree.map(np.ones_like, q)
    for inner in (optax.adam(0.1), optax.set_to_zero()):
        optimizer = natural_gradient(0.1, 0.1, num_data=40, inner=inner)
        updates = jax.jit(lambda grads, q, optimizer=optimizer: optimizer.update(grads, optimizer.init(q), q)[0])(
            grads, q
        )
        expected, _ = inner.update(grads["b"], inner.init(q["b"]), q["b"])
        np.testing.assert_allclose(updates["b"], expected)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, q)


def test_multi_transform_by_node():
    """Two rates for two parts of the tree."""
    q = {"a": Q["w"], "c": Q["w"]}
    rates = {"fast": natural_gradient(0.1, 0.1, num_data=40), "still": optax.set_to_zero()}
    optimizer = optax.multi_transform(rates, {"a": "fast", "c": "still"})
    grads = jax.tree.map(np.ones_like, q)
    updates, _ = jax.jit(lambda q: optimizer.update(grads, optimizer.init(q), q))(q)
    assert np.all(np.asarray(updates["a"].loc) != 0)
    np.testing.assert_array_equal(updates["c"].loc, 0.0)


@pytest.mark.parametrize("retraction", [True, False])
def test_scales_stay_positive_and_finite(retraction):
    optimizer = natural_gradient(0.5, 0.5, num_data=1000, retraction=retraction)

    @jax.jit
    @jax.vmap
    def step(size, rho):
        q = Gaussian(jnp.zeros(2), jnp.stack([rho, rho]))
        grads = Gaussian(jnp.stack([size, size]), jnp.stack([size, -size]))
        updates, _ = optimizer.update(grads, optimizer.init(q), q)
        after = optax.apply_updates(q, updates)
        return updates.loc, after, log_softplus(after.rho) - log_softplus(q.rho), q.scale

    rhos = [-200.0, -80.0, -15.01, -14.99, -5.0, 0.0, 30.0, 1e4]
    size, rho = (np.float32(x).ravel() for x in np.meshgrid([1e-20, 1.0, 1e10, 1e30], rhos))
    moves, after, log_ratio, scale = jax.tree.map(np.asarray, step(size, rho))
    assert np.all(np.isfinite([after.loc, after.rho]))
    assert np.all((log_ratio > -0.15) & (log_ratio < 0.18))  # log(1 + 0.3 + 0.3^2 / 2) / 2, and -log(1 - 0.3) / 2
    assert np.all((log_ratio[:, 1] > 0) | (size < 1.0))  # towards what has less curvature
    assert np.all(np.linalg.norm(moves, axis=1) <= np.sqrt(2 * 5.0) * 1.2 * scale[:, 0])


def test_a_step_is_shortened_to_its_kl():
    """Over all nodes, in the direction that it had; one that is short enough stays as it is."""
    grads = jax.tree.map(np.ones_like, Q)
    steps = {}
    for max_kl in (None, 0.1, 1e6):
        optimizer = natural_gradient(0.1, 0.0, num_data=40, max_kl=max_kl, max_step=None)
        updates = first_updates(optimizer, grads)
        steps[max_kl] = np.append(updates["w"].loc, updates["b"].loc)
    np.testing.assert_allclose(steps[None], -0.1 * 40 * 0.1**2, rtol=1e-5)  # a N g / P
    np.testing.assert_allclose(steps[0.1], -0.1 * np.sqrt(2 * 0.1 / 4), rtol=1e-5)  # four of sum (./sigma)^2 / 2 = .1
    np.testing.assert_array_equal(steps[1e6], steps[None])
    optimizer = natural_gradient(0.1, 0.0, num_data=40, max_step=0.2)
    np.testing.assert_allclose(first_updates(optimizer, grads)["w"].loc, -0.2 * 0.1, rtol=1e-5)


def first_updates(optimizer, grads):
    return jax.jit(lambda q: optimizer.update(grads, optimizer.init(q), q)[0])(Q)


KINDS = ["Gaussian", "Eigenbasis", "FullCovariance"]


def one_of(count, size):
    """Gradients of nothing, but for the third."""
    grads = np.zeros(count, np.float32)
    grads[2] = size
    return grads


@cache
def compiled(name, learning_rate, num_data, max_step):
    """The state after these gradients, each the same for all numbers, and the moves of the means."""
    q = families.nodes()[name]
    optimizer = natural_gradient(learning_rate, 0.0, num_data=num_data, max_step=max_step, max_kl=None, basis_every=1)
    nothing = jax.tree.map(np.zeros_like, q)

    def step(state, by_loc):
        updates, state = optimizer.update(replace(nothing, loc=by_loc * jnp.ones((4, 3))), state, q)
        return state, updates.loc

    return jax.jit(lambda grads: jax.lax.scan(step, optimizer.init(q), grads))


def moves_after(name, grads, learning_rate=0.2, num_data=50, max_step=1.0):
    """How far each step moves the 12 means together, in standard deviations; and the last state."""
    q = families.nodes()[name]
    state, moves = compiled(name, learning_rate, num_data, max_step)(grads)
    root = np.linalg.cholesky(families.covariance(q))
    return np.linalg.norm(np.linalg.solve(root, np.reshape(moves, (-1, 12)).T), axis=0), state


@pytest.mark.parametrize("name", KINDS)
def test_one_gradient_is_forgotten_however_large(name):
    """What alone would move a mean by 4 max_step is all that the momentum takes of it: 20 steps later it has .8^20."""
    moves, state = moves_after(name, one_of(23, 1e30))
    np.testing.assert_allclose(moves[2], np.sqrt(12.0), rtol=1e-3)
    np.testing.assert_allclose(moves[22], 4 * np.sqrt(12.0) * 0.8**20 / (1 - 0.8**23), rtol=1e-3)
    chex.assert_tree_all_finite(state)
    infinite, state = moves_after(name, one_of(23, np.inf))
    np.testing.assert_allclose(infinite, moves, rtol=1e-4, atol=1e-6)
    assert not np.isfinite(moves_after(name, one_of(23, np.nan))[0][2:]).any()


@pytest.mark.parametrize("name", KINDS)
def test_it_is_where_the_rate_has_not_yet_risen_and_where_a_batch_is_a_few_of_many(name):
    rate = lambda count: jnp.where(count < 3, 0.0, 0.2)  # noqa: E731
    moves, _ = moves_after(name, one_of(23, 1e30), rate)
    assert np.all(moves[:3] == 0.0)
    np.testing.assert_allclose(moves[22], 4 * 0.2 / 0.01 * np.sqrt(12.0) * 0.8**20 / (1 - 0.8**23), rtol=1e-3)
    # a batch of one of a million: the gradients of single examples move a mean by .2 sqrt(N) = 200 standard deviations
    moves, _ = moves_after(name, one_of(43, 1e30), num_data=10**6)
    np.testing.assert_allclose(moves[42], 4 * 0.2 * 200 * np.sqrt(12.0) * 0.8**40 / (1 - 0.8**43), rtol=1e-3)
    chex.assert_tree_all_finite(moves_after(name, np.ones(3, np.float32), max_step=3e38)[1])


@pytest.mark.parametrize("name", KINDS)
def test_a_prior_whose_gradient_is_large_stays_out_of_the_momentum(name):
    """Nothing but that gradient comes, 1e4 times as large as what is cut."""
    q, prior = families.nodes()[name], Normal(0.0, 1e-4)
    optimizer = natural_gradient(0.2, 0.0, num_data=50, prior=prior)
    grads = replace(jax.tree.map(np.zeros_like, q), loc=np.asarray(q.loc) / np.float32(50 * 1e-8))
    momentum = jax.jit(lambda q: optimizer.update(grads, optimizer.init(q), q)[1].memory[0].momentum)(q)
    assert np.max(np.abs(np.asarray(momentum))) < 1e-6 * np.max(np.abs(grads.loc))


def test_half_precision_and_one_trace():
    q = jax.tree.map(lambda leaf: array(leaf, jnp.bfloat16), Q)
    optimizer = natural_gradient(0.1, 0.1, num_data=40)

    @jax.jit
    @chex.assert_max_traces(1)
    def step(q, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, q), state, q)
        return optax.apply_updates(q, updates), state

    state = jax.jit(optimizer.init)(q)
    for _ in range(3):
        q, state = step(q, state)
    chex.assert_tree_all_finite(q)
    assert q["w"].loc.dtype == jnp.bfloat16


def test_low_variance_curvature_is_worth_something():
    """The same steps with noise of its own for each example end nearer to the posterior's scales."""
    stddev = np.diagonal(PRECISION) ** -0.5

    def error(coupling):
        optimizer = natural_gradient(0.1, 0.1, num_data=40)
        loss = partial(elbo_loss, linear, num_data=40, coupling=coupling)
        q, _ = run(optimizer, lambda q, key: loss(q, X, Y, key), Q, 300)
        return np.mean(np.abs(np.log(stddevs(q) / stddev)))

    assert error("decorrelated") < 0.7 * error("shared")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: natural_gradient(num_data=0), "num_data must be the number of training examples"),
        (lambda: natural_gradient(num_data=None), "num_data must be given"),
        (lambda: natural_gradient(num_data=4, momentum=1.0), "momentum must be below 1"),
        (lambda: natural_gradient(-0.1, num_data=4), "learning_rate must be a finite number that is not negative"),
        (lambda: natural_gradient(num_data=4, prior=Normal(Q["w"].loc, 1.0)), "prior must be one Normal"),
        (lambda: natural_gradient(num_data=4, max_step=jnp.inf), "max_step must be positive and finite"),
        (lambda: natural_gradient(num_data=4, max_kl=-1.0), "max_kl must be positive"),
        (lambda: natural_gradient(num_data=4, max_change=0.0), "max_change must be positive"),
        (lambda: natural_gradient(num_data=4).init({"w": Q["w"].loc}), r"params\['w'\] is deterministic"),
        (lambda: natural_gradient(num_data=4, inner=optax.adam(1.0)).init({"w": Q["w"].loc}), "no Gaussian node"),
        (lambda: natural_gradient(num_data=4).update(Q, natural_gradient(num_data=4).init(Q)), "depends on q"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"natural_gradient: .*{message}"):
        call()
