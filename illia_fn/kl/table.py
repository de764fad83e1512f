"""KL(q || p): one table of closed forms, and the loss made of it."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_factor, check_key, check_num_samples, describe
from illia_fn._base.numerics import at_least_float32, total
from illia_fn._base.trees import PyTree, broadcast_prefix, leaves_with_path
from illia_fn.engine.monte_carlo import expectation
from illia_fn.kl.gaussian import kl_of_gaussians
from illia_fn.posteriors._join import Joined, join, split
from illia_fn.posteriors.gaussian import Gaussian
from illia_fn.posteriors.posterior import is_posterior, num_params
from illia_fn.priors.normal import Normal

_CLOSED_FORMS: dict[tuple[type, type], Callable[[Any, Any], jax.Array]] = {}


def register_kl(q_type: type, p_type: type) -> Callable[[Callable], Callable]:
    """Decorate a closed form, f(q, p) -> element-wise KL in nats, to add it to the table of `kl_divergence`.

    The table goes by the exact types of q and p.

    >>> class Flat:
    ...     '''The improper prior p(w) = 1.'''
    >>> @register_kl(Gaussian, Flat)
    ... def _(q, p):
    ...     return -q.entropy()
    >>> print(kl_divergence(Gaussian(jnp.zeros(1), jnp.zeros(1)), Flat()).round(3))
    [-1.052]
    """

    def register(f: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], jax.Array]:
        _CLOSED_FORMS[q_type, p_type] = f
        return f

    return register


def kl_divergence(q: Any, p: Any, *, key: jax.Array | None = None, num_samples: int = 1) -> jax.Array:
    """KL(q || p) = E_q[log q(w) - log p(w)] of one posterior node, element-wise, in nats.

    Exact where the pair has a closed form (`Gaussian` or `Normal` against either). For any other prior with an
    element-wise `log_prob` it is -H(q) - mean_s log p(w_s): exact entropy, reparameterised draws w_s ~ q for the rest
    (unbiased).

    Args:
        q: a posterior node, or a `Normal`.
        p: a prior; its parameters are numbers or have the rank of q, with axes that equal q's or are 1.
        key: a PRNG key, required where there is no closed form.
        num_samples: draws for the Monte Carlo estimate; not used by a closed form.

    Returns:
        An array of the shape of q, float32 or wider.

    Raises:
        ValueError: without a `key` where one is needed, or if the shapes of q and p do not go together.
        TypeError: if `p` has no `log_prob`.

    >>> q, p = Normal(1.0, 1.0), Normal(0.0, 1.0)
    >>> print(kl_divergence(q, p))  # (1 - 0)^2 / 2
    0.5
    """
    return _kl_divergence("kl_divergence", q, p, key, num_samples)


def kl_tree(
    params: PyTree, prior: PyTree = Normal(0.0, 0.1), *, key: jax.Array | None = None, num_samples: int = 1
) -> dict[str, jax.Array]:
    """KL(q_l || p_l) of every posterior node l, by its path: where the information sits, in nats.

    Args and errors are those of `kl_loss`.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"b": jnp.zeros(3), "w": jnp.ones((2, 3))}, scale=1.0)
    >>> print({path: round(float(kl), 3) for path, kl in kl_tree(q, Normal(0.0, 1.0)).items()})
    {"['b']": 0.0, "['w']": 3.0}
    """
    paths = [path for path, leaf in leaves_with_path(params, is_posterior) if is_posterior(leaf)]
    pairs = kl_pairs("kl_tree", params, prior, key)
    return {path: jnp.sum(pair.kl(num_samples)) for path, pair in zip(paths, pairs, strict=True)}


def kl_loss(
    params: PyTree,
    prior: PyTree = Normal(0.0, 0.1),
    *,
    reduction: Literal["mean", "sum"] = "mean",
    weight: ArrayLike = 1.0,
    key: jax.Array | None = None,
    num_samples: int = 1,
) -> jax.Array:
    """KL loss, weight * sum_l KL(q_l || p_l) over the posterior nodes l of a tree, in nats.

    With reduction="mean" it is divided by the number of variational parameters, `num_params(params)`: all of them.

    Args:
        params: a posterior tree; deterministic leaves add no KL.
        prior: a `Normal`, any object with an element-wise `log_prob`, a prefix tree of these, or a posterior tree of
            the structure of `params` (yesterday's posterior as today's prior).
        reduction: "mean" per variational parameter, or "sum".
        weight: a factor, not negative.
        key: a PRNG key, required if some prior has no closed form (see `kl_divergence`).
        num_samples: Monte Carlo draws for those.

    Returns:
        A scalar, float32 or wider. A tree without posterior nodes gives exactly 0 for "sum".

    Raises:
        ValueError: for an unknown reduction, "mean" of a tree without posterior nodes, a prior that does not match the
            tree, a missing key.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.ones((2, 3))}, scale=1.0)
    >>> print(kl_loss(q, Normal(0.0, 1.0)), kl_loss(q, Normal(0.0, 1.0), reduction="sum"))
    0.5 3.0
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'kl_loss: reduction must be "mean" or "sum", got {reduction!r}.')
    check_factor("kl_loss", "weight", weight)
    count = num_params(params)
    if reduction == "mean" and count == 0:
        raise ValueError(
            "kl_loss: params has no posterior node, so there is no mean per variational parameter. Make some leaves "
            'Bayesian with mean_field, or use reduction="sum", which is 0.'
        )
    pairs = kl_pairs("kl_loss", params, prior, key)
    kl = total_kl(Joined.of(params, is_posterior), pairs, num_samples)
    return jnp.asarray(weight, kl.dtype) * (kl / jnp.asarray(count, kl.dtype) if reduction == "mean" else kl)


