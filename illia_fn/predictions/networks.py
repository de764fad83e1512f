"""Predictions after training: the outputs of networks drawn from q."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from illia_fn._base.checks import check_callable, check_key, describe
from illia_fn._base.sharding import with_whole_examples
from illia_fn._base.trees import PyTree
from illia_fn.engine._accumulate import sum_over_chunks
from illia_fn.engine._randomness import check_fresh_noise
from illia_fn.engine.monte_carlo import draws
from illia_fn.posteriors.posterior import check_nodes, is_posterior, mean, num_params
from illia_fn.predictions._batches import check_batch_size, in_batches

Sampling = Literal["independent", "antithetic", "latin_hypercube"]


def predict(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    key: jax.Array,
    num_samples: int = 1,
    *,
    chunk_size: int | None = 1,
    batch_size: int | None = None,
    reduce: Callable[[Any], Any] | None = None,
    sampling: Sampling = "independent",
    linearised: bool = False,
    needs_key: bool = False,
) -> Any:
    """Outputs f(x, w_s) of networks w_s ~ q: draws from the posterior predictive, before the likelihood.

    Average their probabilities, not their logits:
    p(y | x) = (1 / S) sum_s p(y | f(x, w_s)).

    Args:
        apply_fn: the model, apply_fn(params, x) -> outputs; with `needs_key=True`, apply_fn(params, x, key).
        params: a posterior tree.
        x: inputs, as the model takes them. With a batch_size, arrays that share a leading axis of examples; those that
            NumPy maps from a file are read batch by batch.
        key: a PRNG key.
        num_samples: S, a static int of at least 1.
        chunk_size: how many networks run at once, as in `expectation`.
        batch_size: how many examples are predicted at once, by the same networks. What comes back are NumPy arrays: of
            all else the memory is that of one batch. Not under jit. The networks are drawn anew for each batch, from
            one key; so are the keys of a model that takes one, whose noise repeats from batch to batch.
        reduce: what to make of the stacked outputs, a pytree with leaves (S, B, ...), where they themselves would not
            fit: reduce(outputs) has an array with a leading axis of examples for each leaf. With a batch_size it is
            called on the outputs of one example (of a batch, if the examples are at another axis), and then traced: of
            JAX alone. Targets come with the outputs if apply_fn returns them; what needs random numbers of its own for
            each batch is a loop over `predict`.
        sampling: "independent"; "antithetic", in pairs that mirror each other (see `expectation`); or
            "latin_hypercube", networks whose weights are spread evenly over q, each with the right law: means over few
            of them are closer to those over many (McKay, Beckman & Conover 1979,
            https://doi.org/10.1080/00401706.1979.10489755).
        linearised: whether to take the model that is linear in the weights about the mean m of q, f(x, m) + J (w_s - m)
            with J = df(x, m) / dw (Immer et al. 2021, https://arxiv.org/abs/2008.08400): for a posterior that was made
            by such a linearisation, as that of Laplace is. For its law in closed form see `linearise`.

    Returns:
        The outputs, every leaf with a leading axis of size S; with `reduce`, what that returns.

    Raises:
        ValueError: if `num_samples`, `chunk_size` or `batch_size` is not an int of at least 1, an antithetic
            num_samples is odd, or for several networks of a tree without posterior nodes, which would be the same; with
            a batch_size, if x is traced or its arrays, or the outputs, do not share the axis of examples.
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
    _check_networks(params, num_samples, sampling, is_random=needs_key)
    outputs = partial(_stacked, apply_fn, num_samples, chunk_size, sampling, linearised, needs_key)
    if batch_size is None:
        check_fresh_noise("predict", apply_fn, params, x, key if needs_key else None)
        stacked = outputs(params, x, key)
        return stacked if reduce is None else reduce(stacked)
    check_batch_size("predict", batch_size, x, params, key)
    x = with_whole_examples(x)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), x)
    check_fresh_noise("predict", apply_fn, params, first, key if needs_key else None)
    return in_batches("predict", outputs, reduce, params, x, key, batch_size)


def _check_networks(params: PyTree, num_samples: int, sampling: Sampling, *, is_random: bool) -> None:
    if not num_params(params) and not is_random and isinstance(num_samples, int) and num_samples > 1:
        raise ValueError(
            f"predict: params has no posterior node, so all {num_samples} networks would be the same. Pass the "
            "posterior tree itself, not its mean, or num_samples=1."
        )
    if sampling not in get_args(Sampling):
        raise ValueError(f"predict: sampling must be one of {get_args(Sampling)}, got {describe(sampling)}.")


def _stacked(
    apply_fn: Callable[..., Any],
    num_samples: int,
    chunk_size: int | None,
    sampling: Sampling,
    linearised: bool,  # noqa: FBT001
    needs_key: bool,  # noqa: FBT001
    params: PyTree,
    x: Any,
    key: jax.Array,
) -> Any:
    def outputs(w: PyTree, *apply_key: jax.Array) -> tuple[PyTree, Any]:
        f = partial(_with_rest, apply_fn, x, apply_key)
        return (), about_mean(f, params, w) if linearised else f(w)

    options: dict[str, Any] = {
        "chunk_size": chunk_size,
        "antithetic": sampling == "antithetic",
        "latin_hypercube": sampling == "latin_hypercube",
        "needs_key": needs_key,
    }
    chunk_sum, chunks = draws("predict", outputs, params, key, num_samples, **options)
    _, stacked = sum_over_chunks(chunk_sum, chunks, chunk_size)
    return stacked


def _with_rest(apply_fn: Callable[..., Any], x: Any, apply_key: tuple[jax.Array, ...], w: PyTree) -> Any:
    return apply_fn(w, x, *apply_key)


def about_mean(f: Callable[[PyTree], Any], params: PyTree, w: PyTree) -> Any:
    """f(m) + df(m) (w - m), m the mean of a posterior tree; outputs that are no floats are those of m."""
    middle, structure = jax.tree.flatten(mean(params))
    is_bayesian = jax.tree.leaves(
        jax.tree.map(lambda node: jax.tree.map(lambda _: is_posterior(node), mean(node)), params, is_leaf=is_posterior)
    )
    steps = [a - b for a, b, moves in zip(jax.tree.leaves(w), middle, is_bayesian, strict=True) if moves]

    def at(some: list[jax.Array]) -> Any:
        moving = iter(some)
        return f(
            structure.unflatten([next(moving) if moves else m for m, moves in zip(middle, is_bayesian, strict=True)])
        )

    start = [m for m, moves in zip(middle, is_bayesian, strict=True) if moves]
    value, change = jax.jvp(at, (start,), (steps,))
    return jax.tree.map(lambda y, dy: y if dy.dtype == jax.dtypes.float0 else y + dy, value, change)
