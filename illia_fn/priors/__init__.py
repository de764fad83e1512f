"""p(w): priors.

.. include:: README.md
.. include:: continual_learning.md
"""

from illia_fn.priors.bijections import Constrained as Constrained
from illia_fn.priors.bijections import constrained as constrained
from illia_fn.priors.by_leaf import centred as centred
from illia_fn.priors.by_leaf import fan_in as fan_in
from illia_fn.priors.empirical import EmpiricalBayes as EmpiricalBayes
from illia_fn.priors.hierarchy import Hierarchy as Hierarchy
from illia_fn.priors.hierarchy import hierarchical_normal as hierarchical_normal
from illia_fn.priors.hierarchy import horseshoe as horseshoe
from illia_fn.priors.mixture import ScaleMixture as ScaleMixture
from illia_fn.priors.normal import Normal as Normal
