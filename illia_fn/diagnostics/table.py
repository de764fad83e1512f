"""What a posterior holds, leaf by leaf, as a table."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.trees import PyTree, leaves_by_path
from illia_fn.engine._eager import compiled_once
from illia_fn.kl.loss import Pair, kl_pairs
from illia_fn.posteriors.posterior import is_posterior
from illia_fn.priors.normal import Normal

AT_PRIOR = 0.05  # nats of one weight: a mean within 0.32 of the prior's standard deviations, at its scale


class LeafSummary(NamedTuple):
    """One row: a posterior node, or a deterministic leaf, whose last five numbers are nan.

    Attributes:
        path: of the arrays that the node stands for, as in `by_path`.
        shape: of its parameters; of a node over a subtree, (P,).
        family: the name of its class, or "deterministic".
        mean_abs: mean |E_q[w]|.
        mean_scale: the mean of the standard deviations.
        kl: KL(q || prior), in nats.
        kl_per_weight: the same for each weight.
        signal_to_noise: the median of |E_q[w]| / standard deviation.
        at_prior: the share of weights whose own KL is below 0.05 nats, which tell nothing of the data; nan for a family
            or a prior that is not element-wise.
        exact: whether the KL has a closed form; one that is sampled, or an upper bound, has a ~ before it in the table.
    """

    path: str
    shape: tuple[int, ...]
    family: str
    mean_abs: float
    mean_scale: float
    kl: float
    kl_per_weight: float
    signal_to_noise: float
    at_prior: float
    exact: bool = True

    def cells(self) -> tuple[str, ...]:
        """A row of text; blank is what there is none of."""
        numbers = self[3:4] if self.family == "deterministic" else self[3:-2]
        cells = [f"{number:.3g}" for number in numbers] + [""] * (5 - len(numbers))
        cells[2] = cells[2] if self.exact else f"~{cells[2]}"
        share = "" if math.isnan(self.at_prior) else f"{100 * self.at_prior:.0f} %"
        return (self.path, "x".join(map(str, self.shape)), self.family, *cells, share)


class Summary(NamedTuple):
    """Rows by path, and their sum; prints as a table.

    Attributes:
        leaves: in the order of the tree.
        kl: the sum, in nats.
        num_params: the number of variational parameters.
        scales_are_alike: whether nine in ten of at least 20 standard deviations differ by less than 1.5 times, as where
            they are what the initial scale and the schedule made them, and not yet what the data say.
    """

    leaves: list[LeafSummary]
    kl: float
    num_params: int
    scales_are_alike: bool

    def __str__(self) -> str:
        head = ("path", "shape", "family", "mean |w|", "scale", "KL (nats)", "KL/weight", "|w|/scale", "at prior")
        body = [row.cells() for row in self.leaves]
        each = self.kl / max(1, self.num_params)
        rows = [head, *body, ("total", str(self.num_params), "", "", "", f"{self.kl:.3g}", f"{each:.3g}", "", "")]
        return "\n".join([aligned(rows, left=3), *self._note()])

    def _note(self) -> list[str]:
        known = sum(math.prod(row.shape) * row.at_prior for row in self.leaves if not math.isnan(row.at_prior))
        if known > 0.9 * max(1, self.num_params):
            return [
                "Nearly all weights are at the prior. Do predictions depend on the inputs? See the page of diagnostics."
            ]
        if self.scales_are_alike:
            return [
                "The scales are alike, as those are that still come from the initial scale and the schedule: intervals "
                "may be too narrow.",
                "Train longer, or with a larger factor of slow_scales: see how long to train, on the page of optim.",
            ]
        return []


def summary(
    params: PyTree, prior: PyTree = Normal(0.0, 1.0), *, key: jax.Array | None = None, num_samples: int = 1
) -> Summary:
    """A table of a posterior tree by path: where the means, the scales and the information are.

    A KL of 0 or a large share of weights at the prior is a leaf that the data say nothing about, or that the prior has
    flattened; a signal-to-noise ratio far above 1 is a leaf that is all but deterministic.

    Args:
        params, prior, key, num_samples: as in `kl_loss`. The arrays must be known now: not under jit.

    Returns:
        A `Summary`, whose `leaves` are in the order of the tree.

    Raises:
        ValueError, TypeError: as `kl_loss`; of a tree without leaves.

    >>> from illia_fn import mean_field
    >>> print(summary({"w": mean_field(jnp.array([0.0, 2.0]), scale=1.0), "b": jnp.ones(3)}))
    path   shape  family         mean |w|  scale  KL (nats)  KL/weight  |w|/scale  at prior
    b      3      deterministic         1
    w      2      Gaussian              1      1          2          1          1      50 %
    total  2                                              2          1
    """
    pairs = iter(kl_pairs("summary", params, prior, key))
    rows = []
    for path, node in leaves_by_path(params, is_posterior):
        if is_posterior(node):
            rows.append(_of_pair(next(pairs), num_samples))
        elif isinstance(node, (float, np.ndarray, jax.Array)) and jnp.issubdtype(jnp.result_type(node), jnp.inexact):
            size = float(np.mean(np.abs(np.asarray(node, np.float64)))) if np.size(node) else math.nan
            rows.append(LeafSummary(path, np.shape(node), "deterministic", size, *[math.nan] * 5, exact=True))
    if not rows:
        raise ValueError("summary: params has no floating-point leaves. Pass a posterior tree.")
    nodes = [row for row in rows if row.family != "deterministic"]
    count = sum(math.prod(row.shape) for row in nodes)
    return Summary(rows, math.fsum(row.kl for row in nodes), count, _are_alike(params))


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Rows of cells as columns, the first few of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = list(zip(row, widths, strict=True))
        line = [cell.ljust(n) for cell, n in cells[:left]] + [cell.rjust(n) for cell, n in cells[left:]]
        lines.append("  ".join(line).rstrip())
    return "\n".join(lines)


def _are_alike(params: PyTree) -> bool:
    scales = [_flat(node.stddev) for node in jax.tree.leaves(params, is_leaf=is_posterior) if is_posterior(node)]
    flat = np.concatenate(scales or [np.zeros(0)])
    low, high = np.quantile(flat, (0.05, 0.95)) if flat.size >= 20 else (0.0, 1.0)
    return bool(high < 1.5 * low)


def _of_pair(pair: Pair, num_samples: int) -> LeafSummary:
    means, scales = (_flat(tree) for tree in (pair.q.mean, pair.q.stddev))
    kl, leaves = float(pair.kl(num_samples)), jax.tree.leaves(pair.q.mean)
    shape = np.shape(leaves[0]) if len(leaves) == 1 else (means.size,)
    ratio = np.abs(means) / np.maximum(scales, np.finfo(np.float64).tiny)
    size, scale, snr = float(np.mean(np.abs(means))), float(np.mean(scales)), float(np.median(ratio))
    family, path = type(pair.q).__name__, pair.path
    return LeafSummary(path, shape, family, size, scale, kl, kl / means.size, snr, _share_at_prior(pair), pair.is_exact)


def _share_at_prior(pair: Pair) -> float:
    """Of an element-wise pair: the KL of each weight by itself."""

    def share(q: Any) -> jax.Array | None:
        each = pair._replace(q=q).kl_of_each()
        return None if each is None else jnp.mean(each < AT_PRIOR)

    known = compiled_once(share, pair.q)
    return math.nan if known is None else float(known)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
