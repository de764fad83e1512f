"""The networks that the noise of a coupling makes, one for each example, and the moments of their outputs."""

import itertools
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

import illia_fn
from illia_fn.coupling._joint import separated
from illia_fn.coupling._layout import UNKNOWN
from illia_fn.coupling._noise import Noise
from illia_fn.coupling._transform import Coupled


def numpy_noise(it, num_samples=1, lead=(), seed=0):
    """Noise as a coupling draws it, with more leading axes: from NumPy, as a draw is most of a small program."""
    generator, batch_size, shapes = np.random.default_rng(seed), it.model.batch_size, it.plan.noise

    def normal(*axes):
        return lambda like: generator.normal(size=(*lead, *axes, *like.shape)).astype(like.dtype)

    def signs(like):
        return generator.choice(np.float32([-1, 1]), (*lead, batch_size, *like.shape))

    leaves = jax.tree.map(normal(num_samples), shapes.leaves)
    own = jax.tree.map(normal(num_samples, batch_size), (shapes.examples, shapes.sites))
    return Noise(leaves, *own, jax.tree.map(signs, shapes.signs))


def signs_of_parts(it, noise, batch_size):
    """For each leaf that is a part of a concatenated weight, its signs (B, ...) there; loops read every layer."""
    shapes = {index: leaf.shape for index, leaf in enumerate(it.plan.leaves)}
    shapes |= {whole.index: whole.shape for whole in it.plan.wholes.values()}
    signs = {}
    for whole in sorted(it.plan.wholes.values(), key=lambda whole: whole.index):
        own = signs.get(whole.index, jnp.ones((batch_size, *whole.shape)))
        for axis, sign in noise.signs.get(whole.index, {}).items():
            own = own * sign.reshape(-1, *[size if at == axis else 1 for at, size in enumerate(whole.shape)])
        for part in whole.parts:
            shape, end = shapes[part.leaf], part.start + part.shape[whole.axis]
            piece = jax.lax.slice_in_dim(own, part.start, end, axis=1 + whole.axis)
            ranges = [range(shape[axis]) if UNKNOWN in at else [None] for axis, at in sorted(part.positions.items())]
            for layer in itertools.product(*ranges):
                places = [part.positions[axis] if at is None else np.array(at) for axis, at in enumerate(layer)]
                places = [np.broadcast_to(place, part.shape) for place in places]
                before = signs.get(part.leaf, jnp.ones((batch_size, *shape)))
                signs[part.leaf] = before.at[(slice(None), *places)].set(piece)
    return signs


def networks(it, q, noise):
    """The weights of every example of one sample, rebuilt from the noise: W_i = T(q, noise * signs_i)."""
    of_parts, batch_size = signs_of_parts(it, noise, it.model.batch_size), it.model.batch_size

    def of_leaf(index, leaf, node):
        if leaf.strategy == "per_example":
            own = noise.examples[index][0]
        else:
            own = jnp.broadcast_to(noise.leaves[index][0], (batch_size, *node.noise_shape))
        if leaf.strategy == "flipout" and index in of_parts:
            own = own * of_parts[index]
        if leaf.signs > 1:  # along an axis of the noise of a matrix
            own = own * jnp.expand_dims(noise.signs[index][0], 2 - node.signed_axis)
        elif leaf.signs:  # of the whole draw
            own = own * noise.signs[index][0].reshape(-1, *[1] * (own.ndim - 1))
        for axis, signs in noise.signs.get(index, {}).items() if leaf.axes else ():
            own = own * signs.reshape(-1, *[size if at == axis else 1 for at, size in enumerate(leaf.shape)])
        return jax.vmap(node.reparameterise())(own)

    draws = [of_leaf(i, *pair) for i, pair in enumerate(zip(it.plan.leaves, it.model.nodes, strict=True))]
    for factor in it.model.factors:
        if factor.number in noise.examples:
            coefficients = noise.examples[factor.number][0]
        else:
            coefficients = jnp.broadcast_to(noise.leaves[factor.number][0], (batch_size, factor.rank))
        if factor.number in noise.signs:
            coefficients = coefficients * noise.signs[factor.number][0]
        move, start = coefficients @ factor.matrix.T, 0
        for index in factor.nodes:
            size = draws[index][0].size
            draws[index] += move[:, start : start + size].reshape(draws[index].shape)
            start += size
    leaves, structure = jax.tree.flatten(separated(q)[0], is_leaf=illia_fn.is_posterior)
    remaining = iter(draws)
    return structure.unflatten([next(remaining) if illia_fn.is_posterior(leaf) else leaf for leaf in leaves])


