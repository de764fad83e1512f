"""Generators f of f-divergences, as functions of log u.

D_f = E_q[f(u)] with u = p(w | y) / q(w) and a convex f with f(1) = 0. Generators are functions of log u, element-wise,
by the names of tfp.vi, and any other convex function with f(1) = 0 serves as well. The linear term c (u - 1) of a
generator adds nothing to the divergence; `centred` chooses it so that f has its minimum at u = 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from illia_fn._base.checks import check_callable
from illia_fn._base.numerics import one_program
from illia_fn.objectives._importance import static_number

Generator = Callable[[jax.Array], jax.Array]

_LOG_2 = 0.6931471805599453


def kl_reverse(log_u: jax.Array) -> jax.Array:
    """f(u) = -log u: KL(q || p), the divergence of the ELBO.

    >>> print(f"{kl_reverse(jnp.log(0.5)):.4f}")  # log 2
    0.6931
    """
    return -log_u


def kl_forward(log_u: jax.Array) -> jax.Array:
    """f(u) = u log u: KL(p || q).

    >>> print(f"{kl_forward(jnp.log(2.0)):.4f}")  # 2 log 2
    1.3863
    """
    return _u_log_u(log_u)


@one_program
def _u_log_u(log_u: jax.Array) -> jax.Array:
    """u log u, and its limit 0 at u = 0, a draw without density under the posterior."""
    is_zero = jnp.isneginf(log_u)
    log_u = jnp.where(is_zero, 0.0, log_u)  # exp(-inf) times -inf, and its derivative, would be NaN
    return jnp.where(is_zero, 0.0, jnp.exp(log_u) * log_u)


def jeffreys(log_u: jax.Array) -> jax.Array:
    """f(u) = (u - 1) log(u) / 2: the mean of KL(p || q) and KL(q || p).

    >>> print(f"{jeffreys(jnp.log(3.0)):.4f}")  # log 3
    1.0986
    """
    return 0.5 * jnp.expm1(log_u) * log_u


def jensen_shannon(log_u: jax.Array) -> jax.Array:
    """f(u) = u log u - (1 + u) log((1 + u) / 2): KL(p || m) + KL(q || m) with m = (p + q) / 2 (Lin 1991).

    >>> print(f"{jensen_shannon(jnp.log(3.0)):.4f}")  # 3 log 3 - 4 log 2
    0.5232
    """
    # u log u - u log(1 + u) cancels for large u; -u log(1 + 1 / u) does not, and tends to 0 with u.
    u = jnp.exp(log_u)
    is_zero = jnp.isneginf(log_u)
    inverse = jnp.where(is_zero, 0.0, u * jax.nn.softplus(-jnp.where(is_zero, 0.0, log_u)))
    return (1.0 + u) * _LOG_2 - inverse - jax.nn.softplus(log_u)


def arithmetic_geometric(log_u: jax.Array) -> jax.Array:
    """f(u) = (1 + u) log((1 + u) / (2 sqrt(u))): KL(m || p) + KL(m || q) with m = (p + q) / 2.

    >>> print(f"{arithmetic_geometric(jnp.log(4.0)):.4f}")  # 5 log(5 / 4)
    1.1157
    """
    half = 0.5 * log_u
    return (1.0 + jnp.exp(log_u)) * (jnp.logaddexp(half, -half) - _LOG_2)


def total_variation(log_u: jax.Array) -> jax.Array:
    """f(u) = |u - 1| / 2: the total variation distance.

    >>> print(f"{total_variation(jnp.log(3.0)):.4f}")  # |3 - 1| / 2
    1.0000
    """
    return 0.5 * jnp.abs(jnp.expm1(log_u))


def pearson(log_u: jax.Array) -> jax.Array:
    """f(u) = (u - 1)^2: Pearson's chi-square.

    >>> print(f"{pearson(jnp.log(3.0)):.4f}")  # (3 - 1)^2
    4.0000
    """
    return jnp.square(jnp.expm1(log_u))


def chi_square(log_u: jax.Array) -> jax.Array:
    """f(u) = u^2 - 1: `pearson` with another linear term; that of `cubo_loss`.

    >>> print(f"{chi_square(jnp.log(3.0)):.4f}")  # 3^2 - 1
    8.0000
    """
    return jnp.expm1(2.0 * log_u)


def squared_hellinger(log_u: jax.Array) -> jax.Array:
    """f(u) = (sqrt(u) - 1)^2: the squared Hellinger distance.

    >>> print(f"{squared_hellinger(jnp.log(9.0)):.4f}")  # (3 - 1)^2
    4.0000
    """
    return jnp.square(jnp.expm1(0.5 * log_u))


def triangular(log_u: jax.Array) -> jax.Array:
    """f(u) = (u - 1)^2 / (u + 1): the triangular discrimination.

    >>> print(f"{triangular(jnp.log(3.0)):.4f}")  # (3 - 1)^2 / (3 + 1)
    1.0000
    """
    return jnp.expm1(log_u) * jnp.tanh(0.5 * log_u)


def modified_gan(log_u: jax.Array) -> jax.Array:
    """f(u) = log((1 + u) / (2 u)): KL(q || p) - KL(q || m) with m = (p + q) / 2.

    >>> print(f"{modified_gan(jnp.log(3.0)):.4f}")  # log(4 / 6)
    -0.4055
    """
    return jax.nn.softplus(-log_u) - _LOG_2


def log1p_abs(log_u: jax.Array) -> jax.Array:
    """f(u) = max(u, 1 / u) - 1, so that log(1 + f(u)) = |log u|.

    >>> print(f"{log1p_abs(jnp.log(0.25)):.4f}")  # 4 - 1
    3.0000
    """
    return jnp.expm1(jnp.abs(log_u))


def amari_alpha(alpha: float) -> Generator:
    """f(u) = (u^alpha - 1) / (alpha (alpha - 1)): `kl_reverse` for alpha = 0, `kl_forward` for alpha = 1.

    Cichocki & Amari 2010, https://doi.org/10.3390/e12061532.

    >>> print(amari_alpha(2.0)(jnp.log(3.0)).round(4))  # (9 - 1) / 2
    4.0
    """
    alpha = static_number("amari_alpha", "alpha", alpha)
    if alpha in (0.0, 1.0):
        return kl_forward if alpha else kl_reverse
    return lambda log_u: jnp.expm1(alpha * log_u) / (alpha * (alpha - 1.0))


def t_power(t: float) -> Generator:
    """f(u) = s (u^t - 1), with s = -1 for 0 < t < 1 and 1 elsewhere.

    >>> print(t_power(0.5)(jnp.log(4.0)).round(4))
    -1.0
    """
    t = static_number("t_power", "t", t)
    sign = -1.0 if 0.0 < t < 1.0 else 1.0
    return lambda log_u: sign * jnp.expm1(t * log_u)


def dual(f: Generator) -> Generator:
    """f*(u) = u f(1 / u): the divergence with p and q exchanged.

    Where f grows faster than its argument, as `pearson` does, f* grows like a power of 1 / u, and leaves the range of
    floating point at the log weights of a network.

    >>> print(dual(kl_reverse)(jnp.log(2.0)) == kl_forward(jnp.log(2.0)))
    True
    """
    check_callable("dual", "f", f)
    # of those that are known, as u f(1 / u) is 0 times infinity for a small u
    return _DUALS.get(f) or (lambda log_u: jnp.exp(log_u) * f(-log_u))


_SELF_DUAL = (jeffreys, jensen_shannon, arithmetic_geometric, total_variation, squared_hellinger, triangular)
_DUALS: dict[Generator, Generator] = {f: f for f in _SELF_DUAL} | {kl_reverse: kl_forward, kl_forward: kl_reverse}


def symmetrized(f: Generator) -> Generator:
    """(f(u) + u f(1 / u)) / 2: the mean of a divergence and its dual.

    >>> print(jnp.allclose(symmetrized(kl_reverse)(1.0), jeffreys(1.0)))
    True
    """
    exchanged = dual(f)
    return lambda log_u: 0.5 * (f(log_u) + exchanged(log_u))


def centred(f: Generator) -> Generator:
    """f(u) - f'(1) (u - 1): the same divergence by a generator with its minimum, 0, at u = 1.

    So each term of the estimate is at least 0, and its reparameterised gradient vanishes where q is the posterior.

    >>> print(centred(kl_reverse)(jnp.log(2.0)).round(4))  # 1 - log(2)
    0.3069
    """

    def with_minimum_at_one(log_u: jax.Array) -> jax.Array:
        log_u = jnp.asarray(log_u)
        slope = jax.grad(lambda at: f(at).astype(log_u.dtype))(jnp.zeros((), log_u.dtype))
        return f(log_u) - slope * jnp.expm1(log_u)

    return with_minimum_at_one
