"""Nodes whose arrays are NumPy's, as those of a checkpoint are: within a jit they are constants, and not arguments."""

import chex
import families
import jax
import pytest

from illia_fn import Mixture, covariance, kl_divergence

KEY = jax.random.key(0)
P = families.nodes()["Gaussian"]
MIXTURE = Mixture.of([families.nodes(seed)["Gaussian"] for seed in (0, 20)])
NODES = families.nodes() | {"mixture": MIXTURE}


def told(q):
    """All that a custom derivative is in."""
    kls = jax.value_and_grad(lambda p: kl_divergence(p, q, key=KEY))(P), kl_divergence(q, P, key=KEY)
    moments = q.mean, q.stddev, covariance(q, lambda w: w[0])
    return q.log_prob(q.sample(KEY)), q.entropy(), moments, kls


@pytest.mark.parametrize("name", ["Gaussian", "KTied", "LowRank", "mixture"])
def test_they_are_what_arrays_of_jax_are(name):
    q = NODES[name]
    constant = jax.device_get(q)
    chex.assert_trees_all_close(jax.jit(lambda: told(constant))(), jax.jit(told)(q), rtol=1e-5, atol=1e-6)
