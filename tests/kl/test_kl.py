import inspect
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from families import array
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from numpyro.distributions.kl import kl_divergence as numpyro_kl
from scipy import stats

import illia_fn
from illia_fn import Gaussian, Normal, kl_divergence, kl_loss, kl_tree

F32_MAX = float(np.finfo(np.float32).max)
log_scales = st.floats(-30.0, 30.0)  # scales from 1e-30 to 1e30
locs = st.floats(-1e3, 1e3, width=32)
rhos = st.floats(-1e4, 1e4, width=32)
relative = st.sampled_from(
    [0.0, 1e-7, 3e-4, 0.05, 0.333, 0.334, 0.5, 9.0, -3e-4, -0.05, -0.2499, -0.2501, -0.9, -0.99, -0.9999]
)


of_rows = partial(settings, phases=(Phase.explicit, Phase.generate))  # which take long to be made smaller


def columns(*strategies):
    """Fifty rows at once, so that a program runs a few times in the place of hundreds."""
    return st.lists(st.tuples(*strategies), min_size=50, max_size=50)


def fifty(*rows):
    return [rows[place % len(rows)] for place in range(50)]


def exact_kl(q_loc, q_scale, p_loc, p_scale):
    """The textbook formula in long double, from the float32 (or float64) numbers that the function is given."""
    q_loc, q_scale, p_loc, p_scale = (np.longdouble(float(x)) for x in (q_loc, q_scale, p_loc, p_scale))
    ratio = q_scale / p_scale
    return ((ratio**2 - 1) / 2 - np.log(ratio)) + ((q_loc - p_loc) / p_scale) ** 2 / 2


def assert_close_or_overflows(value, exact, rtol):
    if exact < F32_MAX * 0.99:
        np.testing.assert_allclose(value, float(exact), rtol=rtol, atol=1e-19)
    elif exact > F32_MAX * 1.01:
        assert value == np.inf  # the KL itself is beyond float32


kl_of_normals = jax.jit(jax.vmap(lambda *numbers: kl_divergence(Normal(*numbers[:2]), Normal(*numbers[2:]))))


@pytest.mark.optimised
@of_rows(max_examples=6)
@given(columns(locs, log_scales, locs, log_scales))
@example(fifty((0.0, 0.0, 0.0, 0.0), (1e3, -30.0, -1e3, 30.0), (0.0, 30.0, 0.0, -30.0), (0.0, 0.0, 329.0, -16.75)))
def test_normal_to_normal_in_float32(rows):
    q_loc, q_log10, p_loc, p_log10 = np.array(rows).T
    q_loc, q_scale, p_loc, p_scale = np.float32([q_loc, 10.0**q_log10, p_loc, 10.0**p_log10])
    delta_exact = q_loc - p_loc  # the difference of two float32 numbers is rounded once
    values = kl_of_normals(q_loc, q_scale, p_loc, p_scale)
    for value, delta, of_q, of_p in zip(values, delta_exact, q_scale, p_scale, strict=True):
        assert_close_or_overflows(value, exact_kl(delta, of_q, 0.0, of_p), 3e-6)


@pytest.mark.optimised
@of_rows(max_examples=6)
@given(columns(log_scales, relative))
@example(fifty((0.0, 3e-4)))
def test_close_scales_do_not_cancel(rows):
    log10, change = np.array(rows).T
    p_scale = np.float32(10.0**log10)
    q_scale = np.float32(p_scale * (1 + change))
    exact = [float(exact_kl(0.0, q, 0.0, p)) for q, p in zip(q_scale, p_scale, strict=True)]
    values = kl_of_normals(0.0 * q_scale, q_scale, 0.0 * p_scale, p_scale)
    np.testing.assert_allclose(values, exact, rtol=2e-6, atol=2e-19)


