"""Every mistake is found with its remedy, and a right setting has no findings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special

import illia_fn
from illia_fn import Normal, check_setup, mean_field
from illia_fn.diagnostics import _findings
from illia_fn.diagnostics.setup import _costs, _worth
from illia_fn.objectives import DataTerm

pytestmark = pytest.mark.promotes

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
LABELS, VALUES = RNG.integers(0, 2, 40).astype(np.int32), X[:, 0] + np.float32(0.1)
PARAMS = {"w": RNG.normal(size=(3, 2)).astype(np.float32) / 2}
IS_DATA = (np.arange(40) < 30).astype(np.float32)  # the others are padding


def classes(w, x):
    return x @ w["w"]


def values(w, x):
    return classes(w, x)[:, 0]


def dropping(w, x):
    return classes(w, x) * jax.random.bernoulli(jax.random.key(3), 0.5, (len(x), 2))


def with_key(w, x, key):
    return classes(w, x) * jax.random.bernoulli(key, 0.5, (len(x), 2))


def check(apply_fn=classes, q=None, x=X, y=LABELS, **options):
    q = mean_field(PARAMS) if q is None else q
    return check_setup(apply_fn, q, x, y, KEY, **{"num_data": 100, **options})


def test_nothing_to_find():
    def with_aux(w, x, key):
        return with_key(w, x, key), {"aux": x}

    assert not check(with_aux, needs_key=True, has_aux=True).findings
    padded = {"y": np.where(IS_DATA > 0, VALUES, np.float32(-999.0)), "weights": IS_DATA}
    assert not check(values, **padded, prior=Normal(0.0, 0.01), kl_weight=1e-3).findings
    assert not check(values, y=100 * VALUES, loss_fn=lambda f, y: jnp.square(f - y / 100)).findings


def test_what_is_no_array_stays_as_it_is():
    def apply_fn(w, batch):
        return classes(w, batch["x"]) if batch["is_clean"] and batch["name"] == "digits" else None

    assert not check(apply_fn, x={"x": X, "is_clean": True, "name": "digits"}).findings


def test_its_numbers():
    report = check()
    nll = -special.log_softmax(X @ PARAMS["w"], axis=1)[np.arange(40), LABELS].mean()
    np.testing.assert_allclose(report.nll, nll, rtol=1e-5)
    np.testing.assert_allclose(report.kl, illia_fn.kl_loss(mean_field(PARAMS), reduction="sum") / 100, rtol=1e-5)
    means = np.sum(np.square(PARAMS["w"])) / 2
    np.testing.assert_allclose(report.cost_of_means, means / 100, rtol=1e-5)
    assert not report.findings
    assert "nothing was found" in str(report)


def test_scales_that_no_step_moves():
    q = mean_field(PARAMS)
    q = {**q, "w": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), q["w"])}
    problem, remedy = next(_findings.of_posterior(q))
    assert "params['w'] is in half precision, which rounds steps of a scale to nothing" in problem
    assert "float32" in remedy
    assert not list(_findings.of_posterior(mean_field(PARAMS)))


def in_a_dict(w, x):
    return classes(w, x["a"])


def shifted(w, x):
    return classes(w, x) + w["c"]


WITH_STATISTIC = {**mean_field(PARAMS), "bn": {"running_mean": mean_field(jnp.zeros(2))}}


GONE = jax.tree.map(lambda leaf: 1e-9 * leaf, PARAMS)


def test_padding_and_locations_do_not_count():
    q, y = mean_field({"w": PARAMS["w"][:, 0]}), np.where(IS_DATA > 0, VALUES, np.float32(-1e6))
    padded = check(lambda w, x: x @ w["w"], q, y=y, weights=IS_DATA, prior=Normal(0.0, 0.01))
    assert ["may flatten" in finding.problem for finding in padded.findings] == [True]
    q = mean_field(PARAMS)
    assert _costs(q, illia_fn.priors.centred(PARAMS, 0.01), KEY, 100)[1] == 0.0
    means = np.sum(np.square(PARAMS["w"] - 3.0)) / 2
    np.testing.assert_allclose(_costs(q, dist.Normal(3.0, 1.0), KEY, 100)[1], means / 100, rtol=1e-5)


def test_what_the_targets_have_to_tell():
    """What the best constant prediction leaves: the entropy of the labels, half the variance of the values."""
    shares = np.bincount(LABELS) / len(LABELS)
    for apply_fn, y, worth in (classes, LABELS, -np.sum(shares * np.log(shares))), (values, VALUES, np.var(VALUES) / 2):
        (finding,) = check(apply_fn, y=y, prior=Normal(0.0, 0.01)).findings
        assert f"the targets have about {worth:.3g} to tell: it may flatten the network" in finding.problem
        assert "wider prior" in finding.remedy


def test_targets_of_several_outputs_and_of_half_precision():
    """Each output has a best constant of its own; a variance is not summed up in bfloat16."""
    for y in (np.stack([VALUES, VALUES[::-1] + 100.0], axis=1), np.tile(VALUES.astype(jnp.bfloat16), 100)):
        data = DataTerm("check_setup", lambda w, x: x, y, y)
        expected = 0.5 * np.var(np.asarray(y, np.float64), axis=0).sum()
        np.testing.assert_allclose(_worth(data, 1.0), expected, rtol=1e-6)


def test_joint_priors_of_parts_of_a_node():
    """A tree of low-rank posteriors, over a subtree and over an array, and a Normal."""
    params = {"a": PARAMS | {"b": jnp.zeros(2)}, "c": jnp.full(2, 0.3), "d": jnp.full(2, 0.2)}

    @jax.jit
    def joint(params):
        low_rank = lambda w: illia_fn.low_rank(w, rank=1, key=KEY, scale=0.5)  # noqa: E731
        prior = {name: low_rank(jax.tree.map(lambda leaf: leaf + 0.1, params[name])) for name in "ac"}
        costs = sum(p.log_prob(p.mean) - p.log_prob(params[name]) for name, p in prior.items())
        return prior, illia_fn.full_covariance(params, scale=0.1), costs

    prior, q, expected = joint(params)
    cost_of_means = _costs(q, {**prior, "d": Normal(0.1, 2.0)}, KEY, 100)[1]
    np.testing.assert_allclose(cost_of_means, (expected + 2 * 0.1**2 / 2 / 2.0**2) / 100, rtol=1e-4)


class Positive:
    support = staticmethod(lambda w: w > 0)

    def log_prob(self, w):
        return -w


def raw(w, x):
    return classes(w, x.astype(jnp.float32).mean((1, 2)) / 255)


NARROW = mean_field(jax.tree.map(np.zeros_like, PARAMS), scale=0.01)
FLATTENS = ("may flatten the network", "wider prior")
HAS_LABELS = "looks like labels"

FOUND = {  # what is asked, and the problem and the remedy of each finding
    "one-hot, a narrow posterior as prior": (
        lambda: check(y=np.eye(2, dtype=np.float32)[LABELS], prior=NARROW),
        [(HAS_LABELS, "argmax"), FLATTENS],
    ),
    "float labels, a narrow prior of another kind": (
        lambda: check(values, y=LABELS.astype(np.float32), prior=dist.Laplace(0.0, 0.005)),
        [(HAS_LABELS, "integers"), FLATTENS],
    ),
    "scale of targets, two compilations": (
        lambda: check(lambda w, x: shifted(w, x)[:, 0], q={**mean_field(PARAMS), "c": 0.5}, y=100 * VALUES),
        [("y has a mean of", "Standardise"), ("compiles twice", "jnp.asarray")],
    ),
    "targets far away, means that are gone": (
        lambda: check(values, q=mean_field(GONE, scale=0.2), y=1000 + VALUES),
        [("y has a mean of 1e", "Standardise"), ("noise of 0.2 on weights", "Warm the KL up")],
    ),
    "scale of one column, no num_data": (
        lambda: check(x=X * np.float32([1.0, 1.0, 100.0]), num_data=None),
        [("a column with", "Standardise"), ("no num_data", r"num_data=len\(x_train\)")],
    ),
    "tiny inputs, loud noise": (
        lambda: check(q=mean_field(PARAMS, scale=3.0), x=1e-4 * X),
        [("root mean square of 0.0001", "Standardise"), ("noise of 3", "smaller scale")],
    ),
    "images of bytes, a statistic": (
        lambda: check(raw, q=WITH_STATISTIC, x=np.full((40, 2, 2, 3), 200, np.uint8)),
        [("has a root", "Standardise"), ("looks like a statistic", "mask")],
    ),
    "missing inputs": (
        lambda: check(in_a_dict, x={"a": np.where(np.arange(120).reshape(40, 3) == 0, np.float32(np.nan), X)}),
        [(r"x.*is not finite", "Fill in"), ("the gradient of params.* is not finite", "Look at the inputs")],
    ),
    "shapes": (lambda: check(y=LABELS[:-1]), [("the same batch size", "batch axis comes first")]),
    "frozen dropout": (lambda: check(dropping), [("draws random numbers for the batch", "needs_key=True")]),
    "support": (lambda: check(prior=Positive()), [("no density on part", "unconstrained")]),
    "num_data of a batch": (lambda: check(num_data=7), [("must be the size of the training set", "padded")]),
    "an infinite loss": (
        lambda: check(loss_fn=lambda f, y: jnp.log(f[:, 0] - 1e9)),
        [("the loss is not finite", "domain of loss_fn")],
    ),
    "no posterior": (lambda: check(q=PARAMS), [("no posterior node", "mean_field")]),
    "lost nodes": (lambda: check(q={"w": {"loc": X, "rho": X}}), [("has lost its type", "Restore")]),
    "probabilities": (
        lambda: check(lambda w, x: jax.nn.softmax(classes(w, x))),
        [("are probabilities", "softmax")],
    ),
    "a sum": (lambda: check(loss_fn=lambda f, y: jnp.sum(jnp.square(f))), [("size of the batch", "mean")]),
    "a key": (lambda: check(with_key), [("missing 1 required", "needs_key=True")]),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found(name):
    run, expected = FOUND[name]
    report = run()
    texts = [f"{finding.problem} -> {finding.remedy}" for finding in report.findings]
    for problem, remedy in expected:
        assert any(re.search(rf"(?s){problem}.*->.*{remedy}", text) for text in texts), texts
    assert len(texts) == len(set(texts)) == len(expected), texts
    assert str(report).count("\n    ") == len(texts)


def test_all_arguments_of_the_loss_are_those_of_the_check():
    options = {"coupling": "decorrelated", "num_samples": 2, "temperature": 0.5, "return_terms": True}
    args = (
        lambda w, x: x @ w["w"],
        illia_fn.mean_field({"w": jnp.ones((1, 2))}),
        np.ones((8, 1), np.float32),
        np.arange(8) % 2,
    )
    report = illia_fn.check_setup(*args, jax.random.key(0), num_data=8, **options)
    assert np.isfinite(report.nll)
    assert not report.findings
    refused = illia_fn.check_setup(*args, jax.random.key(0), num_data=8, coupling="decorrelate")
    assert any("coupling must be one of" in str(finding) for finding in refused.findings), refused
    with pytest.raises(TypeError, match="check_setup: elbo_loss has no sampels"):
        illia_fn.check_setup(*args, jax.random.key(0), sampels=2)
