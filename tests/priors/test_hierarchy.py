"""Hierarchical priors: their marginal laws against numpyro's draws, and a sparse posterior against quadrature."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from families import array
from scipy import special, stats

import illia_fn
from illia_fn import mean_field
from illia_fn.priors import Hierarchy, constrained, hierarchical_normal, horseshoe

PARAMS = {"w": array([[0.3, -0.2], [1.0, 0.1]]), "b": array(np.zeros(2)), "steps": array([0, 1, 2], np.int32)}


@pytest.mark.parametrize("make", [hierarchical_normal, horseshoe])
def test_it_starts_where_the_model_was(make):
    hierarchy = make(PARAMS, scale=0.5)
    params = hierarchy.to_params(hierarchy.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), params, PARAMS)
    np.testing.assert_allclose(np.mean(np.square(hierarchy.params["standard"]["w"])), 1.0, rtol=1e-6)
    half = {"w": array(PARAMS["w"], jnp.bfloat16)}
    of_half = make(half, scale=0.5)
    assert of_half.to_params(of_half.params)["w"].dtype == jnp.bfloat16
    assert of_half.params["log_global"]["w"].dtype == jnp.float32


def shares(hierarchy, edges):
    """P(|w| < edge) of one weight under the prior: over a grid of the logarithms of its scales."""
    u = np.linspace(-25.0, 25.0, 801)
    names = [name for name in hierarchy.params if name != "standard"]
    grid = np.meshgrid(*[u] * len(names), indexing="ij")
    latent = {name: {"w": np.float32(x)} for name, x in zip(names, grid, strict=True)}

    @jax.jit
    def told(latent):
        log_masses = [hierarchy.prior[name].log_prob(latent[name]["w"]) for name in names]
        return log_masses, hierarchy.to_params({"standard": {"w": jnp.ones(grid[0].shape)}} | latent)["w"]

    log_masses, scale = jax.tree.map(lambda x: np.asarray(x, float), told(latent))
    mass = np.exp(sum(log_masses)) * (u[1] - u[0]) ** len(names)
    return [float(np.sum(mass * special.erf(edge / scale / np.sqrt(2.0)))) for edge in edges]


DRAWS = 200_000
EDGES = [0.003, 0.03, 0.3, 3.0, 30.0]
MARGINALS = {
    "horseshoe": (horseshoe, 0.3, stats.halfcauchy(scale=0.3), True),
    "half-Cauchy": (hierarchical_normal, 0.3, stats.halfcauchy(scale=0.3), False),
    "half-normal": (
        hierarchical_normal,
        constrained(dist.HalfNormal(0.3), "positive"),
        stats.halfnorm(scale=0.3),
        False,
    ),
}


@pytest.mark.promotes
@pytest.mark.parametrize("name", MARGINALS)
def test_the_marginal_law_of_a_weight(name):
    make, scale, law, has_local = MARGINALS[name]
    rng = np.random.default_rng(0)
    w = rng.normal(size=DRAWS) * law.rvs(DRAWS, random_state=rng)
    w = w * (stats.halfcauchy.rvs(size=DRAWS, random_state=rng) if has_local else 1.0)
    expected = shares(make({"w": array(np.ones(1))}, scale), EDGES)
    for edge, share in zip(EDGES, expected, strict=True):
        error = np.sqrt(max(0.0, share * (1 - share)) / DRAWS)
        assert abs(np.mean(np.abs(w) < edge) - share) < 5 * error + 1e-5


# --- a sparse regression ----------------------------------------------------------------------------------------------

N, P, SCALE = 50, 20, 0.05
RNG = np.random.default_rng(0)
X = np.linalg.qr(RNG.normal(size=(N, P)))[0] * np.sqrt(N)  # orthogonal, so that given tau the weights are independent
TRUE = np.array([3.0, -2.0, 1.5] + [0.0] * (P - 3))
Y = X @ TRUE + RNG.normal(size=N)


def exact_means():
    """E[w | y] under the horseshoe, by quadrature over log(tau) and log(lambda)."""
    least_squares, variance = X.T @ Y / N, 1 / N
    u, log_tau = np.linspace(-20, 20, 1001), np.linspace(-12, 6, 200)

    def half_cauchy(u, scale):
        t = u - np.log(scale)
        return np.log(2 / np.pi) + t - np.logaddexp(0, 2 * t)

    mass = np.exp(half_cauchy(u, 1.0)) * (u[1] - u[0])
    log_evidence, means = half_cauchy(log_tau, SCALE), []
    for i, t in enumerate(log_tau):
        of_prior = np.exp(2 * (t + u))
        total = variance + of_prior
        density = np.exp(-0.5 * least_squares[:, None] ** 2 / total) / np.sqrt(2 * np.pi * total)
        log_evidence[i] += np.log(density @ mass).sum()
        means.append((density * of_prior / total) @ mass / (density @ mass) * least_squares)
    weights = np.exp(log_evidence - log_evidence.max())
    return weights @ np.array(means) / weights.sum(), least_squares


@pytest.mark.promotes
def test_a_sparse_posterior():
    """The noise is shrunk to a fraction, as the exact posterior does, and the signal is not."""
    hierarchy = horseshoe({"w": array(np.full(P, 0.1))}, scale=SCALE)
    apply_fn = hierarchy.wrap(lambda w, x: x @ w["w"])
    x, y = np.float32(X), np.float32(Y)
    options = {"num_samples": 8, "num_data": N, "prior": hierarchy.prior, "chunk_size": None}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1000))

    @jax.jit
    def train(q, keys):
        def step(state, key):
            q, opt_state = state
            grads = jax.grad(partial(illia_fn.elbo_loss, apply_fn))(q, x, y, key, **options)
            updates, opt_state = optimizer.update(grads, opt_state, q)
            return (optax.apply_updates(q, updates), opt_state), ()

        return jax.lax.scan(step, (q, optimizer.init(q)), keys)[0][0]

    q = train(mean_field(hierarchy.params, scale=0.1), jax.random.split(jax.random.key(0), 1000))
    keys = jax.random.split(jax.random.key(1), 2000)
    draws = jax.jit(jax.vmap(lambda q, key: hierarchy.to_params(illia_fn.sample(key, q))["w"], (None, 0)))(q, keys)
    found = np.asarray(draws).mean(axis=0)
    exact, least_squares = exact_means()
    ridge = least_squares / (1 + 1 / N)  # the exact posterior under N(0, 1)
    np.testing.assert_allclose(found[:3], exact[:3], atol=0.05)
    np.testing.assert_allclose(found[3:], exact[3:], atol=0.1)
    assert np.abs(found[3:]).mean() < 0.5 * np.abs(ridge[3:]).mean()
    assert np.abs(found[:3] / ridge[:3]).min() > 0.97


def test_it_goes_with_couplings_and_predictions():
    """With a posterior that is nearly a point they are the model at these parameters."""
    hierarchy = horseshoe({"w": PARAMS["w"]}, scale=0.5)
    apply_fn, q = hierarchy.wrap(lambda w, x: jnp.tanh(x @ w["w"])), mean_field(hierarchy.params, scale=1e-6)
    x, y = np.float32([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0]]), np.array([0, 1, 1])
    outputs = np.tanh(x @ np.asarray(PARAMS["w"]))
    options = {"prior": hierarchy.prior, "num_data": 3, "return_terms": True, "coupling": "decorrelated"}

    @jax.jit
    def told(q, key):
        return illia_fn.predict(apply_fn, q, x, key, 2, chunk_size=None), illia_fn.elbo_loss(
            apply_fn, q, x, y, key, **options
        )[1].nll

    predicted, nll = told(q, jax.random.key(0))
    np.testing.assert_allclose(predicted[1], outputs, atol=1e-4)
    right = -np.mean(special.log_softmax(outputs, axis=1)[range(3), y])
    np.testing.assert_allclose(nll, right, rtol=1e-4)
    with_key = hierarchy.wrap(lambda w, x, key: x @ w["w"] + jax.random.normal(key, ()))
    several = jax.eval_shape(
        lambda q, key: illia_fn.predict(with_key, q, x, key, 2, needs_key=True), q, jax.random.key(0)
    )
    assert several.shape == (2, 3, 2)


def test_one_layer_of_many():
    """The latent parameters are a tree like others, for a prior each."""
    hierarchy = hierarchical_normal(PARAMS["w"], scale=constrained(dist.HalfNormal(1.0), "positive"))
    assert isinstance(hierarchy, Hierarchy)
    q = {"first": mean_field(hierarchy.params, scale=0.1), "rest": mean_field(PARAMS["b"], scale=0.1)}
    prior = {"first": hierarchy.prior, "rest": illia_fn.Normal(0.0, 1.0)}
    tree = jax.eval_shape(illia_fn.kl_tree, q, prior)  # exact, without a key
    assert list(tree) == ["first/log_global", "first/standard", "rest"]


@pytest.mark.parametrize("make", [hierarchical_normal, horseshoe])
@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((PARAMS, 0.0), ValueError, "scale, that of a half-Cauchy prior, must be positive and finite"),
        ((PARAMS, array([1.0, 1.0])), ValueError, "scale must be a number, got an array of shape"),
        ((PARAMS, "1"), TypeError, "scale must be a number"),
        (
            (PARAMS, constrained(dist.Gamma(1.0, 1.0), "softplus")),
            ValueError,
            'constrained to "positive", got .softplus',
        ),
        (({"n": PARAMS["steps"]}, 1.0), ValueError, "params has no floating-point array"),
        ((mean_field({"w": PARAMS["b"]}), 1.0), TypeError, r"params must be plain parameters.*illia_fn.mean\(q\)"),
    ],
)
def test_bad_input(make, args, error, match):
    with pytest.raises(error, match=f"{make.__name__}: .*{match}"):
        make(*args)
