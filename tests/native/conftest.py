import pytest

from tritllm import native

ISAS = native.isas()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the library there is nothing to compare."""
    if not native.available():
        for item in items:
            if "tests/native" in item.path.as_posix() and "library" not in item.path.name:
                item.add_marker(pytest.mark.skip(reason=str(native.load_error())))


@pytest.fixture(params=ISAS or ["none"])
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that can run here."""
    return request.param
