"""How many samples run at once where nobody says: by the platform, and by the memory that they take."""

import math
from typing import Any, Literal

import jax
import numpy as np

from illia_fn._base.sharding import platform
from illia_fn._base.trees import PyTree
from illia_fn.posteriors.posterior import is_posterior

ChunkSize = int | Literal["auto"] | None

_BUDGET = 2**30  # bytes that a chunk may take on an accelerator
_PER_NUMBER = 16  # bytes in float32: a draw, its noise, its gradient, and what the pass makes of it
_BATCHED_ON_CPU = 8


def auto_chunk_size(platform: str, num_samples: int, num_numbers: int, *, one_batch: bool = False) -> int:
    """What `chunk_size="auto"` is: one sample after another on a CPU, and on an accelerator as many as 1 GiB holds.

        min(S, max(1, 2^30 // (16 n)))

    An accelerator is idle with one sample of a small network, and a CPU is not. Two samples or more under `jax.vmap`
    would make of each convolution on a CPU a grouped one, which is slow. Samples that share no noise are one large
    batch and no vmap: a CPU, too, then takes 8.

    On accelerators this is a rule from the sizes, unmeasured: pass `chunk_size` if you have measured.

    Args:
        platform: "cpu", "gpu", "tpu", ..., as `jax.default_backend` tells.
        num_samples: S.
        num_numbers: n, of the weights and of the inputs of one batch together.
        one_batch: whether the samples are one large batch, as under a coupling that leaves no noise for the examples to
            share.

    Returns:
        A number of samples, from 1 to S.

    >>> [auto_chunk_size("cpu", 32, 500_000), auto_chunk_size("gpu", 32, 500_000)]
    [1, 32]
    >>> auto_chunk_size("gpu", 32, 20_000_000)  # 320 MB each
    3
    """
    if platform == "cpu":
        return min(num_samples, _BATCHED_ON_CPU) if one_batch else 1
    return min(num_samples, max(1, _BUDGET // (_PER_NUMBER * max(1, num_numbers))))


def chosen(chunk_size: ChunkSize, num_samples: int, params: PyTree, x: Any, *, one_batch: bool = False) -> int | None:
    """The chunk size that was passed, or that of the platform on which JAX computes now."""
    if chunk_size != "auto":
        return chunk_size
    weights = [leaf.like if is_posterior(leaf) else leaf for leaf in jax.tree.leaves(params, is_leaf=is_posterior)]
    numbers = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves((weights, x)))
    return auto_chunk_size(platform(), num_samples, numbers, one_batch=one_batch)
