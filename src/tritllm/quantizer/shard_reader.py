"""Reading source shards ahead, one after the other, and hashing what is read in another thread."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritllm.errors import SourceError
from tritllm.format.safetensors_header import ITEM_BYTES
from tritllm.quantizer.decisions import SourcePart
from tritllm.quantizer.pipeline import InOrder
from tritllm.quantizer.source import SourceShard
from tritllm.storage.direct_read import memory_for
from tritllm.storage.model_files import ModelFiles
from tritllm.storage.model_folder import CHUNK_BYTES


@dataclass(frozen=True)
class OpenShard:
    """A shard that is not finished yet.

    done, left: what is committed of its tensors, and what is not, in the file's order.
    done_sha256: of the file up to the first that is left, as the journal has it; None where
        nothing is done.
    """

    shard: SourceShard
    done: Sequence[SourcePart]
    left: Sequence[SourcePart]
    done_sha256: str | None


@dataclass(frozen=True)
class ShardBegins:
    """What follows is of this shard."""

    begun: OpenShard


@dataclass(frozen=True)
class Piece:
    """Bytes of a part of a tensor from `position`, all of one that is quantized; with the last of
    a part, the SHA-256 of the shard up to there.
    """

    part: SourcePart
    position: int
    data: np.ndarray  # uint8
    read_sha256: Future[str] | None


@dataclass(frozen=True)
class ShardEnds:
    """All of the shard has been read; its SHA-256."""

    sha256: Future[str]


Item = ShardBegins | Piece | ShardEnds


class ShardReader:
    """Reads shards for a consumer in another thread.

    hashing: where what is read is hashed.
    changed: what to do about a source that changed since the run began, for the error.
    """

    def __init__(self, files: ModelFiles, hashing: InOrder, changed: str) -> None:
        self._files, self._hashing, self._changed = files, hashing, changed
        self._spare: np.ndarray | None = None

    def read(self, shards: Sequence[OpenShard], reserve: Callable[[int], None]) -> Iterator[Item]:
        """What is left of every shard, in order; `reserve` as `ReadAhead` has it.

        Raises SourceError where what is done differs from what was read then.
        """
        for opened in shards:
            digest = self._digest_of_done(opened)
            yield ShardBegins(opened)
            for part in opened.left:
                yield from self._pieces(opened.shard, part, digest, reserve)
            yield ShardEnds(self._hashing.submit(digest.hexdigest))

    def reuse(self, data: np.ndarray) -> None:
        """Take back the memory of a piece: new memory has to be cleared first."""
        self._spare = data.base

    def _pieces(
        self,
        shard: SourceShard,
        part: SourcePart,
        digest: Any,
        reserve: Callable[[int], None],
    ) -> Iterator[Piece]:
        data = self._memory(part) if part.matrices else None
        if data is None:
            self._spare = None  # what is read now needs the room
        for offset in range(0, part.nbytes, CHUNK_BYTES) or [0]:
            length = min(CHUNK_BYTES, part.nbytes - offset)
            reserve(length)
            begin = part.begin + offset
            chunk = memory_for(begin, length) if data is None else data[offset:][:length]
            self._files.read_into(shard.name, begin, chunk.data)
            self._hashing.submit(digest.update, chunk)
            ends = offset + length == part.nbytes
            read_sha256 = self._hashing.submit(digest.hexdigest) if ends else None
            if data is None:
                yield Piece(part, offset, chunk, read_sha256)
            elif ends:
                yield Piece(part, 0, data, read_sha256)

    def _memory(self, part: SourcePart) -> np.ndarray:
        """For a whole part; that of the one encoded last if it is enough."""
        if part.begin % ITEM_BYTES[part.tensor.entry.dtype]:
            return np.empty(part.nbytes, np.uint8)
        spare, self._spare = self._spare, None
        return memory_for(part.begin, part.nbytes, spare)

    def _digest_of_done(self, opened: OpenShard) -> Any:
        """SHA-256 of the shard up to the first part not yet done, read again and compared."""
        shard = opened.shard
        digest = hashlib.sha256(shard.header.raw)
        for part in opened.done:
            for offset in range(0, part.nbytes, CHUNK_BYTES):
                begin, length = part.begin + offset, min(CHUNK_BYTES, part.nbytes - offset)
                chunk = memory_for(begin, length)
                self._files.read_into(shard.name, begin, chunk.data)
                digest.update(chunk)
        if opened.done_sha256 is not None and digest.hexdigest() != opened.done_sha256:
            raise SourceError(f"{shard.name}: changed since this run began; {self._changed}")
        return digest
