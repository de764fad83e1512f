"""p(w): priors.

.. include:: README.md
"""

from illia_fn.priors.by_leaf import centred as centred
from illia_fn.priors.by_leaf import fan_in as fan_in
from illia_fn.priors.normal import Normal as Normal
