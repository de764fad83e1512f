import os
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import settings

collect_ignore = ["mesh_program.py"]  # a program of its own

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same cases in every run
settings.load_profile("fixed")

# What XLA compiled is kept from run to run, outside of the tree: most of the suite's time goes there. The environment
# tells it to the processes that tests start.
CACHE = {
    "jax_compilation_cache_dir": str(Path(tempfile.gettempdir(), "illia_fn-tests")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in CACHE.items():
    if name.upper() not in os.environ:
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


@pytest.fixture(autouse=True)
def _strict(request):
    """No silent promotion of dtypes or ranks; `promotes` marks tests of other libraries that do promote."""
    if request.node.get_closest_marker("promotes"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def _optimised(request):
    """`optimised(False)` on a module or a test, the nearer one counts: XLA spends little on what is run only once."""
    marker = request.node.get_closest_marker("optimised")
    jax.config.update("jax_disable_most_optimizations", marker is not None and not marker.args[0])
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
