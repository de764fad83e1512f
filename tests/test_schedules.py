import jax
import numpy as np
import optax
import pytest

from illia_fn import schedules


@pytest.mark.parametrize(
    ("schedule", "exact"),
    [
        (schedules.cosine_warmup(50), lambda t: (1 - np.cos(np.pi * np.minimum(t, 50) / 50)) / 2),
        (schedules.sigmoid_warmup(50, 8.0), lambda t: 1 / (1 + np.exp(-8 * (t / 50 - 0.5)))),
        (
            schedules.cyclical_warmup(60, num_cycles=3, ratio=0.25),
            lambda t: np.where(t < 60, np.minimum(t % 20 / 5, 1), 1),
        ),
        (schedules.cyclical_warmup(8, num_cycles=6), lambda t: np.where(t < 8, np.minimum(t * 6 % 8 / 8 / 0.5, 1), 1)),
        (schedules.minibatch_weight(5), lambda t: 5 * 2.0 ** (5 - (t % 5 + 1)) / (2**5 - 1)),
    ],
)
def test_against_the_equation(schedule, exact):
    steps = np.arange(100)
    values = [schedule(int(step)) for step in steps]
    np.testing.assert_allclose(values, exact(steps), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), exact(steps), rtol=1e-5, atol=1e-6)


def test_the_minibatch_weights_of_an_epoch_average_one():
    for num_batches in (1, 7, 64, 5000):
        weight = schedules.minibatch_weight(num_batches)
        values = np.asarray(jax.vmap(weight)(np.arange(num_batches)), np.float64)
        np.testing.assert_allclose(values.mean(), 1.0, rtol=1e-5)
        assert np.isfinite(values).all()


def test_optax_joins_them():
    joined = optax.join_schedules([schedules.cosine_warmup(10), optax.constant_schedule(0.5)], [10])
    assert float(joined(5)) == pytest.approx(0.5)
    assert float(joined(10)) == 0.5


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: schedules.cosine_warmup(0), "cosine_warmup: num_steps must be an int of at least 1, got 0"),
        (lambda: schedules.sigmoid_warmup(10, -1.0), "steepness must be a positive number"),
        (lambda: schedules.cyclical_warmup(10, 0), "num_cycles must be an int"),
        (lambda: schedules.cyclical_warmup(10, ratio=0.0), r"ratio must be a number in \(0, 1\]"),
        (lambda: schedules.minibatch_weight(2.5), "num_batches must be an int"),
    ],
)
def test_errors(build, match):
    with pytest.raises(ValueError, match=match):
        build()
