"""Every mistake with an adapter gets an error that names the function, what came and what to do."""

from functools import partial, wraps

import equinox as eqx
import flax.linen as nn
import framework_scripts as scripts
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from framework_scripts import KEY, LABELS, ROWS

import illia_fn
from illia_fn import elbo_loss
from illia_fn.frameworks import from_equinox, from_functions, from_haiku, from_linen, from_nnx, restore_nodes

pytestmark = pytest.mark.promotes

PARAMS = jnp.ones((4, 3))
DENSE = nn.Dense(3)
TRANSFORMED = hk.transform(lambda x: hk.Linear(3)(x))
WITH_STATE = hk.transform_with_state(lambda x: hk.Linear(3)(x))


def plain(params, x, key=None):
    return x @ params


def growing(params, state, x, key):
    return x @ params, {"seen": jnp.concatenate([state["seen"], jnp.ones(1)])}


def other(params, state, x, key):
    return x @ params, {"heard": state["seen"]}


STATE = {"seen": jnp.ones(4)}
STATELESS = from_functions(plain, plain, PARAMS)
STATEFUL = from_functions(lambda params, state, x, key: (x @ params, state), lambda params, state, x: x, PARAMS, STATE)


LATENT = STATELESS.reparameterise(
    {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 3))}, lambda change: change["a"] @ change["b"]
)


def norms(*axis_names):
    return eqx.nn.make_with_state(eqx.nn.Sequential)(
        [eqx.nn.BatchNorm(4, axis_name=name, mode="batch") for name in axis_names]
    )


def loss_of(train, **options):
    model = from_functions(train, STATEFUL.evaluate, PARAMS, STATE)
    q = illia_fn.mean_field(PARAMS, scale=0.1)
    return model.loss(partial(elbo_loss, num_data=8), **options)(q, STATE, ROWS, LABELS, KEY)


