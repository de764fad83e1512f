import inspect
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import illia_fn
from illia_fn import Normal, elbo_loss, kl_loss, mean_field

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 1, 0, 2])
VALUES = jnp.linspace(-1.0, 1.0, 6)


def linear(w, x):
    return x @ w["kernel"] + w["bias"]


def vector(w, x):
    return linear(w, x)[:, 0]


@pytest.fixture
def params():
    return {"kernel": jnp.arange(9.0).reshape(3, 3) / 9, "bias": jnp.zeros((1, 3))}


@pytest.fixture
def q(params):
    return mean_field(params, scale=0.05)


@pytest.fixture
def sharp(params):
    """A posterior so narrow that every draw is the mean: the Monte Carlo term is exact."""
    return mean_field(params, scale=1e-20)


def test_the_six_argument_call(q):
    loss = elbo_loss(linear, q, X, LABELS, KEY, 2)
    assert loss.shape == ()
    assert jnp.isfinite(loss)


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


def test_without_num_data_it_is_the_convention_of_illia(sharp, params):
    nll = optax.softmax_cross_entropy_with_integer_labels(linear(params, X), LABELS).mean()
    expected = nll + 1e-3 * kl_loss(sharp, reduction="sum") / 12
    np.testing.assert_allclose(elbo_loss(linear, sharp, X, LABELS, KEY), expected, rtol=1e-6)


def test_with_num_data_it_is_the_negative_elbo_per_example(sharp, params):
    nll = optax.softmax_cross_entropy_with_integer_labels(linear(params, X), LABELS).mean()
    expected = nll + kl_loss(sharp, Normal(0.0, 1.0), reduction="sum") / 50
    loss = elbo_loss(linear, sharp, X, LABELS, KEY, num_data=50, prior=Normal(0.0, 1.0))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_floats_have_a_gaussian_likelihood_of_unit_scale(sharp, params):
    nll = np.mean(0.5 * np.square(vector(params, X) - VALUES) + 0.5 * np.log(2 * np.pi))
    _, terms = elbo_loss(vector, sharp, X, VALUES, KEY, num_data=6, return_terms=True)
    np.testing.assert_allclose(terms.nll, nll, rtol=1e-6)


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


def test_terms_hold_what_they_say(q):
    _, terms = elbo_loss(linear, q, X, LABELS, KEY, num_data=50, kl_weight=0.5, return_terms=True)
    np.testing.assert_allclose(terms.kl, kl_loss(q, reduction="sum"), rtol=1e-6)
    np.testing.assert_allclose(terms.weight, 0.01, rtol=1e-6)
    _, terms = elbo_loss(linear, q, X, LABELS, KEY, return_terms=True)
    np.testing.assert_allclose(terms.weight, 1e-3 / 12, rtol=1e-6)


def test_a_kl_weight_of_zero_has_the_kl_as_its_gradient(q):
    grad = jax.grad(lambda kl_weight: elbo_loss(linear, q, X, LABELS, KEY, num_data=10, kl_weight=kl_weight))(0.0)
    np.testing.assert_allclose(grad, kl_loss(q, reduction="sum") / 10, rtol=1e-6)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_samples_are_drawn_anew(q, num_samples):
    """The seed library averaged the same outputs over again; here n samples are n draws, averaged."""
    seen = []

    def spy(w, x):
        jax.debug.callback(lambda kernel: seen.append(float(kernel[0, 0])), w["kernel"])
        return linear(w, x)

    jax.block_until_ready(elbo_loss(spy, q, X, LABELS, KEY, num_samples))
    jax.effects_barrier()
    assert len(set(seen)) == num_samples


def test_an_identical_call_has_an_identical_value(q):
    loss = partial(elbo_loss, linear, q, X, LABELS, num_samples=3)
    assert loss(key=KEY) == loss(key=KEY)
    assert loss(key=KEY) != loss(key=jax.random.key(1))
    np.testing.assert_allclose(jax.jit(loss)(key=KEY), loss(key=KEY), rtol=1e-6)


# --- loss functions -------------------------------------------------------------------------------------------------


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
def test_per_example_trailing_and_scalar_losses_agree(sharp, params, loss_fn):
    y = jnp.ones((6, 3))
    expected = np.sum(np.square(np.asarray(linear(params, X)) - 1), axis=1).mean()
    _, terms = elbo_loss(linear, sharp, X, y, KEY, 2, loss_fn=loss_fn, return_terms=True)
    np.testing.assert_allclose(terms.nll, expected, rtol=1e-5)


def test_sequences_of_labels(params, sharp):
    y = jnp.stack([LABELS] * 4, axis=1)

    def apply_fn(w, x):
        return jnp.stack([linear(w, x)] * 4, axis=1)  # (B, T, C)

    _, terms = elbo_loss(apply_fn, sharp, X, y, KEY, return_terms=True)
    expected = 4 * optax.softmax_cross_entropy_with_integer_labels(linear(params, X), LABELS).mean()
    np.testing.assert_allclose(terms.nll, expected, rtol=1e-6)