def outputs_and_references(cases, coupling):
    """For each (apply_fn, q, x): the coupling's plan, its outputs, and those of each network on its example, alone.

    In one program for all of them.
    """
    coupled = {}

    def run(name, q, x):
        apply_fn = cases[name][0]
        it = coupled[name] = Coupled.of("test", apply_fn, q, x, None, coupling)
        noise = jax.tree.map(jnp.asarray, numpy_noise(it))
        alone = jax.vmap(lambda w, x: apply_fn(w, jax.tree.map(lambda leaf: leaf[None], x)))
        return it.outputs(noise, 1, x), jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), alone(networks(it, q, noise), x))

    arguments = {name: (q, x) for name, (_, q, x) in cases.items()}
    results = jax.jit(lambda args: {name: run(name, *args[name]) for name in args})(arguments)
    return {name: (coupled[name], *results[name]) for name in cases}


def outputs_and_reference(apply_fn, q, x, coupling):
    return outputs_and_references({"": (apply_fn, q, x)}, coupling)[""]


DRAWS = 4096


def moments(outputs):
    """All entries of the outputs of one example, and their products, for each draw: (draws, examples, statistics)."""
    flat = np.asarray(outputs, np.float64).reshape(*outputs.shape[:2], -1)
    flat = flat[:, :, :8]
    products = flat[..., :, None] * flat[..., None, :]
    upper = np.triu_indices(flat.shape[-1])
    return np.concatenate([flat, products[..., upper[0], upper[1]]], axis=-1).reshape(len(flat), -1)


def largest_deviation(some, others):
    """The largest difference of two means over independent draws, in standard errors, and its Bonferroni bound."""
    difference = some.mean(axis=0) - others.mean(axis=0)
    error = np.sqrt(some.var(axis=0) / len(some) + others.var(axis=0) / len(others))
    return np.abs(difference / error).max(), NormalDist().inv_cdf(1 - 1e-4 / 2 / difference.size)


def coupled_draws(apply_fn, q, x, coupling, seed=0):
    """So many outputs of a coupling."""
    it = Coupled.of("test", apply_fn, q, x, None, coupling)
    noise = numpy_noise(it, lead=(DRAWS,), seed=seed)
    return jax.jit(jax.vmap(lambda noise: it.outputs(noise, 1, x)[0]))(noise)


def direct_draws(apply_fn, q, x, seed=1):
    """So many outputs of a network drawn from q."""
    nodes, structure = jax.tree.flatten(q, is_leaf=illia_fn.is_posterior)
    generator = np.random.default_rng(seed)
    noise = [generator.normal(size=(DRAWS, *node.noise_shape)).astype(np.float32) for node in nodes]

    def outputs(noise):
        weights = [node.reparameterise()(own) for node, own in zip(nodes, noise, strict=True)]
        return apply_fn(structure.unflatten(weights), x)

    return jax.jit(jax.vmap(outputs))(noise)


def draws(f, *seeds):
    """f of so many keys, or of as many tuples of keys as there are seeds, all in one program."""
    keys = [jax.random.split(jax.random.key(seed), DRAWS) for seed in seeds]
    return jax.jit(jax.vmap(f))(keys[0] if len(keys) == 1 else tuple(keys))
