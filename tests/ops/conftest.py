"""These tests need torch and transformers."""

from support.torch_fixtures import (  # noqa: F401
    native,
    speaking,
    threads_kept,
    tiny,
    torch_only,
)
