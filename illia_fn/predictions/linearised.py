"""The Gaussian law of the outputs of a network that is linear in its weights, and what a softmax makes of it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from illia_fn._base.checks import check_callable, check_count, concrete
from illia_fn._base.numerics import at_least_float32, one_program, widest_dtype
from illia_fn._base.sharding import vary_like, with_whole_examples
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.coupling._joint import is_linear_in_noise
from illia_fn.posteriors._join import Joined
from illia_fn.posteriors.posterior import Posterior, Sampler, check_nodes, is_posterior, num_params


class OutputLaw(NamedTuple):
    """f(x_i) ~ N(mean_i, covariance_i), each example by itself.

    Attributes:
        mean: the outputs at the mean of q, as the model returns them, every leaf (B, ...).
        covariance: of the K numbers that are the outputs of one example, in the order of the tree's leaves, (B, K, K);
            of `propagate_moments` a diagonal matrix.
    """

    mean: Any
    covariance: jax.Array

    @property
    def variance(self) -> Any:
        """The diagonal, in the structure and shapes of the mean."""
        one = jax.tree.map(lambda leaf: leaf[0], self.mean)
        unravel = ravel_pytree(jax.tree.map(at_least_float32, one))[1]
        return jax.vmap(unravel)(jnp.diagonal(self.covariance, axis1=1, axis2=2))


def linearise(apply_fn: Callable[..., Any], params: PyTree, x: PyTree, *, chunk_size: int = 1) -> OutputLaw:
    """The law of f(x, m) + J (w - m), J = df(x, m) / dw, w ~ q: f ~ N(f(x, m), J S J'), S the covariance of q.

    In closed form, without draws: what a posterior around one mode says to first order (Immer et al. 2021, Improving
    predictions of Bayesian neural nets via local linearization, https://arxiv.org/abs/2008.08400). It is exact where
    the weights enter linearly, as those of a last layer do. Draws of the same model:
    `predict(..., linearised=True)`.

    It takes K reverse passes for each example, and the memory of K trees of parameters. J S^(1/2) is differentiated
    along the reparameterisation of q at noise 0, so that every family that is Gaussian is served as it is; others are
    refused where their parameters are known.

    Args:
        apply_fn: the model, apply_fn(params, x) -> outputs, a pytree of floating-point arrays (B, ...).
        params: a posterior tree.
        x: inputs, arrays that share a leading axis of B examples, which do not interact.
        chunk_size: how many examples are differentiated at once.

    Returns:
        An `OutputLaw`, in float32 or wider.

    Raises:
        ValueError: if params has no posterior node, or one that is not Gaussian; if the arrays of x do not share a
            leading axis, or an output of one example has no leading axis of size 1.

    >>> from illia_fn import mean_field
    >>> law = linearise(lambda w, x: x @ w, mean_field(jnp.ones((2, 1)), scale=0.5), jnp.array([[1.0, 2.0]]))
    >>> print(law.mean, law.covariance.round(3))  # 0.25 (1^2 + 2^2)
    [[3.]] [[[1.25]]]
    """
    check_callable("linearise", "apply_fn", apply_fn)
    check_nodes("linearise", params)
    if not num_params(params):
        raise ValueError("linearise: params has no posterior node, so the outputs have no law. Pass a posterior tree.")
    check_count("linearise", "chunk_size", chunk_size)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or () in sizes:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
        raise ValueError(f"linearise: the arrays of x must share a leading axis of examples, got shapes {shapes}.")
    _check_affine(params)
    joined = Joined.of(params, is_posterior)
    sampler = Sampler.of(joined.nodes)
    zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), _noise_shapes(sampler))

    def of_example(one: PyTree) -> tuple[PyTree, jax.Array]:
        def outputs(noise: list[jax.Array]) -> PyTree:
            batch = jax.tree.map(lambda leaf: leaf[None], one)
            return jax.tree.map(_alone, apply_fn(joined.tree(sampler.draws(noise)), batch))

        mean = outputs(zeros)
        flat_outputs = lambda noise: ravel_pytree(jax.tree.map(at_least_float32, outputs(noise)))[0]  # noqa: E731
        factor = jax.jacrev(flat_outputs)(vary_like(flat_outputs, zeros))
        flat = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(factor)], axis=1)
        return mean, jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)

    return OutputLaw(*jax.lax.map(of_example, with_whole_examples(x), batch_size=chunk_size))


def _noise_shapes(sampler: Sampler) -> list[jax.ShapeDtypeStruct]:
    return jax.eval_shape(sampler.noise, jax.eval_shape(lambda: jax.random.key(0)))


def _check_affine(params: PyTree) -> None:
    """Every node's draw is its mean and a linear function of the noise, as far as that can be known before tracing."""
    for path, node in leaves_with_path(params, is_posterior):
        if not is_posterior(node):
            continue
        if not is_linear_in_noise(node):
            _refuse(path, node)
        draw = node.reparameterise()
        noise = jax.random.normal(jax.random.key(0), node.noise_shape, widest_dtype(node.mean))
        trees = [node.mean, draw(0.0 * noise), draw(noise), draw(-noise)]
        values = [[concrete(leaf) for leaf in jax.tree.leaves(tree)] for tree in trees]
        for leaf, middle, at_zero, one, other in zip(jax.tree.leaves(node.mean), *values, strict=True):
            if middle is None or at_zero is None or one is None or other is None:
                continue
            eps = float(jnp.finfo(leaf.dtype).eps)
            middle, at_zero, one, other = (np.asarray(x, np.float64) for x in (middle, at_zero, one, other))
            # in units of the spread, and of the rounding of a draw
            most = 0.02 * np.abs(one - other) + 8.0 * eps * np.abs(middle) + np.finfo(np.float32).tiny
            if np.any(np.abs(at_zero - middle) > most) or np.any(np.abs(one + other - 2 * middle) > most):
                _refuse(path, node)


def _refuse(path: str, node: Posterior) -> NoReturn:
    raise ValueError(
        f"linearise: params{path} is a {type(node).__name__}, whose draws are not its mean and a linear function of "
        "the noise, so the outputs are not Gaussian. Use predict(..., linearised=True)."
    )


def _alone(output: jax.Array) -> jax.Array:
    if jnp.shape(output)[:1] != (1,):
        raise ValueError(
            f"linearise: apply_fn must return outputs with a leading axis of examples, got shape {jnp.shape(output)} "
            "for one example."
        )
    return output[0]


def softmax_of_gaussian(mean: ArrayLike, covariance: ArrayLike) -> jax.Array:
    """E[softmax(f)] for f ~ N(mean, covariance), about: the mean-field approximation with full covariance.

        p_i = 1 / sum_j exp((m_j - m_i) / sqrt(1 + (pi / 8) (V_ii + V_jj - 2 V_ij)))

    Every pair of logits is averaged by the probit approximation of a sigmoid; the result is normalised. Lu, Ie & Sha
    2020, Mean-field approximation to Gaussian-softmax integral, https://arxiv.org/abs/2006.07584. Two classes are those
    of MacKay 1992, within .02 of the integral; more are so for variances of a few tenths, and may be off by .1 for
    variances of 3 that differ between the classes. Draws of the logits are exact.

    Args:
        mean: (..., C) logits.
        covariance: (..., C, C).

    Returns:
        Probabilities, (..., C).

    >>> p = softmax_of_gaussian(jnp.array([2.0, 0.0]), jnp.eye(2))
    >>> print(f"{p[0]:.3f}, for {jax.nn.softmax(jnp.array([2.0, 0.0]))[0]:.3f} at the mean")
    0.817, for 0.881 at the mean
    """
    return _softmax_of_gaussian(*_checked("softmax_of_gaussian", mean, covariance))


@one_program
def _softmax_of_gaussian(mean: jax.Array, covariance: jax.Array) -> jax.Array:
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    spread = variance[..., :, None] + variance[..., None, :] - 2.0 * covariance
    spread = jnp.maximum(spread, 0.0)
    gaps = (mean[..., None, :] - mean[..., :, None]) / jnp.sqrt(1.0 + math.pi / 8.0 * spread)
    return jax.nn.softmax(-jax.nn.logsumexp(gaps, axis=-1), axis=-1)


def softmax_by_probit(mean: ArrayLike, covariance: ArrayLike) -> jax.Array:
    """E[softmax(f)] for f ~ N(mean, covariance), about: softmax(m / sqrt(1 + pi v / 8)), v the variances.

    The extension of the probit approximation to several classes (Gibbs 1998; Eschenhagen et al. 2021,
    https://arxiv.org/abs/2111.03577), which leaves out the correlations.

    Args, returns: as `softmax_of_gaussian`.

    >>> print(f"{softmax_by_probit(jnp.array([2.0, 0.0]), jnp.eye(2))[0]:.3f}")
    0.845
    """
    return _softmax_by_probit(*_checked("softmax_by_probit", mean, covariance))


@one_program
def _softmax_by_probit(mean: jax.Array, covariance: jax.Array) -> jax.Array:
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    return jax.nn.softmax(mean / jnp.sqrt(1.0 + math.pi / 8.0 * variance), axis=-1)


def _checked(caller: str, mean: ArrayLike, covariance: ArrayLike) -> tuple[jax.Array, jax.Array]:
    mean = at_least_float32(mean)
    covariance = at_least_float32(covariance).astype(mean.dtype)
    if mean.ndim < 1 or covariance.shape != (*mean.shape, *mean.shape[-1:]):
        raise ValueError(
            f"{caller}: mean must have shape (..., C) and covariance (..., C, C), got {mean.shape} and "
            f"{covariance.shape}. Pass those of linearise(...)."
        )
    return mean, covariance
