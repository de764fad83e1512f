"""Values and gradients by mpmath, and the errors of ours in last places of what the inputs determine."""

from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

H = mpmath.mpf("1e-20")
# Of float32 it matters what XLA contracts and reorders; in float64 it is the formula that is looked at.
DTYPES = pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.optimised), np.float64])


def derivatives(f, x):
    """The value, the slopes and the second derivatives, by differences whose steps a hundred digits can tell apart."""
    steps = [abs(value) * H or H for value in x]
    places = range(len(x))

    def at(*moved):
        return f(*(value + steps[i] * sum(sign for j, sign in moved if i == j) for i, value in enumerate(x)))

    value, above, below = at(), [at((i, 1)) for i in places], [at((i, -1)) for i in places]
    slopes = [(above[i] - below[i]) / (2 * steps[i]) for i in places]
    second = [[(above[i] - 2 * value + below[i]) / steps[i] ** 2 if i == j else None for j in places] for i in places]
    for i in places:
        for j in places[i + 1 :]:
            mixed = (at((i, 1), (j, 1)) - above[i] - above[j] + value) / (steps[i] * steps[j])
            second[i][j] = second[j][i] = mixed
    return value, slopes, second


@cache
def exact(f, x):
    """[(value, slack), (slope by the first input, slack), ...]: slack is |value| + sum_i |x_i d value / dx_i|."""
    x = [mpmath.mpf(float(value)) for value in x]
    value, slopes, second = derivatives(f, x)
    return [
        (number, abs(number) + sum(abs(a * b) for a, b in zip(x, gradient, strict=True)))
        for number, gradient in zip((value, *slopes), (slopes, *second), strict=True)
    ]


def errors(f, oracle, points, dtype, natural=None):
    """[(error, 0 of the value or 1, 2, ... of a slope, point, got, right), ...], the largest first, in units of slack.

    `natural` maps 0, 1, ... to a function of the inputs: the size of a term that no form of it avoids.
    """
    points = np.asarray(points, np.float32).astype(dtype)  # the same for each dtype, so that they are known
    with jax.enable_x64(dtype == np.float64):
        columns = [jnp.asarray(column) for column in points.T]
        both = jax.value_and_grad(f, tuple(range(len(columns))))
        alone, (value, slopes) = jax.jit(jax.vmap(lambda *x: (f(*x), both(*x))))(*columns)  # a rule has its own value
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    found = []
    with mpmath.workdps(100):
        for point, *numbers in zip(points, *map(np.asarray, (value, *slopes, alone)), strict=True):
            rows = exact(oracle, tuple(point.tolist()))
            for k, number in zip((*range(len(rows)), 0), numbers, strict=True):
                right, slack = rows[k]
                assert number.dtype == dtype
                room = slack + (natural[k](*map(float, point)) if k in (natural or {}) else 0)
                error = abs(mpmath.mpf(float(number)) - right) / (eps * room + 4 * tiny)
                found.append((float(error) if np.isfinite(number) else np.inf, k, point, number, float(right)))
    return sorted(found, key=lambda row: -row[0])


def assert_exact(f, oracle, points, dtype, *, places, natural=None):
    """Value and slopes are right to so many last places of what the inputs determine."""
    error, k, point, got, right = errors(f, oracle, points, dtype, natural)[0]
    name = f"slope {k}" if k else "value"
    assert error < places, f"{name} at {point.tolist()} is {got}, right is {right}: {error:.1f} last places"
