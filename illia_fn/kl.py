"""KL(q || p): one table of closed forms, and the loss made of it."""

import math
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from illia_fn._checks import check_factor, check_key, check_num_samples, describe
from illia_fn._join import Joined, join
from illia_fn._numerics import at_least_float32, total
from illia_fn._trees import PyTree, broadcast_prefix, leaves_with_path
from illia_fn.expectation import expectation
from illia_fn.posteriors import Gaussian, is_posterior, num_params
from illia_fn.priors import Normal

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
    kl = total_kl(Joined.of(params, is_posterior, [pair.partner for pair in pairs]), pairs, num_samples)
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
        """Nodes with equal partners may be joined: their priors are equal, or are posteriors that are joined alike."""
        fields = jax.tree.leaves(self.p)
        if self.is_exact and is_posterior(self.p) and self.p.elementwise:
            if np.shape(self.p.mean) == np.shape(self.q.mean):
                return type(self.p), *[jnp.result_type(field) for field in fields]
        elif self.is_exact and not any(np.shape(field) for field in fields):
            return type(self.p), *[field if isinstance(field, (int, float)) else id(field) for field in fields]
        return object()


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
    """KL(q || prior) of the whole tree in nats; joined by the partners of the pairs."""
    terms = []
    for node, group in zip(joined.nodes, joined.groups, strict=True):
        pair = pairs[group[0]]
        p = join([pairs[index].p for index in group]) if is_posterior(pair.p) else pair.p
        terms.append(pair._replace(q=node, p=p).kl(num_samples))
    return total(terms)


def _is_prior_leaf(node: Any) -> bool:
    return node is None or hasattr(node, "log_prob")


def _kl_divergence(caller: str, q: Any, p: Any, key: jax.Array | None, num_samples: int) -> jax.Array:
    closed_form = _CLOSED_FORMS.get((type(q), type(p)))
    if closed_form is not None:
        _check_shapes(caller, q, map(np.shape, jax.tree.leaves(p)))
        return closed_form(q, p)
    if not hasattr(p, "log_prob") or isinstance(p, type):
        raise TypeError(
            f"{caller}: the prior must have an element-wise log_prob, such as illia_fn.Normal(0.0, 0.1), got "
            f"{describe(p)}."
        )
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
    _check_shapes(caller, q, [getattr(p, "batch_shape", ())])

    def log_prior(w: jax.Array) -> jax.Array:
        log_p = p.log_prob(at_least_float32(w))
        if log_p.shape != w.shape:
            raise ValueError(
                f"{caller}: the prior's log_prob must be element-wise: it has shape {log_p.shape} for w of shape "
                f"{w.shape}."
            )
        return log_p

    return -q.entropy() - expectation(log_prior, q, key, num_samples)


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
    return _apart(_kl_gaussian, q, p)


def _kl_gaussian(q: Gaussian | Normal, p: Gaussian | Normal) -> jax.Array:
    q_loc, q_scale, q_log_scale = at_least_float32(q.loc), at_least_float32(q.scale), q.log_scale
    p_loc, p_scale, p_log_scale = (at_least_float32(x).astype(q_loc.dtype) for x in (p.loc, p.scale, p.log_scale))
    inverse = 1.0 / jnp.maximum(p_scale, jnp.finfo(p_scale.dtype).tiny)
    args = jnp.broadcast_arrays(q_loc - p_loc, q_scale, q_log_scale, p_scale, p_log_scale, inverse)
    return _kl_from_scales(isinstance(p, Gaussian), *args)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apart(f: Callable[..., jax.Array], *args: Any) -> jax.Array:
    """f(*args), whose value and derivative share no intermediate results.

    Recomputing a few functions of numbers in registers is faster than writing them to memory for the other to read.
    """
    return f(*args)


