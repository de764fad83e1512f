"""The Laplace approximation: a posterior from the curvature at a trained network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from illia_fn._base.checks import check_callable, check_count, concrete
from illia_fn._base.numerics import at_least_float32, matmul, softplus_inverse, widest_dtype
from illia_fn._base.sharding import placed_like, vary_like, with_whole_examples
from illia_fn._base.trees import PyTree
from illia_fn.engine._accumulate import sum_over_chunks
from illia_fn.engine._eager import compiled_once
from illia_fn.kl._priors import check_support
from illia_fn.kl.loss import Pair, kl_pairs, log_prior_of_node
from illia_fn.likelihoods._example_losses import LossFn, example_losses
from illia_fn.posteriors._flat import ravel, unravel
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import is_posterior, mean
from illia_fn.priors.normal import Normal


def laplace(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: PyTree,
    y: PyTree,
    *,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    num_data: int | None = None,
    batch_size: int = 32,
) -> PyTree:
    """The posterior tree with the means that it has, and the covariance that the curvature at them tells.

        q(w) = N(m, (sum_i J_i^T H_i J_i + P)^-1),    J_i = df(x_i, m) / dw,    H_i = d^2 loss(f_i, y_i) / df^2

    P is the precision of the prior, -d^2 log p(m) / dw^2. Without P, and with a sum over the data in the place of an
    expectation, it is the generalised Gauss-Newton matrix, which leaves out how the network bends; directions of f in
    which a loss is not convex add nothing. Of `Gaussian` nodes the diagonal of the precision is taken, of a
    `FullCovariance` node all of it, and between nodes nothing. MacKay 1992, A practical Bayesian framework for
    backpropagation networks, https://doi.org/10.1162/neco.1992.4.3.448; Daxberger et al. 2021, Laplace redux,
    https://arxiv.org/abs/2106.14806.

    m should be a mode: train the network with that prior first (`elbo_loss` with kl_weight 0 plus -log p(w) / N). Where
    the outputs are linear in the weights and the likelihood is Gaussian, q is the exact posterior. Predict with
    `predict(..., linearised=True)` or `linearise`, whose model is the one that this curvature is exact for (Immer et
    al. 2021, https://arxiv.org/abs/2008.08400), or train q further by `elbo_loss`.

    It takes K reverse passes for each example, for K outputs of one, and the memory of K * batch_size trees of the
    Bayesian parameters.

    Args:
        apply_fn: the model, apply_fn(params, x) -> outputs, in which examples do not interact.
        params: a posterior tree of `Gaussian` and `FullCovariance` nodes, around the trained parameters; its scales are
            not used. What is deterministic stays so: `posterior_tree(params, {"head": full_covariance})` is for a last
            layer.
        x, y: all training data, or examples of it: arrays that share a leading axis.
        loss_fn, prior: as in `elbo_loss`; loss_fn has one value per example.
        num_data: N, if x are some examples of N; their curvature then counts N / B times.
        batch_size: how many examples are differentiated at once.

    Returns:
        A posterior tree of the same structure.

    Raises:
        ValueError: without posterior nodes or for those of another family; for a loss_fn that returns a scalar; if the
            arrays share no leading axis; for a num_data below their number, or a prior without a density on part of
            the real line; where the precision is not positive, which a heavy-tailed prior can do.

    >>> from illia_fn import full_covariance, mean_field
    >>> x, y = jnp.array([[1.0, 0.5], [1.0, 1.5]]), jnp.array([0.0, 1.0])
    >>> m = jnp.linalg.solve(x.T @ x + jnp.eye(2), x.T @ y)  # the mode, and the mean
    >>> q = laplace(lambda w, x: x @ w, full_covariance(m), x, y)
    >>> print(jnp.allclose(q.scale_tril @ q.scale_tril.T, jnp.linalg.inv(x.T @ x + jnp.eye(2))))
    True
    """
    caller = "laplace"
    check_callable(caller, "apply_fn", apply_fn)
    check_count(caller, "batch_size", batch_size)
    pairs = kl_pairs(caller, params, prior, None)
    nodes = [pair.q for pair in pairs]
    _check_nodes(pairs)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((x, y))]
        raise ValueError(f"laplace: the arrays of x and y must share a leading axis of examples, got shapes {shapes}.")
    (count,) = sizes.pop()
    if num_data is not None:
        check_count(caller, "num_data", num_data)
        if num_data < count:
            raise ValueError(
                f"laplace: num_data must be the size of the training set, got {num_data} for {count} examples."
            )
    # with targets that are known, and may be refused, as they are not where examples are taken some at a time
    jax.eval_shape(lambda w: example_losses(caller, loss_fn, apply_fn(w, x), y, None), mean(params))
    factors = partial(_factors, apply_fn, loss_fn, params)
    weight = 1.0 if num_data is None else num_data / count

    def precisions(x: PyTree, y: PyTree) -> list[jax.Array]:
        curvatures = _summed(factors, nodes, x, y, batch_size)
        return [weight * of_data + _precision_of_prior(pair) for pair, of_data in zip(pairs, curvatures, strict=True)]

    found = zip(pairs, compiled_once(precisions, x, y), strict=True)
    remaining = iter([_of_precision(pair, precision) for pair, precision in found])
    return jax.tree.map(lambda leaf: next(remaining) if is_posterior(leaf) else leaf, params, is_leaf=is_posterior)


def _check_nodes(pairs: list[Pair]) -> None:
    if not pairs:
        raise ValueError(
            "laplace: params has no posterior node. Say what is Bayesian: mean_field(params) for all of it, or "
            "posterior_tree(params, {'head': full_covariance})."
        )
    for pair in pairs:
        if not isinstance(pair.q, (Gaussian, FullCovariance)):
            raise ValueError(
                f"{pair.name}: laplace makes Gaussian and FullCovariance nodes, and this is a {type(pair.q).__name__}. "
                "Build it with mean_field or full_covariance."
            )
        if pair.hyperpriors:
            raise ValueError(
                f"{pair.name}: laplace takes a prior whose scale is known, and EmpiricalBayes fits it to the scales of "
                "q. Pass what it has found: prior.fit(node.mean, node.stddev)[0]."
            )
        if not pair.is_exact:  # a closed form is of a prior on the whole line
            check_support(pair.name, pair.p)


def _factors(apply_fn: Callable[..., Any], loss_fn: LossFn | None, params: PyTree, x: PyTree, y: PyTree) -> Any:
    """H^(1/2) J of one example, (K, P) for each node."""
    one, target = jax.tree.map(lambda leaf: leaf[None], (x, y))
    leaves, structure = jax.tree.flatten(params, is_leaf=is_posterior)

    def outputs(means: list[PyTree]) -> Any:
        moving = iter(means)
        return apply_fn(structure.unflatten([next(moving) if is_posterior(leaf) else leaf for leaf in leaves]), one)

    means = vary_like(outputs, [leaf.mean for leaf in leaves if is_posterior(leaf)])
    flat, unflatten = ravel_pytree(jax.tree.map(at_least_float32, outputs(means)))

    def loss(flat: jax.Array) -> jax.Array:
        values = example_losses("laplace", loss_fn, unflatten(flat), target, None)
        if values.ndim == 0:
            raise ValueError(
                "laplace: loss_fn must return one value per example, but it returned a scalar. Drop its mean."
            )
        return values[0]

    values, vectors = jnp.linalg.eigh(jax.hessian(loss)(vary_like(loss, flat)))
    roots = (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None, :]).T
    jacobian = jax.jacrev(lambda means: ravel_pytree(jax.tree.map(at_least_float32, outputs(means)))[0])(means)
    return [matmul(roots, _rows(of_node)) for of_node in jacobian]


def _rows(jacobian: PyTree) -> jax.Array:
    """The derivatives by all numbers of a node, (K, P)."""
    dtype = widest_dtype(jacobian)
    return jnp.concatenate([leaf.astype(dtype).reshape(len(leaf), -1) for leaf in jax.tree.leaves(jacobian)], axis=1)


def _summed(factors: Callable[..., Any], nodes: list[Any], x: PyTree, y: PyTree, batch_size: int) -> Any:
    """The sums over all examples: the diagonal of J^T H J, or all of it, for each node."""

    def of_batch(x: PyTree, y: PyTree) -> list[jax.Array]:
        found = []
        for node, factor in zip(nodes, jax.vmap(factors)(x, y), strict=True):
            rows = factor.reshape(-1, factor.shape[-1])
            is_full = isinstance(node, FullCovariance)
            found.append(matmul(rows.T, rows) if is_full else jnp.sum(jnp.square(rows), axis=0))
        return found

    batches = with_whole_examples(jax.tree.map(jnp.asarray, (x, y)))
    return sum_over_chunks(lambda batch: (of_batch(*batch), ()), batches, batch_size)[0]


def _precision_of_prior(pair: Pair) -> jax.Array:
    """-d^2 log p / dw^2 at the mean: all of it for a `FullCovariance` node, else its diagonal."""
    flat = ravel(pair.q.mean)

    def minus_log_prior(flat: jax.Array) -> jax.Array:
        return -log_prior_of_node(pair.name, pair.p, unravel(flat, jax.tree.map(at_least_float32, pair.q.mean)))

    flat = vary_like(minus_log_prior, flat)
    if isinstance(pair.q, FullCovariance):
        return jax.hessian(minus_log_prior)(flat)
    if jax.eval_shape(pair.p.log_prob, pair.q.mean).shape != jnp.shape(pair.q.mean):
        return jnp.diagonal(jax.hessian(minus_log_prior)(flat))  # a joint density
    return jax.jvp(jax.grad(minus_log_prior), (flat,), (jnp.ones_like(flat),))[1]  # of independent numbers


def _of_precision(pair: Pair, precision: jax.Array) -> Gaussian | FullCovariance:
    known = concrete(precision)
    if known is not None:
        smallest = np.min(known if known.ndim == 1 else np.linalg.eigvalsh(known.astype(np.float64)))
        if not smallest > 0:
            raise ValueError(
                f"{pair.name}: the precision must be positive, and its smallest eigenvalue is {smallest:.3g}. Train to "
                "a mode first, and take a prior that bends there, such as a Normal."
            )
    return compiled_once(partial(_node_of_precision, pair.q), precision)


def _node_of_precision(q: Gaussian | FullCovariance, precision: jax.Array) -> Gaussian | FullCovariance:
    loc = q.loc
    if isinstance(q, Gaussian):
        rho = placed_like(softplus_inverse(precision**-0.5).reshape(jnp.shape(loc)), loc)
        return Gaussian(loc, rho.astype(q.rho.dtype))
    # the Cholesky factor of an inverse: that of the precision in reverse order, inverted
    reverse = jnp.linalg.cholesky(precision[::-1, ::-1])[
        ::-1, ::-1
    ]  # upper triangular, reverse @ reverse.T = precision
    root = solve_triangular(reverse.T, jnp.eye(len(reverse), dtype=reverse.dtype), lower=True)
    diagonal = softplus_inverse(jnp.diagonal(root))
    return FullCovariance(loc, (jnp.tril(root, -1) + jnp.diag(diagonal)).astype(q.tril.dtype))
