"""A Bayesian last layer on the models of every framework, without sampling: exact, in training as in evaluation."""

import framework_scripts as scripts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import illia_fn
from illia_fn import analytic_elbo_loss, explain_linearity, linearise, mean_field

pytestmark = pytest.mark.promotes

LAST_LAYERS = {
    "nnx_cnn": "head/.*",
    "linen_resnet_block": "Dense_0/.*",
    "equinox_norm": "last/.*",
    "haiku_mlp": ".*linear_1/.*",
}
VALUES = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_a_last_layer(name):
    model, _, _, x, _ = getattr(scripts, name)()
    q = mean_field(model.params, scale=0.3, mask=illia_fn.by_path(LAST_LAYERS[name]))
    apply_fn = model.eval_fn(model.state)
    whys = {leaf.why for leaf in explain_linearity(apply_fn, q, x).leaves}
    assert whys == {"its variance takes one product"}

    @jax.jit
    def law_and_loss(q):
        return linearise(apply_fn, q, x), analytic_elbo_loss(apply_fn, q, x, VALUES, num_data=8, kl_weight=0.0)

    law, loss = law_and_loss(q)
    losses = 0.5 * ((np.asarray(VALUES) - law.mean) ** 2 + law.variance + np.log(2 * np.pi))
    np.testing.assert_allclose(loss, losses.sum(axis=1).mean(), rtol=1e-5)

    state = (model.state,) if model.has_state else ()
    step = jax.jit(jax.value_and_grad(model.loss(analytic_elbo_loss, num_data=8), has_aux=model.has_state))
    value, grads = step(q, *state, x, scripts.LABELS, scripts.KEY)
    nodes = [node for node in jax.tree.leaves(grads, is_leaf=illia_fn.is_posterior) if illia_fn.is_posterior(node)]
    assert all(np.any(node.loc) and np.any(node.rho) for node in nodes)
    if model.has_state:
        value, new_state = value
        moved = jax.tree.map(lambda old, new: bool(np.any(np.asarray(old) != np.asarray(new))), model.state, new_state)
        assert any(jax.tree.leaves(moved))
    assert jnp.isfinite(value)
