"""The edges towards other libraries, which are imported only when they are used.

.. include:: README.md
"""

from illia_fn.frameworks._equinox import from_equinox as from_equinox
from illia_fn.frameworks._haiku import from_haiku as from_haiku
from illia_fn.frameworks._linen import from_linen as from_linen
from illia_fn.frameworks._nnx import from_nnx as from_nnx
from illia_fn.frameworks.functional import FunctionalModel as FunctionalModel
from illia_fn.frameworks.functional import from_functions as from_functions
from illia_fn.frameworks.serialization import register_flax_serialization as register_flax_serialization
from illia_fn.frameworks.serialization import restore_nodes as restore_nodes
