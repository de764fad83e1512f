"""Before, during and after training: is the setting right, and what has q learned?

.. include:: README.md
"""

from illia_fn.diagnostics.diagnosis import Diagnosis as Diagnosis
from illia_fn.diagnostics.diagnosis import diagnose as diagnose
from illia_fn.diagnostics.pruning import PruningCurve as PruningCurve
from illia_fn.diagnostics.pruning import prune as prune
from illia_fn.diagnostics.pruning import pruning_curve as pruning_curve
from illia_fn.diagnostics.setup import Finding as Finding
from illia_fn.diagnostics.setup import SetupReport as SetupReport
from illia_fn.diagnostics.setup import check_setup as check_setup
from illia_fn.diagnostics.simulation import SBC as SBC
from illia_fn.diagnostics.simulation import simulation_based_calibration as simulation_based_calibration
from illia_fn.diagnostics.table import LeafSummary as LeafSummary
from illia_fn.diagnostics.table import Summary as Summary
from illia_fn.diagnostics.table import summary as summary
