"""Scores of predictions: classes, values, and the choice of what to answer.

.. include:: README.md
"""

from illia_fn.predictions.metrics.calibration import Reliability as Reliability
from illia_fn.predictions.metrics.calibration import calibration_error as calibration_error
from illia_fn.predictions.metrics.calibration import reliability as reliability
from illia_fn.predictions.metrics.classes import accuracy as accuracy
from illia_fn.predictions.metrics.classes import brier_score as brier_score
from illia_fn.predictions.metrics.classes import negative_log_likelihood as negative_log_likelihood
from illia_fn.predictions.metrics.classes import predictive_entropy as predictive_entropy
from illia_fn.predictions.metrics.intervals import coverage as coverage
from illia_fn.predictions.metrics.intervals import interval_coverage as interval_coverage
from illia_fn.predictions.metrics.intervals import interval_score as interval_score
from illia_fn.predictions.metrics.intervals import interval_width as interval_width
from illia_fn.predictions.metrics.selective import RiskCoverage as RiskCoverage
from illia_fn.predictions.metrics.selective import risk_coverage as risk_coverage
from illia_fn.predictions.metrics.values import crps as crps
from illia_fn.predictions.metrics.values import crps_gaussian_mixture as crps_gaussian_mixture
