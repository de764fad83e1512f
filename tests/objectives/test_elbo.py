import inspect
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import illia_fn
from illia_fn import Normal, elbo_loss, kl_loss, mean_field
from illia_fn.objectives import DataTerm, Draws, Regulariser

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LABELS = np.int32([0, 1, 2, 1, 0, 2])
VALUES = np.linspace(-1.0, 1.0, 6, dtype=np.float32)


def linear(w, x):
    return x @ w["kernel"] + w["bias"]


def vector(w, x):
    return linear(w, x)[:, 0]


PARAMS = {"kernel": np.arange(9.0, dtype=np.float32).reshape(3, 3) / 9, "bias": np.zeros((1, 3), np.float32)}


@pytest.fixture(scope="module")
def q():
    return mean_field(PARAMS, scale=0.05)


@pytest.fixture(scope="module")
def sharp():
    """A posterior so narrow that every draw is the mean: the Monte Carlo term is exact."""
    return mean_field(PARAMS, scale=1e-20)


def cross_entropies(x=X, labels=LABELS):
    """Of each example, at PARAMS, in float64."""
    logits = np.asarray(x, np.float64) @ PARAMS["kernel"]
    return special.logsumexp(logits, axis=-1) - np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


OTHERS = (
    "analytic_elbo_loss",
    "cubo_loss",
    "f_divergence_loss",
    "iwae_loss",
    "pac_bayes_loss",
    "predictive_loss",
    "renyi_loss",
)


@pytest.mark.parametrize("name", OTHERS)
def test_options_of_one_name_have_one_default(name):
    of_elbo, of_other = (inspect.signature(loss).parameters for loss in (elbo_loss, getattr(illia_fn, name)))
    own = {"num_data", "estimator"} | ({"key"} if name == "analytic_elbo_loss" else set())
    own |= {"num_samples"} if name == "f_divergence_loss" else set()
    for option in of_elbo.keys() & of_other.keys() - own:
        assert repr(of_other[option].default) == repr(of_elbo[option].default)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("kwargs", "num_samples", "wrap"),
    [
        ({}, 1, jax.jit),
        ({"num_data": 50, "kl_weight": 0.3}, 3, jax.jit),
        ({"num_data": 50, "kl_weight": 0.3}, 1, lambda f: f),
    ],
    ids=["plain", "weighted", "without jit"],
)
def test_terms_make_up_the_loss_to_the_last_bit(q, kwargs, num_samples, wrap):
    loss = wrap(partial(elbo_loss, linear, num_samples=num_samples, return_terms=True, **kwargs))
    for seed in range(20):
        is_their_sum(*loss(q, X, LABELS, jax.random.key(seed)))


@pytest.mark.optimised
def test_terms_beside_a_gradient_make_up_the_loss_to_the_last_bit(q):
    loss = partial(elbo_loss, linear, num_samples=3, num_data=7, return_terms=True)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for seed in range(20):
        is_their_sum(*step(q, X, LABELS, jax.random.key(seed))[0])


def is_their_sum(value, terms):
    assert float(value) == float(np.float32(terms.nll) + np.float32(terms.weight) * np.float32(terms.kl))


@jax.jit
def of_ten(q, x, y, key, kl_weight):
    """Value, terms and gradients of the linear model, as one of ten examples."""
    loss = partial(elbo_loss, linear, num_data=10, return_terms=True)
    return jax.value_and_grad(loss, has_aux=True)(q, x, y, key, kl_weight=kl_weight)


