"""Couplings, exactly: the output for an example is that of the network which its noise makes, run on it alone."""

import coupling_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coupling_cases import BATCH, CASES, KEY

import illia_fn
from illia_fn import explain_coupling, mean_field
from illia_fn.coupling._transform import Coupled


def networks(it, q, noise):
    """The weights of every example of one sample, rebuilt from the noise: W_i = T(q, noise * signs_i)."""

    def of_leaf(index, leaf, node):
        if leaf.strategy == "per_example":
            own = noise.examples[index][0]
        else:
            own = jnp.broadcast_to(noise.leaves[index], (it.model.batch_size, *leaf.shape))
        for axis, signs in noise.signs.get(index, {}).items():
            own = own * signs[0].reshape(-1, *[size if at == axis else 1 for at, size in enumerate(leaf.shape)])
        return jax.vmap(node.reparameterise())(own)

    leaves, structure = jax.tree.flatten(q, is_leaf=illia_fn.is_posterior)
    draws = iter([of_leaf(i, *pair) for i, pair in enumerate(zip(it.plan.leaves, it.model.nodes, strict=True))])
    return structure.unflatten([next(draws) if illia_fn.is_posterior(leaf) else leaf for leaf in leaves])


def outputs_and_reference(apply_fn, q, x, coupling, key=KEY):
    """The outputs of a coupling, and those of each network on its example, alone."""
    it = Coupled.of("test", apply_fn, q, x, None, coupling)

    @jax.jit
    def run(q, x, key):
        it = Coupled.of("test", apply_fn, q, x, None, coupling)
        noise = it.noise(key, 1)
        alone = jax.vmap(lambda w, x: apply_fn(w, jax.tree.map(lambda leaf: leaf[None], x)))
        return it.outputs(noise, 1, x), jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), alone(networks(it, q, noise), x))

    return it, *run(q, x, key)


@pytest.mark.promotes
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_networks(name):
    apply_fn, params, x, shared = CASES[name]()
    q = mean_field(params, scale=0.3)
    it, outputs, reference = outputs_and_reference(apply_fn, q, x, "flipout")
    assert {leaf.path for leaf in it.plan.leaves if leaf.strategy == "shared"} == set(shared), it.plan.leaves
    for output, expected in zip(jax.tree.leaves(outputs), jax.tree.leaves(reference), strict=True):
        assert output.shape[:2] == (1, BATCH)
        np.testing.assert_allclose(output, expected, rtol=2e-5, atol=2e-5)
