"""What JAX makes of a loop over samples, beneath a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from illia_fn import elbo_loss, iwae_loss, mean_field

Q = mean_field([np.eye(4, dtype=np.float32)] * 3, scale=0.1)


def network(w, x):
    for layer in w:
        x = jnp.tanh(x @ layer)
    return x


def loss_of(objective=elbo_loss, **options):
    data = np.ones((5, 4), np.float32), np.zeros(5, int)
    return lambda q: objective(network, q, *data, jax.random.key(0), 4, num_data=9, **options)


def outside_of_loops(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        if eqn.primitive.name != "scan":
            for inner in jaxprs_in_params(eqn.params):
                yield from outside_of_loops(inner)


@pytest.mark.parametrize("loss", [loss_of(coupling="flipout"), loss_of(iwae_loss)], ids=["elbo", "iwae"])
def test_nothing_of_a_loop_over_samples_is_computed_before_it(loss):
    """JAX would take out of it, beneath a gradient, what is the same for all samples, and keep it in memory."""
    before = list(outside_of_loops(jax.make_jaxpr(jax.grad(loss))(Q).jaxpr))
    assert "scan" in before
    assert not {"dot_general", "tanh", "random_bits"} & set(before)
    assert before.count("log1p") < 6  # those of the KL
