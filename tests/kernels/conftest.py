import pytest

from lithe.kernels import library
from tests.kernels.variants import WHY


@pytest.fixture
def kernels(request):
    """A variant of the compiled kernels, the best one unless a test asks for others."""
    name = getattr(request, "param", None)
    if name is None and WHY:
        pytest.skip(WHY)
    return library.variant(name or library.variants()[0])
