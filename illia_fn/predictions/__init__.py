"""After training: networks drawn from q, and scores of what they predict.

.. include:: README.md
"""

from illia_fn.predictions import metrics as metrics
from illia_fn.predictions.networks import predict as predict
