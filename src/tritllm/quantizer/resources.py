"""How much memory and disk a run needs, and whether they are there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tritllm.errors import OutputError, TritError, first_line, is_no_thread
from tritllm.machine import available_memory
from tritllm.quantizer.configs import Config
from tritllm.quantizer.decisions import SourcePart
from tritllm.storage.model_folder import CHUNK_BYTES

CHUNKS_AHEAD = 3  # of the source, at least, read while a tensor is encoded
TOGETHER_BYTES = CHUNK_BYTES  # of the source at most, of small parts that are encoded at a time
_INTERPRETER_BYTES = 130 << 20  # Python, NumPy and the blocks the codec works on
_MORE_BYTES = 300 << 20  # that a run may take besides three times the largest matrix
_PER_WEIGHT_BYTES = 1.5  # group statistics of the codec


@dataclass(frozen=True)
class MemoryNeed:
    """Estimates in bytes.

    source_held: of the source at a time, the largest part of a tensor and what is read ahead.
    peak: the interpreter, the source held, the largest part with its results, headers.
    """

    source_held: int
    peak: int


@dataclass(frozen=True)
class CalibrationNeed:
    """Estimates in bytes of what a calibrator takes before the pass over the shards begins.

    memory: the process's peak meanwhile. disk: kept beside the outputs until the run ends.
    """

    memory: int
    disk: int


def memory_need(
    quantized: Sequence[SourcePart],
    configs: Sequence[Config],
    header_bytes: int,
    *,
    shared: bool = True,
) -> MemoryNeed:
    """What a run over these parts, whose matrices are packed, takes.

    header_bytes: of all output headers, which are parsed to about five times as much.
    shared: whether configs of the same depth have the same results.
    """
    largest = max((part.nbytes for part in quantized), default=0)
    worked = max((_part_bytes(part, configs, shared) for part in quantized), default=0)
    others = _INTERPRETER_BYTES + 2 * CHUNK_BYTES + worked
    # As much as a part, if all together stays within three times the largest and 300 MB.
    ahead = max(min(largest, 3 * largest + _MORE_BYTES - others), CHUNKS_AHEAD * CHUNK_BYTES)
    return MemoryNeed(largest + ahead, others + ahead + 5 * header_bytes)


def _part_bytes(part: SourcePart, configs: Sequence[Config], shared: bool) -> int:
    """A part, and all its results three times: those of one that is encoded, one that is written
    and one that waits.
    """
    need = float(part.nbytes)
    for matrix in part.matrices:
        depths = [config.depth_of(matrix.module) for config in configs]
        if shared:
            depths = list(set(depths))
        packed = sum(1.6 * depth + 0.3 for depth in depths) / 8
        need += matrix.size * (3 * packed + _PER_WEIGHT_BYTES)
    # Matrices that are not rows of the part as it is stored are copied, and put together again.
    return int(need) + sum(matrix.made_bytes for matrix in part.matrices)


def check_memory(need: int) -> None:
    """Raise TritError where fewer bytes of memory are available."""
    available = available_memory()
    if need > available:
        raise TritError(
            f"about {need / 1e9:.1f} GB of memory are needed and "
            f"{available / 1e9:.1f} GB are available; run fewer --configs at once"
        )


@contextmanager
def resource_errors() -> Iterator[None]:
    """Turn what Python says when memory or threads run out into one line."""
    try:
        yield
    except MemoryError:
        raise TritError("out of memory; run fewer --configs at once, or free some") from None
    except RuntimeError as error:
        if not is_no_thread(error):
            raise
        raise TritError(first_line(error)) from None


def check_disk(need: int, out: Path) -> None:
    """Raise OutputError where `out` has room for fewer bytes."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise OutputError(
            f"{out}: {need / 1e9:.2f} GB more are needed and {free / 1e9:.2f} GB are free; "
            "free some, or write less (--write packed, fewer --configs)"
        )
