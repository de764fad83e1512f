# ruff: noqa: E501  the refusals stand in a table
"""The ELBO without sampling, against formulas, quadrature, Monte Carlo, and the evidence of linear regression."""

from functools import partial

import jax
import jax.numpy as jnp
import linear_regression
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import integrate, special, stats

import illia_fn
from illia_fn import Normal, Posterior, analytic_elbo_loss, elbo_loss, frozen_pytree, kl_loss, linearise, mean_field

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(6, 3)))
LABELS = np.int32([0, 1, 2, 1, 0, 3])
VALUES = np.float32(RNG.normal(size=(6, 4)))
PARAMS = {
    "hidden": np.float32(RNG.normal(size=(3, 5))),
    "kernel": np.float32(RNG.normal(size=(5, 4))),
    "bias": np.float32(RNG.normal(size=4)),
}
MASK = {"hidden": False, "kernel": True, "bias": True}
Q = mean_field(PARAMS, scale=0.4, mask=MASK)


def mlp(w, x):
    return jnp.tanh(x @ w["hidden"]) @ w["kernel"] + w["bias"][None]


def one(w, x):
    return mlp(w, x)[:, 0]


def moments(q=Q, x=X):
    """Of the outputs of the network, from its formula in float64."""
    kernel, bias = q["kernel"], q["bias"]
    hidden = np.tanh(np.asarray(x, np.float64) @ np.asarray(q["hidden"], np.float64))
    mean = hidden @ np.asarray(kernel.loc, np.float64) + np.asarray(bias.loc, np.float64)
    variance = hidden**2 @ np.asarray(kernel.scale, np.float64) ** 2 + np.asarray(bias.scale, np.float64) ** 2
    return mean, variance


def gaussian(mean, variance, y, scale=1.0):
    """The expected negative log-likelihood of each number."""
    return 0.5 * ((y - mean) ** 2 + variance) / scale**2 + np.log(scale) + 0.5 * np.log(2 * np.pi)


# --- the Gaussian likelihood, exactly ---------------------------------------------------------------------------------


def test_a_gaussian_likelihood():
    of_one = jax.jit(partial(analytic_elbo_loss, mlp, num_data=50, return_terms=True))
    loss, terms = of_one(Q, X, VALUES)
    np.testing.assert_allclose(terms.nll, gaussian(*moments(), VALUES.astype(float)).sum(axis=1).mean(), rtol=2e-6)
    np.testing.assert_allclose(terms.kl, kl_loss(Q, reduction="sum"), rtol=1e-6)
    assert loss == terms.nll + terms.weight * terms.kl
    assert terms.weight == np.float32(1 / 50)


def test_a_scale_that_is_given_learned_or_predicted():
    rho = np.sin(X.astype(float) @ PARAMS["hidden"][:, :4].astype(float))
    models = lambda w, x: (mlp(w, x), jnp.float32(-0.7)), lambda w, x: (mlp(w, x), jnp.sin(x @ w["hidden"][:, :4]))

    @jax.jit
    def every(q, scales):
        def of(apply_fn, scale=None):
            loss_fn = illia_fn.gaussian_nll if scale is None else partial(illia_fn.gaussian_nll, scale=scale)
            return analytic_elbo_loss(apply_fn, q, X, VALUES, loss_fn=loss_fn, num_data=6, kl_weight=0.0)

        return jax.vmap(partial(of, mlp))(scales), [of(apply_fn) for apply_fn in models]

    given = 0.3, 1e-15, 1e15
    found, others = every(Q, np.float32(given))
    for loss, scale in zip([*found, *others], [*given, *np.log1p(np.exp([-0.7])), np.log1p(np.exp(rho))], strict=True):
        np.testing.assert_allclose(loss, gaussian(*moments(), VALUES, scale).sum(axis=1).mean(), rtol=2e-6)


