"""Proof that a packed checkpoint is what its writer wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.errors import FormatError
from tritllm.format.manifest import is_unchanged
from tritllm.format.names import MANIFEST
from tritllm.storage.model_folder import CHUNK_BYTES

UNPROVEN = ("README.md", ".gitattributes")  # the card may be edited; the Hub adds the other


@dataclass(frozen=True)
class Verified:
    """What was recomputed and found right; `foreign` files are no part of the checkpoint."""

    tensors: int
    quantized: int
    side_files: int
    nbytes: int
    foreign: list[str]


def verify(
    folder: str | Path, *, on_progress: Callable[[int, int], None] | None = None
) -> Verified:
    """Recompute everything a packed folder claims.

    Headers, shapes, index and manifest agree (`PackedCheckpoint`); every tensor, header and file
    but the card has its SHA-256, the manifest its own; every byte is five trits, paddings are
    zero, codebooks are finite and ascending.

    on_progress: called with bytes done and in all.

    Raises FormatError with the first fault: file, tensor and what is wrong.
    """
    checkpoint = PackedCheckpoint(folder)
    path = checkpoint.folder / MANIFEST
    if not is_unchanged(path.read_bytes(), checkpoint.manifest["sha256"]):
        raise FormatError(f"{path}: SHA-256 differs from the one it states; the file was changed")
    for name, expected in checkpoint.manifest["headers"].items():
        if hashlib.sha256(checkpoint.headers[name].raw).hexdigest() != expected:
            raise FormatError(
                f"{checkpoint.folder / name}: SHA-256 of the header differs from the manifest; "
                "the file was changed"
            )
    tensors = checkpoint.manifest["tensors"]
    side_files = checkpoint.manifest["side_files"]
    sizes = checkpoint.files.sizes()
    for name in side_files:
        if name not in sizes:
            raise FormatError(f"{checkpoint.folder / name}: missing")
    total = sum(checkpoint.entry(name).nbytes for name in tensors)
    total += sum(sizes[name] for name in side_files)
    done = 0

    def check(where: str, size: int, read: Callable[[int, int], bytes], expected: str) -> None:
        nonlocal done
        digest = hashlib.sha256()
        for offset in range(0, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - offset)
            digest.update(read(offset, length))
            done += length
            if on_progress:
                on_progress(done, total)
        if digest.hexdigest() != expected:
            raise FormatError(f"{where}: SHA-256 differs from the manifest; the file was changed")

    for name, record in tensors.items():
        check(
            f"{checkpoint.folder / record['file']}: tensor {name}",
            checkpoint.entry(name).nbytes,
            partial(checkpoint.read_range, name),
            record["sha256"],
        )
        if "depth" in record:
            _check_trits(checkpoint, name)
    for name, expected in side_files.items():
        check(
            str(checkpoint.folder / name),
            sizes[name],
            partial(checkpoint.files.read, name),
            expected,
        )
    known = {*side_files, *checkpoint.headers, MANIFEST, *UNPROVEN}
    foreign = [name for name in sizes if name not in known]
    return Verified(len(tensors), len(checkpoint.quantized), len(side_files), total, foreign)


def _check_trits(checkpoint: PackedCheckpoint, name: str) -> None:
    tensor = checkpoint.tensor(name)
    try:
        tensor.check_bytes()
    except ValueError as error:
        file = checkpoint.manifest["tensors"][name]["file"]
        raise FormatError(f"{checkpoint.folder / file}: tensor {name}: {error}") from None
