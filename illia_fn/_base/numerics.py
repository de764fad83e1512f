"""Scalar functions that stay right at both ends of the floating-point range."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

HALF_LOG_2PI = 0.9189385332046727
LARGE = 2**19  # elements of an array, 2 MB in float32: copies of smaller ones are not worth an order of computation

# Outside of a jit one program, where each operation would be one to compile; inside of one, the operations themselves.
one_program = partial(jax.jit, inline=True)


def at_least_float32(x: ArrayLike) -> jax.Array:
    """`x` as an array of float32 or wider: half precision is for storage, not for sums and logarithms."""
    x = jnp.asarray(float(x) if isinstance(x, int) else x)
    wide = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
    return x if wide else x.astype(jnp.float32)


def widest_dtype(tree: Any) -> np.dtype:
    """The widest floating-point dtype among the leaves of a tree, and at least float32."""
    dtypes = [np.dtype(np.float32), *map(jnp.result_type, jax.tree.leaves(tree))]
    return max((d for d in dtypes if jnp.issubdtype(d, jnp.floating)), key=lambda dtype: dtype.itemsize)


def total(terms: Sequence[jax.Array]) -> jax.Array:
    """Sum all elements of all `terms`, in the widest of their dtypes and at least in float32; 0 if there are none."""
    sums = [jnp.sum(at_least_float32(term)) for term in terms]
    dtype = widest_dtype(sums)
    return sum((term.astype(dtype) for term in sums), start=jnp.zeros((), dtype))


@jax.custom_jvp
@one_program
def softplus(rho: jax.Array) -> jax.Array:
    """log(1 + exp(rho))."""
    return jnp.maximum(rho, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(rho)))


# sigmoid(rho) = 1 - exp(-softplus(rho)): of the result, so that nothing else is kept for the backward pass.
softplus.defjvps(lambda tangent, scale, _: -jnp.expm1(-scale) * tangent)


@jax.custom_jvp
@one_program
def log_softplus(rho: jax.Array) -> jax.Array:
    """log(log(1 + exp(rho))), with gradient sigmoid(rho) / softplus(rho) -> 1 as rho -> -inf."""
    # Below -40 softplus(rho) = exp(rho) (1 - exp(rho) / 2 + ...) is exp(rho) to the last bit of a float64,
    # and further down it underflows.
    return jnp.log(jnp.maximum(softplus(rho), math.exp(-40.0))) + jnp.minimum(rho + 40.0, 0.0)


def _log_softplus_tangent(tangent: jax.Array, _: jax.Array, rho: jax.Array) -> jax.Array:
    # The quotient first: reverse mode would divide by a softplus of 1e-17 before it multiplies by the sigmoid.
    low, scale = rho < -40.0, softplus(rho)
    return jnp.where(low, 1.0, -jnp.expm1(-scale) / jnp.where(low, 1.0, scale)) * tangent


log_softplus.defjvps(_log_softplus_tangent)


@one_program
def softplus_inverse(scale: jax.Array) -> jax.Array:
    """rho with softplus(rho) = scale, for scale > 0."""
    # log(expm1(scale)) overflows for a large scale; this form does not, and is as good for a small one.
    return scale + jnp.log(-jnp.expm1(-scale))


@one_program
def raw_of_scale(scale: jax.Array, log_scale: jax.Array) -> jax.Array:
    """rho with softplus(rho) = scale, of a scale that may underflow where its logarithm does not."""
    is_far = log_scale < -40.0  # where rho is the logarithm to the last bit of a float64
    return jnp.where(is_far, log_scale, softplus_inverse(jnp.where(is_far, 1.0, scale)))


def minus_log1p(t: jax.Array, log1p_t: jax.Array, plus: ArrayLike = 0.0) -> jax.Array:
    """t - log(1 + t) for t > -1, right near 0, where it is t^2 / 2, and where 1 + t is so small that t rounds to -1.

    Args:
        t: an array.
        log1p_t: log(1 + t), known from elsewhere: of the ratio of two numbers, the difference of their logarithms.
        plus: what is added, on both sides of the branch. Of a sum over the result XLA on CPU makes a call of a library,
            which takes all that is added last in arrays of its own, but computes what ends in a branch at once.
    """
    # log(1 + t) = 2 atanh(u) and t = 2 u / (1 - u) with u = t / (t + 2)
    near = jnp.clip(t, -0.25, 1 / 3)
    u = near / (near + 2.0)
    last = 9 if t.dtype == jnp.float32 else 21
    square, series = u * u, jnp.full_like(u, 1 / last)
    for k in range(last - 2, 1, -2):
        series = series * square + 1 / k
    return jnp.where(near == t, plus + (u * near - 2.0 * u * square * series), plus + (t - log1p_t))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b to the precision of the dtype, where an accelerator would by default take fewer bits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@one_program
def normal_log_prob(x: jax.Array, loc: jax.Array, log_scale: jax.Array) -> jax.Array:
    """log N(x; loc, exp(log_scale)^2), element-wise, in nats."""
    # Multiplying by exp(-log_scale) keeps the gradients finite where dividing by a scale of 1e-30 would square it;
    # the floor keeps x = loc at a finite density when the scale itself underflows.
    z = (x - loc) * jnp.exp(-jnp.maximum(log_scale, jnp.log(jnp.finfo(log_scale.dtype).tiny)))
    return -0.5 * jnp.square(z) - log_scale - HALF_LOG_2PI


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def spread(x: jax.Array, count: int) -> jax.Array:
    """`count` copies of x along a new leading axis.

    The transpose of a broadcast is a sum over that axis, which XLA's CPU backend runs many times slower than the tree
    of additions that is the transpose of doubling.
    """
    return jnp.broadcast_to(x, (count, *x.shape))


@spread.defjvp
def _spread_jvp(count: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    copies = tangents[0].reshape(1, *tangents[0].shape)  # transposes to a reshape; [None] would to a sum
    while len(copies) < count:
        copies = jnp.concatenate([copies, copies[: count - len(copies)]])
    return spread(*primals, count), copies


def gauss_hermite(num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Points z_s and shares of sum 1: E[f(z)] of z ~ N(0, 1) is about sum_s share_s f(z_s)."""
    points, weights = np.polynomial.hermite_e.hermegauss(num_points)
    return points, weights / np.sum(weights)


def weighted_mean(values: jax.Array, weights: ArrayLike | None) -> jax.Array:
    """sum_i weights_i values_i / sum_i weights_i of values (B,); a scalar stays."""
    if weights is None:
        return jnp.mean(values)
    weights = jnp.asarray(weights).astype(values.dtype)
    return jnp.sum(weights * values) / jnp.sum(weights)


def gradient_after_value(x: jax.Array, tree: Any) -> jax.Array:
    """x, a scalar of the arrays in `tree`, without which nothing can be done with its gradient, where they are large.

    Else XLA copies parameters that are donated, as it does not know that they are read for x before they are updated.
    The gradient alone then takes the time of x, too, so that small arrays may be copied.
    """
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(tree)]  # of jax.export maybe symbols
    return _after(x) if any(isinstance(size, int) and size >= LARGE for size in sizes) else x


@jax.custom_jvp
def _after(x: jax.Array) -> jax.Array:
    return x


@_after.defjvp
def _after_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents  # where x is NaN so is the gradient, which therefore waits for it
    return x, tangent * jnp.where(jnp.isnan(x), jnp.nan, 1.0).astype(x.dtype)
