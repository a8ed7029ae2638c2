"""Arrays of one row a token: in memory up to a limit, beyond it in files that are mapped."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from tritllm.storage.output_errors import damaged, output_errors
from tritllm.storage.shard_writer import replacing, sync_folder


class Activations:
    """float32 [rows, width], read and written by ranges of rows.

    path: the file that holds it, or None where it is in memory.
    """

    def __init__(self, array: np.ndarray, owner: ActivationStore, path: Path | None) -> None:
        self._array = array
        self._owner = owner
        self.path = path

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, width)."""
        return self._array.shape[0], self._array.shape[1]

    def put(self, start: int, rows: torch.Tensor) -> None:
        """Write rows [n, width] from row `start`."""
        self._array[start : start + len(rows)] = rows.detach().cpu().numpy()

    def get(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """Rows start..stop-1, float32 [stop - start, width]; a copy."""
        return torch.from_numpy(np.array(self._array[start:stop])).to(device)

    def take(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """The rows of these indices, float32 [n, width]; a copy."""
        return torch.from_numpy(np.asarray(self._array[rows])).to(device)

    def save(self, path: Path) -> None:
        """Make it durable as a file of NumPy's at `path`."""
        if not isinstance(self._array, np.memmap):
            with replacing(path) as file:
                np.save(file, self._array)
            return
        assert self.path
        with output_errors(path):
            self._array.flush()
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self.path, path)
            sync_folder(path.parent)
        self.path = path

    def release(self) -> None:
        """Give the memory back, and remove the file, if there is one."""
        if isinstance(self._array, np.memmap):
            assert self.path
            self.path.unlink(missing_ok=True)
        else:
            self._owner.held -= self._array.nbytes
        self._array = np.empty((0, 0), np.float32)


class ActivationStore:
    """Makes `Activations`: in memory while all together stay below `limit` bytes, else in `folder`.

    held: bytes in memory.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.held = 0
        self._made = 0

    def new(self, rows: int, width: int) -> Activations:
        """Activations [rows, width] that are not yet written."""
        nbytes = rows * width * 4
        if self.held + nbytes <= self.limit:
            self.held += nbytes
            return Activations(np.empty((rows, width), np.float32), self, None)
        self._made += 1
        path = self.folder / f"activations-{os.getpid()}-{self._made}.npy"
        with output_errors(path):
            array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
        return Activations(array, self, path)

    def load(self, path: Path, rows: int) -> Activations:
        """A saved array; one that fits is read into memory.

        Raises OutputError where the file is not what was saved.
        """
        try:
            mapped = np.load(path, mmap_mode="r")
        except (OSError, ValueError):
            raise damaged(path) from None
        if mapped.ndim != 2 or len(mapped) != rows or mapped.dtype != np.float32:
            raise damaged(path)
        if self.held + mapped.nbytes > self.limit:
            return Activations(mapped, self, path)
        self.held += mapped.nbytes
        return Activations(np.array(mapped), self, None)
