"""Arrays with a leading axis of the components of a mixture: one of them, and moments without cancellation."""

import jax
import jax.numpy as jnp

from illia_fn._base.trees import PyTree


def at(index: int | jax.Array, tree: PyTree) -> PyTree:
    """The component of this index."""

    def of_array(x: jax.Array) -> jax.Array:
        if not jax.typeof(x).sharding.mesh.explicit_axes:
            return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
        # whose transpose, in jax 0.12, updates what is on no mesh by what is
        each = [jnp.where(index == k, x[k], jnp.zeros_like(x[k])) for k in range(len(x))]
        return sum(each[1:], start=each[0])

    return jax.tree.map(of_array, tree)


def middle(each: jax.Array) -> jax.Array:
    """The mean over the components, without the rounding of numbers that are far from 0."""
    return each[0] + jnp.mean(each - each[:1], axis=0)


def deviations(each: jax.Array) -> jax.Array:
    """m_k - m, of differences that are exact where components are near each other."""
    apart = each - each[:1]
    return apart - jnp.mean(apart, axis=0, keepdims=True)


def root_mean_square(apart: jax.Array, scales: jax.Array) -> jax.Array:
    """The standard deviation of a mixture, of components of these scales that are apart by that from its mean."""
    # in units of the largest, as squares of small scales underflow
    unit = jax.lax.stop_gradient(jnp.max(jnp.maximum(scales, jnp.abs(apart)), axis=0))
    unit = jnp.where(unit > 0, unit, 1.0)
    squares = jnp.mean(jnp.square(scales / unit[None]) + jnp.square(apart / unit[None]), axis=0)
    return unit * jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
