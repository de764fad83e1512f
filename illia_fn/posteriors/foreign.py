"""Distributions of other libraries as posteriors: whatever can draw and tell its log density, such as a flow."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_callable, describe
from illia_fn._base.numerics import at_least_float32
from illia_fn._base.trees import PyTree, frozen_pytree, is_floating, leaves_with_path
from illia_fn.posteriors._flat import check_like, ravel, size_of, unravel
from illia_fn.posteriors._leaves import strong, whole
from illia_fn.posteriors.posterior import Posterior

Build = Callable[[Any], Any]


class Like(NamedTuple):
    """What a node stands for, without the numbers.

    Attributes:
        structure: the tree.
        shapes, dtypes: of its arrays.
        drawn: the shape of a draw of the distribution: that of the one array, or (P,).
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    drawn: tuple[int, ...]

    def zeros(self) -> PyTree:
        """A tree of zeros."""
        return self.structure.unflatten(map(jnp.zeros, self.shapes, self.dtypes))


@frozen_pytree
class ForeignPosterior(Posterior):
    """q(w) = build(parameters), a distribution of another library over one array, or jointly over a subtree.

    Made by `from_distribution`. Its KL to any prior is estimated from draws, E_q[log q(w) - log p(w)]. Mean and
    standard deviation are those that the distribution tells; where it tells none, as a flow, those of 1000 draws,
    always the same ones.

    Args:
        parameters: what is trained: a tree of floating-point arrays.
        build: parameters -> distribution.
        over: what the node stands for.

    >>> import numpyro.distributions as dist
    >>> q = from_distribution(lambda u: dist.StudentT(3.0, u, 1.0), jnp.zeros(2), jnp.zeros(2))
    >>> print(q.log_prob(jnp.zeros(2)).round(3), q.stddev.round(2))
    -2.002 [1.73 1.73]
    """

    has_entropy: ClassVar[bool] = False

    parameters: PyTree
    build: Build = dataclasses.field(metadata={"static": True})
    over: Like = dataclasses.field(metadata={"static": True})

    @property
    def like(self) -> PyTree:
        return self.over.zeros()

    def widened(self) -> "ForeignPosterior":
        dtypes = tuple(jnp.promote_types(dtype, jnp.float32) for dtype in self.over.dtypes)
        parameters = jax.tree.map(at_least_float32, self.parameters)
        return ForeignPosterior(parameters, self.build, self.over._replace(dtypes=dtypes))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (2,)  # the words of a key

    def reparameterise(self) -> Callable[[jax.Array], PyTree]:
        distribution = self.build(self.parameters)
        return lambda noise: self._placed(_draw(distribution, _key_of(noise)))

    def log_prob(self, w: PyTree) -> jax.Array:
        check_like("ForeignPosterior.log_prob", w, self.like)
        return jnp.sum(self.build(self.parameters).log_prob(ravel(w).reshape(self.over.drawn)))

    def entropy(self) -> jax.Array:
        raise NotImplementedError(
            "ForeignPosterior.entropy: the entropy of a distribution of another library is not known here. Average "
            "-log_prob over draws."
        )

    @property
    def mean(self) -> PyTree:
        return self._placed(self._told("mean", lambda draws: draws.mean(axis=0)))

    @property
    def stddev(self) -> PyTree:
        return self._placed(jnp.sqrt(self._told("variance", lambda draws: draws.var(axis=0))))

    def covariance(self, places: np.ndarray) -> jax.Array:
        raise NotImplementedError("whose covariance is not known here. Estimate it from draws, illia_fn.sample.")

    def _told(self, name: str, of_draws: Callable[[jax.Array], jax.Array]) -> jax.Array:
        distribution = self.build(self.parameters)
        try:
            value = getattr(distribution, name)
            value = value() if callable(value) else value
        except (AttributeError, NotImplementedError):
            keys = jax.random.split(jax.random.key(0), 1000)
            return of_draws(jax.vmap(lambda key: _draw(distribution, key))(keys))
        return jnp.broadcast_to(value, self.over.drawn)

    def _placed(self, x: jax.Array) -> PyTree:
        return unravel(x.reshape(-1), self.like)


