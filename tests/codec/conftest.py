import pytest

from tritllm import native
from tritllm.codec import engine

ISAS = native.isas()


def pytest_collection_modifyitems(items):
    """Where the native library is not built, the reference's warning is no failure."""
    if engine.is_native():
        return
    mark = pytest.mark.filterwarnings("ignore:tritllm runs its NumPy reference:RuntimeWarning")
    for item in items:
        item.add_marker(mark)
        if "tests/codec" in item.path.as_posix() and item.path.name.startswith("test_native"):
            item.add_marker(pytest.mark.skip(reason=str(native.load_error())))


@pytest.fixture(params=ISAS or ["none"])
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that can run here."""
    return request.param
