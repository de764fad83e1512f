"""E_{w ~ q}[f(w)]: the Monte Carlo engine under every objective."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from illia_fn._checks import check_key, check_num_samples
from illia_fn._numerics import at_least_float32
from illia_fn._trees import PyTree
from illia_fn.posteriors import sample


def expectation(
    f: Callable[..., Any],
    q: PyTree,
    key: jax.Array,
    num_samples: int = 1,
    *,
    needs_key: bool = False,
    has_aux: bool = False,
) -> Any:
    """Monte Carlo expectation, (1 / S) sum_s f(w_s) with w_s ~ q: unbiased for E_{w ~ q}[f(w)].

    The draws are reparameterised, so that its gradient is unbiased too (Kingma & Welling 2014,
    https://arxiv.org/abs/1312.6114).

    Args:
        f: a function of a tree of parameters that returns a pytree of floating-point arrays. With `needs_key=True` it
            is called as f(w, key), with a key of its own for each sample; with `has_aux=True` it returns (value, aux).
        q: a posterior tree.
        key: a PRNG key.
        num_samples: S, a static int of at least 1.

    Returns:
        The mean of f over the samples, float32 or wider; with `has_aux=True` also the aux, every leaf with a leading
        axis of size S.

    Raises:
        ValueError: if `num_samples` is not an int of at least 1.
        TypeError: if `key` is not a PRNG key.

    >>> from illia_fn import mean_field
    >>> q = mean_field(jnp.array(3.0), scale=0.1)
    >>> print(expectation(jnp.square, q, jax.random.key(0), 10_000).round(1))  # 3^2 + 0.1^2
    9.0
    """
    at_key, keys = at_samples("expectation", f, q, key, num_samples, needs_key=needs_key)
    if num_samples == 1:  # a vmap of one would still turn every convolution into a grouped one
        result = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], at_key(keys[0]))
    else:
        result = jax.vmap(at_key)(keys)
    values, aux = result if has_aux else (result, None)
    value = jax.tree.map(lambda leaf: jnp.mean(at_least_float32(leaf), axis=0), values)
    return (value, aux) if has_aux else value


def at_samples(
    caller: str, f: Callable[..., Any], q: PyTree, key: jax.Array, num_samples: int, *, needs_key: bool
) -> tuple[Callable[[jax.Array], Any], jax.Array]:
    """The function key_s -> f(w_s) or f(w_s, key), w_s ~ q, and `num_samples` keys to map it over."""
    check_num_samples(caller, num_samples)
    check_key(caller, key)

    def at_key(key: jax.Array) -> Any:
        sample_key, f_key = jax.random.split(key)
        w = sample(sample_key, q)
        return f(w, f_key) if needs_key else f(w)

    return at_key, jax.random.split(key, num_samples)
