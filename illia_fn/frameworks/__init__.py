"""The edges towards other libraries, which are imported only when they are used.

.. include:: README.md
"""

from illia_fn.frameworks.serialization import register_flax_serialization as register_flax_serialization
