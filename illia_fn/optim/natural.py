"""The Bayesian learning rule: natural-gradient steps of Gaussians, from the gradient of any objective."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from illia_fn._base.checks import check_factor, check_required_num_data, check_scale, concrete, describe
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.optim._steps import Memory, Rule, trusted_share
from illia_fn.posteriors.eigen import Eigenbasis
from illia_fn.posteriors.full import FullCovariance
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import is_posterior
from illia_fn.priors._known import in_known_form
from illia_fn.priors.normal import Normal


class NaturalGradientState(NamedTuple):
    """The number of steps, what is kept of the gradients of each node, and the state of the inner optimizer."""

    count: jax.Array
    memory: list[Memory]
    inner: Any


def natural_gradient(
    learning_rate: optax.ScalarOrSchedule = 0.2,
    precision_rate: optax.ScalarOrSchedule = 0.05,
    *,
    num_data: int,
    momentum: ArrayLike = 0.8,
    prior: Normal | None = None,
    max_step: float | None = 1.0,
    max_kl: float | None = 5.0,
    max_change: float | None = 0.3,
    retraction: bool = True,
    basis_decay: ArrayLike = 0.95,
    basis_every: ArrayLike = 10,
    inner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Natural-gradient descent on the mean m and the precision P = 1 / sigma^2 of Gaussian nodes.

        e = (N / sigma) dL/dsigma                                 which is E_q[Hessian of the loss] - P
        P <- P + b e + (b e)^2 / (2 P)
        g <- momentum of dL/dm
        m <- m - a N g / P

    L is a loss per training example, as the objectives return it with num_data = N; a is the learning_rate and b the
    precision_rate. The Bayesian learning rule, Khan & Rue 2023, https://arxiv.org/abs/2107.04562; the last term of P
    keeps it positive, Lin et al. 2020, https://arxiv.org/abs/2002.10060. The curvature comes with the gradient by sigma
    that every objective has: whatever lowers its variance, such as a coupling or more samples, makes better steps.

    Of a `FullCovariance` node P is a matrix and e = 2 N dL/dS, for the covariance S = P^-1; the last term is
    b^2 e P^-1 e / 2. It takes O(n^3) operations for n numbers, and the limits are those of the numbers in which its
    S is I.

    A step of all means together is shortened to a KL divergence between the q before and after of at most `max_kl`, a
    trust region as in Ba, Grosse & Martens 2017 (https://openreview.net/forum?id=SkkTMpjex): far from the optimum the
    rule asks for steps that leave the region where its curvature holds, and deep networks do not come back from them.
    With it the rates matter little to a classifier: `benchmarks/natural_gradient.py` tries a tenfold range.

    Of an `Eigenbasis` node the rule is that of a diagonal one in its bases, as in EVON, 2026,
    https://arxiv.org/abs/2606.23357: for the gradient G of a matrix it keeps means of G G^T and G^T G, and every few
    steps turns the bases towards their eigenvectors, by a step of the power method as in SOAP, Vyas et al. 2024
    (https://arxiv.org/abs/2409.11321). P becomes the diagonal of the same precision in the new bases.

    With `prior=Normal(0, (N delta)^(-1/2))`, one sample, without the three limits, b = 1e-5, momentum 0.9 and
    a = rate * (h0 + delta) its steps are those of IVON, Shen et al. 2024, https://arxiv.org/abs/2402.17641.

    Args:
        learning_rate: a, a number or a schedule. Let it decay to 0.
        precision_rate: b, a number or a schedule. Where the model predicts the scale of its noise the curvature has
            rare and large values, and minibatches can diverge: take .01, and a learning_rate of .1.
        num_data: N, as in the objective.
        momentum: of the gradient by the mean, in [0, 1), corrected for its start at 0.
        prior: that of the objective's KL, of kl_weight 1. Its gradient is then kept out of the momentum, as IVON does;
            without, all of the gradient is in it.
        max_step: how far one mean may go in one step, in standard deviations; None is no limit. With it a gradient
            enters the momentum cut to what alone would move the mean by 4 of them, or by 4 max_step if that is more, at
            a rate of at least 0.01; or to 4 / (sqrt(N) sigma), four times what q predicts of one example, if that is
            more. A rare one that is larger, infinite or not, so moves the mean for some ten steps. Of skewed noise a
            cut is a bias, which goes away as the learning_rate decays.
        max_kl: how far all means together may go in one step, sum (change of m)^2 P / 2 in nats; None is no limit.
        max_change: how large b e / P may be, for every number by itself; None is no limit. Noise in the curvature that
            often exceeds it makes scales too large: take more samples, a coupling, or a smaller precision_rate.
        retraction: whether to add the last term of P. Without, b = 1 takes a Gaussian posterior to its precision in one
            step, which b e / P >= -1/2 then keeps positive.
        basis_decay: by what the means of G G^T and G^T G decay in a step, in [0, 1).
        basis_every: after how many steps the bases of `Eigenbasis` nodes turn.
        inner: for all that is no Gaussian node's; by default such leaves are refused, unless they are no floats.

    Raises:
        ValueError: for a factor or a count out of its range; from `init` and `update`, for a tree without such nodes,
            nodes of another family, or deterministic leaves without an `inner` optimizer.

    >>> from illia_fn import elbo_loss, mean_field  # y = 5 of unit noise under N(0, 1): the posterior is N(2.5, 1 / 2)
    >>> q, keys = mean_field(jnp.array(0.0), scale=0.1), jax.random.split(jax.random.key(0), 200)
    >>> args = jnp.zeros(1), jnp.array([5.0])
    >>> optimizer = natural_gradient(0.3, 0.1, num_data=1)
    >>> def step(state, key):
    ...     q, opt_state = state
    ...     grads = jax.grad(lambda q: elbo_loss(lambda w, x: x + w, q, *args, key, 8, num_data=1, antithetic=True))(q)
    ...     updates, opt_state = optimizer.update(grads, opt_state, q)
    ...     return (optax.apply_updates(q, updates), opt_state), ()
    >>> (q, _), _ = jax.lax.scan(step, (q, optimizer.init(q)), keys)
    >>> print(f"{q.loc:.1f} +- {q.stddev:.1f}")
    2.5 +- 0.7
    """
    check_required_num_data("natural_gradient", num_data)
    _check_rates(learning_rate=learning_rate, precision_rate=precision_rate)
    _check_decays(momentum=momentum, basis_decay=basis_decay)
    _check_every(basis_every)
    _check_limits(max_step=max_step, max_kl=max_kl, max_change=max_change)
    prior = in_known_form(prior)
    if prior is not None and not (isinstance(prior, Normal) and np.shape(prior.loc) == np.shape(prior.scale) == ()):
        raise ValueError(
            f"natural_gradient: prior must be one Normal(loc, scale) of two numbers, got {describe(prior)}."
        )
    rest = optax.identity() if inner is None else inner

    def init(params: PyTree) -> NaturalGradientState:
        nodes = _nodes(params, has_inner=inner is not None)
        memory = [Memory.of(node) for node in nodes]
        return NaturalGradientState(jnp.zeros((), jnp.int32), memory, rest.init(_without_nodes(params)))

    def update(updates: PyTree, state: NaturalGradientState, params: PyTree | None = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("natural_gradient: a step depends on q. Call update(grads, opt_state, q).")
        rates = [rate(state.count) if callable(rate) else rate for rate in (learning_rate, precision_rate)]
        of_bases = basis_decay, basis_every
        rule = Rule(*rates, num_data, momentum, state.count + 1, prior, max_step, max_change, retraction, *of_bases)
        nodes = _nodes(params, has_inner=True)
        moves = [rule.move(*node) for node in zip(nodes, _nodes(updates, has_inner=True), state.memory, strict=True)]
        share = trusted_share(moves, max_kl)
        steps = [move.update(jnp.asarray(share, move.stride.dtype) * move.stride) for move in moves]
        memory = [move.memory for move in moves]
        others, inner_state = rest.update(_without_nodes(updates), state.inner, _without_nodes(params))
        return _with_nodes(updates, steps, others), NaturalGradientState(state.count + 1, memory, inner_state)

    return optax.GradientTransformation(init, update)  # ty: ignore[invalid-argument-type]


def _check_rates(**rates: optax.ScalarOrSchedule) -> None:
    for name, rate in rates.items():
        if not callable(rate):
            check_factor("natural_gradient", name, rate)


def _check_decays(**decays: ArrayLike) -> None:
    for name, decay in decays.items():
        check_factor("natural_gradient", name, decay)
        value = concrete(decay)
        if value is not None and value >= 1:
            raise ValueError(f"natural_gradient: {name} must be below 1, got {describe(decay)}.")


def _check_every(count: ArrayLike) -> None:
    value = concrete(count)
    if value is not None and (value < 1 or value % 1):
        raise ValueError(f"natural_gradient: basis_every must be an int of at least 1, got {describe(count)}.")


def _check_limits(**limits: float | None) -> None:
    for name, limit in limits.items():
        if limit is not None:
            check_scale("natural_gradient", limit, name)


def _nodes(tree: PyTree, *, has_inner: bool) -> list[Gaussian | Eigenbasis | FullCovariance]:
    nodes = []
    for path, leaf in leaves_with_path(tree, is_posterior):
        if isinstance(leaf, (Gaussian, Eigenbasis, FullCovariance)):
            nodes.append(leaf)
        elif is_posterior(leaf):
            raise ValueError(
                f"natural_gradient: params{path} is a {type(leaf).__name__}, and the rule is that of Gaussian, "
                "Eigenbasis and FullCovariance nodes. Train it by optax.adam, with optax.multi_transform."
            )
        elif not has_inner and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"natural_gradient: params{path} is deterministic. Pass inner=optax.adam(...) for all such leaves, or "
                "inner=optax.set_to_zero() to keep them."
            )
    if not nodes:
        raise ValueError("natural_gradient: params has no Gaussian node. Make some leaves Bayesian with mean_field.")
    return nodes


def _without_nodes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: optax.MaskedNode() if is_posterior(leaf) else leaf, tree, is_leaf=is_posterior)


def _with_nodes(tree: PyTree, nodes: Sequence[Any], others: PyTree) -> PyTree:
    """A tree of the structure of another, of its nodes and of all other leaves."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_posterior)
    some, rest = iter(nodes), iter(jax.tree.leaves(others))
    return structure.unflatten([next(some) if is_posterior(leaf) else next(rest) for leaf in leaves])
