"""Diagnoses of posteriors that are known: exact ones, wrong ones, and gradients of a known signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy import stats

import illia_fn
from illia_fn import Gaussian, Normal, diagnose, elbo_loss, iwae_loss, mean_field, simulation_based_calibration
from illia_fn.diagnostics.simulation import _p_values
from illia_fn.priors import EmpiricalBayes

KEY = jax.random.key(0)
X, Y = np.linspace(-1.0, 1.0, 8, dtype=np.float32), np.float32([0.1, -1.0, 0.3, 0.8, 0.2, 1.0, 1.4, 1.6])


def linear(w, x):
    return w["slope"] * x


def posterior(widen=1.0):
    """That of a slope under N(0, 1) and unit noise, with its standard deviation times a factor."""
    precision = 1.0 + np.sum(np.square(X))
    scale = widen / np.sqrt(precision)
    return {"slope": gaussian(np.sum(X * Y) / precision, np.log(np.expm1(scale)))}


def gaussian(*numbers):
    return Gaussian(*(jnp.asarray(np.float32(number)) for number in numbers))


@pytest.fixture(scope="module")
def of_the_posterior():
    return diagnose(linear, posterior(), X, Y, KEY, num_data=8)


def test_at_the_posterior_all_weights_are_the_evidence(of_the_posterior):
    found = of_the_posterior
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    evidence = stats.multivariate_normal(np.zeros(8), np.eye(8) + np.outer(x, x)).logpdf(y)
    np.testing.assert_allclose(found.log_weights, evidence, rtol=1e-5)
    np.testing.assert_allclose(found.effective_sample_size, 32, rtol=1e-4)
    assert abs(found.gap) < 1e-4


@pytest.fixture(scope="module")
def wide_and_narrow():
    return [diagnose(linear, posterior(factor), X, Y, KEY, 2000, num_data=8) for factor in (2.0, 0.02)]


def test_a_wide_posterior_has_a_gap(wide_and_narrow):
    """In expectation the gap of many draws is KL(q || posterior) = log(1 / 2) + 4 / 2 - 1 / 2."""
    found, _ = wide_and_narrow
    kl = -np.log(2.0) + 1.5
    error = 5 * np.std(found.log_weights) / np.sqrt(2000)
    assert abs(found.gap - kl) < error
    assert 500 < found.effective_sample_size < 2000


ELSEWHERE, OPTIONS = {"slope": gaussian(9.0, -0.4)}, {"num_data": 8, "prior": Normal(0.0, 2.0)}


@pytest.fixture(scope="module")
def of_elsewhere():
    return diagnose(linear, ELSEWHERE, X, Y, KEY, **OPTIONS)


def test_terms_are_those_of_the_losses(of_elsewhere):
    found = of_elsewhere

    @jax.jit
    def both(q):
        of_weights, of_terms, _, _ = jax.random.split(KEY, 4)
        terms = elbo_loss(linear, q, X, Y, of_terms, 32, return_terms=True, **OPTIONS)[1]
        return terms, *iwae_loss(linear, q, X, Y, of_weights, 32, return_log_weights=True, **OPTIONS)

    terms, bound, weights = both(ELSEWHERE)
    np.testing.assert_allclose([found.nll, found.kl], [terms.nll, terms.kl / 8], rtol=1e-6)
    np.testing.assert_allclose(found.negative_elbo, found.nll + found.kl)
    np.testing.assert_allclose(found.log_weights, weights, rtol=1e-5)
    np.testing.assert_allclose(found.gap, -8 * bound - np.mean(weights), rtol=1e-4)


def test_the_signal_of_a_gradient():
    """The gradient by loc of mean (w x - y)^2 / 2 is a c w - b: normal, with a known mean and deviation.

    One that is no number is shown, and a leaf without any has a signal of 0.
    """
    q = {
        "slope": gaussian(3.0, 0.0),
        "fixed": jnp.ones(2),
        "idle": jnp.ones(2),
        "bad": mean_field(jnp.zeros(()), scale=1.0),
    }

    def model(w, x):
        return w["slope"] * x + w["fixed"][0] + jnp.sqrt(0.0 * w["bad"])

    found = diagnose(model, q, X, Y, KEY, 2000, num_data=8)
    a, b = np.mean(np.square(X)), np.mean(X * (Y - 1.0))
    expected = (a * 3.0 - b + 3.0 / 8) / (a * float(q["slope"].stddev))
    np.testing.assert_allclose(found.gradient_signal["slope/loc"], expected, rtol=5 / np.sqrt(2 * 2000))
    of_slope, of_bad = ({f"{name}/loc", f"{name}/rho"} for name in ("slope", "bad"))
    assert set(found.gradient_signal) == {*of_slope, *of_bad, "fixed", "idle"}
    assert np.isnan(found.gradient_signal["bad/loc"])
    assert found.gradient_signal["idle"] == 0.0
    assert "nan" in str(found)


def test_the_weights_go_to_arviz_as_they_are(wide_and_narrow):
    """k-hat: small for a q that is wider than the posterior, of a heavy tail for one that is far too narrow."""
    k_wide, k_narrow = (array_stats.psislw(-found.log_weights)[1] for found in wide_and_narrow)
    assert k_wide < 0.0
    assert k_narrow > min(1 - 1 / np.log10(2000), 0.7) - 0.05  # it is near 1, and estimated low


def test_it_prints_and_says_no_more_than_it_knows(of_the_posterior, of_elsewhere):
    narrow = diagnose(linear, posterior(0.02), X, Y, KEY, num_data=8)
    for found, says in (
        (of_the_posterior, "No sign that q is elsewhere."),
        (narrow, "No sign that q is elsewhere. A q that is too narrow"),  # which weights of 32 draws do not show
        (of_elsewhere, "q is far from the posterior"),
    ):
        text = str(found)
        assert "Held-out data do." in text
        assert says in text
        assert "covers" not in text


def test_the_signal_is_that_of_the_coupling():
    """Noise of its own for each example averages out over the 400 of them."""
    x = np.random.default_rng(0).normal(size=400).astype(np.float32)
    q = {"slope": mean_field(jnp.array(0.1), scale=0.5)}
    options = {"num_data": 400, "num_samples": 64, "coupling": "decorrelated"}
    found = diagnose(lambda w, x: x * w["slope"], q, x, 0.3 * x, KEY, **options)
    of_one_network = 0.2 / 0.5  # |E g| / sd(g) of g = a (w - 0.3), but for the prior's small part
    assert found.gradient_signal["slope/loc"] > 5 * of_one_network


def test_keys_and_aux_of_the_model_and_many_weights_excuse_it():
    def with_aux(w, x, key):
        return jnp.mean(w["slope"]) * x + 0.01 * jax.random.normal(key), jnp.ones(3)

    q = {"slope": mean_field(jnp.full(200, 9.0), scale=0.5)}
    found = diagnose(with_aux, q, X, Y, KEY, num_data=8, needs_key=True, has_aux=True)
    assert np.isfinite(found.gap)
    assert "almost any q over 200 weights" in str(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnose(linear, posterior(), X, Y, KEY, 1, num_data=8), "num_samples must be at least 2"),
        (lambda: diagnose(linear, posterior(), X, Y, KEY, num_data=None), "num_data must be given"),
        (lambda: diagnose(linear, posterior(), X, Y, KEY, num_data=0), "num_data must be the number"),
        (lambda: diagnose(linear, illia_fn.mean(posterior()), X, Y, KEY, num_data=8), "no posterior node"),
        (
            lambda: diagnose(linear, posterior(), X, Y, KEY, num_data=8, prior=EmpiricalBayes(4.0, 9.0)),
            "the importance weights need a prior that does not depend on q",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"diagnose: .*{message}"):
        call()


# --- simulation-based calibration -----------------------------------------------------------------------------------


def draw_prior(key):
    return {"slope": jax.random.normal(key), "level": jax.random.normal(jax.random.fold_in(key, 1), (2,))}


def simulate(w, key):
    return w["slope"] * X + w["level"][0] + jax.random.normal(key, X.shape), w["level"]


def infer(data, _):
    """The exact posterior of slope and the first level; the second has no data."""
    y, _ = data
    design = np.stack([X, np.ones(8)], axis=1)
    variance = 1.0 / (np.sum(np.square(design), axis=0) + 1.0)  # independent: X is centred
    loc, rho = variance * (design.T @ y), np.log(np.expm1(np.sqrt(variance))).astype(np.float32)
    level = Gaussian(jnp.stack([loc[1], 0.0]), jnp.array([rho[1], np.log(np.expm1(1.0))], jnp.float32))
    return {"slope": Gaussian(loc[0], jnp.asarray(rho[0])), "level": level}


def test_an_exact_posterior_is_calibrated():
    found = simulation_based_calibration(draw_prior, simulate, infer, KEY, num_simulations=4000)
    assert found.ranks["level"].shape == (4000, 2)
    assert found.smallest > 0.05
    assert "no sign against it" in str(found)


def test_wrong_posteriors_are_not():
    """Numbers that are too narrow, too wide or elsewhere, beside one that was left right.

    The first two are of one array, in which they would cancel: the table shows the worst of them.
    """
    shapes = {"right": (), "scales": (2,), "shifted": ()}
    widen = {"right": 1.0, "scales": np.array([0.4, 2.5]), "shifted": 1.0}

    def draws(key):
        keys = dict(zip(shapes, jax.random.split(key, 3), strict=True))
        return {name: jax.random.normal(keys[name], shape) for name, shape in shapes.items()}

    def simulate(w, key):
        return jax.tree.map(jnp.add, w, draws(key))

    def infer(y, _):
        rho = {name: np.log(np.expm1(np.sqrt(0.5) * widen[name])) for name in shapes}
        shift = {"right": 0.0, "scales": 0.0, "shifted": 0.7 * np.sqrt(0.5)}
        return {name: Gaussian(0.5 * y[name] + shift[name], jnp.asarray(rho[name], jnp.float32)) for name in shapes}

    found = simulation_based_calibration(draws, simulate, infer, KEY, num_simulations=400)
    assert max(*found.p_values["scales"], found.p_values["shifted"]) < 1e-4
    assert found.p_values["right"] > 1e-3
    assert found.smallest < 1e-4
    assert "not calibrated" in str(found)
    (row,) = [line.split() for line in str(found).splitlines() if "scales" in line]
    assert row[0] in ("scales[0]", "scales[1]")
    assert abs(float(row[-1]) - 1.0) > 0.15


def test_a_posterior_that_is_no_number_is_refused():
    def infer(y, _):
        return Gaussian(jnp.where(y[0] > 1.0, jnp.nan, 0.5 * y[0]), jnp.array(0.0))

    with pytest.raises(ValueError, match=r"simulation_based_calibration: in \d+ of 200 simulations .* is not finite"):
        simulation_based_calibration(
            lambda key: jax.random.normal(key), lambda w, key: w + jax.random.normal(key, (1,)), infer, KEY
        )


def test_ranks_and_their_test_by_hand():
    """One draw, two bins: the rank is whether the draw lies below the truth, and chi^2 has one degree of freedom."""
    found = simulation_based_calibration(
        lambda key: jnp.float32(0.0) * jax.random.normal(key),
        lambda w, key: w,
        lambda data, key: Gaussian(jnp.array(10.0), jnp.array(0.0)),
        KEY,
        num_simulations=10,
        num_draws=1,
        num_bins=2,
    )
    np.testing.assert_array_equal(found.ranks, 0)
    np.testing.assert_allclose(found.p_values, 0.0015654, rtol=1e-4)  # P(chi^2_1 > 10)
    np.testing.assert_allclose(_p_values(np.zeros((400, 1)), 2), stats.chi2.sf(400, 1))  # 5e-89, 0 in float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 10}, r"num_draws \+ 1 must be a multiple of num_bins"),
        ({"num_simulations": 20}, "need at least 80 simulations"),
        (
            {"infer": lambda data, key: {"slope": infer(data, key)["slope"]}},
            "infer must return a posterior over the parameters",
        ),
    ],
)
def test_refusals_of_a_simulation(options, message):
    args = {"draw_prior": draw_prior, "simulate": simulate, "infer": infer, "key": KEY} | options
    with pytest.raises(ValueError, match=f"simulation_based_calibration: .*{message}"):
        simulation_based_calibration(**args)
