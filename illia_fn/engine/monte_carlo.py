"""E_{w ~ q}[f(w)]: the Monte Carlo engine under every objective."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_callable, check_draws, split_aux
from illia_fn._base.numerics import at_least_float32, spread
from illia_fn._base.sharding import vary_like
from illia_fn._base.trees import PyTree
from illia_fn.engine._accumulate import Chunk, sum_over_chunks
from illia_fn.engine._eager import compiled_once
from illia_fn.engine._latin_hypercube import Strata, stratified_normals
from illia_fn.posteriors._join import Joined
from illia_fn.posteriors.posterior import Sampler, is_posterior

_NOISE_AT_ONCE = 2**18  # numbers: larger draws leave the cache between the rounds of threefry


def expectation(
    f: Callable[..., Any],
    q: PyTree,
    key: jax.Array,
    num_samples: int = 1,
    *,
    chunk_size: int | None = 1,
    antithetic: bool = False,
    needs_key: bool = False,
    has_aux: bool = False,
) -> Any:
    """Monte Carlo expectation, (1 / S) sum_s f(w_s) with w_s ~ q: unbiased for E_{w ~ q}[f(w)].

    The draws are reparameterised, w_s = T(q, noise_s), so that its gradient is unbiased too (Kingma & Welling 2014,
    https://arxiv.org/abs/1312.6114). The same key gives the same draws, whatever the `chunk_size` (except for rbg keys,
    which JAX batches in its own way).

    The samples are taken in chunks, one chunk after another. If f returns a scalar, its gradient is accumulated along
    with it: the memory is that of one chunk and of the sums, and nothing is computed twice. If f returns anything else,
    or for the gradient of its aux, each chunk is evaluated a second time, in that same memory. Values and gradients,
    forward and reverse, hold for everything that f depends on: q, and all arrays that f closes over. Where it is
    accumulated, forward mode, too, goes through the reverse mode of f; with `chunk_size=None` it does not.

    Args:
        f: a function of a tree of parameters that returns a pytree of real arrays. With `needs_key=True` it
            is called as f(w, key), with a key of its own for each sample; with `has_aux=True` it returns (value, aux).
        q: a posterior tree.
        key: a PRNG key.
        num_samples: S, a static int of at least 1.
        chunk_size: how many samples are evaluated at once, in one vmap; None for all. One after another is usually
            the fastest on a CPU; an accelerator with memory to spare may be faster with more.
        antithetic: whether the samples come in pairs that mirror each other, T(q, noise) and T(q, -noise), which is
            still unbiased, takes half the random numbers and cancels what is odd in the noise (Hammersley & Morton
            1956). `num_samples` must be even; samples 2i and 2i + 1 are a pair.

    Returns:
        The mean of f over the samples, float32 or wider; with `has_aux=True` also the aux, every leaf with a leading
        axis of size S.

    Raises:
        ValueError: if `num_samples` or `chunk_size` is not an int of at least 1, or an antithetic `num_samples` is odd.
        TypeError: if `key` is not a PRNG key, or f returns complex numbers.

    >>> from illia_fn import mean_field
    >>> q = mean_field(jnp.array(3.0), scale=0.1)
    >>> print(expectation(jnp.square, q, jax.random.key(0), 10_000, chunk_size=100).round(1))  # 3^2 + 0.1^2
    9.0
    >>> print(expectation(lambda w: 2 * w, q, jax.random.key(0), 2, antithetic=True).round(5))  # odd in the noise
    6.0
    """
    check_callable("expectation", "f", f)

    def value_and_aux(*args: Any) -> tuple[PyTree, PyTree]:
        value, aux = split_aux("expectation", "f", f(*args), has_aux=has_aux)
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(value)):
            raise TypeError("expectation: f must return real numbers, got complex ones. Return their parts.")
        return value, aux

    chunk_sum, chunks = draws(
        "expectation",
        value_and_aux,
        q,
        key,
        num_samples,
        chunk_size=chunk_size,
        antithetic=antithetic,
        needs_key=needs_key,
    )
    total, aux = sum_over_chunks(chunk_sum, chunks, chunk_size)
    value = jax.tree.map(lambda leaf: leaf / num_samples, total)
    return (value, aux) if has_aux else value


def draws(
    caller: str,
    f: Callable[..., tuple[PyTree, PyTree]],
    q: PyTree,
    key: jax.Array,
    num_samples: int,
    *,
    chunk_size: int | None,
    antithetic: bool,
    needs_key: bool,
    latin_hypercube: bool = False,
    per_draw: tuple[jax.Array, ...] = (),
) -> tuple[Chunk, PyTree]:
    """For f -> (value, aux): a function of a chunk, to the sum of the values and all aux at its draws, and the chunks.

    A chunk is made of keys, of the places of its draws, and of the rows of `per_draw`, arrays (S, ...) that f takes as
    further arguments.
    """
    check_draws(caller, key, num_samples, chunk_size, antithetic)
    # For each draw of noise one key, and one for each f that sees it.
    sides = 2 if antithetic else 1
    keys = jax.random.split(key, (num_samples // sides, 1 + sides))
    rows = [row.reshape(num_samples // 2, 2, *row.shape[1:]) for row in per_draw] if antithetic else per_draw
    chunks = keys, jnp.asarray(np.arange(num_samples // sides)), *rows
    noise = partial(_even_noise, jax.random.clone(keys)[0, 0], num_samples) if latin_hypercube else _noise
    chunk_sum = partial(_chunk_sum, f, noise, antithetic=antithetic, needs_key=needs_key)
    q = vary_like(lambda q: chunk_sum(q)(jax.tree.map(lambda x: x[:1], chunks))[0], q)
    at_q = chunk_sum(q)  # once for all chunks
    is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(q))
    return (at_q if is_traced else partial(compiled_once, at_q)), chunks


def _chunk_sum(
    f: Callable[..., tuple[PyTree, PyTree]],
    noise_at: Callable[[Sampler, jax.Array, jax.Array], list[jax.Array]],
    q: PyTree,
    *,
    antithetic: bool,
    needs_key: bool,
) -> Chunk:
    joined = Joined.of(q, is_posterior)
    sampler = Sampler.of(joined.nodes)

    def call(w: list[jax.Array], inputs: tuple[jax.Array, ...]) -> tuple[PyTree, PyTree]:
        return f(joined.tree(w), *(inputs if needs_key else inputs[1:]))

    def chunk_sum(chunk: tuple[jax.Array, ...]) -> tuple[PyTree, PyTree]:
        keys, places, *rows = chunk
        noise = noise_at(sampler, keys[:, 0], places)
        if not antithetic:
            return _sum_at_noise(call, sampler, noise, (keys[:, 1], *rows))
        sides = [
            _sum_at_noise(call, sampler, side, (keys[:, 1 + index], *[row[:, index] for row in rows]))
            for index, side in enumerate([noise, [-array for array in noise]])
        ]
        (one, one_aux), (other, other_aux) = sides
        return jax.tree.map(jnp.add, one, other), jax.tree.map(_interleave, one_aux, other_aux)

    return chunk_sum


def _noise(sampler: Sampler, keys: jax.Array, _: jax.Array) -> list[jax.Array]:
    """The noise of each key, stacked."""
    size = sum(leaf.size for leaf in jax.eval_shape(lambda keys: sampler.noise(keys[0]), keys))
    at_once = _NOISE_AT_ONCE // max(1, size)
    at_once = at_once if at_once > 1 else None
    return compiled_once(lambda keys: jax.lax.map(sampler.noise, keys, batch_size=at_once), keys)


def _even_noise(key: jax.Array, count: int, sampler: Sampler, _: jax.Array, places: jax.Array) -> list[jax.Array]:
    """The noise of some places among all samples of a Latin hypercube, stacked."""
    shapes = jax.eval_shape(sampler.noise, key)
    noise = stratified_normals(jax.random.clone(key), shapes, 1, Strata(places, count))
    return [leaf[:, 0] for leaf in noise]


def _sum_at_noise(
    f: Callable[..., tuple[PyTree, PyTree]],
    sampler: Sampler,
    noise: list[jax.Array],
    inputs: tuple[jax.Array, ...],
) -> tuple[PyTree, PyTree]:
    """The sum of the values of f(w, inputs) -> (value, aux) at the draw of each noise, and all aux."""
    count = len(inputs[0])
    if count == 1:  # a vmap of one would still turn every convolution into a grouped one
        value, aux = f(sampler.draws([array[0] for array in noise]), tuple(array[0] for array in inputs))
        return jax.tree.map(at_least_float32, value), jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], aux)
    draws, parameters = jax.closure_convert(sampler.draws, [array[0] for array in noise])
    w = jax.vmap(draws, axis_size=count)(noise, *[spread(leaf, count) for leaf in parameters])
    values, aux = jax.vmap(f)(w, inputs)
    return jax.tree.map(lambda leaf: jnp.sum(at_least_float32(leaf), axis=0), values), aux


def _interleave(one: jax.Array, other: jax.Array) -> jax.Array:
    """(one_0, other_0, one_1, other_1, ...)."""
    return jnp.stack([one, other], axis=1).reshape(-1, *one.shape[1:])