@pytest.mark.optimised
def test_every_term_of_the_series_near_the_prior_counts():
    ratios = np.concatenate([np.linspace(0.75, 0.999, 200), np.linspace(1.001, 4 / 3, 200)]).astype(np.float32)
    values = jax.vmap(lambda ratio: kl_divergence(Normal(0.0, ratio), Normal(0.0, 1.0)))(ratios)
    exact = [exact_kl(0.0, ratio, 0.0, 1.0) for ratio in ratios]
    np.testing.assert_allclose(values, np.array(exact, float), rtol=3e-7)


@pytest.mark.optimised
def test_the_series_near_the_prior_in_float64(x64):
    ratios = np.array([1.333, 1.1, 0.9, 0.751])
    exact = [float(exact_kl(0.0, ratio, 0.0, 1.0)) for ratio in ratios]
    np.testing.assert_allclose(kl_of_normals(0.0 * ratios, ratios, 0.0 * ratios, ratios**0), exact, rtol=1e-14)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("q_rho", "p_rho"),
    [
        (-87.0, -86.99),
        (-76.3, -76.2),
        (-76.2, -76.3),
        (-87.4, -87.3),
        (-87.34, -87.33),
        (-200.0, -199.9),
        (-103.0, -50.0),
    ],
)
def test_scales_that_underflow_are_compared_by_their_logarithms(q_rho, p_rho):
    q, p = (Gaussian(jnp.float32(0.0), jnp.float32(rho)) for rho in (q_rho, p_rho))
    u = float(q.rho) - float(p.rho)  # log softplus(rho) = rho down here
    for kl in (kl_divergence, jax.jit(kl_divergence)):
        np.testing.assert_allclose(kl(q, p), 0.5 * np.expm1(2 * u) - u, rtol=2e-3)
        np.testing.assert_allclose(jax.grad(kl)(q, p).rho, np.expm1(2 * u), rtol=2e-3)


@pytest.mark.optimised
@pytest.mark.parametrize("rho", [-60.0, -87.0, -88.0, -150.0, -1e4])
@pytest.mark.parametrize("p_scale", [1e-33, 1e-20, 0.1])
def test_a_posterior_far_below_its_prior(rho, p_scale):
    q, p = Gaussian(jnp.float32(0.0), jnp.float32(rho)), Normal(0.0, p_scale)
    log_ratio = rho - np.log(np.float64(np.float32(p_scale)))
    exact = np.expm1(2 * log_ratio) / 2 - log_ratio
    np.testing.assert_allclose(kl_divergence(q, p), exact, rtol=3e-6)
    np.testing.assert_allclose(jax.grad(kl_divergence)(q, p).rho, np.expm1(2 * log_ratio), rtol=1e-4)


@pytest.mark.parametrize("p_scale", [1e38, 1.2e38, 3.3e38])
def test_a_prior_whose_reciprocal_is_subnormal(p_scale):
    for loc, rho in ((0.0, 0.5413249), (1e38, 1e38)):
        exact = exact_kl(loc, np.logaddexp(0.0, np.float64(np.float32(rho))), 0.0, np.float32(p_scale))
        for prior in (Normal(0.0, p_scale), Gaussian(array(0.0), array(p_scale))):
            kl, slopes = kl_and_slopes_of_one(Gaussian(array(loc), array(rho)), prior)
            np.testing.assert_allclose(kl, float(exact), rtol=3e-6)
            chex.assert_tree_all_finite(slopes)


kl_and_slopes_of_one = jax.jit(jax.value_and_grad(kl_divergence))


def test_a_kl_beyond_float32_is_infinite():
    assert (
        kl_divergence(Gaussian(jnp.float32(0.0), jnp.float32(1e18)), Gaussian(jnp.float32(0.0), jnp.float32(-75.0)))
        == np.inf
    )


@pytest.mark.optimised
def test_a_posterior_prior_in_its_tail_has_a_gradient():
    q, p = Gaussian(jnp.float32(0.0), jnp.float32(0.0)), Gaussian(jnp.float32(0.0), jnp.float32(-39.0))
    gradient = jax.grad(kl_divergence, 1)(q, p).rho
    np.testing.assert_allclose(gradient, 1 - (np.log(2) / np.exp(-39.0)) ** 2, rtol=1e-5)


