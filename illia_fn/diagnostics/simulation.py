"""Simulation-based calibration: is an inference right, over all data that a model may produce?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_callable, check_count, check_key
from illia_fn._base.trees import PyTree, leaves_by_path
from illia_fn.diagnostics.table import aligned
from illia_fn.posteriors.posterior import sample


class SBC(NamedTuple):
    """Ranks of the true parameters among draws of their posteriors; prints as a table.

    Attributes:
        ranks: for each number of the parameters, how many of the draws lie below the truth, 0 to num_draws: a tree of
            integers, (num_simulations, ...). Uniform, if the inference is right.
        num_draws: of each posterior.
        p_values: of a chi-square test of uniformity for each number, a tree; small if the ranks are not uniform. Of
            many numbers the smallest is to be compared with 0.05 / count (Bonferroni).
    """

    ranks: PyTree
    num_draws: int
    p_values: PyTree

    @property
    def smallest(self) -> float:
        """The smallest p-value, times the number of them, at most 1: below 0.05 the inference is not calibrated."""
        values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(self.p_values)])
        return float(min(1.0, values.size * values.min()))

    def __str__(self) -> str:
        rows = [("worst of each", "p", "mean rank", "spread")]
        for (path, ranks), p in zip(leaves_by_path(self.ranks), jax.tree.leaves(self.p_values), strict=True):
            worst = int(np.argmin(p))  # of the numbers of an array, which may be wrong in ways that cancel
            unit = (ranks.reshape(len(ranks), -1)[:, worst] + 0.5) / (self.num_draws + 1)
            spread = float(np.std(unit)) * np.sqrt(12.0)
            place = "".join(f"[{i}]" for i in np.unravel_index(worst, np.shape(p)))
            rows.append((path + place or "w", f"{np.min(p):.2g}", f"{np.mean(unit):.2f}", f"{spread:.2f}"))
        verdict = "not calibrated" if self.smallest < 0.05 else "no sign against it"
        return (
            f"{aligned(rows, left=1)}\n{verdict} (p = {self.smallest:.2g} over all). A spread above 1: posteriors too "
            "narrow; below 1: too wide; a mean rank away from 0.5: off to one side."
        )


def simulation_based_calibration(
    draw_prior: Callable[[jax.Array], PyTree],
    simulate: Callable[[PyTree, jax.Array], PyTree],
    infer: Callable[[PyTree, jax.Array], PyTree],
    key: jax.Array,
    *,
    num_simulations: int = 200,
    num_draws: int = 63,
    num_bins: int = 16,
) -> SBC:
    """Check an inference on data that the model itself makes, where the truth is known.

        w* ~ p(w),    data ~ p(data | w*),    w_1, ..., w_L ~ q(w | data)

    If q is the posterior, the rank of w* among the draws is uniform on 0, ..., L. Talts et al. 2018, Validating
    Bayesian inference algorithms with simulation-based calibration, https://arxiv.org/abs/1804.06788. It runs the whole
    inference for each simulation, so it is for small models; what fails there is no better in a large one. It looks at
    one number at a time, on average over the prior: a q that ignores the data and returns the prior passes.

    Args:
        draw_prior: key -> w*, a tree of floating-point arrays.
        simulate: (w*, key) -> data.
        infer: (data, key) -> a posterior tree of the structure of w*, by any training, in JAX: it is traced once.
        key: a PRNG key.
        num_simulations: runs of the inference.
        num_draws: L, of each posterior. L + 1 is to be a multiple of num_bins.
        num_bins: cells of the chi-square test, at least five simulations each.

    Returns:
        An `SBC`.

    Raises:
        ValueError: if the posterior has other parameters than the prior or draws that are not finite, L + 1 is no
            multiple of num_bins, or there are fewer than five simulations for each bin.
        TypeError: if `key` is not a PRNG key.

    >>> from illia_fn import Gaussian  # one y ~ N(w, 1), w ~ N(0, 1): the posterior is N(y / 2, 1 / 2)
    >>> rho = jnp.log(jnp.expm1(jnp.sqrt(0.5)))
    >>> found = simulation_based_calibration(
    ...     lambda key: jax.random.normal(key),
    ...     lambda w, key: w + jax.random.normal(key),
    ...     lambda y, key: Gaussian(y / 2, rho),
    ...     jax.random.key(0),
    ... )
    >>> print(found.smallest > 0.05)
    True
    """
    caller = "simulation_based_calibration"
    for name, f in {"draw_prior": draw_prior, "simulate": simulate, "infer": infer}.items():
        check_callable(caller, name, f)
    check_key(caller, key)
    for name, count in {"num_simulations": num_simulations, "num_draws": num_draws, "num_bins": num_bins}.items():
        check_count(caller, name, count)
    if (num_draws + 1) % num_bins or num_bins < 2:
        raise ValueError(
            f"{caller}: num_draws + 1 must be a multiple of num_bins, at least 2, so that all bins hold as many ranks; "
            f"got {num_draws} and {num_bins}."
        )
    if num_simulations < 5 * num_bins:
        raise ValueError(
            f"{caller}: {num_bins} bins need at least {5 * num_bins} simulations, got {num_simulations}. Run more, or "
            "take fewer bins."
        )

    def ranks(key: jax.Array) -> PyTree:
        of_prior, of_data, of_inference, of_draws = jax.random.split(key, 4)
        truth = draw_prior(of_prior)
        q = infer(simulate(truth, of_data), of_inference)
        draws = jax.vmap(sample, (0, None))(jax.random.split(of_draws, num_draws), q)
        _check_alike(caller, truth, draws)
        is_finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((truth, draws))])
        below = jax.tree.map(lambda w, star: jnp.sum(w < star[None], axis=0, dtype=jnp.int32), draws, truth)
        return below, jnp.all(is_finite)

    found, is_finite = jax.jit(lambda keys: jax.lax.map(ranks, keys))(jax.random.split(key, num_simulations))
    if not np.all(is_finite):
        raise ValueError(
            f"{caller}: in {np.sum(~np.asarray(is_finite))} of {num_simulations} simulations the truth or a draw of "
            "the posterior is not finite. Look at infer on such data."
        )
    found = jax.tree.map(np.asarray, found)
    p_values = jax.tree.map(lambda leaf: _p_values(leaf * num_bins // (num_draws + 1), num_bins), found)
    return SBC(found, num_draws, p_values)


def _check_alike(caller: str, truth: PyTree, draws: PyTree) -> None:
    shapes = [jax.tree.map(jnp.shape, truth), jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], draws)]
    if jax.tree.structure(truth) != jax.tree.structure(draws) or shapes[0] != shapes[1]:
        raise ValueError(
            f"{caller}: infer must return a posterior over the parameters that draw_prior draws, of shapes "
            f"{shapes[0]}; a draw of it has {shapes[1]}."
        )


def _p_values(bins: np.ndarray, num_bins: int) -> Any:
    """P(chi^2 > sum_b (n_b - n / B)^2 B / n) of each column; float32 would lose those below 1e-38."""
    from scipy.special import chdtrc  # here, as it takes long to import

    expected = len(bins) / num_bins
    counts = np.stack([np.sum(bins == index, axis=0) for index in range(num_bins)])
    return chdtrc(num_bins - 1, np.sum(np.square(counts - expected), axis=0) / expected)
