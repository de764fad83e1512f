"""Bad input is refused by name, of every score; that of its weights in test_metrics.py."""

from functools import partial

import numpy as np
import pytest

from illia_fn import metrics

RNG = np.random.default_rng(0)
B, C, S = 24, 3, 5
LABELS = np.arange(B) % C
PROBS = RNG.dirichlet(np.ones(C), size=B).astype(np.float32)
DRAWS, TARGETS = RNG.normal(size=(S, B)).astype(np.float32), RNG.normal(size=B).astype(np.float32)
SCALES = RNG.gamma(2.0, size=(S, B)).astype(np.float32)
LOW, HIGH = np.sort(RNG.normal(size=(2, B)).astype(np.float32), axis=0)
CONFIDENCE, LOSSES = RNG.uniform(size=(2, B)).astype(np.float32)
CLASSES, ENSEMBLE = (PROBS, LABELS), (DRAWS, TARGETS)
NAN_TARGETS = np.where(np.arange(B) == 3, np.nan, TARGETS)
REFUSED = {
    "logits": (metrics.accuracy, (np.log(PROBS), LABELS), ValueError, "accuracy: probs must be probabilities.*got -.*Apply jax.nn.softmax"),
    "negative probabilities that sum to one": (metrics.accuracy, (2 * PROBS - np.float32(1 / C), LABELS), ValueError, r"accuracy: probs must be probabilities.*got -0\.[0-9]+\. "),
    "positive logits": (metrics.brier_score, (3 * PROBS, LABELS), ValueError, "brier_score: probs must .* a row of sum 3.*Apply jax.nn.softmax"),
    "one probability of two": (metrics.accuracy, (PROBS[:, :1], 0 * LABELS), ValueError, "accuracy: probs .* of two classes pass both"),
    "entropy of logits": (metrics.predictive_entropy, (np.log(PROBS),), ValueError, "predictive_entropy: probs must be probabilities"),
    "a NaN probability": (metrics.predictive_entropy, (np.where(PROBS[2, 1] == PROBS, np.nan, PROBS),), ValueError, "predictive_entropy: .* one that is NaN"),
    "entropy of a number": (metrics.predictive_entropy, (1.0,), ValueError, r"predictive_entropy: probs must have shape \(..., C\)"),
    "calibration of logits": (metrics.calibration_error, (3 * PROBS, LABELS), ValueError, "calibration_error: probs must be probabilities"),
    "reliability of logits": (metrics.reliability, (-PROBS, LABELS), ValueError, "reliability: probs must be probabilities"),
    "several networks": (metrics.reliability, (PROBS[None], LABELS), ValueError, r"reliability: probs must have shape \(B, C\).*Average the probabilities"),
    "labels (B, 1)": (metrics.accuracy, (PROBS, LABELS[:, None]), ValueError, r"accuracy: .* labels \(B,\), got \(24, 3\) and \(24, 1\)"),
    "too few labels": (metrics.accuracy, (PROBS, LABELS[:1]), ValueError, r"accuracy: .*got \(24, 3\) and \(1,\)"),
    "no examples": (metrics.accuracy, (PROBS[:0], LABELS[:0]), ValueError, r"accuracy: .*got \(0, 3\)"),
    "a class too many": (metrics.negative_log_likelihood, (PROBS, LABELS + 1), ValueError, "negative_log_likelihood: labels must be classes from 0 to 2, got 1 to 3"),
    "a negative class": (metrics.brier_score, (PROBS, LABELS - 1), ValueError, "brier_score: labels must be classes from 0 to 2, got -1 to 1"),
    "a class that int32 wraps": (metrics.accuracy, (PROBS, LABELS + 2**32), ValueError, "accuracy: labels must be classes from 0 to 2, got 4294967296"),
    "a class too many in a byte": (metrics.accuracy, (PROBS, (LABELS + 253).astype(np.uint8)), ValueError, "accuracy: labels must be classes"),
    "labels in floats": (metrics.accuracy, (PROBS, LABELS.astype(np.float32)), TypeError, "accuracy: labels must be integers"),
    "labels of True and False": (metrics.accuracy, (PROBS, LABELS > 0), TypeError, "accuracy: labels must be integers"),
    "labels in words": (metrics.accuracy, (PROBS, ["cat"] * B), TypeError, "accuracy: labels must be an array of real numbers"),
    "complex probabilities": (metrics.accuracy, (PROBS * 1j, LABELS), TypeError, "accuracy: probs must be an array of real numbers"),
    "text": (metrics.crps, ("draws", TARGETS), TypeError, "crps: draws must be an array of real numbers, got 'draws'"),
    "no bins": (partial(metrics.reliability, num_bins=0), CLASSES, ValueError, "reliability: num_bins must be an int of at least 1, got 0"),
    "half a bin": (partial(metrics.calibration_error, num_bins=1.5), CLASSES, ValueError, "calibration_error: num_bins must be an int"),
    "unknown bins": (partial(metrics.reliability, binning="quantile"), CLASSES, ValueError, "reliability: binning must be one of equal_width, equal_mass, got 'quantile'"),
    "unknown norm": (partial(metrics.calibration_error, norm=3), CLASSES, ValueError, "calibration_error: norm must be 1 or 2, got 3"),
    "norm by name": (partial(metrics.calibration_error, norm="l2"), CLASSES, ValueError, "calibration_error: norm must be 1 or 2, got 'l2'"),
    "a boolean norm": (partial(metrics.calibration_error, norm=True), CLASSES, ValueError, "calibration_error: norm must be 1 or 2, got True"),
    "a debiased norm 1": (partial(metrics.calibration_error, debiased=True), CLASSES, ValueError, "calibration_error: the debiased .* pass norm=2"),
    "debiased by number": (partial(metrics.calibration_error, norm=2, debiased=1), CLASSES, TypeError, "calibration_error: debiased must be True or False, got 1"),
    "draws that would broadcast": (metrics.crps, (DRAWS[:, :1], TARGETS), ValueError, r"crps: draws must have shape \(S, B\) and targets \(B,\), got \(5, 1\) and \(24,\)"),
    "examples first": (metrics.crps, (DRAWS.T, TARGETS), ValueError, "crps: draws must have shape .* The samples come first"),
    "no network axis": (metrics.coverage, (TARGETS, TARGETS, 0.9), ValueError, r"coverage: draws must have shape .*got \(24,\) and \(24,\)"),
    "no draws": (metrics.crps, (DRAWS[:0], TARGETS), ValueError, r"crps: draws must have shape .*got \(0, 24\)"),
    "a missing target": (metrics.coverage, (DRAWS, NAN_TARGETS, 0.9), ValueError, "coverage: targets must be finite, got nan and 0 more.*weight of 0"),
    "an infinite draw": (metrics.crps, (DRAWS + np.float32(np.inf), TARGETS), ValueError, "crps: draws must be finite, got"),
    "a fair score of one draw": (partial(metrics.crps, fair=True), (DRAWS[:1], TARGETS), ValueError, "crps: a fair score needs two draws"),
    "fair by number": (partial(metrics.crps, fair=1), ENSEMBLE, TypeError, "crps: fair must be True or False, got 1"),
    "a scale of zero": (metrics.crps_gaussian_mixture, (DRAWS, 0 * SCALES, TARGETS), ValueError, "crps_gaussian_mixture: scales must be positive and finite, got 0.0 and 119 more"),
    "a negative scale": (metrics.crps_gaussian_mixture, (DRAWS, -1.0, TARGETS), ValueError, "crps_gaussian_mixture: scales must be positive"),
    "scales that would broadcast": (metrics.crps_gaussian_mixture, (DRAWS, SCALES[:, :1], TARGETS), ValueError, r"crps_gaussian_mixture: scales must have the shape of locs, \(5, 24\), or \(\), got \(5, 1\)"),
    "locs without networks": (metrics.crps_gaussian_mixture, (TARGETS, 1.0, TARGETS), ValueError, r"crps_gaussian_mixture: locs must have shape \(S, B\)"),
    "coverage in percent": (metrics.coverage, (DRAWS, TARGETS, 90), ValueError, r"coverage: level must be a number in \(0, 1\), such as 0.9, got 90"),
    "a level of one": (metrics.interval_score, (LOW, HIGH, TARGETS, 1.0), ValueError, r"interval_score: level must be a number in \(0, 1\), such as 0.9, got 1.0"),
    "ends swapped": (metrics.interval_coverage, (HIGH, LOW, TARGETS), ValueError, "interval_coverage: low must not be above high, got"),
    "a width of swapped ends": (metrics.interval_width, (HIGH, LOW), ValueError, "interval_width: low must not be above high"),
    "one interval for all": (metrics.interval_score, (LOW[:1], HIGH[:1], TARGETS, 0.9), ValueError, r"interval_score: low and high and targets must have one shape \(B,\), got \(1,\), \(1,\), \(24,\)"),
    "ends of one column": (metrics.interval_width, (LOW[:, None], HIGH[:, None]), ValueError, r"interval_width: .* got \(24, 1\), \(24, 1\). Drop an axis of size 1, as in x\[..., 0\]"),
    "numbers for ends": (metrics.interval_width, (0.0, 1.0), ValueError, r"interval_width: low and high must have one shape \(B,\), got \(\), \(\)"),
    "no intervals": (metrics.interval_width, (LOW[:0], LOW[:0]), ValueError, r"interval_width: .* got \(0,\)"),
    "a NaN end": (metrics.interval_width, (LOW, NAN_TARGETS), ValueError, "interval_width: high must be no NaN, got nan"),
    "confidence (B, C)": (metrics.risk_coverage, (PROBS, LOSSES), ValueError, r"risk_coverage: confidence and losses must have shape \(B,\), got \(24, 3\)"),
    "losses that would broadcast": (metrics.risk_coverage, (CONFIDENCE, LOSSES[:1]), ValueError, r"risk_coverage: .*\(1,\)"),
    "no losses": (metrics.risk_coverage, (LOSSES[:0], LOSSES[:0]), ValueError, r"risk_coverage: .*\(0,\)"),
    "a NaN loss": (metrics.risk_coverage, (CONFIDENCE, NAN_TARGETS), ValueError, "risk_coverage: losses must be no NaN"),
    "a NaN confidence": (metrics.risk_coverage, (NAN_TARGETS, LOSSES), ValueError, "risk_coverage: confidence must be no NaN"),
}  # fmt: skip


@pytest.mark.parametrize(("score", "args", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(score, args, error, message):
    with pytest.raises(error, match=message):
        score(*args)
