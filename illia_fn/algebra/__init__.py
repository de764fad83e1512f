"""Products, powers and conversions of posteriors.

.. include:: README.md
"""

from illia_fn.algebra.matching import moment_match as moment_match
from illia_fn.algebra.products import product as product
from illia_fn.algebra.tempering import tempered as tempered