def from_distribution(build: Build, parameters: PyTree, params: PyTree) -> ForeignPosterior:
    """One node for all of `params` whose law is a distribution of another library: a flow, or one of numpyro, TFP, ...

    The distribution is asked for two things, `sample(key)`, or `sample(seed=key)`, differentiable in its parameters,
    and `log_prob(w)`. It is over the P numbers of `params` as one vector, in the order of the leaves; over an array it
    may be of the shape of that instead. An optimizer moves `parameters` as they are, so that scales should be given by
    something unconstrained.

        flow, static = equinox.partition(flow, equinox.is_inexact_array)                  # flowjax
        q = from_distribution(lambda flow: equinox.combine(flow, static), flow, params)

    Args:
        build: parameters -> distribution. Pass the same function again for a tree of the same structure.
        parameters: what is trained, a tree of floating-point arrays.
        params: what the node stands for: an array or a tree of floating-point arrays, for their shapes and dtypes.

    Returns:
        A posterior node, in the place of `params`. Every estimator, `predict` and checkpoints take it. Its KL is
        estimated from draws.

    Raises:
        ValueError: for draws that are not of the shape of `params` or (P,), or cannot be differentiated; for a density
            that is neither a scalar nor of the shape of a draw; without parameters.
        TypeError: for a `build` that is no function or makes no distribution, parameters that are not floating-point
            arrays, or leaves of `params` that are not.

    >>> import numpyro.distributions as dist
    >>> def build(u):
    ...     return dist.MultivariateNormal(u["loc"], scale_tril=jnp.tril(u["factor"], -1) + jnp.eye(3))
    >>> parameters = {"loc": jnp.zeros(3), "factor": jnp.zeros((3, 3))}
    >>> q = from_distribution(build, parameters, {"slope": jnp.zeros(2), "intercept": jnp.zeros(())})
    >>> print(q.stddev)
    {'intercept': Array(1., dtype=float32), 'slope': Array([1., 1.], dtype=float32)}
    """
    check_callable("from_distribution", "build", build)
    if hasattr(build, "log_prob"):
        raise TypeError(
            f"from_distribution: build must be a function from parameters to a distribution, got {describe(build)}."
        )
    like, _ = whole("from_distribution", params, 1.0)
    leaves = leaves_with_path(parameters)
    if not leaves:
        raise ValueError("from_distribution: parameters has no arrays, so nothing would be trained.")
    for path, leaf in leaves:
        if not is_floating(leaf):
            raise TypeError(
                f"from_distribution: parameters{path} must be a floating-point array, got {describe(leaf)}. Keep all "
                "else in build, as equinox.partition does."
            )
    parameters = jax.tree.map(strong, parameters)
    drawn = _checked_shape(build, parameters, like)
    arrays, structure = jax.tree.flatten(like)
    shapes, dtypes = ([np.shape(x) for x in arrays], [x.dtype for x in arrays])
    return ForeignPosterior(parameters, build, Like(structure, tuple(shapes), tuple(dtypes), drawn))


def _checked_shape(build: Build, parameters: PyTree, like: PyTree) -> tuple[int, ...]:
    """That of a draw, and all that is asked of a distribution."""

    def tried(parameters: PyTree, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        distribution = build(parameters)
        missing = [name for name in ("sample", "log_prob") if not callable(getattr(distribution, name, None))]
        if missing:
            raise TypeError(
                "from_distribution: build must return a distribution, with sample and log_prob, got "
                f"{describe(distribution)}, without {' and '.join(missing)}."
            )
        if getattr(distribution, "has_rsample", True) is False or "NOT" in str(
            getattr(distribution, "reparameterization_type", "")
        ):
            raise ValueError(
                f"from_distribution: draws of {type(distribution).__name__} cannot be differentiated in its parameters."
            )
        w = _draw(distribution, key)
        return w, distribution.log_prob(w)

    w, log_prob = jax.eval_shape(tried, parameters, jax.random.key(0))
    arrays, shapes = jax.tree.leaves(like), [(size_of(like),)]
    if len(arrays) == 1 and np.shape(arrays[0]) not in shapes:
        shapes.append(np.shape(arrays[0]))
    if w.shape not in shapes or not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(
            f"from_distribution: a draw must be floating-point numbers of shape {' or '.join(map(str, shapes))}, those "
            f"of params, got {w.dtype}{list(w.shape)}."
        )
    if log_prob.shape not in ((), w.shape):
        raise ValueError(
            f"from_distribution: log_prob must be a scalar, or of the shape of a draw, {w.shape}, got {log_prob.shape}."
        )
    return w.shape


def _draw(distribution: Any, key: jax.Array) -> jax.Array:
    """One draw, by either of the names that libraries give to the key."""
    takes_seed = "seed" in inspect.signature(distribution.sample).parameters
    return distribution.sample(seed=key) if takes_seed else distribution.sample(key)


def _key_of(noise: jax.Array) -> jax.Array:
    """A key of the bits of two normal numbers, which threefry mixes: other noise, mirrored too, gives other draws."""
    words = jax.lax.bitcast_convert_type(noise.astype(jnp.float32), jnp.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")
