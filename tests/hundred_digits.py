"""Values and gradients by mpmath, and the errors of ours in last places of what the inputs determine."""

from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

H = mpmath.mpf("1e-30")


def gradient(f, x):
    """By central differences, whose steps a hundred digits can tell apart."""
    slopes = []
    for i, value in enumerate(x):
        step = abs(value) * H or H
        above, below = (f(*x[:i], value + sign * step, *x[i + 1 :]) for sign in (1, -1))
        slopes.append((above - below) / (2 * step))
    return slopes


@cache
def exact(f, x):
    """[(value, slack), (slope by the first input, slack), ...]: slack is |value| + sum_i |x_i d value / dx_i|."""
    x = [mpmath.mpf(float(value)) for value in x]
    value, slopes = f(*x), gradient(f, x)
    rows = [(value, abs(value) + sum(abs(a * b) for a, b in zip(x, slopes, strict=True)))]
    step = mpmath.mpf("1e-8")
    moved = [gradient(f, [value * (1 + step * (i == j)) for j, value in enumerate(x)]) for i in range(len(x))]
    for k, slope in enumerate(slopes):
        rows.append((slope, abs(slope) + sum(abs(other[k] - slope) / step for other in moved)))
    return rows


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
