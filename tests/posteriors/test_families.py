"""Each family against dense linear algebra, at the ends of its range, and in trees of several."""

from functools import cache, partial

import chex
import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from families import at_condition, dense, flat, nodes, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_regression import problem

import illia_fn
from illia_fn import (
    Eigenbasis,
    FullCovariance,
    Gaussian,
    KTied,
    LowRank,
    MatrixNormal,
    Normal,
    covariance,
    full_covariance,
    k_tied,
    kl_divergence,
    low_rank,
    matrix_normal,
    mean_field,
    posterior_tree,
)

KEY = jax.random.key(0)
FAMILIES = sorted(nodes())
NEW = [name for name in FAMILIES if name != "Gaussian"]


@jax.jit
def told(q, key):
    """A draw, and all that a node says of itself."""
    w = q.sample(key)
    return w, q.log_prob(w), q.entropy(), q.stddev, covariance(q, lambda w: w)


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 30.0]))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_node_is_the_dense_gaussian(name, seed, scale):
    q = families.scaled(nodes(seed)[name], scale)
    w, log_prob, entropy, stddev, cov = told(q, jax.random.key(seed))
    exact = dense(q)
    np.testing.assert_allclose(cov, exact.cov, rtol=1e-4, atol=1e-5 * np.max(exact.cov))
    np.testing.assert_allclose(flat(stddev), np.sqrt(np.diag(exact.cov)), rtol=2e-5)
    np.testing.assert_allclose(entropy, exact.entropy(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(log_prob, exact.logpdf(flat(w)), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_in_float64(x64, name):
    q = families.wide(nodes()[name])
    w, log_prob, entropy, stddev, cov = told(q, KEY)
    assert {x.dtype for x in (log_prob, entropy, stddev, cov, w)} == {jnp.dtype("float64")}
    np.testing.assert_allclose(cov, dense(q).cov, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(entropy, dense(q).entropy(), rtol=1e-12)
    np.testing.assert_allclose(log_prob, dense(q).logpdf(flat(w)), rtol=1e-9)


@pytest.mark.parametrize("name", NEW)
def test_draws_have_the_mean_and_covariance(name):
    q = nodes()[name]
    draw = jax.jit(jax.vmap(lambda q, key: q.sample(key).ravel(), (None, 0)))
    draws = np.asarray(draw(q, jax.random.split(KEY, 20_000)))
    exact = dense(q)
    variances = np.diag(exact.cov)
    assert np.all(np.abs(draws.mean(0) - exact.mean) < 5 * np.sqrt(variances / len(draws)))
    standard_error = np.sqrt((exact.cov**2 + np.outer(variances, variances)) / len(draws))
    assert np.all(np.abs(np.cov(draws.T) - exact.cov) < 5 * standard_error)


@pytest.mark.parametrize("condition", [1e4, 1e8])
def test_ill_conditioned_covariances_in_float32(condition):
    q = at_condition(condition)
    w, entropies, log_probs, grads = ill_conditioned(q)
    for name, node in q.items():
        residual, cov = flat(w[name]) - flat(node.mean), families.covariance(node)
        log_det = np.linalg.slogdet(2 * np.pi * cov)[1]
        np.testing.assert_allclose(entropies[name], 0.5 * (log_det + 12), rtol=1e-6, atol=1e-5)
        exact = -0.5 * (log_det + residual @ np.linalg.solve(cov, residual))
        np.testing.assert_allclose(log_probs[name], exact, rtol=1e-4, atol=2e-3)
    chex.assert_tree_all_finite(grads)


@jax.jit
def ill_conditioned(q):
    w = {name: node.sample(KEY) for name, node in q.items()}

    def log_probs(q):
        found = {name: node.log_prob(w[name]) for name, node in q.items()}
        return sum(found.values()), found

    slopes, found = jax.grad(log_probs, has_aux=True)(q)
    return w, {name: node.entropy() for name, node in q.items()}, found, slopes


def test_half_precision_is_computed_in_float32():
    qs = {name: families.half(nodes()[name]) for name in NEW}
    entropies = jax.jit(lambda qs: {name: q.entropy() for name, q in qs.items()})(qs)
    for name, q in qs.items():
        w, stddev, log_prob = jax.eval_shape(told_of_a_draw, q)
        assert (w.dtype, stddev.dtype, log_prob.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32), name
        np.testing.assert_allclose(entropies[name], dense(q).entropy(), rtol=1e-4, atol=1e-4, err_msg=name)


def told_of_a_draw(q):
    w = q.sample(KEY)
    return w, q.stddev, q.log_prob(w)


def test_structured_families_are_the_full_node_of_their_covariance():
    qs = {name: nodes()[name] for name in ("LowRank", "MatrixNormal", "Eigenbasis", "KTied")}
    full = {name: FullCovariance.from_covariance(q.mean, families.covariance(q)) for name, q in qs.items()}
    kls = jax.jit(partial(jax.tree.map, kl_divergence, is_leaf=illia_fn.is_posterior))(qs, full)
    assert all(abs(kl) < 1e-5 for kl in kls.values()), kls


def test_the_upper_triangle_is_not_used():
    q, w = nodes()["FullCovariance"], normal(9, 4, 3)
    grads = jax.jit(jax.grad(lambda q: q.log_prob(w) + jnp.sum(q.sample(KEY))))(q).tril
    above = np.triu(np.ones((12, 12), bool), 1)
    np.testing.assert_array_equal(np.asarray(grads) == 0, above)


def test_the_split_of_a_matrix_normal_does_not_matter():
    q, w = nodes()["MatrixNormal"], normal(9, 4, 3)
    factors = [families.tril(raw) for raw in (q.row_tril, q.column_tril)]
    raws = [families.raw(by**2 * root @ root.T) for root, by in zip(factors, (8.0, 1 / 8), strict=True)]

    @jax.jit
    def told(*qs):
        return [q.log_prob(w) for q in qs], kl_divergence(*qs), [kl_divergence(q, Normal(0.0, 1.0)) for q in qs]

    log_probs, between, (kl, of_other) = told(q, MatrixNormal(q.loc, *raws))
    np.testing.assert_allclose(*log_probs, rtol=1e-5)
    assert abs(between) < 1e-9
    assert abs(kl - of_other) < 1e-4


def test_a_kernel_of_a_convolution_is_a_matrix():

    @jax.jit
    def made():
        q = matrix_normal({"k": normal(0, 3, 2, 2, 5)}, scale=0.1)["k"]
        equinox = matrix_normal({"k": normal(0, 5, 2, 3, 2)}, scale=0.1, out_axis=0)["k"]
        return (q, equinox), [told_of_a_draw(node) for node in (q, equinox)]

    (q, equinox), told = made()
    assert (q.row_tril.shape, q.column_tril.shape) == ((12, 12), (5, 5))
    assert (equinox.row_tril.shape, equinox.column_tril.shape) == ((5, 5), (12, 12))
    tied = jax.eval_shape(lambda w: k_tied(w, out_axis=0), normal(0, 5, 2, 3))
    assert tied.column_rho.shape == (6, 2)
    for node, (draw, stddev, log_prob) in zip((q, equinox), told, strict=True):
        assert draw.shape == node.loc.shape
        np.testing.assert_allclose(log_prob, dense(node).logpdf(flat(draw)), rtol=1e-5)
        np.testing.assert_allclose(stddev, 0.1, rtol=1e-5)


def test_no_matrix_is_larger_than_it_has_to_be():
    """A matrix normal of 512 x 512 and a low rank of 2^18 numbers, whose dense covariances would take 2^36."""
    for family in (matrix_normal, partial(low_rank, rank=4, key=KEY)):
        q = jax.eval_shape(family, jax.ShapeDtypeStruct((512, 512), jnp.float32))
        step = jax.jit(jax.grad(lambda q: kl_divergence(q, Normal(0.0, 1.0)) + q.log_prob(q.sample(KEY))))
        memory = step.lower(q).compile().memory_analysis()
        own = sum(4 * leaf.size for leaf in jax.tree.leaves(q))
        assert memory.temp_size_in_bytes < 10 * own, (type(q), memory.temp_size_in_bytes / own)


# --- estimators --------------------------------------------------------------------------------------------------


X, NOISE = np.asarray(normal(2, 30, 3)), np.asarray(normal(3, 30))
Y = X @ np.array([0.5, -1.0, 0.2], np.float32) + NOISE
DESIGN = np.linalg.qr(X)[0]  # inputs whose weights are independent under the posterior


def at_the_posterior():
    """Of a regression with the inputs of each family, whose every one holds the posterior."""
    cov = np.linalg.inv(np.asarray(X.T @ X, np.float64) + np.eye(3))
    loc = families.array(cov @ (X.T @ Y))
    values, vectors = np.linalg.eigh(cov)
    full, one = FullCovariance(loc, families.raw(cov)), np.float32(np.log(np.expm1([[1.0]])))
    factor = vectors[:, 1:] * np.sqrt(values[1:] - values[0])  # beside the smallest eigenvalue on the diagonal
    tied = KTied(
        families.array((DESIGN.T @ Y)[None] / 2.0), one.repeat(2, axis=1), rho(np.full((3, 2), np.sqrt(1 / 8)))
    )
    return {
        "FullCovariance": full,
        "LowRank": LowRank(loc, rho(np.full(3, np.sqrt(values[0]))), families.array(factor)),
        "MatrixNormal": MatrixNormal(loc[None], one, full.tril),  # one row, whose columns are the weights
        "Eigenbasis": Eigenbasis(
            loc[None], rho(np.sqrt(values)[None]), np.eye(1, dtype=np.float32), families.array(vectors)
        ),
        "KTied": tied,
    }


def rho(scale):
    return families.array(np.log(np.expm1(scale)))


def test_sticking_the_landing_has_no_noise_at_the_posterior():
    """Five regressions at once, each with weights of a family of its own."""
    q, xs = at_the_posterior(), {name: DESIGN if name == "KTied" else X for name in NEW}

    def apply_fn(w, xs):
        return jnp.stack([xs[name] @ w[name].reshape(3) for name in NEW], axis=1)

    def loss(q, key):
        options = {"num_data": 30, "prior": Normal(0.0, 1.0), "estimator": "doubly_reparameterised"}
        return illia_fn.elbo_loss(apply_fn, q, xs, np.tile(Y[:, None], (1, len(NEW))), key, **options)

    for name, slopes in jax.jit(jax.grad(loss))(q, KEY).items():
        size = np.max(np.abs(flat(slopes)))
        assert size < 1e-4, (name, size)  # where the reparameterised one is of the order of 1


def test_the_full_node_reaches_the_evidence_and_low_rank_rises_with_its_rank():
    """By the exact ELBO, log Z - KL(q || posterior), whose every KL is one of ours."""
    it = problem("energy")
    start = families.array(it.loc)
    exact = FullCovariance(start, families.raw(np.linalg.inv(it.precision)))
    independent = kl_divergence(Gaussian(start, rho(it.scale)), exact)  # of rank 0, at its optimum
    np.testing.assert_allclose(it.log_evidence - float(independent), -338.9230, atol=2e-3)
    of_rank_3, full = fitted([partial(low_rank, rank=3, key=KEY), full_covariance], start, exact)
    assert independent > of_rank_3 + 1.0
    assert of_rank_3 > full
    assert full < 1e-3


def fitted(constructors, loc, exact):
    """What is left of the KL of each after its training, all of them at once."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, 1500))

    def kls(qs):
        return jnp.stack([kl_divergence(q, exact) for q in qs])

    def step(carry, _):
        qs, state = carry
        updates, state = optimizer.update(jax.grad(lambda qs: kls(qs).sum())(qs), state, qs)
        return (optax.apply_updates(qs, updates), state), ()

    @jax.jit
    def train(loc):
        qs = [constructor(loc) for constructor in constructors]
        (qs, _), _ = jax.lax.scan(step, (qs, optimizer.init(qs)), length=1500)
        return kls(qs)

    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(train(loc))


# --- trees -------------------------------------------------------------------------------------------------------

PARAMS = {
    "body": {"kernel": normal(0, 4, 5), "bias": normal(3, 5)},
    "mid": {"kernel": normal(1, 5, 5), "bias": normal(4, 5)},
    "head": {"kernel": normal(2, 5, 2), "bias": normal(5, 2)},
}
PATTERNS = {
    "body/kernel": matrix_normal,
    "mid/kernel": partial(k_tied, scale=0.2),
    "head/kernel": partial(low_rank, rank=2, key=KEY),
}


def apply_fn(w, x):
    h = jnp.tanh(x @ w["body"]["kernel"] + w["body"]["bias"][None])
    h = jnp.tanh(h @ w["mid"]["kernel"] + w["mid"]["bias"][None])
    return h @ w["head"]["kernel"] + w["head"]["bias"][None]


@cache
def mixed():
    patterns = {**PATTERNS, "body/bias": mean_field, "free": full_covariance}
    return jax.jit(lambda params: posterior_tree(params, patterns))(PARAMS | {"free": PARAMS["head"]})


def test_scales_that_all_but_vanish_beside_the_rest():
    """A diagonal whose ratio to what lies beside it has a square beyond float32; and k-tied scales that underflow."""

    @jax.jit
    def told(q, tied):
        kl = jax.value_and_grad(lambda q: kl_divergence(q, Normal(0.0, 1.0)))(q)
        slopes = jax.grad(lambda q: jnp.sum(jnp.square(q.untied().sample(KEY) - 1.0)))(tied)
        return q.stddev, kl, slopes, (tied.untied().log_scale, tied.log_scale)

    for rho in (-50.0, -200.0):
        q = FullCovariance(np.zeros(2, np.float32), np.float32([[0.0, 0.0], [1.0, rho]]))
        tied = KTied(np.zeros((2, 2), np.float32), *[np.full((2, 1), rho, np.float32)] * 2)
        stddev, (kl, slopes), of_tied, log_scales = told(q, tied)
        np.testing.assert_allclose(stddev, [np.log(2.0), 1.0], rtol=1e-5)
        exact = 0.5 * (np.log(2.0) ** 2 + 1.0) - 1.0 - np.log(np.log(2.0)) - rho
        np.testing.assert_allclose(kl, exact, rtol=1e-5)
        chex.assert_tree_all_finite((slopes, of_tied))
        np.testing.assert_allclose(*log_scales, rtol=1e-6)


def test_families_mix_in_one_tree(tmp_path):
    q = mixed()
    kinds = [type(q["body"]["kernel"]), type(q["mid"]["kernel"]), type(q["head"]["kernel"]), type(q["free"])]
    assert kinds == [MatrixNormal, KTied, LowRank, FullCovariance]
    moments = jax.eval_shape(lambda q: (illia_fn.sample(KEY, q), illia_fn.mean(q), illia_fn.stddev(q)), q)
    chex.assert_trees_all_equal_shapes_and_dtypes(*moments)
    x, y = normal(5, 8, 4), normal(6, 8, 2)

    @jax.jit
    def loss(q, key):
        return illia_fn.elbo_loss(apply_fn, q, x, y, key, num_data=8)

    one, other = loss(q, KEY), loss(q, jax.random.key(1))
    assert one != other
    assert np.isfinite([one, other]).all()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "q", q)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "q", q)
        raw = checkpointer.restore(tmp_path / "q")
    chex.assert_trees_all_equal(restored, q)
    chex.assert_trees_all_equal(illia_fn.frameworks.restore_nodes(raw), q)


def test_blocks_of_a_covariance():
    q = mixed()
    pick = jax.jit(covariance, static_argnums=1)
    block = lambda w: (w["free"]["kernel"][1], w["body"]["bias"][:2], w["body"]["kernel"][:, 0])  # noqa: E731
    picked = np.asarray(pick(q, block))
    assert picked.shape == (8, 8)
    free = families.covariance(q["free"])[np.ix_([4, 5], [4, 5])]  # after two numbers of the bias
    body = families.covariance(q["body"]["kernel"])[np.ix_(range(0, 20, 5), range(0, 20, 5))]
    np.testing.assert_allclose(picked[:2, :2], free, rtol=1e-5)
    np.testing.assert_allclose(picked[4:, 4:], body, rtol=1e-5, atol=1e-9)
    assert np.all(picked[:2, 2:] == 0)
    assert covariance({"b": np.ones(3)}, lambda w: w["b"][0]) == 0
    # of one number twice
    twice = pick(q, lambda w: jnp.stack([w["free"]["bias"][1], w["free"]["bias"][1]]))
    np.testing.assert_allclose(twice, families.covariance(q["free"])[1, 1], rtol=1e-6)


def test_the_law_of_linearised_outputs_is_that_of_the_dense_covariance():
    x, qs = normal(5, 1, 4), nodes()

    @jax.jit
    def covariances(qs):
        return {name: illia_fn.linearise(lambda w, x: x @ w, q, x).covariance for name, q in qs.items()}

    jacobian = np.kron(np.asarray(x, np.float64), np.eye(3))
    for name, found in covariances(qs).items():
        exact = jacobian @ families.covariance(qs[name]) @ jacobian.T
        np.testing.assert_allclose(np.asarray(found)[0], exact, rtol=1e-4, atol=1e-5, err_msg=name)


def test_tools_take_such_trees():
    q, x, y = mixed(), normal(5, 8, 4), np.arange(8) % 2
    table = illia_fn.summary(q)
    assert {row.family for row in table.leaves} >= {"MatrixNormal", "KTied", "LowRank", "FullCovariance", "Gaussian"}
    each = jax.tree.leaves(q, is_leaf=illia_fn.is_posterior)
    kls = [kl_divergence(node, Normal(0.0, 1.0)) for node in each if illia_fn.is_posterior(node)]
    np.testing.assert_allclose(table.kl, sum(map(float, kls)), rtol=1e-5)
    assert all(row.exact for row in table.leaves)
    some = {"free": q["free"], "head": q["head"]["kernel"]}
    chex.assert_trees_all_equal_shapes(illia_fn.prune(some, 0.5), illia_fn.mean(some))
    labels = illia_fn.labels(q)
    assert (labels["free"].loc["bias"], labels["free"].tril) == ("loc", "rho")
    slow = illia_fn.slow_scales(0.5)
    slower, _ = jax.jit(lambda q: slow.update(q, slow.init(q)))(q)
    np.testing.assert_array_equal(slower["head"]["kernel"].factor, 0.5 * np.asarray(q["head"]["kernel"].factor))
    np.testing.assert_array_equal(slower["head"]["kernel"].loc, q["head"]["kernel"].loc)
    with pytest.raises(
        ValueError, match=r"natural_gradient: params.* is a MatrixNormal, and the rule is that of Gaussi"
    ):
        illia_fn.natural_gradient(num_data=8).init({"w": q["body"]["kernel"]})
    with pytest.raises(
        ValueError, match=r"pruning_curve at .*: there is no KL for each weight, as MatrixNormal under Normal"
    ):
        illia_fn.pruning_curve(apply_fn, q, x, y, KEY, 2, num_data=8)


def test_a_coupling_takes_every_family():
    q, x = mixed(), normal(5, 8, 4)
    rows = {leaf.path: leaf for leaf in illia_fn.explain_coupling(apply_fn, q, x).leaves}
    assert rows["mid/kernel"].strategy == "local_reparam"
    assert {row.strategy for path, row in rows.items() if "free" not in path} <= {"local_reparam", "flipout"}
    outputs = illia_fn.decorrelate(lambda w, x: x @ w)
    both = jax.jit(lambda tied: [outputs(node, x, KEY) for node in (tied, tied.untied())])
    np.testing.assert_allclose(*both(nodes()["KTied"]), rtol=1e-6)


# --- refusals ----------------------------------------------------------------------------------------------------

ERRORS = {
    "low rank beyond the numbers": (lambda: low_rank(jnp.ones(3), 4, key=KEY), "low_rank: rank must be at most the 3 "),
    "low rank of nothing": (lambda: low_rank(jnp.ones(3), 0, key=KEY), "low_rank: rank must be an int of at least 1"),
    "low rank without a key": (lambda: low_rank(jnp.ones(3), 1, key=0), "low_rank: key must be a single PRNG key"),
    "an integer leaf": (
        lambda: full_covariance({"n": jnp.arange(3)}),
        r"full_covariance: params\['n'\] must hold float",
    ),
    "a node again": (lambda: low_rank(mixed(), 1, key=KEY), r"low_rank: params.* is already a posterior node"),
    "a negative scale": (lambda: full_covariance(jnp.ones(3), scale=-1.0), "full_covariance: scale.* must be positive"),
    "no numbers": (lambda: full_covariance(jnp.ones((0, 2))), "full_covariance: params has no numbers"),
    "a bias": (
        lambda: matrix_normal(PARAMS),
        r"matrix_normal: params\['body'\]\['bias'\] has shape \(5,\) and is no ker",
    ),
    "k beyond the rank": (
        lambda: k_tied(jnp.ones((9, 3)), k=4),
        "k_tied: k must be at most the rank of params, 3, got 4",
    ),
    "another axis": (lambda: matrix_normal(jnp.ones((2, 2)), out_axis=1), "matrix_normal: out_axis must be -1"),
    "a scale for each number": (
        lambda: k_tied(jnp.ones((2, 2)), scale=jnp.ones((2, 2))),
        "k_tied: scale at params must",
    ),
    "not positive": (
        lambda: FullCovariance.from_covariance(jnp.ones(2), jnp.ones((2, 2))),
        "covariance must be positive",
    ),
    "not symmetric": (
        lambda: FullCovariance.from_covariance(jnp.ones(2), jnp.array([[1.0, 0.5], [0.0, 1.0]])),
        "from_covariance: covariance must be symmetric",
    ),
    "shapes of a LowRank": (lambda: LowRank(jnp.ones(3), jnp.ones(3), jnp.ones(3)), "LowRank: for a loc of P = 3"),
    "shapes of a FullCovariance": (lambda: FullCovariance(jnp.ones(3), jnp.ones((3, 2))), "FullCovariance: for a loc"),
    "shapes of a MatrixNormal": (
        lambda: MatrixNormal(jnp.ones((2, 6)), jnp.ones((3, 3)), jnp.ones((4, 4))),
        r"MatrixNormal: row_tril must be \(p, p\)",
    ),
    "a kernel without numbers": (
        lambda: illia_fn.eigenbasis({"k": jnp.ones((0, 3))}),
        r"eigenbasis: params\['k'\] has shape \(0, 3\) and is no kernel",
    ),
    "shapes of a KTied": (
        lambda: KTied(jnp.ones((2, 3)), jnp.ones((2, 2)), jnp.ones((3, 1))),
        "KTied: row_rho must be",
    ),
    "w of another shape": (
        lambda: nodes()["LowRank"].log_prob(jnp.ones(12)),
        "LowRank.log_prob: w must have the struct",
    ),
    "a pattern of nothing": (
        lambda: posterior_tree(PARAMS, {"heads": mean_field}),
        "posterior_tree: the pattern 'heads' matches no path of params as a whole. There are 'head/",
    ),
    "patterns that overlap": (
        lambda: posterior_tree(PARAMS, {".*/kernel": mean_field, "head": full_covariance}),
        r"posterior_tree: the patterns '\.\*/kernel' and 'head' both name 'head/kernel'",
    ),
    "the same, the other way round": (
        lambda: posterior_tree(PARAMS, {"head": full_covariance, ".*/kernel": mean_field}),
        r"posterior_tree: the patterns 'head' and '\.\*/kernel' both name 'head/kernel'",
    ),
    "an integer leaf under a pattern": (
        lambda: posterior_tree({"a": {"n": jnp.arange(3), "w": jnp.ones(3)}}, {"a": mean_field}),
        "posterior_tree: the pattern 'a' names 'a/n', which holds no floating-point numbers",
    ),
    "what the constructor refuses": (
        lambda: posterior_tree(PARAMS, {"head": partial(low_rank, rank=99, key=KEY)}),
        "posterior_tree: at 'head', by the pattern 'head': low_rank: rank must be at most",
    ),
    "no family": (
        lambda: posterior_tree(PARAMS, {"head": "full"}),
        "posterior_tree: the family of 'head' must be a fun",
    ),
    "a family that is none": (lambda: posterior_tree(PARAMS, {"head": lambda w: w}), "posterior_tree: .* returns none"),
    "no patterns": (lambda: posterior_tree(PARAMS, mean_field), "posterior_tree: families must be a dict"),
    "a block that is computed": (
        lambda: covariance(mixed(), lambda w: 2 * w["head"]["bias"]),
        "covariance: block must",
    ),
    "an affine block": (
        lambda: covariance(mixed(), lambda w: 2 * w["head"]["bias"][1] - w["head"]["bias"][0]),
        "covariance: block must",
    ),
    "a block that adds and subtracts": (
        lambda: covariance(mixed(), lambda w: w["head"]["bias"].sum() - 2 * w["head"]["bias"][0]),
        "covariance: block must",
    ),
    "a block that is no function": (lambda: covariance(mixed(), "head"), "covariance: block must be a function"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name):
    call, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_the_outermost_match_counts():
    patterns = {"body|head": full_covariance, "mid/.*": partial(low_rank, rank=1, key=KEY)}
    q = jax.eval_shape(lambda params: posterior_tree(params, patterns), PARAMS)
    assert [type(q[name]).__name__ for name in ("body", "head")] == ["FullCovariance"] * 2
    assert [type(node).__name__ for node in q["mid"].values()] == ["LowRank"] * 2
    whole = jax.eval_shape(lambda params: posterior_tree(params, {".*": full_covariance}), PARAMS)
    assert type(whole) is FullCovariance


LINEN = {
    "params": {"bn": {"scale": jnp.ones(2)}, "head": {"kernel": jnp.ones((2, 2))}},
    "batch_stats": {"bn": {"mean": jnp.zeros(2)}},
}


@pytest.mark.parametrize("pattern", [".*bn/.*", "batch_stats/bn"])
def test_a_pattern_that_reaches_a_statistic_is_refused(pattern):
    message = r"posterior_tree: params\['batch_stats'\]\['bn'\]\['mean'\] is a statistic of the model \(batch_stats\)"
    with pytest.raises(ValueError, match=message):
        posterior_tree(LINEN, {pattern: mean_field})


def test_statistics_that_stay_deterministic_are_fine():
    unmasked = {"params": True, "batch_stats": False}
    for families_ in ({"params/.*": mean_field}, {".*": partial(mean_field, mask=unmasked)}):
        q = posterior_tree(LINEN, families_)
        assert illia_fn.is_posterior(q["params"]["bn"]["scale"])
        assert not illia_fn.is_posterior(q["batch_stats"]["bn"]["mean"])


def test_what_stays_deterministic_is_a_copy():
    params = {"w": jnp.ones(2), "b": jnp.arange(3.0), "name": "relu", "key": jax.random.key(0)}
    q = posterior_tree(params, {"w": mean_field})
    assert q["b"] is not params["b"]
    assert q["name"] == "relu"
    q["b"].delete()
    assert params["b"].sum() == 3.0  # as after a step that donates q


def test_a_covariance_that_no_machine_holds_is_refused():
    with pytest.raises(ValueError, match=r"full_covariance: params has 1000000 numbers, .* 4e.03 GB. Take low_rank"):
        illia_fn.full_covariance(jnp.zeros((1000, 1000)))


def test_a_part_that_becomes_a_model_of_its_own_is_refused():
    with pytest.raises(TypeError, match=r"must return what stands for 'a' as it is.*rank_one is of a whole model"):
        illia_fn.posterior_tree({"a": {"kernel": jnp.ones((2, 3))}}, {"a": illia_fn.rank_one})
