"""Optax transformations for posterior trees.

.. include:: README.md
"""

from illia_fn.optim.curvature import laplace as laplace
from illia_fn.optim.natural import NaturalGradientState as NaturalGradientState
from illia_fn.optim.natural import natural_gradient as natural_gradient
from illia_fn.optim.scales import labels as labels
from illia_fn.optim.scales import slow_scales as slow_scales