CASES = {
    "loss: an option of others": (lambda: STATELESS.loss(illia_fn.iwae_loss, coupling="flipout"), TypeError, "FunctionalModel.loss: iwae_loss does not take coupling. It takes params, x, .*estimator"),
    "loss: an option of others when called": (lambda: STATELESS.loss(illia_fn.iwae_loss)(PARAMS, ROWS, LABELS, KEY, coupling="flipout"), TypeError, "FunctionalModel.loss: iwae_loss does not take coupling"),
    "loss: without the state": (lambda: STATEFUL.loss(partial(elbo_loss, num_data=8))(PARAMS, ROWS, LABELS, KEY), TypeError, r"FunctionalModel.loss: the model has a state, .* loss\(q, state, x, y, key\), .*has_aux=True"),
    "reparameterise: other shapes": (lambda: STATEFUL.reparameterise(PARAMS, jnp.transpose), ValueError, r"FunctionalModel.reparameterise: to_params\(params\) must have shape \(4, 3\) at .*, got \(3, 4\). Return a tree like"),
    "reparameterise: another structure": (lambda: STATELESS.reparameterise(PARAMS, lambda w: {"w": w}), ValueError, r"FunctionalModel.reparameterise: to_params\(params\) has nothing at its root: it must have the structure .*attribute `params`"),
    "reparameterise: a posterior": (lambda: STATELESS.reparameterise(illia_fn.mean_field(PARAMS), lambda w: w), ValueError, r"FunctionalModel.reparameterise: params is a posterior node \(Gaussian\).*illia_fn.mean\(q\)"),
    "reparameterise: no function": (lambda: STATELESS.reparameterise(PARAMS, PARAMS), TypeError, "FunctionalModel.reparameterise: to_params must be a function"),
    "reparameterise: another dtype": (lambda: STATELESS.reparameterise(PARAMS, lambda w: w.astype(jnp.bfloat16)), ValueError, r"FunctionalModel.reparameterise: to_params\(params\) must be of dtype float32 at .*, got bfloat16. .*astype"),
    "reparameterise: nothing": (lambda: STATELESS.reparameterise({}, lambda w: PARAMS), ValueError, r"FunctionalModel.reparameterise: params has no leaves, got {}. Pass floating-point arrays"),
    "a draw of other shapes": (lambda: LATENT.to_model({"a": jnp.ones((1, 2)), "b": jnp.ones((2, 3))}), ValueError, r"FunctionalModel.to_model: params must have shape \(4, 2\) at \['a'\], got \(1, 2\). Pass what is like"),
    "a posterior of the model before": (lambda: LATENT.loss(elbo_loss, num_data=8)(illia_fn.mean_field(PARAMS), ROWS, LABELS, KEY), ValueError, r"FunctionalModel.train_fn: params has nothing at \['a'\]: it must have the structure .*Pass what is like"),
    "the same in prediction": (lambda: illia_fn.predict(LATENT.eval_fn(), illia_fn.mean_field(PARAMS), ROWS, KEY, 2), ValueError, r"FunctionalModel.eval_fn: params has nothing at \['a'\]: it must have the structure .*Pass what is like"),
    "a posterior of another model": (lambda: illia_fn.predict(STATELESS.eval_fn(), illia_fn.mean_field(LATENT.params), ROWS, KEY, 2), ValueError, r"FunctionalModel.eval_fn: params has nothing at its root: it must"),
    "a state too many": (lambda: STATELESS.loss(elbo_loss, num_data=8)(illia_fn.mean_field(PARAMS), (), ROWS, LABELS, KEY), TypeError, r"FunctionalModel.loss: the model has no state, so its loss takes four arguments, loss\(q, x, y, key\).*got 5"),
    "functions: a posterior": (lambda: from_functions(plain, plain, {"w": illia_fn.mean_field(PARAMS)}), ValueError, r"from_functions: params\['w'\] is a posterior node"),
    "a hierarchy around a model": (lambda: illia_fn.priors.horseshoe(PARAMS, 0.1).wrap(STATELESS), TypeError, r"Hierarchy.wrap: apply_fn must be a function, got .*train_fn\(\) or eval_fn\(\)"),
    "nnx: a class": (lambda: from_nnx(nnx.Linear), TypeError, r"from_nnx: model must be an instance of flax.nnx.Module, got .*Linear.* Make one"),
    "nnx: a linen module": (lambda: from_nnx(DENSE), TypeError, "from_nnx: model must be an instance of flax.nnx.Module"),
    "nnx: no parameters": (lambda: from_nnx(nnx.Dropout(0.1)), ValueError, "from_nnx: the nnx.Params of model has no leaves"),
    "nnx: flags": (lambda: from_nnx(scripts.nnx_mlp()[-1], train=True), TypeError, "from_nnx: train must be a dict .* got True"),
    "linen: a class": (lambda: from_linen(nn.Dense, {}), TypeError, "from_linen: module must be an instance of flax.linen.Module"),
    "linen: no dict": (lambda: from_linen(DENSE, ROWS), TypeError, "from_linen: variables must be the dict .* got an array"),
    "linen: the params alone": (lambda: from_linen(DENSE, DENSE.init(KEY, ROWS)["params"]), ValueError, 'from_linen: variables must have "params", got kernel, bias'),
    "linen: no params": (lambda: from_linen(DENSE, {"params": {}}), ValueError, r'from_linen: variables\["params"\] has no leaves'),
    "linen: whole numbers": (lambda: from_linen(DENSE, {"params": {"n": jnp.arange(3)}}), ValueError, r"from_linen: variables\[\"params\"\]\['n'\] is of type int32"),
    "linen: one name": (lambda: from_linen(DENSE, DENSE.init(KEY, ROWS), rngs="noise"), TypeError, r'from_linen: rngs must be a sequence of names, such as \("noise",\)'),
    "linen: flags": (lambda: from_linen(DENSE, DENSE.init(KEY, ROWS), evaluate=["train"]), TypeError, "from_linen: evaluate must be a dict"),
    "equinox: a function": (lambda: from_equinox(plain), TypeError, "from_equinox: model must be a callable equinox.Module"),
    "equinox: the pair": (lambda: from_equinox(norms("batch")), TypeError, r"from_equinox: model must .* from_equinox\(\*pair\)"),
    "equinox: no state": (lambda: from_equinox(norms("batch")[0]), ValueError, "from_equinox: model has a state.*make_with_state"),
    "equinox: another state": (lambda: from_equinox(norms("batch")[0], STATE), TypeError, "from_equinox: state must be an equinox.nn.State"),
    "equinox: two axes": (lambda: from_equinox(*norms("a", "b")), ValueError, r"from_equinox: the layers .* got \['a', 'b'\]"),
    "haiku: a function": (lambda: from_haiku(plain, PARAMS), TypeError, "from_haiku: model must be what hk.transform or"),
    "haiku: no state": (lambda: from_haiku(WITH_STATE, PARAMS), ValueError, r"from_haiku: .*init returns \(params, state\)"),
    "haiku: a state too many": (lambda: from_haiku(TRANSFORMED, PARAMS, {}), ValueError, "from_haiku: model is of hk.transform and has no state"),
    "functions: parameters first": (lambda: from_functions(PARAMS, plain, plain), TypeError, "from_functions: train must be a function, got an array"),
    "functions: no evaluation": (lambda: from_functions(plain, PARAMS, PARAMS), TypeError, "from_functions: evaluate must be a function"),
    "functions: a posterior of integers": (lambda: from_functions(plain, plain, {"n": 3}), ValueError, r"from_functions: params\['n'\] is of type int"),
    "train_fn without the state": (lambda: STATEFUL.train_fn(), ValueError, r"FunctionalModel.train_fn: the model has a state \(state\['seen'\]\), and none was given"),
    "eval_fn without the state": (lambda: STATEFUL.eval_fn(), ValueError, "FunctionalModel.eval_fn: the model has a state"),
    "to_model without the state": (lambda: STATEFUL.to_model(PARAMS), ValueError, "FunctionalModel.to_model: the model has a state"),
    "eval_fn of another state": (lambda: STATEFUL.eval_fn({"heard": ROWS}), ValueError, r"FunctionalModel.eval_fn: state has (no|some)thing at \['seen'\]: it must have the structure"),
    "eval_fn of another shape": (lambda: STATEFUL.eval_fn({"seen": ROWS}), ValueError, r"FunctionalModel.eval_fn: state must have shape \(4,\) at \['seen'\], got \(8, 4\)"),
    "eval_fn of a state too many": (lambda: STATELESS.eval_fn(STATE), ValueError, r"FunctionalModel.eval_fn: state has (no|some)thing at \['seen'\]: it must have the structure"),
    "to_model of a posterior": (lambda: STATELESS.to_model(illia_fn.mean_field(PARAMS, scale=0.1)), ValueError, r"FunctionalModel.to_model: params has nothing at its root: it must have the structure .*illia_fn.mean\(q\)"),
    "loss of no objective": (lambda: STATELESS.loss(0.1), TypeError, "FunctionalModel.loss: objective must be a function, got 0.1"),
    "loss of what returns no pair": (lambda: STATEFUL.loss(lambda *args, **options: 0.0)({}, STATE, ROWS, LABELS, KEY), ValueError, "FunctionalModel.loss: with has_aux=True the objective must return a pair"),
    "loss under a coupling": (lambda: loss_of(STATEFUL.train, coupling="decorrelated"), ValueError, r'FunctionalModel.loss: coupling="decorrelated" sees one example at a time.*state\[\'seen\'\]'),
    "loss of a state that grows": (lambda: loss_of(growing), ValueError, r"FunctionalModel.train_fn: the state that the model returns must have shape \(4,\) at \['seen'\], got \(5,\)"),
    "loss of a state that changes": (lambda: loss_of(other), ValueError, "FunctionalModel.train_fn: the state that the model returns has nothing at .* must have the structure"),
    "loss of a model without aux": (lambda: loss_of(STATEFUL.train, has_aux=True), ValueError, "FunctionalModel.loss: with has_aux=True the model must return a pair"),
    "restore_nodes of none": (lambda: restore_nodes({"w": PARAMS}), ValueError, r"restore_nodes: tree has no dictionary of \['loc', 'rho'\]"),
    "restore_nodes twice": (lambda: restore_nodes({"w": PARAMS}, (illia_fn.Gaussian,) * 2), ValueError, "restore_nodes: families must differ"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    call, error, match = CASES[name]
    with pytest.raises(error, match=f"(?s){match}"):
        call()


def test_an_objective_may_wrap_another_and_take_more():
    @wraps(elbo_loss)
    def scaled(*args, factor, **options):
        return factor * elbo_loss(*args, **options)

    assert callable(STATELESS.loss(scaled, factor=2.0, num_data=8))
    with pytest.raises(TypeError, match=r"FunctionalModel\.loss: elbo_loss does not take factor"):
        STATELESS.loss(partial(elbo_loss, num_data=8), factor=2.0)


def test_a_coupling_that_is_bound_to_the_objective_or_comes_with_a_step():
    bound, late = (STATEFUL.loss(partial(elbo_loss, num_data=8, **bound)) for bound in ({"coupling": "flipout"}, {}))
    args = illia_fn.mean_field(PARAMS, scale=0.1), STATE, ROWS, LABELS, KEY
    for call in (lambda: bound(*args), lambda: late(*args, coupling="flipout")):
        with pytest.raises(ValueError, match='loss: coupling="flipout" sees one example'):
            call()


def test_what_linen_sows_is_no_state():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("intermediates", "x", x)
            return nn.Dense(3)(x)

    model = from_linen(Sowing(), Sowing().init(KEY, ROWS))
    assert not model.has_state
    assert model.train_fn()(model.params, ROWS, KEY).shape == (8, 3)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_what_nnx_sows_is_no_state():
    class Sowing(nnx.Module):
        def __init__(self):
            self.linear, self.norm = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            self.sow(nnx.Intermediate, "x", x)
            return self.linear(self.norm(x))

    network = Sowing()
    network(ROWS)
    model = from_nnx(network)
    _, state = model.train_fn(model.state)(model.params, ROWS, KEY)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(model.state)) == 2


def test_parameters_of_nnx_that_are_whole_numbers_stay_in_the_model():
    class Permuted(nnx.Module):
        def __init__(self):
            self.order, self.linear = nnx.Param(jnp.arange(4)[::-1]), nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.linear(x[:, self.order[...]])

    network = Permuted()
    model = from_nnx(network)
    assert len(jax.tree.leaves(model.params)) == 2
    assert not model.has_state
    assert jnp.array_equal(model.eval_fn()(model.params, ROWS), network(ROWS))