def test_terms_hold_what_they_say(sharp):
    """Of num_data the negative ELBO per example, without it the convention of illia."""
    (loss, terms), _ = of_ten(sharp, X, LABELS, KEY, 0.5)
    np.testing.assert_allclose(terms.nll, cross_entropies().mean(), rtol=1e-6)
    np.testing.assert_allclose(terms.kl, kl_loss(sharp, Normal(0.0, 1.0), reduction="sum"), rtol=1e-6)
    np.testing.assert_allclose(terms.weight, 0.05, rtol=1e-6)
    np.testing.assert_allclose(loss, terms.nll + terms.weight * terms.kl, rtol=1e-6)
    draws = Draws(DataTerm("elbo_loss", linear, X, LABELS), sharp, KEY)
    np.testing.assert_allclose(Regulariser(draws, num_data=None).weight(np.float32), 1e-3 / 12, rtol=1e-6)


def test_a_kl_weight_of_zero_has_the_kl_as_its_gradient(q):
    grad = jax.jit(jax.grad(lambda kl_weight: elbo_loss(linear, q, X, LABELS, KEY, num_data=10, kl_weight=kl_weight)))
    np.testing.assert_allclose(grad(0.0), kl_loss(q, reduction="sum") / 10, rtol=1e-6)


def test_an_identical_call_has_an_identical_value(q):
    loss = partial(elbo_loss, linear, q, X, LABELS)
    assert loss(KEY, 2) == loss(KEY, 2)
    assert loss(KEY, 2) != loss(jax.random.key(1), 2)
    np.testing.assert_allclose(jax.jit(partial(loss, num_samples=2))(KEY), loss(KEY, 2), rtol=1e-6)


# --- loss functions -------------------------------------------------------------------------------------------------


def losses(w, y, *, apply_fn=linear, **options):
    return DataTerm("elbo_loss", apply_fn, X, y, **options).losses(w)[0]


def squared(outputs, y):
    return jnp.square(outputs - y)


@pytest.mark.parametrize(
    "loss_fn",
    [
        squared,  # (B, 3): trailing axes are summed
        lambda outputs, y: squared(outputs, y).sum(axis=1),  # (B,)
        lambda outputs, y: squared(outputs, y).sum(axis=1).mean(),  # a scalar mean
    ],
)
def test_per_example_trailing_and_scalar_losses_agree(loss_fn):
    y = np.ones((6, 3), np.float32)
    expected = np.sum(np.square(X @ PARAMS["kernel"] - 1), axis=1)
    found = losses(PARAMS, y, loss_fn=loss_fn)
    np.testing.assert_allclose(found, expected if found.shape else expected.mean(), rtol=1e-5)


def test_floats_have_a_gaussian_likelihood_of_unit_scale():
    nll = 0.5 * np.square((X @ PARAMS["kernel"])[:, 0] - VALUES) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(losses(PARAMS, VALUES, apply_fn=vector), nll, rtol=1e-6)


def test_sequences_of_labels():
    """(B, T, C)."""
    found = losses(PARAMS, np.stack([LABELS] * 4, axis=1), apply_fn=lambda w, x: jnp.stack([linear(w, x)] * 4, axis=1))
    np.testing.assert_allclose(found, 4 * cross_entropies(), rtol=1e-6)


def test_outputs_and_targets_may_be_trees():
    def loss_fn(outputs, y):
        logits, (loc, rho) = outputs
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y["label"])
        return cross_entropy + illia_fn.gaussian_nll((loc, rho), y["value"])

    def apply_fn(w, x):
        return linear(w, x), (vector(w, x), np.float32(0.5))

    found = losses(PARAMS, {"label": LABELS, "value": VALUES}, apply_fn=apply_fn, loss_fn=loss_fn)
    scale = np.log1p(np.exp(0.5))
    nll = 0.5 * np.square(((X @ PARAMS["kernel"])[:, 0] - VALUES) / scale) + np.log(scale) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found, cross_entropies() + nll, rtol=1e-5)


def test_weights_are_a_weighted_mean(sharp):
    weights = np.float32([0.0, 1.0, 2.0, 0.5, 0.0, 1.0])
    run = jax.jit(partial(elbo_loss, linear, return_terms=True))
    _, terms = run(sharp, X, LABELS, KEY, weights=weights)
    np.testing.assert_allclose(terms.nll, np.average(cross_entropies(), weights=weights), rtol=1e-6)


