"""Proof that a packed checkpoint is what its writer wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tritllm.checkpoint.hashes import (
    ReadCounter,
    check_is_there,
    check_side_file,
    hashed_chunks,
    hashed_tensor,
)
from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.format.names import MANIFEST

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
    zero, codebooks are finite and ascending. Each byte of a tensor or side file is read once.

    on_progress: called with bytes done and in all.

    Raises FormatError with the first fault: file, tensor and what is wrong.
    """
    checkpoint = PackedCheckpoint(folder)
    tensors = checkpoint.manifest["tensors"]
    side_files = checkpoint.manifest["side_files"]
    for name in side_files:
        check_is_there(checkpoint, name)
    advance = ReadCounter(checkpoint, side_files, on_progress)
    for name, record in tensors.items():
        if "depth" in record:
            hashed_tensor(checkpoint, name, advance=advance)
        elif "kept" in record:
            for _ in hashed_chunks(checkpoint, name, advance):
                pass
    for name in side_files:
        check_side_file(checkpoint, name, advance)
    known = {*side_files, *checkpoint.headers, MANIFEST, *UNPROVEN}
    foreign = [name for name in checkpoint.sizes if name not in known]
    return Verified(
        len(tensors), len(checkpoint.quantized), len(side_files), advance.total, foreign
    )
