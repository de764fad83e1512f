"""Pictures of predictions and posteriors: axes in, axes out.

.. include:: README.md
"""

try:
    import matplotlib.axes
    import matplotlib.figure  # noqa: F401
except ModuleNotFoundError as error:
    message = f"illia_fn.plots needs {error.name}: pip install 'illia_fn[plots]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from illia_fn.plots.classes import entropy_histogram as entropy_histogram
from illia_fn.plots.classes import entropy_split as entropy_split
from illia_fn.plots.classes import reliability as reliability
from illia_fn.plots.classes import risk_coverage as risk_coverage
from illia_fn.plots.posteriors import kl_by_leaf as kl_by_leaf
from illia_fn.plots.posteriors import posterior_by_layer as posterior_by_layer
from illia_fn.plots.posteriors import pruning as pruning
from illia_fn.plots.training import sbc_ranks as sbc_ranks
from illia_fn.plots.training import training_curves as training_curves
from illia_fn.plots.values import coverage as coverage
from illia_fn.plots.values import predictive_intervals as predictive_intervals
