"""Second derivatives are those of the value, or refused by name: never silently something else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import Normal, cubo_loss, elbo_loss, f_divergence_loss, iwae_loss, mean_field, predictive_loss, renyi_loss

KEY = jax.random.key(0)
X = jnp.arange(6.0).reshape(3, 2) / 6 - 0.4
Y = jnp.array([0.3, -0.2, 1.0])


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
RIGHT = {
    "elbo": partial(elbo_loss),
    "elbo, free nats": partial(elbo_loss, free_nats=0.01),
    "predictive": predictive_loss,
    "iwae": partial(iwae_loss, estimator="reparameterised"),
    "iwae, pairs": partial(iwae_loss, estimator="reparameterised", antithetic=True),
    "iwae, warm": partial(iwae_loss, estimator="reparameterised", temperature=2.0),
    "renyi": partial(renyi_loss, alpha=0.5, estimator="reparameterised"),
}


@pytest.mark.parametrize("chunk_size", [3, None])
@pytest.mark.parametrize("objective", RIGHT.values(), ids=RIGHT)
def test_the_hessian_is_that_of_the_value(x64, objective, chunk_size):
    if "antithetic" in getattr(objective, "keywords", {}) and chunk_size == 3:
        chunk_size = 1
    loss, theta = jax.jit(loss_of(objective, chunk_size=chunk_size)), jnp.asarray(THETA)
    step = 1e-3 * np.stack([np.eye(4), -np.eye(4)])
    points = THETA + step[:, None, :, None] + step[None, :, None]  # (sign, sign, i, j, 4)
    hessian, values = jax.jit(lambda theta, points: (jax.hessian(loss)(theta), jax.vmap(loss)(points)))(
        theta, jnp.asarray(points.reshape(-1, 4))
    )
    (both, first), (second, neither) = values.reshape(2, 2, 4, 4)
    np.testing.assert_allclose(hessian, (both - first - second + neither) / (4 * 1e-6), rtol=1e-4, atol=1e-5)


WRONG = {
    "elbo, sticking the landing": (partial(elbo_loss, estimator="doubly_reparameterised"), "elbo_loss"),
    "elbo, score": (partial(elbo_loss, estimator="score_function"), "elbo_loss"),
    "predictive, score": (partial(predictive_loss, estimator="score_function"), "predictive_loss"),
    "iwae": (iwae_loss, "iwae_loss"),
    "iwae, score": (partial(iwae_loss, estimator="score_function"), "iwae_loss"),
    "renyi": (partial(renyi_loss, alpha=0.5), "renyi_loss"),
    "cubo": (cubo_loss, "cubo_loss"),
    "cubo, plain": (partial(cubo_loss, estimator="reparameterised"), "cubo_loss"),
    "f": (partial(f_divergence_loss, generator=illia_fn.divergences.jeffreys), "f_divergence_loss"),
    "pac bayes, score": (
        partial(
            illia_fn.pac_bayes_loss, estimator="score_function", loss_fn=lambda f, y: jax.nn.sigmoid(jnp.square(f - y))
        ),
        "pac_bayes_loss",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_has_first_derivatives_only_says_so(name):
    objective, caller = WRONG[name]
    loss, theta = loss_of(objective), jnp.asarray(THETA, jnp.float32)
    first = jax.grad(jax.checkpoint(loss)), jax.jacfwd(loss)  # a first derivative, however it is taken
    gradient, forward = jax.jit(lambda theta: [derivative(theta) for derivative in first])(theta)
    np.testing.assert_allclose(forward, gradient, rtol=1e-4, atol=1e-5)
    for second in (jax.hessian(loss), jax.grad(lambda theta: jax.grad(loss)(theta).sum())):
        with pytest.raises(TypeError, match=f"{caller}: .*estimator="):
            jax.eval_shape(second, theta)