def test_outputs_and_targets_may_be_trees(sharp):
    y = {"label": LABELS, "value": VALUES}

    def loss_fn(outputs, y):
        logits, (loc, rho) = outputs
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y["label"])
        return cross_entropy + illia_fn.gaussian_nll((loc, rho), y["value"])

    def apply_fn(w, x):
        return linear(w, x), (vector(w, x), jnp.float32(0.5))

    assert jnp.isfinite(elbo_loss(apply_fn, sharp, X, y, KEY, loss_fn=loss_fn))


def test_weights_are_a_weighted_mean(sharp, params):
    weights = jnp.array([0.0, 1.0, 2.0, 0.5, 0.0, 1.0])
    nll = optax.softmax_cross_entropy_with_integer_labels(linear(params, X), LABELS)
    _, terms = elbo_loss(linear, sharp, X, LABELS, KEY, weights=weights, return_terms=True)
    np.testing.assert_allclose(terms.nll, np.average(nll, weights=weights), rtol=1e-6)


@pytest.mark.parametrize("label", [-1, 999])
def test_padding_may_hold_any_label(q, label):
    weights = jnp.array([True, True, True, True, False, False])
    y = jnp.where(weights, LABELS, jnp.int32(label))
    loss = partial(elbo_loss, linear, num_data=10, weights=weights)
    value, grads = jax.jit(jax.value_and_grad(loss))(q, X, y, KEY)
    without = jax.jit(jax.value_and_grad(partial(elbo_loss, linear, num_data=10)))
    expected, expected_grads = without(q, X[:4], LABELS[:4], KEY)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    chex.assert_trees_all_close(grads, expected_grads, rtol=1e-4, atol=1e-7)


# --- models ---------------------------------------------------------------------------------------------------------


def test_aux_has_one_row_per_sample(q):
    def apply_fn(w, x):
        return linear(w, x), {"norm": jnp.sum(jnp.square(w["kernel"]))}

    _, aux = elbo_loss(apply_fn, q, X, LABELS, KEY, 5, has_aux=True)
    assert aux["norm"].shape == (5,)
    assert len(np.unique(aux["norm"])) == 5
    _, (terms, aux) = elbo_loss(apply_fn, q, X, LABELS, KEY, 1, has_aux=True, return_terms=True)
    assert aux["norm"].shape == (1,)
    assert terms.loss == elbo_loss(linear, q, X, LABELS, KEY, 1)
    (_, aux), _ = jax.value_and_grad(partial(elbo_loss, apply_fn, has_aux=True), has_aux=True)(q, X, LABELS, KEY, 2)
    assert aux["norm"].shape == (2,)


def test_a_model_with_a_key_gets_one_per_sample(sharp):
    def apply_fn(w, x, key):
        return linear(w, x), jax.random.uniform(key)

    loss = partial(elbo_loss, apply_fn, sharp, X, LABELS, num_samples=64, needs_key=True, has_aux=True)
    _, noise = loss(KEY)
    assert len(np.unique(noise)) == 64
    np.testing.assert_array_equal(noise, loss(KEY)[1])


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
    q = mean_field(jnp.zeros(()), scale=1.0)

    def kl(key, num_samples):
        loss = partial(elbo_loss, lambda w, x: w * x, q, VALUES, VALUES, key, num_samples, prior=Linear(), num_data=9)
        return loss(return_terms=True)[1].kl

    keys = jax.random.split(KEY, 1000)
    variances = [np.var(jax.jit(jax.vmap(partial(kl, num_samples=n)))(keys)) for n in (1, 8)]
    assert 0.7 < variances[0] / variances[1] / 8 < 1.4  # a standard error of sqrt(4 / 1000) = 0.06


