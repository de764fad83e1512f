import jax
import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same cases in every run
settings.load_profile("fixed")


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
