"""What makes JAX trace and lower more quickly where hundreds of programs are, each once. Imported for its effects."""

import gc
from functools import cache

import jax
import jaxlib._jax  # private, as mlir is: without what is changed here, all is as it was, but slower
from jax._src.interpreters import mlir

# Tracing makes many objects that live on, and few that only a search finds: to look through them all as often as Python
# does takes a fifth of the time. A test of what is let go of searches by itself.
gc.disable()

# Of which call an operation is, which nobody reads in a program.
jax.config.update("jax_traceback_in_locations_limit", 0)
if hasattr(jaxlib._jax, "set_tracebacks_enabled"):
    jaxlib._jax.set_tracebacks_enabled(False)

# A new MLIR context loads every dialect, 7 ms for each program however small. Programs may share one.
if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = cache(mlir.make_ir_context)


def call_in_a_large_frame(f):
    """Python keeps its frames in chunks of 16 KB, and maps a new one whenever a loop calls over the end of one.

    JAX's tracing does, for a third of its time at some depths. A frame this large has a chunk with room for all others.
    """
    return f()


call_in_a_large_frame.__code__ = call_in_a_large_frame.__code__.replace(co_stacksize=100_000)
