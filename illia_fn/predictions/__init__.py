"""After training: networks drawn from q, and scores of what they predict.

.. include:: README.md
"""

from illia_fn.predictions import metrics as metrics
from illia_fn.predictions.classes import ClassSummary as ClassSummary
from illia_fn.predictions.classes import class_probs as class_probs
from illia_fn.predictions.classes import class_summary as class_summary
from illia_fn.predictions.intervals import Interval as Interval
from illia_fn.predictions.intervals import central_interval as central_interval
from illia_fn.predictions.intervals import highest_density_interval as highest_density_interval
from illia_fn.predictions.intervals import quantiles as quantiles
from illia_fn.predictions.linearised import OutputLaw as OutputLaw
from illia_fn.predictions.linearised import linearise as linearise
from illia_fn.predictions.linearised import softmax_by_probit as softmax_by_probit
from illia_fn.predictions.linearised import softmax_of_gaussian as softmax_of_gaussian
from illia_fn.predictions.log_probs import joint_predictive_log_prob as joint_predictive_log_prob
from illia_fn.predictions.log_probs import pointwise_log_prob as pointwise_log_prob
from illia_fn.predictions.log_probs import predictive_log_prob as predictive_log_prob
from illia_fn.predictions.networks import predict as predict
from illia_fn.predictions.propagated import propagate_moments as propagate_moments
from illia_fn.predictions.values import PredictiveMoments as PredictiveMoments
from illia_fn.predictions.values import predictive_draws as predictive_draws
from illia_fn.predictions.values import predictive_moments as predictive_moments
