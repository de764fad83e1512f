"""After training: networks drawn from q, and scores of what they predict.

.. include:: README.md
"""

from illia_fn.predictions import metrics as metrics
from illia_fn.predictions.linearised import OutputLaw as OutputLaw
from illia_fn.predictions.linearised import linearise as linearise
from illia_fn.predictions.linearised import softmax_by_probit as softmax_by_probit
from illia_fn.predictions.linearised import softmax_of_gaussian as softmax_of_gaussian
from illia_fn.predictions.networks import predict as predict
