"""Second derivatives are those of the value, or refused by name: never silently something else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import Normal, cubo_loss, elbo_loss, f_divergence_loss, iwae_loss, mean_field, predictive_loss, renyi_loss

KEY = jax.random.key(0)
X = np.arange(6.0).reshape(3, 2) / 6 - 0.4
Y = np.array([0.3, -0.2, 1.0])


def apply_fn(w, x):
    return jnp.tanh(x @ w["v"]) + w["b"]


def loss_of(objective, **options):
    def loss(theta):
        q = jax.tree.map(
            lambda leaf: leaf.astype(theta.dtype), mean_field({"v": jnp.zeros(2), "b": jnp.zeros(())}, scale=0.5)
        )
        v, b = q["v"], q["b"]
        q = {
            "v": illia_fn.Gaussian(v.loc + theta[:2], v.rho + theta[2]),
            "b": illia_fn.Gaussian(b.loc + theta[3], b.rho),
        }
        x, y = X.astype(theta.dtype), Y.astype(theta.dtype)
        return objective(apply_fn, q, x, y, KEY, 4, num_data=3, prior=Normal(0.0, 1.0), **options)

    return loss


THETA = np.array([0.3, -0.2, 0.1, 0.4])
RIGHT = {  # of each way to the value, in chunks of which the last is smaller, or with all samples at once
    "elbo": (elbo_loss, {"chunk_size": 3}),
    "elbo, free nats": (elbo_loss, {"free_nats": 0.01, "chunk_size": None}),
    "predictive": (predictive_loss, {"chunk_size": 3}),
    "iwae, warm": (iwae_loss, {"temperature": 2.0, "chunk_size": 3}),
    "renyi, pairs": (partial(renyi_loss, alpha=0.5), {"antithetic": True, "chunk_size": None}),
}


@pytest.mark.parametrize(("objective", "options"), RIGHT.values(), ids=RIGHT)
def test_the_hessian_is_that_of_the_value(x64, objective, options):
    loss = jax.jit(loss_of(objective, estimator="reparameterised", **options))
    step = 1e-3 * np.stack([np.eye(4), -np.eye(4)])
    points = THETA + step[:, None, :, None] + step[None, :, None]  # (sign, sign, i, j, 4)
    hessian, values = jax.jit(lambda theta, points: (jax.hessian(loss)(theta), jax.vmap(loss)(points)))(
        THETA, points.reshape(-1, 4)
    )
    (both, first), (second, neither) = np.asarray(values).reshape(2, 2, 4, 4)
    np.testing.assert_allclose(hessian, (both - first - second + neither) / (4 * 1e-6), rtol=1e-4, atol=1e-5)


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
    loss = loss_of(WRONG[name], chunk_size=None)
    gradient = jax.grad(loss)
    seconds = {
        "forward over reverse": lambda theta: jax.jvp(gradient, (theta,), (theta,)),
        "reverse over reverse": jax.grad(lambda theta: gradient(theta).sum()),
    }
    for second in seconds.values():
        with pytest.raises(TypeError, match=f"{getattr(WRONG[name], 'func', WRONG[name]).__name__}: .*estimator="):
            jax.eval_shape(second, np.float32(THETA))


@pytest.mark.parametrize("name", ["elbo, sticking the landing", "predictive, score", "iwae"])
def test_but_a_first_one_however_it_is_taken(name):
    loss = loss_of(WRONG[name])
    derivatives = jax.grad(jax.checkpoint(loss)), jax.jacfwd(loss)
    gradient, forward = jax.jit(lambda theta: [derivative(theta) for derivative in derivatives])(np.float32(THETA))
    np.testing.assert_allclose(forward, gradient, rtol=1e-4, atol=1e-5)
