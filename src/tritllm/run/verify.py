"""Proof that a packed folder is whole, and on request that it holds a source's weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tritllm.checkpoint import verify as checkpoint
from tritllm.errors import TritError
from tritllm.quantizer.verify_source import Compared, verify_source


@dataclass(frozen=True)
class Proof(checkpoint.Verified):
    """What was found right; `compared` with the source, where one was given."""

    compared: Compared | None = None


def verify(
    folder: str | Path,
    source: str | None = None,
    revision: str | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Proof:
    """Recompute everything a packed folder claims; with `source`, compare its weights, too.

    Args:
        folder: a packed folder.
        source: the model that it was made of, a local folder or a Hub id: every weight is compared
            (`verify_source`).
        revision: branch, tag or commit of a Hub id.
        on_progress: called with work done and in all: bytes, and then tensors of the source.

    Raises FormatError with the first fault: file, tensor and what is wrong; SourceError for a
    source that cannot be read.
    """
    if revision and not source:
        raise TritError("--revision is of --source, which is not given")
    found = checkpoint.verify(folder, on_progress=on_progress)
    compared = None
    if source:
        compared = verify_source(folder, source, revision=revision, on_progress=on_progress)
    return Proof(**vars(found), compared=compared)
