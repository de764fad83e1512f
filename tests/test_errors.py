"""Every mistake a user can make gets an error that names the function, what came and what to do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import Cauchy, Gamma, HalfCauchy, LogNormal, Uniform

import illia_fn
from illia_fn import (
    Gaussian,
    Normal,
    elbo_loss,
    expectation,
    gaussian_nll,
    kl_divergence,
    kl_loss,
    kl_tree,
    mean_field,
    predict,
)

KEY = jax.random.key(0)
PARAMS = {"w": jnp.ones((3, 2))}
Q = mean_field(PARAMS, scale=0.1)
X, LABELS = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])


def logits(w, x):
    return x @ w["w"]


def scalar(w, x):
    return (x @ w["w"])[:, 0]


def elbo(y=LABELS, apply_fn=logits, params=Q, x=X, key=KEY, num_samples=1, **kwargs):
    return lambda: elbo_loss(apply_fn, params, x, y, key, num_samples, **kwargs)


CASES = {
    # mean_field
    "negative scale": (lambda: mean_field(PARAMS, scale=-0.1), ValueError, "mean_field: scale, a standard deviation, must be positive and finite in float32, got -0.1"),
    "zero scale": (lambda: mean_field(PARAMS, scale=0.0), ValueError, "mean_field: scale, a standard deviation, must be positive"),
    "scale that float32 rounds to zero": (lambda: mean_field(PARAMS, scale=1e-60), ValueError, "mean_field: scale, a standard deviation"),
    "nan scale": (lambda: mean_field(PARAMS, scale=np.nan), ValueError, "mean_field: scale, a standard deviation, must be positive and finite in float32, got nan"),
    "scale of another shape": (lambda: mean_field(PARAMS, scale=jnp.ones(2)), ValueError, r"mean_field: scale at params\['w'\].*\(3, 2\).*\(2,\)"),
    "scale tree of another structure": (lambda: mean_field(PARAMS, scale={"v": 0.1}), ValueError, "mean_field: scale must be a single value or a prefix tree"),
    "scale that is no number": (lambda: mean_field(PARAMS, scale="big"), TypeError, "mean_field: scale must hold numbers, got 'big'"),
    "mask of another structure": (lambda: mean_field(PARAMS, scale=0.1, mask={"v": True}), ValueError, "mean_field: mask must be a single value or a prefix tree"),
    "mask of numbers": (lambda: mean_field(PARAMS, scale=0.1, mask={"w": 1}), TypeError, r"mean_field: mask must hold booleans, got 1 of type int at params\['w'\]"),
    "mask that selects nothing": (lambda: mean_field(PARAMS, scale=0.1, mask=False), ValueError, "mean_field: no floating-point leaf"),
    "empty tree": (lambda: mean_field({}, scale=0.1), ValueError, "mean_field: params has no leaves, got {}"),
    "already variational": (lambda: mean_field(Q, scale=0.1), ValueError, r"mean_field: params\['w'\] is already a posterior node \(Gaussian\)"),
    "complex parameters": (lambda: mean_field(jnp.ones(2, complex), scale=0.1), TypeError, "mean_field: params is complex"),
    "scale beyond half precision": (lambda: mean_field(jnp.ones(2, jnp.float16), scale=1e5), ValueError, "mean_field: scale at params must be finite in float16"),
    # nodes and priors
    "loc and rho of different shapes": (lambda: Gaussian(jnp.ones(3), jnp.ones(())), ValueError, r"Gaussian: loc and rho must have the same shape, got \(3,\) and \(\)"),
    "nan prior scale": (lambda: Normal(0.0, np.nan), ValueError, "Normal: scale, a standard deviation, must be positive and finite in float32, got nan"),
    "negative prior scale": (lambda: Normal(0.0, jnp.array([1.0, -1.0])), ValueError, "Normal: scale, a standard deviation"),
    "prior scale known under jit": (lambda: jax.jit(lambda q: kl_loss(q, Normal(0.0, np.nan)))(Q), ValueError, "Normal: scale, a standard deviation"),
    "prior scale that float32 cannot hold": (lambda: Normal(0.0, 1e-60), ValueError, "Normal: scale, a standard deviation, must be positive and finite in float32, got 1e-60"),
    "prior scale that is text": (lambda: Normal(0.0, "1"), TypeError, "Normal: scale must be a number, got '1'"),
    "log_prob of a node, another shape": (lambda: Q["w"].log_prob(jnp.ones((3, 1))), ValueError, r"Gaussian.log_prob: w must have shape \(3, 2\), got \(3, 1\)"),
    # trees
    "sample without a key": (lambda: illia_fn.sample(0, Q), TypeError, "sample: key must be a single PRNG key.*got 0 of type int"),
    "sample with many keys": (lambda: illia_fn.sample(jax.random.split(KEY, 2), Q), TypeError, r"sample: key must be a single PRNG key.*shape \(2,\)"),
    "log_prob of another structure": (lambda: illia_fn.log_prob(Q, {"v": X}), ValueError, "log_prob: w must have the structure"),
    "log_prob of another shape": (lambda: illia_fn.log_prob(Q, {"w": jnp.ones((3, 1))}), ValueError, r"log_prob: w\['w'\] has shape \(3, 1\)"),
    # KL
    "prior tree of another structure": (lambda: kl_loss(Q, {"v": Normal(0.0, 1.0)}), ValueError, "kl_loss: prior must be a single value or a prefix tree"),
    "kl_tree, too": (lambda: kl_tree(Q, {"v": Normal(0.0, 1.0)}), ValueError, "kl_tree: prior must be a single value or a prefix tree"),
    "posterior tree as prior, another shape": (lambda: kl_loss(Q, mean_field({"w": jnp.ones((2, 2))}, scale=0.1)), ValueError, r"kl_loss at params\['w'\]: .*\(2, 2\).*\(3, 2\)"),
    "prior that would broadcast": (lambda: kl_loss(Q, Normal(jnp.zeros(2), 1.0)), ValueError, r"kl_loss at params\['w'\]: .*\(2,\).*\(3, 2\)"),
    "prior that is no prior": (lambda: kl_loss(Q, 0.1), TypeError, r"kl_loss at params\['w'\]: the prior must have a log_prob.*got 0.1"),
    "no prior for a posterior": (lambda: kl_loss(Q, {"w": None}), TypeError, r"kl_loss at params\['w'\]: the prior must have.*got None"),
    "no closed form and no key": (lambda: kl_loss(Q, Cauchy(0.0, 1.0)), ValueError, r"kl_loss at params\['w'\]: KL\(Gaussian \|\| numpyro.*Cauchy\) has no closed form.*pass key="),
    "kl_divergence without a key": (lambda: kl_divergence(Q["w"], Cauchy(0.0, 1.0)), ValueError, r"kl_divergence: KL\(Gaussian \|\| numpyro.*Cauchy\) has no closed form"),
    "prior that is not element-wise": (lambda: kl_loss(Q, Cauchy(jnp.zeros(2), 1.0).to_event(1), key=KEY), ValueError, "log_prob must be element-wise"),
    "kl_divergence of an array": (lambda: kl_divergence(X, Cauchy(0.0, 1.0), key=KEY), TypeError, "kl_divergence: q must be a posterior node"),
    "mean of no posterior": (lambda: kl_loss(PARAMS), ValueError, "kl_loss: params has no posterior node.*mean_field"),
    "unknown reduction": (lambda: kl_loss(Q, reduction="max"), ValueError, "kl_loss: reduction must be .* got 'max'"),
    "kl with an integer key": (lambda: kl_loss(Q, Cauchy(0.0, 1.0), key=0), TypeError, "key must be a single PRNG key"),
    "kl with no samples": (lambda: kl_loss(Q, Cauchy(0.0, 1.0), key=KEY, num_samples=0), ValueError, "num_samples must be an int"),
    "Monte Carlo prior that would broadcast": (lambda: kl_loss(Q, Cauchy(jnp.zeros(2), 1.0), key=KEY), ValueError, r"kl_loss at params\['w'\]: .*\(2,\).*\(3, 2\)"),
    "weight of the KL that is no scalar": (lambda: kl_loss(Q, weight=jnp.ones(2)), ValueError, "kl_loss: weight must be a finite number"),
    "a class for a prior": (lambda: kl_loss(Q, Normal), TypeError, "kl_loss at .*: the prior must have"),
    # the engine
    "chunks of nothing": (lambda: expectation(logits, Q, KEY, 2, chunk_size=0), ValueError, "expectation: chunk_size must be an int of at least 1, .* or None.*got 0"),
    "half a chunk": (lambda: elbo_loss(logits, Q, X, LABELS, KEY, 2, chunk_size=1.5), ValueError, "elbo_loss: chunk_size must be an int of at least 1, .*got 1.5"),
    "a traced chunk size": (lambda: jax.jit(lambda k: predict(logits, Q, X, KEY, 2, chunk_size=k))(1), ValueError, "predict: chunk_size must be an int .*known at trace time"),
    "half a pair": (lambda: elbo_loss(logits, Q, X, LABELS, KEY, 3, antithetic=True), ValueError, "elbo_loss: antithetic draws come in pairs, so num_samples must be even, got 3"),
    "antithetic by number": (lambda: expectation(logits, Q, KEY, 2, antithetic=1), TypeError, "expectation: antithetic must be True or False, got 1"),
    "expectation of a number": (lambda: expectation(1.0, Q, KEY, 2), TypeError, "expectation: f must be a function, got 1.0"),
    "a complex expectation": (lambda: expectation(lambda w: w["w"] * 1j, Q, KEY, 2), TypeError, "expectation: f must return real numbers, got complex"),
    "expectation without its aux": (lambda: expectation(lambda w: w["w"], Q, KEY, 2, has_aux=True), ValueError, r"expectation: with has_aux=True f must return a pair \(value, aux\), got a"),
    # ELBO
    "functions and parameters swapped": (lambda: elbo_loss(Q, logits, X, LABELS, KEY), TypeError, "elbo_loss: apply_fn must be a function, got a value of type dict"),
    "loss_fn by name": (elbo(loss_fn="mse"), TypeError, "elbo_loss: loss_fn must be a function, got 'mse'"),
    "loss_fn of two values": (elbo(loss_fn=lambda f, y: (f, y)), TypeError, "elbo_loss: loss_fn must return one array, got a tuple"),
    "aux that nobody asked for": (elbo(apply_fn=lambda w, x: (logits(w, x), jnp.ones(7))), ValueError, "elbo_loss: .*pass has_aux=True"),
    "fractional num_data": (elbo(num_data=8.5), ValueError, "elbo_loss: num_data must be the number of training examples"),
    "zero samples": (elbo(num_samples=0), ValueError, "elbo_loss: num_samples must be an int of at least 1.*got 0"),
    "fractional samples": (elbo(num_samples=2.0), ValueError, "elbo_loss: num_samples must be an int.*got 2.0 of type float"),
    "boolean samples": (elbo(num_samples=True), ValueError, "elbo_loss: num_samples must be an int.*got True of type bool"),
    "traced samples": (lambda: jax.jit(partial(elbo_loss, logits))(Q, X, LABELS, KEY, 2), ValueError, "elbo_loss: num_samples.*known at trace time"),
    "key and samples swapped": (elbo(key=3, num_samples=KEY), TypeError, "elbo_loss: key must be a single PRNG key"),
    "num_data of zero": (elbo(num_data=0), ValueError, "elbo_loss: num_data must be the number of training examples, at least 1, got 0"),
    "num_data that is the data": (elbo(num_data=X), ValueError, "elbo_loss: num_data must be the number"),
    "prior of another structure": (elbo(prior={"v": Normal(0.0, 1.0)}), ValueError, "elbo_loss: prior must be a single value or a prefix tree"),
    "kl_weight that is no scalar": (elbo(kl_weight=jnp.ones(3)), ValueError, "elbo_loss: kl_weight must be a finite number"),
    "negative kl_weight": (elbo(kl_weight=-1.0), ValueError, "elbo_loss: kl_weight must be .* not negative, got -1.0"),
    "(B, 1) against (B, D)": (elbo(jnp.ones((4, 2)), lambda w, x: scalar(w, x)[:, None], loss_fn=lambda f, y: (f - y) ** 2), ValueError, "elbo_loss: .* would broadcast"),
    "empty parameters": (elbo(params={}), ValueError, "elbo_loss: params has no leaves"),
    "no posterior and no num_data": (elbo(params=PARAMS), ValueError, "elbo_loss: params has no posterior node.*kl_weight=0.0"),
    "no posterior, and a weight of its KL": (elbo(params=PARAMS, num_data=9, kl_weight=0.5), ValueError, "elbo_loss: params has no posterior node.*kl_weight=0.0"),
    "no posterior": (elbo(params=PARAMS, num_data=9), ValueError, "elbo_loss: params has no posterior node.*mean_field"),
    "nodes lost in a checkpoint": (lambda: kl_loss({"w": {"loc": X, "rho": X}}, reduction="sum"), ValueError, r"kl_loss: params has no posterior node, and params\['w'\] is a dict of loc, rho, the fields of a Gaussian.*target"),
    "nodes lost in a checkpoint, in an objective": (elbo(params={"w": {"loc": X, "rho": X}}, num_data=9), ValueError, "elbo_loss: .* lost its type"),
    "a number for a prior": (lambda: kl_loss(Q, 0.5), TypeError, r"pass illia_fn.Normal\(0.0, 0.5\)"),
    "parameters for a prior": (elbo(prior=PARAMS, num_data=9), TypeError, r"elbo_loss at params\['w'\]: .*around parameters pass jax.tree.map"),
    "a mask of path and leaf": (lambda: mean_field(PARAMS, scale=0.1, mask=lambda path, leaf: True), TypeError, r"mean_field: mask must be a function of one argument, the params.*jax.tree.map_with_path"),
    "a bounded prior": (lambda: kl_loss(Q, Uniform(-1.0, 1.0), key=KEY), ValueError, r"kl_loss at params\['w'\]: the prior Uniform has no density on part of the real line.*infinite"),
    "a positive prior": (elbo(prior={"w": HalfCauchy(1.0)}, num_data=9), ValueError, r"elbo_loss at params\['w'\]: the prior HalfCauchy has no density"),
    "another batch size": (elbo(LABELS[:3]), ValueError, r"elbo_loss: outputs and targets must have the same batch size.*\(4, 2\).*\(3,\)"),
    "(B, 1) against (B,)": (elbo(jnp.ones((4, 1)), scalar), ValueError, r"elbo_loss: outputs of shape \(4,\) and targets of shape \(4, 1\) would broadcast"),
    "(B,) against (B, 1)": (elbo(jnp.ones(4), lambda w, x: scalar(w, x)[:, None], loss_fn=lambda f, y: (f - y) ** 2), ValueError, "elbo_loss: .* would broadcast"),
    "(B, C) against (C,)": (elbo(jnp.ones(2), loss_fn=lambda f, y: (f - y) ** 2), ValueError, "elbo_loss: outputs and targets must have the same batch size"),
    "loss_fn that broadcasts": (elbo(jnp.ones((4, 2)), loss_fn=lambda f, y: f[:, :1] - y[:, 0][None]), ValueError, r"elbo_loss: loss_fn must return.*\(4, 4\).*Did it broadcast"),
    "floats against logits": (elbo(jnp.ones(4)), ValueError, r"elbo_loss: floating-point targets .*pass integers: y.astype\(int\)"),
    "labels with an axis of size 1": (elbo(LABELS[:, None], scalar), ValueError, r"elbo_loss: .* would broadcast .*with y\[..., 0\]"),
    "one-hot labels": (elbo(jnp.eye(2, dtype=jnp.int32)[LABELS]), ValueError, r"elbo_loss: integer targets .*Of one-hot labels pass y.argmax"),
    "a model of the adapters": (elbo(apply_fn=illia_fn.frameworks.from_functions(logits, logits, PARAMS)), TypeError, r"elbo_loss: apply_fn must be .*train_fn\(\) or eval_fn\(\)"),
    "networks of plain parameters": (lambda: predict(logits, illia_fn.mean(Q), X, KEY, 4), ValueError, "predict: params has no posterior node, so all 4 networks would be the same"),
    "networks of lost nodes": (lambda: predict(logits, {"w": {"loc": X, "rho": X}}, X, KEY, 4), ValueError, "predict: .* lost its type"),
    "labels against values": (elbo(LABELS, scalar), ValueError, "elbo_loss: integer targets of shape .* are class labels"),
    "booleans without a loss_fn": (elbo(LABELS == 1, scalar), ValueError, "elbo_loss: there is no default loss.*Pass loss_fn"),
    "targets without a batch": (elbo(jnp.float32(1.0)), ValueError, "elbo_loss: targets y must be arrays with a leading batch axis"),
    "an empty batch": (elbo(LABELS[:0], x=X[:0]), ValueError, "elbo_loss: .*at least 1"),
    "a model without outputs": (elbo(apply_fn=lambda w, x: None), ValueError, "elbo_loss: .*got outputs of shape none"),
    "weights of another size": (elbo(weights=jnp.ones(3)), ValueError, r"elbo_loss: weights must have shape \(4,\), one per example, got \(3,\)"),
    "negative weights": (elbo(weights=jnp.array([-1.0, 1.0, 1.0, 1.0])), ValueError, "elbo_loss: weights must be finite, not negative"),
    "num_data of one batch": (elbo(num_data=3), ValueError, "elbo_loss: num_data must be the size of the training set, got 3 for a batch of 4"),
    "a schedule that was not called": (elbo(kl_weight=lambda step: 1.0), ValueError, r"elbo_loss: kl_weight must be .*pass the weight, kl_weight=schedule\(step\)"),
    "kl_weight that is text": (elbo(kl_weight="1"), ValueError, "elbo_loss: kl_weight must be a finite number .*got '1'"),
    "complex temperature": (elbo(temperature=1j), ValueError, "elbo_loss: temperature must be a positive, finite number"),
    "no temperature": (elbo(temperature=None), ValueError, "elbo_loss: temperature must be a positive, finite number, got None"),
    "labels with aux that nobody asked for": (elbo(apply_fn=lambda w, x: (logits(w, x), jnp.ones(4))), ValueError, "elbo_loss: .*pass has_aux=True"),
    "only padding": (elbo(weights=jnp.zeros(4)), ValueError, "elbo_loss: weights must be finite, not negative and not all zero"),
    "weights of a scalar loss": (elbo(weights=jnp.ones(4), loss_fn=lambda f, y: f.mean()), ValueError, "elbo_loss: weights need a loss_fn with one value per example"),
    "aux that is not there": (elbo(has_aux=True), ValueError, "elbo_loss: with has_aux=True apply_fn must return a pair"),
    "unknown keyword": (elbo(num_sample=3), TypeError, r"elbo_loss\(\) got an unexpected keyword argument 'num_sample'"),
    "positional options": (lambda: elbo_loss(logits, Q, X, LABELS, KEY, 1, None), TypeError, r"elbo_loss\(\) takes"),
    # the others
    "expectation over no samples": (lambda: expectation(lambda w: 0.0, Q, KEY, 0), ValueError, "expectation: num_samples must be an int"),
    "predict with an integer key": (lambda: illia_fn.predict(logits, Q, X, 0), TypeError, "predict: key must be a single PRNG key"),
    "likelihood of other shapes": (lambda: gaussian_nll(jnp.ones(3), jnp.ones((3, 1))), ValueError, r"gaussian_nll: .*\(3,\).*\(3, 1\)"),
    "likelihood with two scales": (lambda: gaussian_nll((jnp.ones(3), jnp.ones(3)), jnp.ones(3), scale=1.0), ValueError, "gaussian_nll: outputs is a pair"),
    "likelihood with a negative scale": (lambda: gaussian_nll(jnp.ones(3), jnp.ones(3), scale=-1.0), ValueError, "gaussian_nll: scale, a standard deviation"),
    "likelihood with three outputs": (lambda: gaussian_nll((jnp.ones(3),) * 3, jnp.ones(3)), ValueError, "gaussian_nll: outputs must be loc or a pair"),
    "rho that would broadcast": (lambda: gaussian_nll((jnp.ones((3, 2)), jnp.ones(2)), jnp.ones((3, 2))), ValueError, r"gaussian_nll: rho .*\(2,\)"),
}  # fmt: skip


@pytest.mark.promotes
@pytest.mark.parametrize("prior", [HalfCauchy(1.0), LogNormal(0.0, 1.0), Gamma(2.0, 1.0), Uniform(-1e9, 1e9)])
@pytest.mark.parametrize("objective", ["elbo_loss", "predictive_loss", "kl_loss", "kl_tree", "kl_divergence"])
def test_a_kl_to_a_prior_of_bounded_support_is_refused_everywhere(prior, objective):
    f, q = getattr(illia_fn, objective), Q["w"] if objective == "kl_divergence" else Q
    call = jax.jit(lambda q: f(logits, q, X, LABELS, KEY, 2, prior=prior, num_data=9))
    if objective.startswith("kl"):
        call = lambda q: f(q, prior, key=KEY)  # noqa: E731
    with pytest.raises(ValueError, match=f"{objective}.*has no density on part of the real line"):
        call(q)


@pytest.mark.promotes
@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, error, message = CASES[name]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


def test_errors_are_short():
    """A tree of parameters in the wrong place is named, not printed."""
    q = mean_field({"w": jnp.ones((300, 300))}, scale=0.1)
    for call in (
        lambda: illia_fn.sample(q, KEY),
        lambda: kl_loss(q, {"v": q}),
        elbo(key=q),
        lambda: kl_loss(q, (0.0, 0.1)),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        assert len(str(error.value)) < 700
