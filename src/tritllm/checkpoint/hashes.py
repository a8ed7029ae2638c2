"""The SHA-256 of what a packed folder holds, compared with its manifest while it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.codec import TritTensor
from tritllm.errors import FormatError
from tritllm.format.layout import part_names
from tritllm.storage.model_folder import CHUNK_BYTES

Progress = Callable[[int], None]  # called with the bytes of every piece that was read


class ReadCounter:
    """Counts the bytes of all tensors and of these side files as they are read.

    total: bytes in all. on_progress: called with bytes done and in all.
    """

    def __init__(
        self,
        checkpoint: PackedCheckpoint,
        side_files: Iterable[str],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.total = sum(checkpoint.entry(name).nbytes for name in checkpoint.manifest["tensors"])
        self.total += sum(checkpoint.sizes[name] for name in side_files)
        self._done = 0
        self._on_progress = on_progress

    def __call__(self, nbytes: int) -> None:
        """Add a piece of `nbytes`."""
        self._done += nbytes
        if self._on_progress:
            self._on_progress(self._done, self.total)


def check_hashes(
    files: Sequence[str | Path], *, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Compare every hash that a manifest states with the files before a model runs from them.

    files: the shards of one packed folder, or the folder itself. Compared are all tensors and
    headers, the manifest's own hash, and those side files that are there: a Hub cache holds only
    the files that were asked for, while `verify` wants all of them.
    on_progress: called with bytes done and in all.

    Raises FormatError with the first fault, and for a folder without a manifest, which proves
    nothing.
    """
    folders = {path if path.is_dir() else path.parent for path in map(Path, files)}
    if len(folders) != 1:
        raise FormatError(f"{len(folders)} folders hold the model's files, expected one")
    checkpoint = PackedCheckpoint(folders.pop())
    side_files = [n for n in checkpoint.manifest["side_files"] if n in checkpoint.sizes]
    advance = ReadCounter(checkpoint, side_files, on_progress)
    for name in checkpoint.manifest["tensors"]:
        for _ in hashed_chunks(checkpoint, name, advance):
            pass
    for name in side_files:
        check_side_file(checkpoint, name, advance)


def hashed_chunks(
    checkpoint: PackedCheckpoint, name: str, advance: Progress | None = None
) -> Iterator[tuple[int, bytes]]:
    """A stored tensor in pieces of (offset, bytes); each byte is read once.

    Raises FormatError after the last piece where the SHA-256 is not the manifest's.
    """
    yield from _hashed(
        partial(checkpoint.read_range, name),
        checkpoint.entry(name).nbytes,
        checkpoint.manifest["tensors"][name]["sha256"],
        checkpoint.where(name),
        advance,
    )


def hashed_tensor(
    checkpoint: PackedCheckpoint,
    name: str,
    planes: int | None = None,
    advance: Progress | None = None,
) -> TritTensor:
    """A quantized matrix at its top `planes` planes, all of whose bytes were compared.

    All planes are read, because a hash covers all of them; each byte is read once.

    Raises FormatError where a SHA-256 differs, a byte is not five trits, padding is not zero or the
    codebook is broken.
    """
    depth = checkpoint.entry(name).shape[0]
    digits, scale, codebook = (_whole(checkpoint, part, advance) for part in part_names(name))
    tensor = checkpoint.tensor_of_bytes(name, digits, scale, codebook, depth)
    try:
        tensor.check_bytes()
    except ValueError as error:
        raise FormatError(f"{checkpoint.where(name)}: {error}") from None
    if planes is None or planes == depth:
        return tensor
    return checkpoint.tensor_of_bytes(name, digits, scale, codebook, planes)


def check_is_there(checkpoint: PackedCheckpoint, name: str) -> None:
    """Raise FormatError where a side file is missing."""
    if name not in checkpoint.sizes:
        raise FormatError(f"{checkpoint.folder / name}: missing, or not a regular file")


def check_side_file(
    checkpoint: PackedCheckpoint, name: str, advance: Progress | None = None
) -> None:
    """Raise FormatError where a side file is missing or its SHA-256 is not the manifest's."""
    check_is_there(checkpoint, name)
    expected = checkpoint.manifest["side_files"][name]
    where = str(checkpoint.folder / name)
    read = partial(checkpoint.files.read, name)
    for _ in _hashed(read, checkpoint.sizes[name], expected, where, advance):
        pass


def check_hash(found: str, expected: str, where: str) -> None:
    """Raise FormatError where two SHA-256 differ."""
    if found != expected:
        raise FormatError(f"{where}: SHA-256 differs from the manifest; the file was changed")


def _whole(checkpoint: PackedCheckpoint, name: str, advance: Progress | None) -> bytearray:
    data = bytearray(checkpoint.entry(name).nbytes)
    for offset, chunk in hashed_chunks(checkpoint, name, advance):
        data[offset : offset + len(chunk)] = chunk
    return data


def _hashed(
    read: Callable[[int, int], bytes],
    size: int,
    expected: str,
    where: str,
    advance: Progress | None,
) -> Iterator[tuple[int, bytes]]:
    digest = hashlib.sha256()
    for offset in range(0, size, CHUNK_BYTES):
        chunk = read(offset, min(CHUNK_BYTES, size - offset))
        digest.update(chunk)
        if advance:
            advance(len(chunk))
        yield offset, chunk
    check_hash(digest.hexdigest(), expected, where)