class Pair(NamedTuple):
    """A posterior node and its prior; how errors name it; a key, and the index to fold into it, to sample with."""

    name: str
    q: Any
    p: Any
    key: jax.Array | None
    index: int

    def kl(self, num_samples: int) -> jax.Array:
        """KL(q || p), element-wise."""
        key = self.key if self.key is None or self.is_exact else jax.random.fold_in(self.key, self.index)
        return _kl_divergence(self.name, self.q, self.p, key, num_samples)

    @property
    def is_exact(self) -> bool:
        """Whether there is a closed form."""
        return (type(self.q), type(self.p)) in _CLOSED_FORMS

    @property
    def partner(self) -> Hashable:
        """Nodes of one joined group with equal partners have one prior, or posteriors for priors that join alike."""
        fields = jax.tree.leaves(self.p)
        if _CLOSED_FORMS.get((type(self.q), type(self.p))) is _kl_normal_normal:
            if isinstance(self.p, Gaussian) and np.shape(self.p.mean) == np.shape(self.q.mean):
                return Gaussian, *[jnp.result_type(field) for field in fields]
            if isinstance(self.p, Normal) and not any(np.shape(field) for field in fields):
                return Normal, *[field if isinstance(field, (int, float)) else id(field) for field in fields]
        return object()  # a form or a prior of someone else's may go by the shape of one leaf


def kl_pairs(caller: str, params: PyTree, prior: PyTree, key: jax.Array | None) -> list[Pair]:
    """One for each posterior node, in the order of the tree."""
    if key is not None:
        check_key(caller, key)
    leaves = leaves_with_path(params, is_posterior)
    priors = broadcast_prefix(caller, "prior", prior, params, is_posterior, _is_prior_leaf)
    return [
        Pair(f"{caller} at params{path}", q, p, key, index)
        for index, ((path, q), p) in enumerate(zip(leaves, priors, strict=True))
        if is_posterior(q)
    ]


def total_kl(joined: Joined, pairs: list[Pair], num_samples: int) -> jax.Array:
    """KL(q || prior) of the whole tree in nats."""
    return total([pair.kl(num_samples) for node, group in _groups(joined) for pair in _by_prior(node, group, pairs)])


def log_prior(joined: Joined, pairs: list[Pair], w: list[jax.Array]) -> jax.Array:
    """log p(w) in nats, at one draw for each joined node."""
    terms = []
    for (node, group), draw in zip(_groups(joined), w, strict=True):
        joined_pairs = _by_prior(node, group, pairs)
        pieces = [draw]
        if len(joined_pairs) > 1:
            joined_pairs = [pairs[index] for index in group]
            pieces = split(draw, tuple(np.shape(pair.q.mean) for pair in joined_pairs))
        terms += [_log_prior(pair.name, pair.p, piece) for pair, piece in zip(joined_pairs, pieces, strict=True)]
    return total(terms)


