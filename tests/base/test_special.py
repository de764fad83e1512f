"""The special functions and their slopes, and the slopes of those that are formulas, against a hundred digits."""

import jax
import jax.numpy as jnp
import pytest
from hundred_digits import DTYPES, assert_exact
from mpmath import besseli, log, log1p, loggamma, pi, psi

from illia_fn._base.special import digamma_error, log_gamma_half_step, log_i0e, minus_log, stirling_error

# to both sides of each border, and where a series is asked for most
POSITIVE = (1e-8, 0.03, 0.5, 1.0, 1.7, 2.99, 3.01, 4.0, 5.5, 7.99, 8.01, 9.0, 11.99, 12.01, 20.0, 1e3, 1e6)
KAPPA = (1e-8, 0.1, 1.0, 4.0, 9.0, 12.0, 14.0, 15.99, 16.01, 18.0, 22.0, 25.99, 26.01, 30.0, 50.001, 60.0, 1e3, 1e8)
ABOVE_MINUS_ONE = (-0.999, -0.7, -0.41, -0.39, -0.2, -1e-3, -1e-9, 1e-9, 1e-4, 0.1, 0.3, 0.5, 0.66, 0.67, 2.0, 1e6)


def bessel_ratio(k):
    return besseli(1, k) / besseli(0, k)


FUNCTIONS = {  # function, oracle, points, size of the terms of its value and of its slope
    "x - log(1 + x)": (lambda x: minus_log(x, jnp.log(1.0 + x)), lambda x: x - log1p(x), ABOVE_MINUS_ONE, None),
    "Stirling's error": (
        lambda x: stirling_error(x, jnp.log(x)),
        lambda x: loggamma(x + 1) - (x + 0.5) * log(x) + x - log(2 * pi) / 2,
        POSITIVE,
        {0: lambda x: 3 if x < 8 else 0.2, 1: lambda x: 1 + 1 / x},
    ),
    "digamma's error": (
        digamma_error,
        lambda x: log(x) - 1 / (2 * x) - psi(0, x),
        POSITIVE,
        {0: lambda x: (1 if x < 8 else 0.3) / x, 1: lambda x: 1 / x},
    ),
    "half a step of log Gamma": (
        log_gamma_half_step,
        lambda x: loggamma(x + 0.5) - loggamma(x) - log(x) / 2,
        POSITIVE,
        {0: lambda x: 1},
    ),
    "its derivative": (
        jax.grad(log_gamma_half_step),
        lambda x: psi(0, x + 0.5) - psi(0, x) - 1 / (2 * x),
        POSITIVE,
        None,
    ),
    "log I0": (log_i0e, lambda k: log(besseli(0, k)) - k, KAPPA, {0: lambda k: 1}),
    "its derivative (I0)": (jax.grad(log_i0e), lambda k: bessel_ratio(k) - 1, KAPPA, None),
}


@DTYPES
@pytest.mark.parametrize(("f", "oracle", "points", "natural"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_against_a_hundred_digits(f, oracle, points, natural, dtype):
    assert_exact(f, oracle, [[x] for x in points], dtype, places=4, natural=natural)
