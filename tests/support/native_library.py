"""Marks for tests of the native library, which only `make test` requires to be there."""

from __future__ import annotations

import pytest

from tritllm import native

needs_library = pytest.mark.skipif(not native.available(), reason="no native library")
