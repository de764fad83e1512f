"""Natural-gradient steps in bases of a matrix: those of a diagonal Gaussian there; the bases find the curvature."""

import chex
import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import array, normal

import illia_fn
from illia_fn import Eigenbasis, Gaussian, natural_gradient

KEY = jax.random.key(0)
NEVER = 10**6


def update(q, grads, **options):
    optimizer = natural_gradient(0.3, 0.1, num_data=50, **options)

    @jax.jit
    def step(q, grads):
        updates, state = optimizer.update(grads, optimizer.init(q), q)
        return optax.apply_updates(q, updates), state

    return step(q, grads)


def test_a_step_is_that_of_a_gaussian_seen_from_the_bases():
    """With limits that bind, on means, scales and the trust region."""
    q = families.nodes()["Eigenbasis"]
    of_loc, of_rho = normal(20, 4, 3, scale=0.1), normal(21, 4, 3, scale=0.1)
    grads = Eigenbasis(of_loc, of_rho, *map(np.zeros_like, q.bases))
    along = lambda node, x: np.asarray(node.row_basis).T @ np.asarray(x) @ np.asarray(node.column_basis)  # noqa: E731
    for options in ({"max_kl": 0.5}, {"max_step": 0.2, "max_change": 0.1}, {"retraction": False}):
        found, _ = update(q, grads, basis_every=NEVER, **options)
        seen = [Gaussian(along(node, node.loc), node.rho) for node in (q, found)]
        expected, _ = update(seen[0], Gaussian(along(q, grads.loc), grads.rho), **options)
        np.testing.assert_allclose(seen[1].loc, expected.loc, atol=1e-5)
        np.testing.assert_allclose(found.rho, expected.rho, atol=1e-5)
        np.testing.assert_array_equal(found.row_basis, q.row_basis)


def test_bases_turn_to_the_eigenvectors_and_keep_the_precision():
    """Of gradients whose G G^T and G^T G are known; the precision that they leave is the old one's diagonal there."""
    q, left, right = families.nodes()["Eigenbasis"], families.basis(30, 4), families.basis(31, 3)
    left, right = np.asarray(left), np.asarray(right)
    grad = left[:, :3] @ np.diag(np.float32([4.0, 2.0, 1.0])) @ right.T
    grads = Eigenbasis(array(grad), *map(np.zeros_like, (q.rho, *q.bases)))
    optimizer = natural_gradient(0.0, 0.0, num_data=50, basis_every=5)

    def step(state, _):
        q, state = state
        updates, state = optimizer.update(grads, state, q)
        return (optax.apply_updates(q, updates), state), q

    each = jax.jit(lambda q: jax.lax.scan(step, (q, optimizer.init(q)), None, 102)[1])(q)
    each = jax.tree.map(np.asarray, each)
    last = jax.tree.map(lambda leaf: leaf[101], each)
    for basis, vectors in ((last.row_basis, left[:, :3]), (last.column_basis, right)):
        np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-5)
        np.testing.assert_allclose(np.max(np.abs(basis.T @ vectors), axis=0), 1.0, atol=1e-4)
    before, after = (jax.tree.map(lambda leaf, at=at: leaf[at], each) for at in (4, 5))
    np.testing.assert_array_equal(each.row_basis[:5], np.stack([q.row_basis] * 5))
    directions = np.kron(after.row_basis, after.column_basis)
    precision = directions.T @ np.linalg.inv(families.covariance(before)) @ directions
    np.testing.assert_allclose(np.diag(precision), 1 / np.square(families.softplus(after.rho)).ravel(), rtol=1e-4)


def test_without_a_gradient_bases_stay():
    q = families.nodes()["Eigenbasis"]
    found, _ = update(q, jax.tree.map(np.zeros_like, q), basis_every=1)
    np.testing.assert_allclose(found.row_basis, q.row_basis, atol=1e-6)
    np.testing.assert_allclose(found.rho, q.rho, atol=1e-5)


