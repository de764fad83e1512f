import numpy as np
import pytest

from illia_fn.predictions.metrics import risk_coverage

RNG = np.random.default_rng(0)
B = 24
CONFIDENCE = RNG.uniform(size=B).astype(np.float32)
TIED = RNG.integers(-3, 4, size=B).astype(np.float32)
LOSSES = RNG.gamma(1.0, size=B).astype(np.float32)
WEIGHTS = RNG.uniform(size=B).astype(np.float32)


def by_hand(confidence, losses, weights):
    """A point for each threshold, and the step function's area: the definition, over all pairs."""
    answered = weights[None] * (confidence[None] >= confidence[:, None])
    coverage = answered.sum(axis=1) / weights.sum()
    risk = answered @ losses / answered.sum(axis=1)
    steps = sorted(set(zip(coverage.round(9), risk.round(9), strict=True)))
    area = sum((c - before) * r for (c, r), before in zip(steps, [0, *(c for c, _ in steps)], strict=False))
    order = np.argsort(-confidence, kind="stable")
    return coverage[order], risk[order], area


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("confidence", [CONFIDENCE, TIED, np.zeros(B, np.float32)], ids=["untied", "tied", "equal"])
def test_the_curve_and_its_area(confidence, weights):
    curve = risk_coverage(confidence, LOSSES, weights=weights)
    doubles = [np.float64(x) for x in (confidence, LOSSES, np.ones(B) if weights is None else weights)]
    coverage, risk, area = by_hand(*doubles)
    np.testing.assert_allclose(curve.coverage, coverage, rtol=1e-5)
    np.testing.assert_allclose(curve.risk, risk, rtol=1e-5)
    np.testing.assert_allclose(curve.area, area, rtol=1e-5)
    np.testing.assert_allclose(curve.risk[-1], np.average(LOSSES, weights=weights), rtol=1e-5)


def test_without_an_order_the_area_is_the_mean_loss_and_zeros_are_tied():
    zeros = np.where(np.arange(B) % 2, np.float32(0.0), np.float32(-0.0))
    curve = risk_coverage(zeros, LOSSES)
    np.testing.assert_allclose(curve.coverage, np.ones(B), rtol=1e-6)
    np.testing.assert_allclose(curve.area, LOSSES.mean(), rtol=1e-6)


def test_a_perfect_order_is_the_best_and_its_reverse_the_worst():
    """With 6 of 24 wrong: sum_k max(0, k - 18) / k / 24 against sum_k min(1, 6 / k) / 24."""
    wrong, k = np.arange(B) % 4 == 0, np.arange(1, B + 1)
    best = risk_coverage(RNG.uniform(size=B).astype(np.float32) - wrong, wrong)
    np.testing.assert_allclose(best.area, np.mean(np.maximum(0, k - 18) / k), rtol=1e-6)
    worst = risk_coverage(RNG.uniform(size=B).astype(np.float32) + wrong, wrong)
    np.testing.assert_allclose(worst.area, np.mean(np.minimum(1, 6 / k)), rtol=1e-6)


def test_infinite_confidence_and_losses():
    confidence = np.where(np.arange(B) < 12, -np.inf, np.inf).astype(np.float32)
    losses = np.where(np.arange(B) == 0, np.inf, 1.0).astype(np.float32)
    curve = risk_coverage(confidence, losses)
    np.testing.assert_allclose(curve.coverage, np.repeat([0.5, 1.0], 12), rtol=1e-6)
    np.testing.assert_allclose(curve.risk, np.repeat([1.0, np.inf], 12), rtol=1e-6)


def test_examples_of_weight_zero_repeat_the_last_point():
    mask = np.arange(B) % 3 > 0
    curve, dropped = risk_coverage(CONFIDENCE, LOSSES, weights=mask), risk_coverage(CONFIDENCE[mask], LOSSES[mask])
    for field in ("coverage", "risk"):
        points = np.asarray(getattr(curve, field))
        np.testing.assert_allclose(points[: mask.sum()], getattr(dropped, field), rtol=1e-6)
        np.testing.assert_allclose(points[mask.sum() :], points[-1])


def test_a_million_examples():
    n = 1_000_000
    confidence = RNG.integers(1000, size=n).astype(np.float32)
    losses = RNG.uniform(size=n).astype(np.float32)
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.diff(confidence[order], append=-1))
    risk = (np.cumsum(losses[order].astype(float)) / np.arange(1, n + 1))[last]
    area = np.sum(np.diff(last, prepend=-1) * risk) / n
    np.testing.assert_allclose(risk_coverage(confidence, losses).area, area, rtol=1e-6)