MISSING = {  # the model, its targets, and what stands in the rows of weight 0
    "a label": (linear, LABELS, -1),
    "another label": (linear, LABELS, 999),
    "a target": (vector, VALUES, np.nan),
}


@pytest.mark.parametrize("name", [*MISSING, "an output"])
def test_padding_may_be_anything(name):
    weights = np.array([True, True, True, True, False, False])
    apply_fn, targets, missing = MISSING.get(name, (vector, VALUES, VALUES))

    def broken(w, x):
        return jnp.where(weights, vector(w, x), jnp.nan)

    def mean(w, y, apply_fn, weights):
        data = DataTerm("elbo_loss", apply_fn, X[: len(y)], y, weights=weights)
        return data.mean(data.losses(w)[0])

    @jax.jit
    def both(w, y):
        padded = jax.value_and_grad(mean)(w, y, broken if name == "an output" else apply_fn, weights)
        return padded, jax.value_and_grad(mean)(w, y[:4], apply_fn, None)

    (value, grads), (expected, exact) = both(PARAMS, np.where(weights, targets, missing).astype(targets.dtype))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    chex.assert_trees_all_close(grads, exact, rtol=1e-4, atol=1e-6)


# --- models ---------------------------------------------------------------------------------------------------------


def test_aux_has_one_row_per_sample_and_each_has_a_key(q):
    """And draws of its own: the seed library averaged the same outputs over again."""

    def apply_fn(w, x, key):
        return linear(w, x), {"norm": jnp.sum(jnp.square(w["kernel"])), "noise": jax.random.key_data(key)[0]}

    def run(q, **options):
        return elbo_loss(apply_fn, q, X, LABELS, KEY, needs_key=True, has_aux=True, **options)

    @jax.jit
    def both(q):
        (value, (_, aux)), _ = jax.value_and_grad(run, has_aux=True)(q, num_samples=5, return_terms=True)
        return value, elbo_loss(linear, q, X, LABELS, KEY, 5), aux

    value, without, aux = both(q)
    for leaf in aux.values():
        assert leaf.shape == (5,)
        assert len(np.unique(leaf)) == 5
    np.testing.assert_allclose(value, without, rtol=1e-6)
    assert jax.eval_shape(run, q)[1]["norm"].shape == (1,)


class Linear:
    """log p(w) = w: the Monte Carlo KL is an entropy minus the mean of its draws."""

    def log_prob(self, w):
        return w


def test_noise_of_weights_model_and_kl_is_independent():
    """The noise in w, the key of the model and the draws of a Monte Carlo KL share no key."""
    q = mean_field({"w": jnp.zeros(1)}, scale=1.0)

    def apply_fn(w, x, key):
        noise = [jax.random.normal(key, (1,))[0], jax.random.normal(jax.random.split(key, 1)[0], (1,))[0]]
        return x * w["w"][None], (w["w"][0], noise)

    def loss(key):
        return elbo_loss(
            apply_fn, q, jnp.ones((1, 1)), jnp.zeros((1, 1)), key, 1, loss_fn=lambda f, y: f - y, prior=Linear(),
            num_data=1, needs_key=True, has_aux=True, return_terms=True,
        )  # fmt: skip

    _, (terms, (w, noise)) = jax.jit(jax.vmap(loss))(jax.random.split(KEY, 4000))
    correlations = np.corrcoef([w[:, 0], noise[0][:, 0], noise[1][:, 0], terms.kl])
    np.testing.assert_array_less(np.abs(correlations - np.eye(4)), 5 / np.sqrt(4000))
    assert np.std(w) > 0.9