def test_directions_without_a_gradient_stay():
    """With a gradient along one direction of forty, they are left where they are once that one is found."""
    start = jax.jit(illia_fn.eigenbasis)(array(np.zeros((40, 1))))
    grads = Eigenbasis(normal(4, 40, 1), *map(np.zeros_like, (start.rho, *start.bases)))
    optimizer = natural_gradient(0.0, 0.0, num_data=50, basis_every=1)

    def step(state, _):
        q, state = state
        updates, state = optimizer.update(grads, state, q)
        return (optax.apply_updates(q, updates), state), q.row_basis

    bases = np.asarray(jax.jit(lambda q: jax.lax.scan(step, (q, optimizer.init(q)), None, 13)[1])(start))
    assert np.min(np.abs(np.sum(bases[2] * bases[12], axis=0))) > 0.99


def test_a_gradient_whose_square_overflows_leaves_the_bases_and_what_turns_them():
    q = families.nodes()["Eigenbasis"]
    found, state = update(q, jax.tree.map(lambda leaf: np.full_like(leaf, 1e25), q), basis_every=1, max_step=None)
    np.testing.assert_allclose(found.row_basis, q.row_basis, atol=1e-6)
    chex.assert_tree_all_finite(state.memory[0].factors)


X = np.asarray(normal(1, 60, 4)) @ np.diag(np.float32([1.0, 1.0, 0.3, 0.3])) @ np.asarray(families.basis(2, 4))
Y = X @ np.float32([1.0, -2.0, 0.5, 1.0]) + np.asarray(normal(3, 60, scale=0.3))
PRECISION = np.asarray(X.T @ X / 0.09 + np.eye(4), np.float64)


def divergence_from_the_posterior(steps=1500):
    """Of a linear regression, after training by draws on all of its data."""

    def loss(q, key):
        nll = lambda outputs, y: 0.5 * jnp.square((outputs - y) / 0.3)  # noqa: E731
        return illia_fn.elbo_loss(lambda w, x: x @ w[:, 0], q, X, Y, key, 4, num_data=60, loss_fn=nll, chunk_size=None)

    rate = optax.cosine_decay_schedule(0.2, steps)
    optimizer = natural_gradient(rate, optax.cosine_decay_schedule(0.1, steps), num_data=60, basis_decay=0.98)

    def step(state, key):
        q, state = state
        updates, state = optimizer.update(jax.grad(loss)(q, key), state, q)
        return (optax.apply_updates(q, updates), state), ()

    mean = np.linalg.solve(PRECISION, np.asarray(X.T @ Y / 0.09, np.float64))
    exact = illia_fn.FullCovariance(array(mean[:, None]), families.raw(np.linalg.inv(PRECISION)))

    @jax.jit
    def train(loc, keys):
        q = illia_fn.eigenbasis(loc)
        (q, _), _ = jax.lax.scan(step, (q, optimizer.init(q)), keys)
        return illia_fn.kl_divergence(q, exact)

    return float(train(array(np.zeros((4, 1))), jax.random.split(KEY, steps)))


@pytest.mark.promotes
def test_of_one_output_they_find_the_exact_posterior():
    """Which a mean field cannot: its best, of the precision's diagonal, is .4 nats away."""
    assert 0.5 * (np.sum(np.log(np.diag(PRECISION))) - np.linalg.slogdet(PRECISION)[1]) > 0.4
    assert divergence_from_the_posterior() < 0.05


def test_half_precision_keeps_bases_and_state_wide():
    q = jax.jit(illia_fn.eigenbasis)(array(np.ones((4, 3)), jnp.bfloat16))
    found, state = jax.eval_shape(lambda q: update(q, jax.tree.map(jnp.ones_like, q), basis_every=1), q)
    assert (found.loc.dtype, found.rho.dtype, found.row_basis.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.memory)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis_decay": 1.0}, "natural_gradient: basis_decay must be below 1"),
        ({"basis_every": 0}, "natural_gradient: basis_every must be"),
    ],
)
def test_refusals(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        natural_gradient(num_data=10, **options)