@pytest.mark.parametrize("rows", ["targets", "outputs"])
def test_padding_may_be_nan(q, rows):
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])

    def apply_fn(w, x):
        outputs = vector(w, x)
        return outputs if rows == "targets" else jnp.where(weights > 0, outputs, jnp.nan)

    y = jnp.where(weights > 0, VALUES, jnp.nan) if rows == "targets" else VALUES
    run = jax.jit(jax.value_and_grad(partial(elbo_loss, apply_fn, num_data=10, weights=weights)))
    value, grads = run(q, X, y, KEY)
    without = jax.jit(jax.value_and_grad(partial(elbo_loss, vector, num_data=10)))
    expected, exact = without(q, X[:4], VALUES[:4], KEY)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    chex.assert_trees_all_close(grads, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("f", [jnp.sqrt, jnp.log])
def test_a_nan_loss_does_not_hide_its_gradient(q, f):
    """A gradient of 0 beside a loss that is NaN would pass every guard that looks at gradients."""
    loss = partial(
        elbo_loss, vector, loss_fn=lambda outputs, y: f(-1.0 - jnp.square(outputs - y)), num_data=10, prior=q
    )
    value, grads = jax.jit(jax.value_and_grad(loss))(q, X, VALUES, KEY)
    assert np.isnan(value)
    assert not np.any(grads["kernel"].loc[:, 0] == 0)  # NaN for the root, a number for the logarithm


def test_a_large_data_set(q):
    _, terms = elbo_loss(linear, q, X, LABELS, KEY, num_data=3_000_000_000, return_terms=True)
    np.testing.assert_allclose(terms.weight, 1 / 3e9, rtol=1e-6)
    assert jnp.isfinite(elbo_loss(linear, q, X, LABELS, KEY, num_data=np.int64(10)))


def test_partly_bayesian_and_deterministic_trees(params):
    q = mean_field(params, scale=0.1, mask={"kernel": True, "bias": False})
    grads = jax.grad(partial(elbo_loss, linear))(q, X, LABELS, KEY)
    assert np.any(grads["bias"] != 0)
    nll = optax.softmax_cross_entropy_with_integer_labels(linear(params, X), LABELS).mean()
    for convention in ({"num_data": 6}, {}):
        loss = elbo_loss(linear, params, X, LABELS, KEY, 3, kl_weight=0.0, **convention)
        np.testing.assert_allclose(loss, nll, rtol=1e-6)


def test_params_come_first_after_partial(q):
    loss = partial(elbo_loss, linear, num_samples=2, num_data=60)
    value, grads = jax.jit(jax.value_and_grad(loss))(q, X, LABELS, KEY)
    assert jax.tree.structure(grads) == jax.tree.structure(q)
    assert value.shape == ()


@pytest.mark.parametrize(("dtype", "num_samples"), [(jnp.bfloat16, 1), (jnp.bfloat16, 3), (jnp.float16, 3)])
def test_half_precision_is_reduced_in_float32(params, dtype, num_samples):
    q = mean_field(jax.tree.map(lambda leaf: leaf.astype(dtype), params), scale=1e-6)
    run = partial(elbo_loss, linear, num_samples=num_samples, num_data=9, return_terms=True)
    (loss, terms), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(q, X.astype(dtype), LABELS, KEY)
    assert loss.dtype == jnp.float32
    assert grads["kernel"].loc.dtype == dtype
    logits = linear(illia_fn.mean(q), X.astype(dtype)).astype(jnp.float32)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()
    np.testing.assert_allclose(terms.nll, nll, rtol=2e-5)  # a softmax in bfloat16 is off by 2e-3


def test_float64(x64, params):
    q = mean_field(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params), scale=0.1)
    x = X.astype(jnp.float64)
    prior = Normal(0.0, 0.1)
    loss, terms = elbo_loss(linear, q, x, LABELS, KEY, 2, num_data=10, prior=prior, return_terms=True)
    assert loss.dtype == jnp.float64
    kernel = np.asarray(illia_fn.mean(q)["kernel"])
    np.testing.assert_allclose(terms.kl, np.sum(0.5 * kernel**2 / 0.01), rtol=1e-12)  # q has the prior's scale
    _, terms = elbo_loss(linear, mean_field(illia_fn.mean(q), scale=1e-30), x, LABELS, KEY, 2, return_terms=True)
    logits = np.asarray(x) @ kernel
    nll = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), LABELS])
    np.testing.assert_allclose(terms.nll, nll, rtol=1e-12)


def test_vmap_over_keys_and_over_data_sets(q):
    loss = jax.jit(partial(elbo_loss, linear, num_data=10))
    keys = jax.random.split(KEY, 3)
    np.testing.assert_allclose(
        jax.vmap(lambda key: loss(q, X, LABELS, key))(keys), [loss(q, X, LABELS, key) for key in keys], rtol=1e-6
    )
    xs = jnp.stack([X, -X])
    np.testing.assert_allclose(
        jax.vmap(lambda x: loss(q, x, LABELS, KEY))(xs), [loss(q, x, LABELS, KEY) for x in xs], rtol=1e-6
    )


def test_legacy_and_other_keys(q):
    loss = jax.jit(partial(elbo_loss, linear, q, X, LABELS))
    assert loss(jax.random.PRNGKey(0)) == loss(jax.random.key(0))
    assert jnp.isfinite(loss(jax.random.key(0, impl="rbg")))


def test_gradients_reach_the_prior_the_inputs_and_closed_over_arrays(q):
    def loss(x, prior_scale, shift):
        return elbo_loss(
            lambda w, x: linear(w, x) + shift, q, x, LABELS, KEY, 2, prior=Normal(0.0, prior_scale), num_data=6
        )

    for grad in jax.jit(jax.grad(loss, (0, 1, 2)))(X, 0.1, jnp.array([[0.1, 0.0, 0.0]])):
        assert np.all(np.isfinite(grad))
        assert np.any(grad != 0)


@pytest.mark.promotes
def test_a_prior_without_a_closed_form(q):
    from numpyro.distributions import Cauchy

    options = {"num_samples": 200, "prior": Cauchy(0.0, 0.1), "num_data": 6, "return_terms": True}
    run = jax.jit(partial(elbo_loss, linear, **options))
    (loss, terms), (_, other) = (run(q, X, LABELS, jax.random.key(seed)) for seed in range(2))
    assert terms.kl != other.kl
    np.testing.assert_allclose(terms.kl, other.kl, rtol=0.05)
    assert jnp.isfinite(loss)


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
