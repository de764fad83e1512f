"""KL(q || p) of one node: a table of closed forms, and the Monte Carlo estimate where there is none."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from illia_fn._base.checks import check_key, check_num_samples, describe
from illia_fn._base.numerics import at_least_float32, total
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.engine.monte_carlo import expectation
from illia_fn.posteriors.posterior import is_posterior
from illia_fn.priors._foreign import has_density
from illia_fn.priors._known import in_known_form
from illia_fn.priors.empirical import EmpiricalBayes

ClosedForm = Callable[[Any, Any], jax.Array]

_CLOSED_FORMS: dict[tuple[type, type], ClosedForm] = {}


def register_kl(q_type: type, p_type: type) -> Callable[[ClosedForm], ClosedForm]:
    """Decorate a closed form, f(q, p) -> KL(q || p) in nats, a scalar, to add it to the table of `kl_divergence`.

    The table goes by the exact types of q and p; either may stand for one array or for a subtree.

    >>> from illia_fn import Gaussian
    >>> class Flat:
    ...     '''The improper prior p(w) = 1.'''
    >>> @register_kl(Gaussian, Flat)
    ... def _(q, p):
    ...     return -q.entropy()
    >>> print(kl_divergence(Gaussian(jnp.zeros(1), jnp.zeros(1)), Flat()).round(3))
    -1.052
    """

    def register(f: ClosedForm) -> ClosedForm:
        _CLOSED_FORMS[q_type, p_type] = f
        return f

    return register


def closed_form(q: Any, p: Any) -> ClosedForm | None:
    """The entry of the table for this pair."""
    return _CLOSED_FORMS.get((type(q), type(p)))


def kl_divergence(q: Any, p: PyTree, *, key: jax.Array | None = None, num_samples: int = 1) -> jax.Array:
    """KL(q || p) = E_q[log q(w) - log p(w)] of one posterior node, in nats.

    Exact where the pair has a closed form (`Gaussian` or `Normal` against either, and what `register_kl` adds).
    Otherwise the expectation is that of reparameterised draws w_s ~ q, and unbiased:

        -H(q) - mean_s log p(w_s)               for a prior, with the exact entropy of q;
        mean_s [log q(w_s) - log p(w_s)]        for another posterior, which is exactly 0 where p is q.

    Args:
        q: a posterior node, or a `Normal`.
        p: a prior; its parameters are numbers or have the rank of q, with axes that equal q's or are 1. Its log_prob is
            element-wise, or a scalar, the joint density. If q stands for a subtree, p may be one prior for each of its
            arrays, a tree of them, or a posterior node over the same subtree.
        key: a PRNG key, required where there is no closed form.
        num_samples: draws for the Monte Carlo estimate; not used by a closed form.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: without a `key` where one is needed, or if the shapes of q and p do not go together.
        TypeError: if `p` has no `log_prob`.

    >>> from illia_fn import Normal
    >>> q, p = Normal(1.0, 1.0), Normal(0.0, 1.0)
    >>> print(kl_divergence(q, p))  # (1 - 0)^2 / 2
    0.5
    """
    return kl_of_node("kl_divergence", q, p, key, num_samples)


def kl_of_node(caller: str, q: Any, p: PyTree, key: jax.Array | None, num_samples: int) -> jax.Array:
    """`kl_divergence`, with errors in the name of its caller."""
    p, _ = fitted(q, jax.tree.map(in_known_form, p, is_leaf=is_prior))
    f = closed_form(q, p)
    if f is not None:
        if getattr(q, "elementwise", False) and getattr(p, "elementwise", False):
            _check_broadcast(caller, np.broadcast_shapes(*map(np.shape, jax.tree.leaves(q))), p)
        return _scalar(caller, q, p, f)
    _check_prior(caller, p)
    if not is_posterior(q):
        raise TypeError(
            f"{caller}: q must be a posterior node, such as illia_fn.Gaussian, or a Normal, got {describe(q)}."
        )
    if key is None:
        raise ValueError(
            f"{caller}: KL({type(q).__name__} || {_names(p)}) has no closed form here and is estimated from samples: "
            "pass key=jax.random.key(...) and num_samples, or use illia_fn.Normal."
        )
    check_num_samples(caller, num_samples)
    check_key(caller, key)
    _check_support(caller, p)
    if is_posterior(p):
        return expectation(lambda w: q.log_prob(w) - log_prior_of_node(caller, p, w), q, key, num_samples)
    return -q.entropy() - expectation(lambda w: log_prior_of_node(caller, p, w), q, key, num_samples)


def fitted(q: Any, p: PyTree) -> tuple[PyTree, list[jax.Array]]:
    """A prior whose scales are fitted to q, and their -log hyperpriors in nats; others as they are."""
    priors, structure = jax.tree.flatten(p, is_leaf=is_prior)
    if not (is_posterior(q) and any(isinstance(prior, EmpiricalBayes) for prior in priors)):
        return p, []
    moments = zip(priors, structure.flatten_up_to(q.mean), structure.flatten_up_to(q.stddev), strict=True)
    fits = [each.fit(mean, sd) if isinstance(each, EmpiricalBayes) else (each, None) for each, mean, sd in moments]
    return structure.unflatten([prior for prior, _ in fits]), [nats for _, nats in fits if nats is not None]


def log_prior_of_node(caller: str, p: PyTree, w: PyTree) -> jax.Array:
    """log p(w) in nats, a scalar, of all that one posterior node stands for."""
    _check_prior(caller, p)
    wide = jax.tree.map(at_least_float32, w)
    if is_posterior(p) and not p.elementwise:
        if jax.tree.structure(p.mean) != jax.tree.structure(w):
            raise ValueError(
                f"{caller}: the prior, a {type(p).__name__}, must stand for what the posterior stands for: it is over "
                f"{jax.tree.structure(p.mean)}, and the posterior over {jax.tree.structure(w)}."
            )
        return p.log_prob(wide)
    if is_prior(p):
        return total([_log_prior_of_array(f"{caller}{path}", p, leaf) for path, leaf in leaves_with_path(wide)])
    priors = jax.tree.structure(w).flatten_up_to(p)
    pairs = zip(leaves_with_path(wide), priors, strict=True)
    return total([_log_prior_of_array(f"{caller}{path}", each, leaf) for (path, leaf), each in pairs])


def _log_prior_of_array(caller: str, p: Any, w: jax.Array) -> jax.Array:
    _check_broadcast(caller, np.shape(w), p)
    log_p = p.log_prob(w)
    if np.shape(log_p) not in ((), np.shape(w)):
        raise ValueError(
            f"{caller}: the prior's log_prob must be element-wise, or a scalar, the joint density: it has shape "
            f"{np.shape(log_p)} for w of shape {w.shape}."
        )
    return jnp.sum(log_p)


def is_prior(p: Any) -> bool:
    """Whether it is one prior, and no tree of them."""
    # of its type: a flax.nnx.Param has the attributes of what it holds, such as those of a posterior
    return hasattr(type(p), "log_prob") or isinstance(p, EmpiricalBayes)


def _check_prior(caller: str, p: PyTree) -> None:
    for leaf in jax.tree.leaves(p, is_leaf=lambda leaf: leaf is None or is_prior(leaf)) or [p]:
        if not is_prior(leaf) or isinstance(leaf, type):
            raise TypeError(
                f"{caller}: the prior must have a log_prob, such as illia_fn.Normal(0.0, 1.0), got {describe(leaf)}."
                + _meant(leaf)
            )


def _meant(leaf: Any) -> str:
    if isinstance(leaf, (int, float)):
        return f" For that scale pass illia_fn.Normal(0.0, {leaf})."
    if isinstance(leaf, (jax.Array, np.ndarray)):
        return " For a prior around parameters pass jax.tree.map(lambda w: illia_fn.Normal(w, scale), params)."
    return ""


def _check_broadcast(caller: str, shape: tuple[int, ...], p: Any) -> None:
    """The parameters of an element-wise prior are numbers, or have as many axes as w, each of the same size or 1."""
    fields = map(np.shape, jax.tree.leaves(p))
    for sizes in fields if getattr(p, "elementwise", False) else [tuple(getattr(p, "batch_shape", ()))]:
        if sizes and (
            len(sizes) != len(shape) or any(size not in (1, full) for size, full in zip(sizes, shape, strict=True))
        ):
            raise ValueError(
                f"{caller}: a prior parameter of shape {sizes} does not go with a posterior of shape {shape}. It must "
                "be a number, or have as many axes as the posterior, each of the same size or 1."
            )


def _check_support(caller: str, p: PyTree) -> None:
    """The prior has a density everywhere on the real line, as far as it tells: elsewhere KL(q || p) is infinite."""
    for leaf in jax.tree.leaves(p, is_leaf=is_prior):
        if any(flags is not None and not np.all(flags) for flags in has_density(leaf, (-1e30, -0.3, 0.3, 1e30))):
            raise ValueError(
                f"{caller}: the prior {type(leaf).__name__} has no density on part of the real line, where the "
                "posterior has some, so KL(q || p) is infinite. Take the prior of an unconstrained parameter u, "
                'illia_fn.priors.constrained(prior, to="positive") or to=(low, high), and its forward(u) in apply_fn.'
            )


def _scalar(caller: str, q: Any, p: Any, f: ClosedForm) -> jax.Array:
    kl = f(q, p)
    if np.shape(kl) != ():
        raise ValueError(
            f"{caller}: the closed form of KL({type(q).__name__} || {type(p).__name__}) must return a scalar, the KL "
            f"of the whole node, got shape {np.shape(kl)}. Sum it."
        )
    return kl


def _names(p: PyTree) -> str:
    leaves = jax.tree.leaves(p, is_leaf=is_prior)
    return ", ".join(dict.fromkeys(f"{type(leaf).__module__}.{type(leaf).__name__}" for leaf in leaves))
