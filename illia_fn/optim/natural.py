"""The Bayesian learning rule: natural-gradient steps of Gaussian nodes, from the gradient of any objective."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from illia_fn._base.checks import check_factor, check_required_num_data, check_scale, concrete, describe
from illia_fn._base.numerics import at_least_float32, log_softplus, softplus, softplus_inverse
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import is_posterior
from illia_fn.priors._known import in_known_form
from illia_fn.priors.normal import Normal


class NaturalGradientState(NamedTuple):
    """The number of steps, the momentum of each node's gradient by its mean, and the state of the inner optimizer."""

    count: jax.Array
    momentum: list[jax.Array]
    inner: Any


def natural_gradient(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    precision_rate: optax.ScalarOrSchedule = 0.01,
    *,
    num_data: int,
    momentum: ArrayLike = 0.9,
    prior: Normal | None = None,
    max_step: float | None = 1.0,
    retraction: bool = True,
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

    With `prior=Normal(0, (N delta)^(-1/2))`, one sample, `max_step=None`, b = 1e-5 and a = rate * (h0 + delta) its
    steps are those of IVON, Shen et al. 2024, https://arxiv.org/abs/2402.17641.

    Args:
        learning_rate: a, a number or a schedule. Let it decay to 0.
        precision_rate: b, a number or a schedule.
        num_data: N, as in the objective.
        momentum: of the gradient by the mean, in [0, 1), corrected for its start at 0.
        prior: that of the objective's KL, of kl_weight 1. Its gradient is then kept out of the momentum, as IVON does;
            without, all of the gradient is in it.
        max_step: how far a mean may go in one step, in standard deviations, and how large b e / P may be; None is no
            limit. Before the precision has settled, steps beyond that are noise.
        retraction: whether to add the last term of P. Without, b = 1 takes a Gaussian posterior to its precision in one
            step, which b e / P >= -1/2 then keeps positive.
        inner: for all that is no Gaussian node's; by default such leaves are refused, unless they are no floats.

    Raises:
        ValueError: for a factor out of its range; from `init` and `update`, for a tree without Gaussian nodes, nodes of
            another family, or deterministic leaves without an `inner` optimizer.

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
    caller = "natural_gradient"
    check_required_num_data(caller, num_data)
    check_factor(caller, "momentum", momentum)
    value = concrete(momentum)
    if value is not None and value >= 1:
        raise ValueError(f"{caller}: momentum must be below 1, got {describe(momentum)}.")
    for name, rate in (("learning_rate", learning_rate), ("precision_rate", precision_rate)):
        if not callable(rate):
            check_factor(caller, name, rate)
    prior = in_known_form(prior)
    if prior is not None and not (isinstance(prior, Normal) and np.shape(prior.loc) == np.shape(prior.scale) == ()):
        raise ValueError(f"{caller}: prior must be one Normal(loc, scale) of two numbers, got {describe(prior)}.")
    if max_step is not None:
        check_scale(caller, max_step, "max_step")
    rest = optax.identity() if inner is None else inner

    def init(params: PyTree) -> NaturalGradientState:
        nodes = _nodes(params, has_inner=inner is not None)
        zeros = [jnp.zeros_like(at_least_float32(node.loc)) for node in nodes]
        return NaturalGradientState(jnp.zeros((), jnp.int32), zeros, rest.init(_without_nodes(params)))

    def update(updates: PyTree, state: NaturalGradientState, params: PyTree | None = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError(f"{caller}: a step depends on q. Call update(grads, opt_state, q).")
        rates = [rate(state.count) if callable(rate) else rate for rate in (learning_rate, precision_rate)]
        rule = _Rule(*rates, num_data, momentum, state.count + 1, prior, max_step, retraction)
        nodes = zip(_nodes(params, has_inner=True), _nodes(updates, has_inner=True), state.momentum, strict=True)
        steps, means = zip(*[rule.step(*node) for node in nodes], strict=True)
        others, inner_state = rest.update(_without_nodes(updates), state.inner, _without_nodes(params))
        return _with_nodes(updates, steps, others), NaturalGradientState(state.count + 1, list(means), inner_state)

    return optax.GradientTransformation(init, update)  # ty: ignore[invalid-argument-type]


class _Rule(NamedTuple):
    """The step of one node."""

    learning_rate: Any
    precision_rate: Any
    num_data: Any
    momentum: Any
    count: jax.Array
    prior: Normal | None
    max_step: float | None
    retraction: bool

    def step(self, node: Gaussian, grad: Gaussian, mean: jax.Array) -> tuple[Gaussian, jax.Array]:
        """The update of a node, and the momentum of its gradient."""
        loc, rho, by_loc, by_rho = map(at_least_float32, (node.loc, node.rho, grad.loc, grad.rho))
        dtype = loc.dtype
        scale, n = softplus(rho), jnp.asarray(self.num_data, dtype)
        # b e / P = b N sigma dL/dsigma, in which no 1 / sigma^2 may leave the range
        by_sigma = by_rho * jnp.exp(log_softplus(rho) - jax.nn.log_sigmoid(rho))  # times sigma; the ratio is 1 at -inf
        change = self._limited(jnp.asarray(self.precision_rate, dtype) * n * by_sigma)
        factor = 1.0 + change + 0.5 * jnp.square(change) if self.retraction else jnp.maximum(1.0 + change, 0.5)
        new_scale = scale / jnp.sqrt(factor)
        kept_out = self._prior_gradient(loc, n)
        decay = jnp.asarray(self.momentum, dtype)
        mean = decay * mean + (1.0 - decay) * (by_loc - kept_out)
        gradient = mean / (1.0 - decay ** self.count.astype(dtype)) + kept_out
        stride = self._limited(jnp.asarray(self.learning_rate, dtype) * n * gradient * new_scale)
        # far below 0 rho is the logarithm of a scale that may underflow
        by_rho = jnp.where(rho < -15.0, -0.5 * jnp.log(factor), softplus_inverse(new_scale) - rho)
        update = Gaussian(-stride * new_scale, by_rho)
        return jax.tree.map(lambda u, w: u.astype(w.dtype), update, node), mean

    def _prior_gradient(self, loc: jax.Array, n: jax.Array) -> jax.Array:
        """That of KL / N by the mean, (m - m_0) / (N s^2)."""
        if self.prior is None:
            return jnp.zeros_like(loc)
        middle, scale = (jnp.asarray(field, loc.dtype) for field in (self.prior.loc, self.prior.scale))
        return (loc - middle) / (n * jnp.square(scale))

    def _limited(self, x: jax.Array) -> jax.Array:
        return x if self.max_step is None else jnp.clip(x, -self.max_step, self.max_step)


def _nodes(tree: PyTree, *, has_inner: bool) -> list[Gaussian]:
    nodes = []
    for path, leaf in leaves_with_path(tree, is_posterior):
        if isinstance(leaf, Gaussian):
            nodes.append(leaf)
        elif is_posterior(leaf):
            raise ValueError(
                f"natural_gradient: params{path} is a {type(leaf).__name__}, and the rule is that of Gaussian nodes. "
                "Train it by optax.adam, with optax.multi_transform."
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


def _with_nodes(tree: PyTree, nodes: Sequence[Gaussian], others: PyTree) -> PyTree:
    """A tree of the structure of another, of its nodes and of all other leaves."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_posterior)
    some, rest = iter(nodes), iter(jax.tree.leaves(others))
    return structure.unflatten([next(some) if is_posterior(leaf) else next(rest) for leaf in leaves])