@pytest.mark.parametrize(("loc", "scale"), [((3,), ()), ((), (3,)), ((4, 1), (4, 3))])
def test_a_normal_of_mixed_shapes_has_a_gradient(loc, scale):
    def kl(loc, scale):
        return kl_divergence(Normal(loc, scale), Normal(0.0, 1.0)).sum()

    gradients = jax.jit(jax.grad(kl, (0, 1)))(array(np.full(loc, 0.5)), array(np.full(scale, 0.5)))
    gradients = jax.device_get(gradients)
    count = np.prod(np.broadcast_shapes(loc, scale))
    np.testing.assert_allclose(gradients[0].sum(), 0.5 * count, rtol=1e-6)
    np.testing.assert_allclose(gradients[1].sum(), (0.5 - 2) * count, rtol=1e-6)


@pytest.mark.parametrize("prior", [Normal(0, 3), Normal(0.0, 3.0), Normal(jnp.float32(0), jnp.float32(3))])
def test_the_kl_has_the_dtype_of_q(x64, prior):
    for dtype in (jnp.float32, jnp.float64):
        q = Gaussian(jnp.ones(2, dtype), jnp.zeros(2, dtype))
        assert kl_loss(q, prior).dtype == dtype
        np.testing.assert_allclose(kl_loss(q, prior), exact_kl(1.0, np.log(2), 0.0, 3.0), rtol=1e-6)


def test_the_figure_of_the_design():
    value = kl_divergence(Normal(0.0, np.float32(1.0003)), Normal(0.0, np.float32(1.0)))
    np.testing.assert_allclose(value, 9.0e-8, rtol=2e-3)


@pytest.mark.optimised
@jax.jit
@jax.vmap
def kl_and_gradients(loc, rho, p_loc, p_scale):
    def kl(loc, rho, p_loc, p_scale):
        return kl_divergence(Gaussian(loc, rho), Normal(p_loc, p_scale))

    return jax.value_and_grad(kl, (0, 1, 2, 3))(loc, rho, p_loc, p_scale)


@pytest.mark.optimised
@of_rows(max_examples=4)
@given(columns(locs, rhos, locs, log_scales))
@example(fifty((0.0, -1e4, 0.0, -30.0), (0.0, 1e4, 0.0, 30.0), (0.0, -90.0, 0.0, 0.0), (0.0, 89.0, 0.0, 0.0)))
def test_gaussian_against_numpyro_in_float64(rows):
    q_loc, rho, p_loc, p_log10 = np.array(rows).T
    scale, p_scale = np.logaddexp(0.0, rho), 10.0**p_log10
    is_known = scale > 1e-150 * p_scale  # numpyro squares the ratio, which underflows further down
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        values, (of_loc, of_rho, *_) = kl_and_gradients(q_loc, rho, p_loc, p_scale)
        oracle = numpyro_kl(dist.Normal(q_loc, np.where(is_known, scale, p_scale)), dist.Normal(p_loc, p_scale))
    assert np.isfinite([values, of_loc, of_rho]).all()
    np.testing.assert_allclose(values[is_known], oracle[is_known], rtol=1e-13, atol=1e-13)


@pytest.mark.optimised
@of_rows(max_examples=4)
@given(columns(locs, rhos, locs, log_scales))
@example(fifty((0.0, -1e4, 0.0, 0.0), (1.0, -90.0, 1.0, 0.0), (1.0, 89.0, 0.0, 0.0), (1.0, 1e4, 0.0, -30.0)))
def test_gradients_in_float32(rows):
    """Against float64: equal where float32 can hold them, infinite where it cannot, never NaN."""
    q_loc, rho, p_loc, p_log10 = np.array(rows).T
    arguments = np.float32([q_loc, rho, p_loc, 10.0**p_log10])
    single = np.array(kl_and_gradients(*arguments)[1])
    with jax.enable_x64(True):
        double = np.array(kl_and_gradients(*arguments.astype(np.float64))[1])
    assert not np.isnan(single).any()
    for column, exacts, log10 in zip(single.T, double.T, p_log10, strict=True):
        for value, exact in zip(column, exacts, strict=True):
            if abs(exact) < 1e-3 * F32_MAX**0.5 and log10 > -18:  # no intermediate overflows
                np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-4 * max(1.0, 1 / 10.0**log10))
            elif abs(exact) < F32_MAX / 10:
                assert np.isfinite(value) or abs(exact) > F32_MAX**0.5


