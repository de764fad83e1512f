"""E_{w ~ q}: the Monte Carlo mean in the memory of one sample, and how its gradient is estimated.

.. include:: README.md
"""

from illia_fn.engine.chunks import ChunkSize as ChunkSize
from illia_fn.engine.chunks import auto_chunk_size as auto_chunk_size
from illia_fn.engine.convolutions import fast_convolutions as fast_convolutions
from illia_fn.engine.monte_carlo import expectation as expectation
from illia_fn.engine.state import average_state as average_state
