"""Second derivatives are those of the value, or refused by name: never silently something else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import Normal, cubo_loss, elbo_loss, f_divergence_loss, iwae_loss, predictive_loss, renyi_loss

KEY = jax.random.key(0)
X, Y = np.array([[0.1, -0.4], [0.6, 0.3]]), np.array([0.3, 1.0])


def loss_of(objective, **options):
    def loss(theta):
        q = illia_fn.Gaussian(theta[:2], theta[2:])
        data = X.astype(theta.dtype), Y.astype(theta.dtype)
        return objective(lambda w, x: jnp.tanh(x @ w), q, *data, KEY, num_data=3, prior=Normal(0.0, 1.0), **options)

    return loss


THETA, DIRECTION = np.array([0.3, -0.2, 0.1, -0.4]), np.array([0.7, 1.1, -0.5, 0.9])
RIGHT = {  # of each way to the value: one after another, in chunks of which the last is smaller, or all at once
    "elbo": (elbo_loss, {"num_samples": 2, "chunk_size": 1}),
    "predictive, free nats": (predictive_loss, {"num_samples": 3, "free_nats": 0.01, "chunk_size": 2}),
    "renyi, warm": (partial(renyi_loss, alpha=0.5), {"num_samples": 3, "temperature": 2.0, "chunk_size": None}),
}


@pytest.mark.parametrize(("objective", "options"), RIGHT.values(), ids=RIGHT)
def test_the_second_derivative_is_that_of_the_value(x64, objective, options):
    loss = loss_of(objective, estimator="reparameterised", **options)

    def along(step):
        return loss(THETA + step * DIRECTION)

    twice = jax.jit(lambda step: jax.jvp(jax.value_and_grad(along), (step,), (1.0,)))
    (above, _), (at, second), (below, _) = [(found[0], slopes[1]) for found, slopes in map(twice, (1e-3, 0.0, -1e-3))]
    np.testing.assert_allclose(second, (above - 2 * at + below) / 1e-6, rtol=1e-5, atol=1e-6)


WRONG = {
    "elbo, sticking the landing": partial(elbo_loss, estimator="doubly_reparameterised"),
    "elbo, score": partial(elbo_loss, estimator="score_function"),
    "predictive, score": partial(predictive_loss, estimator="score_function"),
    "iwae": iwae_loss,
    "cubo, plain": partial(cubo_loss, estimator="reparameterised"),
    "f": partial(f_divergence_loss, generator=illia_fn.divergences.jeffreys),
    "pac bayes, score": partial(
        illia_fn.pac_bayes_loss, estimator="score_function", loss_fn=lambda f, y: jax.nn.sigmoid(jnp.square(f - y))
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_has_first_derivatives_only_says_so(name):
    gradient = jax.grad(loss_of(WRONG[name], num_samples=4, chunk_size=None))
    seconds = {
        "forward over reverse": lambda theta: jax.jvp(gradient, (theta,), (theta,)),
        "reverse over reverse": jax.grad(lambda theta: gradient(theta).sum()),
    }
    for second in seconds.values():
        with pytest.raises(TypeError, match=f"{getattr(WRONG[name], 'func', WRONG[name]).__name__}: .*estimator="):
            jax.eval_shape(second, np.float32(THETA))


def test_but_a_first_one_however_it_is_taken():
    loss = loss_of(iwae_loss, num_samples=2, chunk_size=None)

    @jax.jit
    def both(theta, direction):
        return jax.jvp(loss, (theta,), (direction,))[1], jax.grad(jax.checkpoint(loss))(theta)

    forward, gradient = both(np.float32(THETA), np.float32(DIRECTION))
    np.testing.assert_allclose(forward, gradient @ DIRECTION, rtol=1e-4)
