"""Back to plain, with fewer weights: those that are mostly noise are set to zero."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_draws, check_required_num_data, describe
from illia_fn._base.trees import PyTree
from illia_fn.engine._eager import compiled
from illia_fn.engine.monte_carlo import expectation
from illia_fn.kl.loss import kl_pairs
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.posteriors.posterior import is_posterior, mean
from illia_fn.priors.normal import Normal


def prune(params: PyTree, share: float) -> PyTree:
    """The mean of q, with the share of its weights that have the smallest |mean| / standard deviation set to zero.

    Graves 2011, Practical variational inference for neural networks; Blundell et al. 2015,
    https://arxiv.org/abs/1505.05424. The ratio is compared over all Bayesian weights together; deterministic leaves
    stay. It is for weights whose prior is around zero: others (factors around 1, a prior around a trained network) are
    not noise because they are small. What a share costs: `pruning_curve`.

    Args:
        params: a posterior tree, whose arrays are known now.
        share: from 0 (the mean) to 1, rounded to a number of weights. Of weights with one ratio the first go first.

    Returns:
        Parameters, as the model takes them.

    Raises:
        ValueError: for a share that is not in [0, 1], or a tree without posterior nodes.

    >>> from illia_fn import mean_field
    >>> print(prune({"w": mean_field(jnp.array([3.0, 0.1, -2.0, 0.2]), scale=1.0)}, 0.5)["w"])
    [ 3.  0. -2.  0.]
    """
    at = _flat_mask("prune", params, [share])[0]
    return jax.tree.map(lambda w, keep: w if keep is True else jnp.where(keep, w, 0), mean(params), at)


class PruningCurve(NamedTuple):
    """What is lost by pruning, for each share.

    Attributes:
        shares: of the Bayesian weights that are set to zero, (K,).
        nll: E_q of the mean negative log-likelihood per example of what is left, in nats, (K,).
        kl: that of the weights which are left, in nats per example, (K,).
    """

    shares: np.ndarray
    nll: np.ndarray
    kl: np.ndarray

    @property
    def negative_elbo(self) -> np.ndarray:
        """Per example: a weight that is not there needs no bits, so that it may fall with the first shares."""
        return self.nll + self.kl


def pruning_curve(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    num_samples: int = 8,
    *,
    num_data: int,
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 1.0),
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    weights: ArrayLike | None = None,
) -> PruningCurve:
    """The negative ELBO of a posterior some of whose weights are zero in every draw, and out of the model.

    A pruned weight is a point at zero under posterior and prior alike, so that its KL is gone. All shares are measured
    by the same draws.

    Args:
        apply_fn, params, x, y, key, num_samples: as in `elbo_loss`; not under jit.
        num_data, loss_fn, prior, weights: as in `elbo_loss`.
        shares: in [0, 1], by |mean| / standard deviation, see `prune`.

    Returns:
        A `PruningCurve`.

    Raises:
        ValueError: as `prune` and `elbo_loss`; for a node or a prior that is not element-wise, whose weights have no KL
            of their own, or a prior that is fitted to q.

    >>> from illia_fn import mean_field
    >>> q = {"w": mean_field(jnp.array([2.0, 0.0]), scale=0.1)}
    >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> args = lambda w, x: x @ w["w"], q, x, 2.0 * x[:, 0], jax.random.key(0)
    >>> curve = pruning_curve(*args, num_data=4, shares=[0.0, 0.5, 1.0])
    >>> print(curve.negative_elbo.round(2))
    [2.33 1.87 1.92]
    """
    caller = "pruning_curve"
    check_draws(caller, key, num_samples, 1, antithetic=False)
    check_required_num_data(caller, num_data)
    if not len(shares):
        raise ValueError(f"{caller}: shares must name at least one share of the weights, got {describe(shares)}.")
    data = DataTerm(caller, apply_fn, x, y, loss_fn=loss_fn, weights=weights)
    masks = _flat_mask(caller, params, shares)
    of_each = _kl_of_each(caller, params, prior)

    def nll(q: PyTree, keep: PyTree) -> jax.Array:
        def of_draw(w: PyTree) -> jax.Array:
            w = jax.tree.map(lambda w, keep: w if keep is True else jnp.where(keep, w, 0), w, keep)
            return data.mean(data.losses(w)[0])

        return expectation(of_draw, q, key, num_samples)

    run = compiled(nll, params, masks[0])
    losses = [float(run(params, mask)) for mask in masks]
    kept = [[np.asarray(keep) for keep in jax.tree.leaves(mask) if keep is not True] for mask in masks]
    kl = [sum(float(np.sum(each[keep])) for each, keep in zip(of_each, some, strict=True)) / num_data for some in kept]
    return PruningCurve(np.asarray(shares, float), np.asarray(losses), np.asarray(kl))


def _flat_mask(caller: str, params: PyTree, shares: Sequence[float]) -> list[PyTree]:
    """For each share a tree of what is kept: True for a deterministic leaf."""
    for share in shares:
        if not (isinstance(share, (int, float, np.floating)) and 0.0 <= share <= 1.0):
            raise ValueError(f"{caller}: a share must be a number in [0, 1], got {describe(share)}.")
    nodes, structure = jax.tree.flatten(params, is_leaf=is_posterior)
    ratios = [_ratio(node) if is_posterior(node) else None for node in nodes]
    found = [ratio for tree in ratios for ratio in jax.tree.leaves(tree)]
    if not found:
        raise ValueError(f"{caller}: params has no posterior node, so no weight is known to be noise. Pass q.")
    order = np.argsort(np.concatenate([np.ravel(ratio) for ratio in found]), kind="stable")
    masks = []
    for share in shares:
        keep = np.ones(order.size, bool)
        keep[order[: round(float(share) * order.size)]] = False
        pieces = iter(np.split(keep, np.cumsum([ratio.size for ratio in found])[:-1]))
        trees = [
            jax.tree.map(lambda w: next(pieces).reshape(w.shape), tree) if is_posterior(node) else _all_true(node)  # noqa: B023
            for node, tree in zip(nodes, ratios, strict=True)
        ]
        masks.append(structure.unflatten(trees))
    return masks


def _ratio(node: Any) -> PyTree:
    tiny = np.finfo(np.float64).tiny
    return jax.tree.map(
        lambda m, s: np.abs(np.asarray(m, np.float64)) / np.maximum(np.asarray(s, np.float64), tiny),
        node.mean,
        node.stddev,
    )


def _all_true(leaf: Any) -> Any:
    return jax.tree.map(lambda _: True, leaf)


def _kl_of_each(caller: str, params: PyTree, prior: PyTree) -> list[np.ndarray]:
    """The KL of each weight of each node."""
    values = []
    for pair in kl_pairs(caller, params, prior, None):
        each = pair.kl_of_each()
        if each is None:
            raise ValueError(
                f"{pair.name}: there is no KL for each weight, as {type(pair.q).__name__} under "
                f"{type(pair.p).__name__} is not element-wise. Take a mean field, or look at the data term of prune."
            )
        if pair.hyperpriors:
            raise ValueError(
                f"{pair.name}: pruning_curve takes a prior whose scale is known, and EmpiricalBayes fits it to all "
                "weights, under a hyperprior that none of them has a share of. Pass what it has found: "
                "prior.fit(node.mean, node.stddev)[0]."
            )
        values.append(np.asarray(each, np.float64))
    return values