kl_and_grads = jax.value_and_grad(kl_loss, (0, 1))
kl_and_grads_jit = jax.jit(kl_and_grads)


@pytest.mark.optimised
@settings(max_examples=10)
@given(st.lists(st.tuples(locs, rhos), min_size=20, max_size=20))
@example([(0.0, -1e4), (0.0, 1e4), (0.0, -40.0), (1.0, 0.0)] * 5)
def test_q_equal_p_is_exactly_zero_with_zero_gradient(numbers):
    """Of twenty numbers at once: none is below zero, so that all of them are where their mean is."""
    loc, rho = zip(*numbers, strict=True)
    for dtype in (jnp.float32, jnp.bfloat16):
        q = Gaussian(jnp.asarray(loc, dtype), jnp.asarray(rho, dtype))
        for f in (kl_and_grads, kl_and_grads_jit):
            value, grads = f(q, q)
            assert value == 0.0
            assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads))


@pytest.mark.optimised
@of_rows(max_examples=3)
@given(columns(locs, log_scales))
def test_equal_normals_have_zero_kl_and_gradient(rows):
    loc, log10 = np.array(rows).T
    p = Normal(np.float32(loc), np.float32(10.0**log10))
    values_and_grads = jax.jit(jax.vmap(jax.value_and_grad(kl_divergence, (0, 1))))(p, p)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(values_and_grads))


def kl_of_four_numbers(theta):
    return kl_divergence(Normal(theta[0], jnp.exp(theta[1])), Normal(theta[2], jnp.exp(theta[3])))


def textbook(theta):
    q_loc, q_log, p_loc, p_log = theta
    return p_log - q_log + (jnp.exp(2 * q_log) + (q_loc - p_loc) ** 2) / (2 * jnp.exp(2 * p_log)) - 0.5


@jax.jit
def derivatives(theta):
    """Both modes for ours."""
    ours = jax.jacfwd(kl_of_four_numbers)(theta), jax.hessian(kl_of_four_numbers)(theta)
    return ours, (jax.grad(textbook)(theta), jax.hessian(textbook)(theta))


@pytest.mark.optimised
@pytest.mark.parametrize("p_loc", [0.3, -0.4])
@pytest.mark.parametrize("q_log_scale", [-3.0, -0.05, 0.0, 1.0])
def test_second_derivatives(x64, q_log_scale, p_loc):
    """Near and far from q = p: the Hessian of the textbook formula."""
    chex.assert_trees_all_close(*derivatives(jnp.array([0.3, q_log_scale, p_loc, 0.0])), rtol=1e-9, atol=1e-12)


# --- trees -----------------------------------------------------------------------------------------------------------

SEED_NETWORK = {
    "layer1": {"kernel": (64, 128), "bias": (128,)},
    "layer2": {"kernel": (128, 10), "bias": (10,)},
}


