"""What tests of the native steps of models share."""

import pytest


@pytest.fixture
def exact(native):
    native("exact")