def test_the_monte_carlo_kl_takes_num_samples_draws():
    """Each minus the entropy minus a standard normal number."""
    q = mean_field(jnp.zeros(()), scale=1.0)

    def kl(key):
        loss = partial(elbo_loss, lambda w, x: w * x, q, VALUES, VALUES, key, 8, prior=Linear(), num_data=9)
        return loss(return_terms=True)[1].kl

    values = np.asarray(jax.jit(jax.vmap(kl))(jax.random.split(KEY, 1000)))
    assert abs(values.mean() + 0.5 * np.log(2 * np.pi * np.e)) < 5 * values.std() / np.sqrt(1000)
    assert abs(8 * values.var() - 1.0) < 5 * np.sqrt(2 / 1000)


def test_a_nan_loss_does_not_hide_its_gradient(q):
    """A gradient of 0 beside a loss that is NaN would pass every guard that looks at gradients."""

    def loss(q, x):
        likelihood = lambda outputs, y: jnp.log(-1.0 - jnp.square(outputs - y))  # noqa: E731  NaN, but not its slope
        return elbo_loss(vector, q, x, VALUES, KEY, loss_fn=likelihood, num_data=10, prior=q)

    value, grads = jax.jit(jax.value_and_grad(loss))(q, X)
    assert np.isnan(value)
    assert not np.any(grads["kernel"].loc[:, 0] == 0)


def test_a_large_data_set(q):
    draws = Draws(DataTerm("elbo_loss", linear, X, LABELS), q, KEY)
    np.testing.assert_allclose(Regulariser(draws, num_data=3_000_000_000).weight(np.float32), 1 / 3e9, rtol=1e-6)
    jax.eval_shape(partial(elbo_loss, linear, num_data=np.int64(10)), q, X, LABELS, KEY)


def test_partly_bayesian_and_deterministic_trees():
    q = mean_field(PARAMS, scale=0.1, mask={"kernel": True, "bias": False})

    @jax.jit
    def both(q, params):
        conventions = {"num_data": 6}, {}
        losses = [elbo_loss(linear, params, X, LABELS, KEY, kl_weight=0.0, **options) for options in conventions]
        return jax.grad(partial(elbo_loss, linear))(q, X, LABELS, KEY)["bias"], losses

    slopes, losses = both(q, PARAMS)
    assert np.any(slopes != 0)
    np.testing.assert_allclose(losses, cross_entropies().mean(), rtol=1e-6)


def test_half_precision_is_reduced_in_float32():
    half = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tree)  # noqa: E731
    q = mean_field(half(PARAMS), scale=1e-6)
    run = partial(elbo_loss, linear, num_samples=3, num_data=9, return_terms=True)

    @jax.jit
    def both(q, x):
        return jax.value_and_grad(run, has_aux=True)(q, x, LABELS, KEY), linear(illia_fn.mean(q), x)

    ((loss, terms), grads), logits = both(q, half(X))
    assert loss.dtype == jnp.float32
    assert grads["kernel"].loc.dtype == jnp.bfloat16
    logits = np.asarray(logits, np.float64)
    nll = (special.logsumexp(logits, axis=1) - logits[np.arange(6), LABELS]).mean()
    np.testing.assert_allclose(terms.nll, nll, rtol=2e-5)  # a softmax in bfloat16 is off by 2e-3


def test_float64(x64):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
    run = jax.jit(partial(elbo_loss, linear, num_samples=2, num_data=10, prior=Normal(0.0, 0.1), return_terms=True))
    loss, terms = run(mean_field(wide, scale=1e-30), np.asarray(X, np.float64), LABELS, KEY)
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(terms.nll, cross_entropies().mean(), rtol=1e-12)
    kl = np.sum(wide["kernel"] ** 2) / 0.02 + 12 * (np.log(0.1 / 1e-30) - 0.5)
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-12)


def test_vmap_over_keys_and_data_sets(q):
    keys, xs = jax.random.split(KEY, 2), np.stack([X, -X])
    found = jax.jit(jax.vmap(lambda x, key: of_ten(q, x, LABELS, key, 0.5)[0][0]))(xs, keys)
    one_by_one = [of_ten(q, x, LABELS, key, 0.5)[0][0] for x, key in zip(xs, keys, strict=True)]
    np.testing.assert_allclose(found, one_by_one, rtol=1e-6)