def seed_posterior():
    """The seed library's defaults: loc ~ 0.1 N(0, 1), rho = -7 + 0.1 N(0, 1)."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: Gaussian(
            array(0.1 * rng.normal(size=shape)),
            array(-7 + 0.1 * rng.normal(size=shape)),
        ),
        SEED_NETWORK,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def test_mean_is_over_all_variational_parameters():
    q, prior = seed_posterior(), Normal(0.0, 0.1)
    assert illia_fn.num_params(q) == 9610
    # E[log(0.1 / scale)] = log(0.1) + 7 and E[loc^2] / (2 * 0.1^2) = 1/2; the standard error of the mean of 9610 draws
    # is sqrt(1/2 + 0.1^2) / sqrt(9610)
    expected = np.log(0.1) + 7 + 0.5 - 0.5
    assert abs(kl_loss(q, prior) - expected) < 5 * np.sqrt(0.51 / 9610)
    np.testing.assert_allclose(kl_loss(q, prior), 4.71, atol=0.02)
    np.testing.assert_allclose(kl_loss(q, reduction="sum"), 9610 * kl_loss(q), rtol=1e-6)
    np.testing.assert_allclose(kl_loss(q, weight=0.25), 0.25 * kl_loss(q), rtol=1e-6)


def test_the_default_prior_is_standard_normal():
    q = seed_posterior()
    np.testing.assert_allclose(kl_loss(q), kl_loss(q, Normal(0.0, 1.0)), rtol=1e-6)


def test_kl_tree_has_the_defaults_of_kl_loss():
    of_loss, of_tree = (inspect.signature(f).parameters for f in (kl_loss, kl_tree))
    assert {name: repr(of_tree[name].default) for name in of_tree} == {
        name: repr(of_loss[name].default) for name in of_tree
    }
    assert of_tree["num_samples"].default == 1


def test_kl_tree_breaks_the_sum_down_by_path():
    q = seed_posterior()
    tree = kl_tree(q)
    assert list(tree) == [f"layer{i}/{name}" for i in (1, 2) for name in ("bias", "kernel")]
    np.testing.assert_allclose(sum(map(float, tree.values())), kl_loss(q, reduction="sum"), rtol=1e-6)
    np.testing.assert_allclose(tree["layer2/bias"], kl_divergence(q["layer2"]["bias"], Normal(0.0, 1.0)))


def test_deterministic_leaves_add_nothing():
    q = {"a": Gaussian(array(np.ones(3)), array(np.ones(3))), "b": array(np.ones(5))}
    np.testing.assert_allclose(kl_loss(q), kl_loss(q["a"]), rtol=1e-6)
    assert list(kl_tree(q)) == ["a"]


def test_paths_that_are_alike_are_told_apart():
    node = Gaussian(array(np.ones(3)), array(np.ones(3)))
    q = {"a/b": node, "a": {"b": node}, "c": {"d": node}}
    tree = kl_tree(q)
    assert list(tree) == ["['a']['b']", "['a/b']", "c/d"]
    np.testing.assert_allclose(sum(map(float, tree.values())), kl_loss(q, reduction="sum"), rtol=1e-6)


def test_a_tree_without_posteriors():
    assert kl_loss({"w": array(np.ones(3))}, reduction="sum") == 0.0
    assert kl_tree({"w": array(np.ones(3))}) == {}


def test_prior_prefix_tree():
    q = seed_posterior()
    prior = {"layer1": Normal(0.0, 1.0), "layer2": {"kernel": Normal(0.0, 0.1), "bias": Normal(1.0, 2.0)}}
    pairs = [(q["layer1"][name], Normal(0.0, 1.0)) for name in ("kernel", "bias")]
    pairs += [(q["layer2"][name], prior["layer2"][name]) for name in ("kernel", "bias")]
    exact = sum(np.sum(exact_kl_of_arrays(node, p)) for node, p in pairs)
    np.testing.assert_allclose(kl_loss(q, prior, reduction="sum"), exact, rtol=1e-6)


def exact_kl_of_arrays(q, p):
    """Far from the prior, where the textbook formula is precise in float64."""
    scale = np.logaddexp(0.0, np.asarray(q.rho, np.float64))
    p_loc, p_scale = np.asarray(p.loc, np.float64), np.asarray(p.scale, np.float64)
    squares = np.square(scale) + np.square(np.asarray(q.loc, np.float64) - p_loc)
    return np.log(p_scale / scale) + squares / (2 * p_scale**2) - 0.5


def test_a_posterior_tree_as_prior():
    q = seed_posterior()
    yesterday = jax.tree.map(lambda leaf: array(leaf + np.float32(0.1)), jax.device_get(q))
    nodes = [jax.tree.leaves(tree, is_leaf=illia_fn.is_posterior) for tree in (q, yesterday)]
    pairs = [(ours, Normal(p.loc, np.logaddexp(0.0, np.float64(p.rho)))) for ours, p in zip(*nodes, strict=True)]
    exact = sum(np.sum(exact_kl_of_arrays(*pair)) for pair in pairs) / 9610
    np.testing.assert_allclose(kl_loss(q, yesterday), exact, rtol=1e-4)
    assert kl_loss(q, q) == 0.0


def test_a_partly_bayesian_posterior_as_prior():
    q = {"a": Gaussian(array(np.ones(3)), array(np.ones(3))), "b": array(np.ones(5))}
    assert kl_loss(q, q) == 0.0
    np.testing.assert_allclose(kl_loss(q, {"a": Normal(0.0, 1.0), "b": None}), kl_loss(q["a"], Normal(0.0, 1.0)))


def test_a_prior_per_input_row():
    """Axes of size 1 are explicit; automatic relevance determination has one scale for each row of a kernel."""
    q = Gaussian(array(np.ones((4, 3))), array(np.full((4, 3), -2.0)))
    scale = array([[0.1], [0.2], [0.3], [0.4]])
    full = array(np.tile(scale, (1, 3)))
    np.testing.assert_allclose(kl_loss(q, Normal(0.0, scale)), kl_loss(q, Normal(0.0, full)), rtol=1e-6)


def test_empirical_bayes():
    """The gradient with respect to the prior vanishes at the scale that fits best: s^2 = mean(loc^2 + scale^2)."""
    q = seed_posterior()
    nodes = jax.tree.leaves(q, is_leaf=illia_fn.is_posterior)
    squares = [np.mean(np.square(np.asarray(node.loc)) + np.logaddexp(0, np.asarray(node.rho)) ** 2) for node in nodes]
    sizes = [node.loc.size for node in nodes]
    best = np.sqrt(np.average(squares, weights=sizes))
    slopes = jax.jit(jax.grad(lambda loc, scale: kl_loss(q, Normal(loc, scale)), (0, 1)))
    loc_grad, scale_grad = slopes(0.0, np.float32(best))
    np.testing.assert_allclose(scale_grad, 0.0, atol=1e-4)
    _, other = slopes(0.0, np.float32(0.2))
    np.testing.assert_allclose(other, 1 / 0.2 - best**2 / 0.2**3, rtol=1e-4)
    assert np.isfinite(loc_grad)


@pytest.mark.optimised
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes_accumulate_in_float32(dtype, transform):
    q = Gaussian(jnp.full(5000, 0.5, dtype), jnp.full(5000, -1.0, dtype))
    value = transform(kl_loss)(q, Normal(0.0, 1.0))
    assert value.dtype == jnp.float32
    scale = np.log1p(np.exp(-1.0))
    np.testing.assert_allclose(value, 0.5 * (scale**2 + 0.25 - 1) - np.log(scale), rtol=1e-5)


@pytest.mark.optimised
def test_many_parameters_in_float32():
    q = Gaussian(jnp.full(5_000_000, 0.1), jnp.full(5_000_000, -7.0))
    exact = float(kl_divergence(Gaussian(q.loc[:1], q.rho[:1]), Normal(0.0, 0.1)))
    np.testing.assert_allclose(kl_loss(q, Normal(0.0, 0.1), reduction="sum"), 5_000_000 * exact, rtol=1e-6)


def test_vmap_over_posteriors():
    q = Gaussian(array(np.arange(6.0).reshape(2, 3)), array(np.linspace(-3.0, 0.0, 6).reshape(2, 3)))
    exact = np.mean(exact_kl_of_arrays(q, Normal(0.0, 1.0)), axis=1)
    np.testing.assert_allclose(jax.jit(jax.vmap(kl_loss))(q), exact, rtol=1e-6)


# --- priors without a closed form ------------------------------------------------------------------------------------


@pytest.mark.promotes
@pytest.mark.parametrize(
    ("prior", "law"),
    [(dist.Cauchy(0.0, 0.5), stats.cauchy(0.0, 0.5)), (dist.StudentT(4.0, 0.0, 0.5), stats.t(4.0, 0.0, 0.5))],
)
def test_monte_carlo_kl_against_quadrature(prior, law):
    q, scale = Gaussian(array([0.3]), array([-1.0])), np.log1p(np.exp(-1.0))
    grid = np.linspace(-8, 8, 200_001) * scale + 0.3
    log_q = stats.norm(0.3, scale).logpdf(grid)
    exact = np.trapezoid(np.exp(log_q) * (log_q - law.logpdf(grid)), grid)
    keys = jax.random.split(jax.random.key(0), 2000)
    sampled = jax.jit(jax.vmap(lambda key: kl_divergence(q, prior, key=key, num_samples=10)))
    values = np.asarray(sampled(keys), np.float64)
    standard_error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - exact) < 5 * standard_error
    assert standard_error < 0.01 * exact  # the test is sharp


@pytest.mark.promotes
def test_gradient_of_monte_carlo_kl_against_quadrature():
    theta = np.float32([0.3, -1.0, 0.5])  # loc, rho, scale of the prior

    def quadrature(loc, rho, b):
        noise = jnp.linspace(-8.0, 8.0, 20_001)
        q = Gaussian(loc, rho)
        w = q.loc + q.scale * noise
        weights = jnp.exp(-0.5 * jnp.square(noise)) / np.sqrt(2 * np.pi) * (noise[1] - noise[0])
        return -q.entropy() - jnp.sum(weights * dist.Cauchy(0.0, b).log_prob(w))

    def estimate(loc, rho, b, key):
        return kl_divergence(Gaussian(loc, rho), dist.Cauchy(0.0, b), key=key, num_samples=4)

    @jax.jit
    def both(theta, keys):
        of_keys = jax.vmap(jax.grad(estimate, (0, 1, 2)), (None, None, None, 0))
        return jax.grad(quadrature, (0, 1, 2))(*theta), of_keys(*theta, keys)

    keys = jax.random.split(jax.random.key(0), 4000)
    exact, estimates = jax.device_get(both(theta, keys))
    for values, expected in zip(estimates, exact, strict=True):
        standard_error = values.std() / np.sqrt(len(keys))
        assert abs(values.mean() - expected) < 5 * standard_error
        assert standard_error < 0.05 * abs(expected)


@pytest.mark.promotes
def test_monte_carlo_kl_of_a_tree():
    q = seed_posterior()
    cauchy = dist.Cauchy(0.0, 0.1)
    prior = {"layer1": Normal(0.0, 0.1), "layer2": cauchy}
    key = jax.random.key(0)

    @jax.jit
    def told(q):
        tree = kl_tree(q, prior, key=key, num_samples=3)
        kl = lambda q: kl_loss(q, prior, reduction="sum", key=key, num_samples=3)  # noqa: E731
        return tree, jax.value_and_grad(kl)(q)

    tree, (total, grads) = told(q)
    np.testing.assert_allclose(sum(map(float, tree.values())), total, rtol=1e-6)
    exact = np.sum(exact_kl_of_arrays(q["layer1"]["bias"], Normal(0.0, 0.1)))
    np.testing.assert_allclose(tree["layer1/bias"], exact, rtol=1e-6)
    chex.assert_tree_all_finite(grads)


@pytest.mark.promotes
def test_leaves_have_noise_of_their_own():
    node = Gaussian(array(np.zeros(4)), array(np.full(4, -2.0)))
    kls = jax.jit(lambda q: kl_tree(q, dist.Cauchy(0.0, 0.1), key=jax.random.key(0)))
    tree = kls({"a": node, "b": node})
    assert tree["a"] != tree["b"]