def _groups(joined: Joined) -> Iterator[tuple[Any, list[int]]]:
    return zip(joined.nodes, joined.groups, strict=True)


def _by_prior(node: Any, group: list[int], pairs: list[Pair]) -> list[Pair]:
    """A joined node and its joined prior, or one such pair for each of several priors."""
    partners: dict[Hashable, list[Pair]] = {}
    for pair in [pairs[index] for index in group]:
        partners.setdefault(pair.partner, []).append(pair)
    nodes = [node] if len(partners) == 1 else [join([pair.q for pair in some]) for some in partners.values()]
    return [
        some[0]._replace(q=q, p=join([pair.p for pair in some]) if isinstance(some[0].p, Gaussian) else some[0].p)
        for q, some in zip(nodes, partners.values(), strict=True)
    ]


def _is_prior_leaf(node: Any) -> bool:
    # of its type: a flax.nnx.Param has the attributes of what it holds, such as those of a posterior
    return node is None or hasattr(type(node), "log_prob")


def _kl_divergence(caller: str, q: Any, p: Any, key: jax.Array | None, num_samples: int) -> jax.Array:
    closed_form = _CLOSED_FORMS.get((type(q), type(p)))
    if closed_form is not None:
        _check_shapes(caller, q, map(np.shape, jax.tree.leaves(p)))
        return closed_form(q, p)
    _check_prior(caller, p)
    if not is_posterior(q):
        raise TypeError(
            f"{caller}: q must be a posterior node, such as illia_fn.Gaussian, or a Normal, got {describe(q)}."
        )
    if key is None:
        raise ValueError(
            f"{caller}: KL({type(q).__name__} || {type(p).__module__}.{type(p).__name__}) has no closed form here and "
            "is estimated from samples: pass key=jax.random.key(...) and num_samples, or use illia_fn.Normal."
        )
    check_num_samples(caller, num_samples)
    check_key(caller, key)
    return -q.entropy() - expectation(partial(_log_prior, caller, p), q, key, num_samples)


def _log_prior(caller: str, p: Any, w: jax.Array) -> jax.Array:
    _check_prior(caller, p)
    known = isinstance(p, (Normal, Gaussian))
    _check_shapes(caller, w, map(np.shape, jax.tree.leaves(p)) if known else [getattr(p, "batch_shape", ())])
    log_p = p.log_prob(at_least_float32(w))
    if log_p.shape != w.shape:
        raise ValueError(
            f"{caller}: the prior's log_prob must be element-wise: it has shape {log_p.shape} for w of shape {w.shape}."
        )
    return log_p


def _check_prior(caller: str, p: Any) -> None:
    if not hasattr(p, "log_prob") or isinstance(p, type):
        raise TypeError(
            f"{caller}: the prior must have an element-wise log_prob, such as illia_fn.Normal(0.0, 0.1), got "
            f"{describe(p)}."
        )


def _check_shapes(caller: str, q: Any, prior_shapes: Iterable[tuple[int, ...]]) -> None:
    shape = np.broadcast_shapes(*map(np.shape, jax.tree.leaves(q)))
    for sizes in prior_shapes:
        if sizes and (
            len(sizes) != len(shape) or any(size not in (1, full) for size, full in zip(sizes, shape, strict=True))
        ):
            raise ValueError(
                f"{caller}: a prior parameter of shape {sizes} does not go with a posterior of shape {shape}. It must "
                "be a number, or have as many axes as the posterior, each of the same size or 1."
            )


@register_kl(Gaussian, Normal)
@register_kl(Gaussian, Gaussian)
@register_kl(Normal, Normal)
@register_kl(Normal, Gaussian)
@jax.jit  # one dispatch outside of a jit, one compilation for each shape inside
def _kl_normal_normal(q: Gaussian | Normal, p: Gaussian | Normal) -> jax.Array:
    """KL = log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2."""
    return kl_of_gaussians(q, p, p_underflows=isinstance(p, Gaussian))
