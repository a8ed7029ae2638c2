import pytest

from tritllm import products as kernels

ISAS = kernels.isas()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the library only the reference can be tested."""
    if not kernels.available():
        for item in items:
            if item.path.parent.name in ("products", "step") and "reference" not in item.path.name:
                item.add_marker(pytest.mark.skip(reason=str(kernels.load_error())))


@pytest.fixture(params=ISAS or ["none"], scope="session")
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that can run here."""
    return request.param
