import os
import tempfile
from functools import partial
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from quicker import call_in_a_large_frame

collect_ignore = ["mesh_program.py", "collectives_program.py", "coupling/mesh_models.py"]  # programs of their own

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


# XLA spends little on what is run only once, and keeps it in one piece: to split it up for several threads costs a
# quarter more, and the workers have the cores. What `optimised` marks looks at what XLA makes of the code for users.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
OF_SOME_VERSIONS = {
    "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="compile quickly, as the whole suite does, what is named")


def pytest_xdist_auto_num_workers():
    """The cores that this process may run on, which are not all where others have some, and no more than eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 8)


def pytest_configure(config):
    """The whole suite is compiled quickly, by its worker processes; single files are as XLA makes them for users."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if (is_whole or config.getoption("quick")) and "XLA_FLAGS" not in os.environ:
        known = [f"--{name}={value}".lower() for name, value in OF_SOME_VERSIONS.items() if _is_known(name, value)]
        os.environ["XLA_FLAGS"] = " ".join([QUICK, *known])


def _is_known(name, value):
    """Whether this version of jaxlib knows a flag: it would end the process at one that it does not know."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def pytest_collection_modifyitems(items):
    """In a suite that is compiled quickly, test_optimised.py runs what is marked. The longest tests come first."""
    if os.environ.get("XLA_FLAGS", "").startswith(QUICK):
        items[:] = [item for item in items if item.get_closest_marker("optimised") is None]
    items.sort(key=lambda item: item.path.name not in ("test_optimised.py", "test_mesh.py"))
    for item in items:
        item.runtest = partial(call_in_a_large_frame, item.runtest)


@pytest.fixture(autouse=True)
def _strict(request):
    """No silent promotion of dtypes or ranks; `promotes` marks tests of other libraries that do promote."""
    if request.node.get_closest_marker("promotes"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
