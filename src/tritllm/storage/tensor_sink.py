"""Where tensors go: a safetensors shard today, any other container that can take bytes."""

from __future__ import annotations

from typing import Protocol


class TensorSink(Protocol):
    """Takes the bytes of tensors whose names and sizes it knows from the start.

    Writes of several tensors, and of parts of one tensor, may come in any order. `where` names the
    container in error messages.
    """

    @property
    def where(self) -> str:
        """Name of the file, without folders."""

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Write bytes of tensor `name`, from byte `offset` within it.

        Raises ValueError for bytes beyond the tensor's end, OutputError where they cannot be
        written.
        """