def test_gradients_of_a_scale_at_the_ends_are_finite():
    def loss(rho, q):
        apply_fn = lambda w, x: (mlp(w, x), rho)  # noqa: E731
        return analytic_elbo_loss(apply_fn, q, X, VALUES, loss_fn=illia_fn.gaussian_nll, num_data=6)

    grad = jax.jit(jax.grad(loss))
    for rho in (-30.0, 30.0):
        (mean, variance), scale = moments(), np.log1p(np.exp(rho))
        slope = np.sum(1 - ((np.asarray(VALUES) - mean) ** 2 + variance) / scale**2, axis=1).mean()
        np.testing.assert_allclose(grad(rho, Q), slope / (1 + np.exp(-rho)) / scale, rtol=1e-5)


@frozen_pytree
class FullRank(Posterior):
    """N(loc, factor factor') over a vector."""

    loc: jax.Array
    factor: jax.Array

    def reparameterise(self):
        return lambda noise: self.loc + self.factor @ noise

    def log_prob(self, w):
        z = jnp.linalg.solve(self.factor, w - self.loc)
        return -0.5 * jnp.sum(z**2) - self._log_det - 0.5 * len(z) * jnp.log(2 * jnp.pi)

    def entropy(self):
        return self._log_det + 0.5 * len(self.loc) * jnp.log(2 * jnp.pi * jnp.e)

    @property
    def _log_det(self):
        return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.factor))))

    @property
    def mean(self):
        return self.loc

    @property
    def stddev(self):
        return jnp.sqrt(jnp.sum(self.factor**2, axis=1))


@illia_fn.register_kl(FullRank, Normal)
def _(q, p):
    quadratic = jnp.sum((q.loc - p.loc) ** 2 + q.stddev**2) / p.scale**2
    return 0.5 * (quadratic + len(q.loc) * (jnp.log(2 * jnp.pi) + 2 * jnp.log(p.scale))) - q.entropy()


def test_at_the_posterior_it_is_the_evidence(x64):
    problem = linear_regression.problem("yacht")
    q = {"w": FullRank(jnp.asarray(problem.loc), jnp.asarray(np.linalg.cholesky(np.linalg.inv(problem.precision))))}
    likelihood = partial(illia_fn.gaussian_nll, scale=linear_regression.NOISE_VARIANCE**0.5)
    count = len(problem.y)
    loss = partial(analytic_elbo_loss, lambda w, x: x @ w["w"], loss_fn=likelihood, num_data=count)
    value, grads = jax.jit(jax.value_and_grad(loss))(q, jnp.asarray(problem.x), jnp.asarray(problem.y))
    np.testing.assert_allclose(-count * value, problem.log_evidence, rtol=1e-12)
    # the triangle below the diagonal is the factor
    slopes = [np.asarray(grads["w"].loc), np.tril(grads["w"].factor)]
    assert all(np.abs(slope).max() < 1e-12 for slope in slopes)


# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax_integral(mean, covariance, label, count=400_000):
    """E[-log softmax(f)_label], and its standard error."""
    factor = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(mean)))
    z = np.random.default_rng(1).normal(size=(count // 2, len(mean))) @ factor.T
    f = mean + np.concatenate([z, -z])
    losses = np.logaddexp.reduce(f, axis=1) - f[:, label]
    pairs = 0.5 * (losses[: count // 2] + losses[count // 2 :])
    return pairs.mean(), pairs.std() / np.sqrt(count // 2)


def bounds(mean, covariance, label):
    """Jensen's, and the least of the bounds of Knowles and Minka, by many steps in float64."""
    half, a, slope = np.diag(covariance) / 2, np.full(len(mean), 1 / len(mean)), 1 + np.abs(covariance).sum(1).max() / 2
    at = lambda a: a @ covariance @ a / 2 + np.logaddexp.reduce(mean + half - covariance @ a) - mean[label]  # noqa: E731
    for _ in range(500):
        u = mean + half - covariance @ a
        a = a + (np.exp(u - np.logaddexp.reduce(u)) - a) / slope
    return at(0 * a), at(a)


@jax.jit
def softmax_losses(mean, covariance, label):
    """Jensen's and the tightest, of one example whose logits have a mean and a covariance."""
    q = {"w": mean_field(jnp.zeros(len(mean)), scale=1.0)}
    factor = jnp.linalg.cholesky(covariance)

    def of(bound):
        options = {"num_data": 1, "kl_weight": 0.0, "bound": bound}
        return analytic_elbo_loss(lambda w, x: (factor @ w["w"] + mean)[None] * x, q, np.ones((1, 1)), label, **options)

    return of("jensen"), of("knowles_minka")


def test_bounds_of_a_softmax():
    """Independent logits (standard deviations .4 to 2) and correlated ones: above the integral, the first bound most."""
    mean, scale = np.array([1.0, -1.0, 0.5, 2.0]), np.array([0.4, 1.0, 1.5, 2.0])
    mix = np.array([[1, 0, 0, 0], [0.5, 1, 0, 0], [0.9, 0.1, 0.5, 0], [-0.5, 0.3, 0.0, 1]])
    gaps = []
    for covariance in (np.diag(scale**2), mix @ np.diag(scale**2) @ mix.T):
        integral, error = softmax_integral(mean, covariance, 1)
        jensen, tight = softmax_losses(np.float32(mean), np.float32(covariance), np.array([1]))
        np.testing.assert_allclose([jensen, tight], bounds(mean, covariance, 1), rtol=1e-5)
        assert integral - 5 * error < tight < jensen
        gaps.append((tight - integral, jensen - integral))
    assert gaps[0][0] < 0.5 * gaps[0][1]


def test_correlated_logits_take_their_covariance():
    """What all logits share changes no probability: the bound of their variances alone is below the integral."""
    mean = np.array([0.3, -0.2, 0.1, -9.0])
    exact = np.logaddexp.reduce(mean) - mean[0]
    jensen, tight = softmax_losses(np.float32(mean), np.float32(4.0 + 1e-6 * np.eye(4)), np.array([0]))
    np.testing.assert_allclose(tight, exact, atol=2e-5)
    assert jensen > exact + 1.9


def of_examples(mean, variance):
    """The least of the bounds of each example whose logits are independent."""
    return np.array([bounds(m, np.diag(c), label)[1] for m, c, label in zip(mean, variance, LABELS, strict=True)])


def test_a_last_layer_of_classes():
    sequences = np.stack([X, -X], axis=1), np.stack([LABELS, LABELS], axis=1)

    def of_tokens(w, x):
        return jnp.tanh(x @ w["hidden"]) @ w["kernel"] + w["bias"][None, None]

    @jax.jit
    def both(q):
        options = {"num_data": 60, "kl_weight": 0.0}
        return analytic_elbo_loss(mlp, q, X, LABELS, **options), analytic_elbo_loss(of_tokens, q, *sequences, **options)

    known, others = of_examples(*moments()).mean(), of_examples(*moments(x=-X)).mean()
    np.testing.assert_allclose(both(Q), [known, known + others], rtol=1e-6)


# --- quadrature -------------------------------------------------------------------------------------------------------

COUNTS, BITS, REALS = np.int32([0, 1, 3, 2, 7, 0]), np.int32([0, 1, 1, 0, 1, 0]), VALUES[:, 0]
GAPS = np.tile(np.float32([-1.0, 0.5, 0.2]), (6, 1))
LIKELIHOODS = {
    "bernoulli": (illia_fn.bernoulli_nll, BITS, 1e-6),
    "poisson": (illia_fn.poisson_nll, COUNTS, 1e-5),
    "negative binomial": (partial(illia_fn.negative_binomial_nll, total_count=2.0), COUNTS, 1e-5),
    "student t": (partial(illia_fn.student_t_nll, df=3.0, scale=0.7), REALS, 2e-4),
    "von mises": (partial(illia_fn.von_mises_nll, concentration=2.0), REALS, 1e-5),
    "laplace, of a kink": (illia_fn.laplace_nll, REALS, 5e-2),
    "ordinal": (lambda f, y: illia_fn.ordinal_nll((f, GAPS), y), LABELS, 1e-5),
    "of one's own": (lambda f, y: jnp.cosh(f - y), REALS, 1e-5),
    "of one's own, a mean": (lambda f, y: jnp.mean(jnp.cosh(f - y)), REALS, 1e-5),
}


def test_likelihoods_of_one_output():
    mean, variance = (moment[:, 0] for moment in moments())
    z = np.linspace(-9.0, 9.0, 4001)  # the trapezoidal rule, which is exact for what vanishes at both ends

    @jax.jit
    def every(q, grid):
        def of(loss_fn, y):
            values = jax.vmap(lambda f: jnp.broadcast_to(loss_fn(f, y), (6,)))(grid)
            return analytic_elbo_loss(one, q, X, y, loss_fn=loss_fn, num_data=6, kl_weight=0.0), values

        return {name: of(loss_fn, y) for name, (loss_fn, y, _) in LIKELIHOODS.items()}

    for name, (loss, values) in every(Q, np.float32(mean + z[:, None] * np.sqrt(variance))).items():
        exact = np.sum(stats.norm.pdf(z)[:, None] * np.asarray(values, np.float64), axis=0) * (z[1] - z[0])
        np.testing.assert_allclose(loss, exact.mean(), rtol=LIKELIHOODS[name][2], err_msg=name)


def test_likelihoods_of_many_numbers_are_sums():
    targets = np.stack([COUNTS] * 4, axis=1)
    loss = jax.jit(partial(analytic_elbo_loss, mlp, loss_fn=illia_fn.poisson_nll, num_data=6, kl_weight=0.0))
    mean, variance = moments()
    nll = np.exp(mean + variance / 2) - targets * mean + special.gammaln(targets + 1.0)
    np.testing.assert_allclose(loss(Q, X, targets), nll.sum(axis=1).mean(), rtol=2e-6)


def test_the_accuracy_of_quadrature_is_as_told(x64):
    """Of the docstring: E[softplus(m + s z)] for s = 2, 4, 8, and E|d + z|, at 20 and 100 points."""
    center = np.linspace(-3.0, 3.0, 31)

    def at_points(loss_fn, num_points):
        def nll(scale, center):
            data = np.ones(1), np.zeros(1)
            apply_fn = lambda w, x: center + x * w["w"]  # noqa: E731
            options = {"num_points": num_points, "num_data": 1, "kl_weight": 0.0}
            q = {"w": illia_fn.Gaussian(jnp.zeros(()), jnp.log(jnp.expm1(scale)))}
            return analytic_elbo_loss(apply_fn, q, *data, loss_fn=loss_fn, **options)

        return jax.jit(jax.vmap(nll, (None, 0)))

    of_bernoulli = at_points(illia_fn.bernoulli_nll, 20)
    z = np.linspace(-12.0, 12.0, 20_001)[:, None]
    for scale, bound in ((2.0, 2e-6), (4.0, 1e-3), (8.0, 0.02)):
        exact = integrate.simpson(stats.norm.pdf(z) * np.logaddexp(0.0, center + scale * z), x=z, axis=0)
        assert np.abs(of_bernoulli(scale, center) - exact).max() < bound
    exact = np.sqrt(2 / np.pi) * np.exp(-(center**2) / 2) + center * special.erf(center / np.sqrt(2)) + np.log(2)
    for num_points, bound in ((20, 0.031), (100, 0.0065)):
        assert np.abs(at_points(illia_fn.laplace_nll, num_points)(1.0, center) - exact).max() < bound


# --- by moments -------------------------------------------------------------------------------------------------------


def test_moments_of_a_linear_model_are_exact():
    """Of values by the variances of the outputs, of classes by their covariance."""

    @jax.jit
    def every(q):
        def of(method):
            loss = partial(analytic_elbo_loss, mlp, num_data=60, method=method)
            return jax.value_and_grad(loss)(q, X, VALUES), loss(q, X, LABELS)

        return of("exact"), of("moments")

    for exact, found in zip(*map(jax.tree.leaves, every(Q)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=2e-5, atol=1e-6)


def test_moments_of_a_hidden_layer_are_the_mean_of_the_sampled_loss():
    """Whose expectation takes the first two moments alone: within five standard errors of 20 000 draws."""
    q = mean_field(PARAMS, scale=0.4)

    def network(w, x):
        return jax.nn.relu(x @ w["hidden"]) @ w["kernel"] + w["bias"][None], jnp.float32(0.3)

    options = {"num_data": 6, "kl_weight": 0.0, "loss_fn": illia_fn.gaussian_nll}

    @jax.jit
    def both(keys):
        draws = jax.vmap(lambda key: elbo_loss(network, q, X, VALUES, key, **options))(keys)
        return analytic_elbo_loss(network, q, X, VALUES, method="moments", **options), draws

    known, losses = map(np.asarray, both(jax.random.split(KEY, 20_000)))
    assert abs(known - losses.mean()) < 5 * losses.std() / np.sqrt(20_000)


def test_moments_of_a_scale_that_is_predicted():
    """A pair (loc, rho) of which both are random: the mean over the draws of two independent outputs."""
    q = mean_field({"loc": PARAMS["hidden"][:, :4], "rho": PARAMS["hidden"][:, 1:]}, scale=0.3)

    def pair(w, x):
        return x @ w["loc"], 0.3 * (x @ w["rho"])

    options = {"num_data": 6, "kl_weight": 0.0, "loss_fn": illia_fn.gaussian_nll}

    @jax.jit
    def both(keys):
        draws = jax.vmap(lambda key: elbo_loss(pair, q, X, VALUES, key, **options))(keys)
        return analytic_elbo_loss(pair, q, X, VALUES, method="moments", **options), draws

    known, losses = map(np.asarray, both(jax.random.split(KEY, 20_000)))
    assert abs(known - losses.mean()) < 5 * losses.std() / np.sqrt(20_000)
    with pytest.raises(ValueError, match="one output may depend on the Bayesian leaves, but 2 "):
        analytic_elbo_loss(pair, q, X, VALUES, **options)


def test_moments_beside_dropout_and_aux():
    def apply_fn(w, x, key):
        hidden = jax.nn.relu(x @ w["hidden"])
        keep = jax.random.bernoulli(key, 0.5, hidden.shape)
        return jnp.where(keep, hidden, 0.0) @ w["kernel"] + w["bias"][None], {"hidden": hidden.mean(0), "key": key}

    q = mean_field(PARAMS, scale=0.4)
    options = {"needs_key": True, "has_aux": True, "num_data": 6, "method": "moments", "return_terms": True}
    run = partial(analytic_elbo_loss, apply_fn, num_samples=2, **options)
    _, (terms, aux) = jax.eval_shape(run, q, X, VALUES, KEY)
    assert terms.nll.shape == ()
    assert aux["hidden"].shape == (2, 5)
    assert aux["key"].shape == (2,)


# --- gradients --------------------------------------------------------------------------------------------------------

OF_GRADIENTS = {
    "jensen": (mlp, LABELS, {"bound": "jensen"}),
    "knowles and minka": (lambda w, x: mlp(w, x) @ jnp.tril(jnp.ones((4, 4), x.dtype)), LABELS, {}),
    "quadrature": (one, BITS, {"loss_fn": illia_fn.bernoulli_nll}),
}


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_gradients_are_those_of_the_value(name, x64):
    apply_fn, y, options = OF_GRADIENTS[name]
    wide = lambda leaf: np.asarray(leaf, np.float64) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    q, x, y = jax.tree.map(wide, (Q, X, y))
    flat, unravel = ravel_pytree(q)
    direction = np.random.default_rng(3).normal(size=flat.shape)

    def loss(step):
        return analytic_elbo_loss(apply_fn, unravel(flat + step * direction), x, y, num_data=10, **options)

    def second(step):
        return jax.jvp(jax.value_and_grad(loss), (step,), (1.0,))

    twice = name != "knowles and minka"
    at = jax.jit(second if twice else lambda step: (jax.value_and_grad(loss)(step),))
    (value, slope), *curve = at(0.0)
    up, down, above, below = (at(step)[0][0] for step in (1e-5, -1e-5, 1e-3, -1e-3))
    assert slope.dtype == np.float64
    np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-7)
    if twice:
        np.testing.assert_allclose(curve[0][1], (above - 2 * value + below) / 1e-6, rtol=1e-4)
        return
    with pytest.raises(TypeError, match=r"analytic_elbo_loss: bound=.* has first derivatives only.*jensen"):
        jax.eval_shape(second, 0.0)


def test_zero_features_have_finite_gradients():
    data = jnp.zeros((6, 3)), BITS
    q = mean_field({"w": jnp.ones(3)}, scale=0.1)
    loss = partial(analytic_elbo_loss, lambda w, x: x @ w["w"], loss_fn=illia_fn.bernoulli_nll, num_data=6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(q, *data)))


# --- families ---------------------------------------------------------------------------------------------------------


def test_a_joint_family():
    """By the law of the outputs, which linearise tells: the dense covariance of the logits of an example."""
    head = illia_fn.LowRank(
        {"bias": PARAMS["bias"], "kernel": PARAMS["kernel"]},
        jnp.full(24, -1.0),
        np.float32(0.3 * RNG.normal(size=(24, 2))),
    )
    apply_fn = lambda w, x: mlp(w["head"] | {"hidden": w["hidden"]}, x)  # noqa: E731

    @jax.jit
    def every(q):
        law = linearise(apply_fn, q, X)
        losses = [analytic_elbo_loss(apply_fn, q, X, y, num_data=6, kl_weight=0.0) for y in (VALUES, LABELS)]
        return losses, (law.mean, law.variance, law.covariance)

    (values, classes), (mean, variance, covariance) = jax.tree.map(
        np.asarray, every({"hidden": PARAMS["hidden"], "head": head})
    )
    np.testing.assert_allclose(values, gaussian(mean, variance, VALUES).sum(axis=1).mean(), rtol=1e-5)
    law = zip(mean.astype(float), covariance.astype(float), LABELS, strict=True)
    np.testing.assert_allclose(classes, np.mean([bounds(*each)[1] for each in law]), rtol=1e-5)


# --- options ----------------------------------------------------------------------------------------------------------


def test_padding_of_weight_zero_is_nothing():
    loss = partial(analytic_elbo_loss, mlp, num_data=60, kl_weight=0.0)
    rows = np.array([0, 1, 2, 3, 4, 5, 0, 0])
    weights, x = np.float32(np.arange(8) < 6), X[rows]
    values, labels = np.where(weights[:, None] > 0, VALUES[rows], np.nan), np.where(weights > 0, LABELS[rows], -1)
    every = jax.jit(lambda q: [jax.value_and_grad(loss)(q, x, y, weights=weights) for y in (values, labels)])
    known = gaussian(*moments(), VALUES).sum(axis=1).mean(), of_examples(*moments()).mean()
    for (value, grads), exact in zip(every(Q), known, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-5)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    labels = jnp.asarray(labels)  # that can be looked at
    np.testing.assert_allclose(loss(Q, x, labels, weights=weights), known[1], rtol=1e-5)


def test_regularisers_are_those_of_elbo_loss():
    every = {"kl_weight": 0.3}, {"temperature": 0.5}, {"free_nats": 3.0}, {"num_data": None}, {}

    @jax.jit
    def terms(q):
        def of(options):
            given = {"num_data": 60, "return_terms": True, "prior": Normal(0.5, 2.0)} | options
            found = analytic_elbo_loss(mlp, q, X, VALUES, **given)[1], elbo_loss(mlp, q, X, VALUES, KEY, **given)[1]
            return [(terms.kl, terms.weight) for terms in found]

        return [of(options) for options in every]

    for known, sampled in terms(Q):
        assert known == sampled


def test_a_prior_without_a_closed_form_takes_a_key():
    prior = stats_prior()
    with pytest.raises(ValueError, match=r"analytic_elbo_loss: KL.* must be sampled\. Pass a key"):
        analytic_elbo_loss(mlp, Q, X, VALUES, num_data=6, prior=prior)
    options = {"num_data": 6, "prior": prior, "return_terms": True}
    losses = analytic_elbo_loss, elbo_loss
    both = jax.jit(lambda q: [loss(mlp, q, X, VALUES, KEY, 8, **options)[1].kl for loss in losses])
    kl, sampled = both(Q)
    assert kl == sampled


def stats_prior():
    class Logistic:
        def log_prob(self, w):
            return -w - 2 * jax.nn.softplus(-w)

    return Logistic()


def test_under_vmap_and_in_half_precision():
    loss = partial(analytic_elbo_loss, mlp, num_data=60, kl_weight=0.0)
    each = Q, jax.tree.map(lambda leaf: 0.5 * leaf, Q)
    two = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (Q, X))

    @jax.jit
    def every(two, half):
        return [(jax.vmap(loss, (0, None, None))(two, X, y), loss(*half, y)) for y in (VALUES, LABELS)]

    values, classes = every(two, half)
    of_values = [gaussian(*moments(q), VALUES).sum(axis=1).mean() for q in each]
    for (pair, rounded), known in ((values, of_values), (classes, [of_examples(*moments(q)).mean() for q in each])):
        np.testing.assert_allclose(pair, known, rtol=1e-5)
        assert rounded.dtype == jnp.float32
        np.testing.assert_allclose(rounded, known[0], rtol=2e-2)


def test_nothing_bayesian_is_the_deterministic_loss():
    run = jax.jit(partial(analytic_elbo_loss, mlp, num_data=6, kl_weight=0.0))
    logits = np.tanh(X.astype(float) @ PARAMS["hidden"]) @ PARAMS["kernel"] + PARAMS["bias"]
    nll = special.logsumexp(logits, axis=1) - logits[np.arange(6), LABELS]
    np.testing.assert_allclose(run(PARAMS, X, LABELS), nll.mean(), rtol=1e-6)


def test_dropout_and_what_is_beside_the_outputs():
    def apply_fn(w, x, key):
        keep = jax.random.bernoulli(key, 0.5, (len(x), 5))
        hidden = jnp.tanh(x @ w["hidden"]) * keep.astype(jnp.float32)
        return hidden @ w["kernel"] + w["bias"][None], keep

    options = {"needs_key": True, "has_aux": True, "num_data": 6, "kl_weight": 0.0}
    for count in (1, 3):
        loss, keep = jax.jit(partial(analytic_elbo_loss, apply_fn, num_samples=count, **options))(Q, X, VALUES, KEY)
        hidden = np.tanh(np.asarray(X, np.float64) @ np.asarray(Q["hidden"], np.float64)) * np.asarray(keep)
        mean = hidden @ np.asarray(Q["kernel"].loc) + np.asarray(Q["bias"].loc)
        variance = hidden**2 @ np.asarray(Q["kernel"].scale) ** 2 + np.asarray(Q["bias"].scale) ** 2
        np.testing.assert_allclose(loss, gaussian(mean, variance, np.asarray(VALUES)).sum(-1).mean(), rtol=1e-5)
        assert keep.shape == (count, 6, 5)
    with pytest.raises(ValueError, match="analytic_elbo_loss: needs_key=True takes a key"):
        analytic_elbo_loss(apply_fn, Q, X, VALUES, **options)


def test_examples_may_interact_in_deterministic_layers():
    def normalised(w, x):
        hidden = x @ w["hidden"]
        hidden = (hidden - hidden.mean(axis=0, keepdims=True)) / hidden.std(axis=0, keepdims=True)
        return hidden @ w["kernel"] + w["bias"][None]

    hidden = np.asarray(X, np.float64) @ np.asarray(PARAMS["hidden"], np.float64)
    hidden = (hidden - hidden.mean(axis=0)) / hidden.std(axis=0)
    mean = hidden @ np.asarray(Q["kernel"].loc) + np.asarray(Q["bias"].loc)
    variance = hidden**2 @ np.asarray(Q["kernel"].scale) ** 2 + np.asarray(Q["bias"].scale) ** 2
    loss = partial(analytic_elbo_loss, normalised, num_data=6, kl_weight=0.0)
    values, classes = jax.jit(lambda q: [loss(q, X, y) for y in (VALUES, LABELS)])(Q)
    np.testing.assert_allclose(values, gaussian(mean, variance, VALUES).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(classes, of_examples(mean, variance).mean(), rtol=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------

ALL = mean_field(PARAMS, scale=0.1)


def both(w, x):
    outputs = mlp(w, x)
    return outputs[:, 0], outputs[:, 1]


REFUSED = {
    "a method": (lambda: analytic_elbo_loss(mlp, Q, X, VALUES, num_data=6, method="moment"), "method must be one of exact, moments, got 'moment'"),
    "an operation": (lambda: analytic_elbo_loss(lambda w, x: jax.nn.softmax(x @ w["hidden"]), ALL, X, VALUES[:, :1], num_data=6, method="moments"), r"moments are not propagated through reduce_max, here of what depends on params\['hidden'\]"),
    "a hidden layer, and what to do": (lambda: analytic_elbo_loss(mlp, ALL, X, VALUES, num_data=6), 'or take method="moments", an approximation'),
    "a hidden layer": (lambda: analytic_elbo_loss(mlp, ALL, X, VALUES, num_data=6), r"must be linear in the Bayesian leaves, and are not in params\['hidden'\] \(tanh: not linear in it\).* explain_linearity"),
    "two outputs": (lambda: analytic_elbo_loss(both, Q, X, REALS, loss_fn=illia_fn.gaussian_nll, num_data=6), "one output may depend on the Bayesian leaves, but 2"),
    "a likelihood of its own": (lambda: analytic_elbo_loss(mlp, Q, X, VALUES, loss_fn=lambda f, y: ((f - y) ** 2).sum(1), num_data=6), r"loss_fn must be a likelihood .* got the function <lambda> for outputs of shape \(6, 4\)"),
    "a mixture": (lambda: analytic_elbo_loss(lambda w, x: (0 * x @ w["hidden"][:, :4], mlp(w, x), 0 * x @ w["hidden"][:, :4]), Q, X, REALS, loss_fn=illia_fn.mixture_density_nll, num_data=6), "mixture_density_nll for outputs"),
    "cutpoints": (lambda: analytic_elbo_loss(lambda w, x: (x[:, 0], 0 * x[:, :3] + w["bias"][None, :3]), Q, X, LABELS, loss_fn=illia_fn.ordinal_nll, num_data=6), "of ordinal_nll the location may be Bayesian, and the gaps"),
    "an unknown bound": (lambda: analytic_elbo_loss(mlp, Q, X, LABELS, num_data=6, bound="jaakkola"), "bound must be one of knowles_minka, jensen, got 'jaakkola'"),
    "no points": (lambda: analytic_elbo_loss(one, Q, X, BITS, num_data=6, num_points=0), "num_points must be an int of at least 1, got 0"),
    "labels that are no classes": (lambda: analytic_elbo_loss(mlp, Q, X, jnp.asarray(LABELS + 3), num_data=6), "targets must be classes from 0 to 3, got 3 to 6"),
    "labels against values": (lambda: analytic_elbo_loss(one, Q, X, LABELS, num_data=6), "integer targets of shape .* are class labels"),
    "no posterior": (lambda: analytic_elbo_loss(mlp, PARAMS, X, VALUES, num_data=6), "params has no posterior node"),
    "another batch": (lambda: analytic_elbo_loss(mlp, Q, X, VALUES[:3], num_data=6), "must have the same batch size"),
    "another batch of labels": (lambda: analytic_elbo_loss(mlp, Q, X, LABELS[:3], num_data=6), "must have the same batch size|with one more axis"),
    "no key but something": (lambda: analytic_elbo_loss(mlp, Q, X, VALUES, 0, num_data=6), "key must be a single PRNG key"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=f"(?s)analytic_elbo_loss: .*{message}"):
        call()


def test_labels_that_are_no_classes_make_it_nan_under_jit():
    assert jnp.isnan(jax.jit(partial(analytic_elbo_loss, mlp, num_data=6))(Q, X, LABELS + 3))
