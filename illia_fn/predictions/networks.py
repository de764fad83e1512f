"""Predictions after training."""

from collections.abc import Callable
from typing import Any

import jax

from illia_fn._base.checks import check_callable, check_key
from illia_fn._base.trees import PyTree
from illia_fn.engine._accumulate import sum_over_chunks
from illia_fn.engine._randomness import check_fresh_noise
from illia_fn.engine.monte_carlo import draws
from illia_fn.posteriors.posterior import check_nodes, num_params


def predict(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    chunk_size: int | None = 1,
    needs_key: bool = False,
) -> Any:
    """Outputs f(x, w_s) of networks w_s ~ q: draws from the posterior predictive, before the likelihood.

    Average their probabilities, not their logits:
    p(y | x) = (1 / S) sum_s p(y | f(x, w_s)).

    Args:
        apply_fn: the model, apply_fn(params, x) -> outputs; with `needs_key=True`, apply_fn(params, x, key).
        params: a posterior tree.
        x: inputs, as the model takes them.
        key: a PRNG key.
        num_samples: S, a static int of at least 1.
        chunk_size: how many networks run at once, as in `expectation`.

    Returns:
        The outputs, every leaf with a leading axis of size S.

    Raises:
        ValueError: if `num_samples` or `chunk_size` is not an int of at least 1, or for several networks of a tree
            without posterior nodes, which would be the same.
        TypeError: if `key` is not a PRNG key.

    >>> import jax.numpy as jnp
    >>> from illia_fn import mean_field
    >>> q = mean_field(jnp.ones((3, 2)), scale=0.1)
    >>> predict(lambda w, x: x @ w, q, jnp.ones((5, 3)), jax.random.key(0), 4).shape
    (4, 5, 2)
    """

    check_callable("predict", "apply_fn", apply_fn)
    check_key("predict", key)
    check_nodes("predict", params)
    if not num_params(params) and not needs_key and isinstance(num_samples, int) and num_samples > 1:
        raise ValueError(
            f"predict: params has no posterior node, so all {num_samples} networks would be the same. Pass the "
            "posterior tree itself, not its mean, or num_samples=1."
        )
    check_fresh_noise("predict", apply_fn, params, x, key if needs_key else None)

    def outputs(w: PyTree, *apply_key: jax.Array) -> tuple[PyTree, Any]:
        return (), apply_fn(w, x, *apply_key)

    chunk_sum, chunks = draws(
        "predict", outputs, params, key, num_samples, chunk_size=chunk_size, antithetic=False, needs_key=needs_key
    )
    _, stacked = sum_over_chunks(chunk_sum, chunks, chunk_size)
    return stacked