def test_legacy_and_other_keys(q):
    loss = jax.jit(partial(elbo_loss, linear, q, X, LABELS, num_data=10, kl_weight=0.5))
    np.testing.assert_allclose(loss(jax.random.PRNGKey(0)), of_ten(q, X, LABELS, KEY, 0.5)[0][0], rtol=1e-6)
    jax.eval_shape(loss, jax.random.key(0, impl="rbg"))


def test_gradients_reach_the_prior_the_inputs_and_closed_over_arrays(q):
    def loss(x, prior_scale, shift):
        return elbo_loss(
            lambda w, x: linear(w, x) + shift, q, x, LABELS, KEY, prior=Normal(0.0, prior_scale), num_data=6
        )

    for grad in jax.jit(jax.grad(loss, (0, 1, 2)))(X, 0.1, np.float32([[0.1, 0.0, 0.0]])):
        assert np.all(np.isfinite(grad))
        assert np.any(grad != 0)


@pytest.mark.parametrize("coupling", ["shared", "decorrelated"])
def test_a_donated_posterior_is_not_copied(coupling):
    """The value reads what is to be updated in place: XLA has to know that it is read before.

    With a coupling, the weights of the second layer are read for the gradient of the first, in a deterministic network,
    too, so that one copy is left.
    """
    params = {"first": jnp.ones((800, 700)), "second": jnp.ones((700, 800))}
    q, optimizer = mean_field(params), optax.sgd(0.1)

    def network(w, x):
        return jnp.tanh(x @ w["first"]) @ w["second"]

    def step(q, state):
        def loss(q):
            elbo = elbo_loss(network, q, jnp.ones((8, 800)), jnp.zeros(8, int), KEY, num_data=100, coupling=coupling)
            return elbo + kl_loss(q) + sum(illia_fn.kl_tree(q).values())

        value, grads = jax.value_and_grad(loss)(q)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(q, updates), state, value

    program = jax.jit(step, donate_argnums=(0, 1)).lower(q, optimizer.init(q)).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    parameters = re.findall(r"%(\S+) = f32\[\d+,\d+\]\S* parameter", entry)
    assert len(parameters) == 4
    copies = [name for name in re.findall(r" copy\(%(\S+?)\)", entry) if name in parameters]
    assert len(copies) == (0 if coupling == "shared" else 1), copies


def test_the_gradient_of_the_kl_of_a_small_network_does_not_compute_its_value():
    def has_sum(size):
        q = mean_field(jnp.ones(size))
        return " reduce(" in jax.jit(jax.grad(kl_loss)).lower(q).compile().as_text()

    assert not has_sum(2**19 - 1)
    assert has_sum(2**19)  # which is in the place of copies of a donated posterior


def test_the_kl_is_exported_for_any_number_of_latents():
    def kl(loc, rho):
        return illia_fn.kl_divergence(illia_fn.Gaussian(loc, rho), Normal(0.0, 1.0))

    (size,) = jax.export.symbolic_shape("size")
    like = jax.ShapeDtypeStruct((size, 8), jnp.float32)
    exported = jax.export.export(jax.jit(kl))(like, like)
    q = mean_field(jnp.ones((3, 8)))
    np.testing.assert_allclose(exported.call(q.loc, q.rho), kl(q.loc, q.rho), rtol=1e-6)


def test_a_kl_that_is_nan_makes_the_gradient_of_its_own_large_node_nan():
    q = mean_field({"bad": jnp.ones(2**19).at[0].set(jnp.nan), "good": jnp.ones(2**19)})
    grads = jax.jit(jax.grad(kl_loss))(q)
    assert jnp.all(jnp.isnan(grads["bad"].loc))
    assert jnp.all(jnp.isfinite(grads["good"].loc))
