"""p(w): priors.

.. include:: README.md
"""

from illia_fn.priors.normal import Normal as Normal