@_apart.defjvp
def _apart_jvp(f, primals, tangents):
    # In arrays of another shape not even constants are shared, which would be written to memory, too.
    value = f(*primals)
    apart, dots = jax.tree.map(lambda x: x[None] if jnp.ndim(x) else x, (primals, tangents))
    return value, jax.jvp(f, jax.lax.optimization_barrier(apart), dots)[1].reshape(value.shape)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kl_from_scales(
    p_underflows: bool,  # noqa: FBT001
    delta: jax.Array,
    q_scale: jax.Array,
    q_log_scale: jax.Array,
    p_scale: jax.Array,
    p_log_scale: jax.Array,
    inverse: jax.Array,
) -> jax.Array:
    """KL = (z^2 + t (t + 2)) / 2 - log(1 + t), with z = delta / s_p, t = s_q / s_p - 1 and inverse = 1 / s_p.

    Written without a branch: XLA's CPU backend sums such an expression faster than one with a select.
    """
    z, t, ratio, log_ratio = _standardise(p_underflows, delta, q_scale, q_log_scale, p_scale, p_log_scale, inverse)
    # Near q = p the terms in t cancel to order t^2; there t - log(1 + t) is summed as a series in u = t / (t + 2):
    # log(1 + t) = 2 atanh(u) and t = 2 u / (1 - u), so t - log(1 + t) = u t - 2 u^3 (1/3 + u^2/5 + u^4/7 + ...).
    near = _clip(t, _LOW - 1.0, _HIGH - 1.0)
    u = near / (near + 2.0)
    last = 9 if t.dtype == jnp.float32 else 21
    series = jnp.polyval(jnp.asarray([1 / k for k in range(last, 1, -2)], t.dtype), u * u)
    near_kl = near * (0.5 * near + u) - 2.0 * u * (u * u) * series
    # What lies beyond is added, and is exactly 0 within: _LOW * _HIGH = 1. Products halve first, as z^2 may overflow
    # where half of it does not; what lies below _SMALL comes from the difference of the logarithms.
    beyond = _clip(ratio, _SMALL, _LOW) * _clip(ratio, _HIGH, float(jnp.finfo(t.dtype).max))
    far_kl = 0.5 * (t - near) * (t + near + 2.0) - jnp.log(beyond)
    return 0.5 * z * z + near_kl + far_kl - jnp.minimum(log_ratio - math.log(_SMALL), 0.0)


_LOW, _HIGH = 3 / 4, 4 / 3  # of the ratio of the scales
_SMALL = 1e-4


def _clip(x: jax.Array, low: float, high: float) -> jax.Array:
    """`jnp.clip`, which XLA would take for a select when it looks for a fast sum."""
    return -jnp.maximum(-jnp.maximum(x, low), -high)


def _standardise(p_underflows, delta, q_scale, q_log_scale, p_scale, p_log_scale, inverse):
    """z, t, the ratio of the scales and its logarithm, each to a few units in the last place."""
    log_ratio = q_log_scale - p_log_scale
    if not p_underflows:  # a Normal's scale does not
        return delta * inverse, (q_scale - p_scale) * inverse, q_scale * inverse, log_ratio
    # Where scales underflow, only their logarithms still tell them apart: the ratio is that of the scales, kept above a
    # floor, times exp(below), and above the floor below = 0.
    floor = float(jnp.finfo(p_scale.dtype).tiny) * 2.0**16
    below = log_ratio - (jnp.maximum(q_log_scale, math.log(floor)) - jnp.maximum(p_log_scale, math.log(floor)))
    below = jnp.minimum(below, 80.0)
    p_floored, q_floored = jnp.maximum(p_scale, floor), jnp.maximum(q_scale, floor)
    ratio = jnp.minimum(q_floored / p_floored, float(jnp.finfo(p_scale.dtype).max))  # times 0, inf would be nan
    t = (q_floored - p_floored) / p_floored + jnp.expm1(below) * ratio
    return delta * inverse, t, ratio * jnp.exp(below), log_ratio


@_kl_from_scales.defjvp
def _kl_from_scales_jvp(p_underflows, primals, tangents):
    """The scales are functions of their logarithms, so all of their gradient goes through the logarithms.

    Nothing is divided by s^2 or s^3, which underflow, and the gradient at q = p is exactly 0.
    """
    z, t, _, _ = _standardise(p_underflows, *primals)
    square = t * (t + 2.0)
    delta_dot, _, q_log_scale_dot, _, p_log_scale_dot, _ = tangents
    slope = z * primals[-1] * delta_dot + square * q_log_scale_dot - (z * z + square) * p_log_scale_dot
    return _kl_from_scales(p_underflows, *primals), slope
