"""Before, during and after training: is the setting right, and what has q learned?

.. include:: README.md
"""

from illia_fn.diagnostics.setup import Finding as Finding
from illia_fn.diagnostics.setup import SetupReport as SetupReport
from illia_fn.diagnostics.setup import check_setup as check_setup
from illia_fn.diagnostics.table import LeafSummary as LeafSummary
from illia_fn.diagnostics.table import Summary as Summary
from illia_fn.diagnostics.table import summary as summary
