"""Optax transformations for posterior trees.

.. include:: README.md
"""

from illia_fn.optim.scales import labels as labels
from illia_fn.optim.scales import slow_scales as slow_scales
