import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def _strict():
    """No silent promotion of dtypes or ranks anywhere in the library."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
