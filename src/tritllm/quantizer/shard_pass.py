"""One pass over the source's shards: read ahead, encode, write behind, and keep the journal.

A thread reads the source ahead, by a tensor at most, and another hashes what it has read; the
caller's thread encodes; one more hashes and writes the results of the tensors before. The slowest
sets the pace, and the plan says how much of the source is held at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.codec import TritTensor, encode_depths
from tritllm.errors import OutputError, SourceError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.format.safetensors_header import ITEM_BYTES, TensorEntry
from tritllm.quantizer.decisions import PlannedTensor
from tritllm.quantizer.encodings import Encodings
from tritllm.quantizer.journal import Journal, is_finished
from tritllm.quantizer.pipeline import InOrder, ReadAhead
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.shard_outputs import Record, ShardOutputs
from tritllm.quantizer.source import SourceShard
from tritllm.storage.direct_read import memory_for
from tritllm.storage.model_folder import CHUNK_BYTES

COMMIT_BYTES = 256 << 20  # source bytes between two durable records within a shard


@dataclass(frozen=True)
class Progress:
    """What a caller may show after each tensor: bytes are of the source.

    sqnr_db: of a quantized tensor, by config name.
    """

    tensor: PlannedTensor
    done_bytes: int
    total_bytes: int
    sqnr_db: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Piece:
    """Bytes of a tensor from `position`, all of one that is quantized; with the last of a tensor,
    the SHA-256 of the shard up to there.
    """

    tensor: PlannedTensor
    position: int
    data: np.ndarray  # uint8
    read_sha256: Future[str] | None


class ShardPass:
    """Turns source shards into output shards, from where the journal says.

    encodings: asked first for the digits of a matrix, and for new values of what is kept.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        journal: Journal,
        threads: int,
        encodings: Encodings | None = None,
    ) -> None:
        self.plan = plan
        self.out = out
        self.journal = journal
        self.threads = threads
        self.encodings = encodings
        self.total_bytes = sum(tensor.entry.nbytes for tensor in plan.all_tensors)
        self.done_bytes = 0
        self._spare: np.ndarray | None = None

    def process(self, shard: SourceShard) -> Generator[Progress, None, None]:
        """Write the output shards of a source shard, yielding after each tensor; a shard that is
        done is passed over. To close the generator is to stop: what is committed stays.
        """
        records = self.journal.of_shard(shard.name)
        tensors = self.plan.tensors[shard.name]
        done = len(records) - sum("shard_sha256" in record for record in records)
        self.done_bytes += sum(tensor.entry.nbytes for tensor in tensors[:done])
        if is_finished(records):
            return
        digest = self._digest_of_done(shard, tensors[:done], records)
        with (
            ShardOutputs(self.plan, self.out, shard, self.threads, resume=done > 0) as outputs,
            InOrder() as hashing,
            ReadAhead(
                partial(self._read, shard, tensors[done:], digest, hashing),
                self.plan.memory.source_held,
            ) as pieces,
            InOrder() as behind,
        ):
            yield from self._encode_and_write(shard, pieces, outputs, behind)
            end: list[Record] = [{"shard": shard.name, "shard_sha256": digest.hexdigest()}]
            behind.submit(self._commit, outputs, end)

    def _encode_and_write(
        self, shard: SourceShard, pieces: ReadAhead[_Piece], outputs: ShardOutputs, behind: InOrder
    ) -> Iterator[Progress]:
        pending: list[Record] = []
        uncommitted = 0
        own = hashlib.sha256()
        for piece in pieces:
            tensor, entry = piece.tensor, piece.tensor.entry
            if piece.position == 0:
                own = hashlib.sha256()
                record: Record = {"shard": shard.name, "tensor": entry.name, "configs": {}}
            decibels: dict[str, float] = {}
            if tensor.decision.quantize:
                encoded = self._encode(shard, tensor, piece.data)
                assert piece.read_sha256
                piece.read_sha256.result()  # hashed as well: the memory is free
                self._spare = piece.data.base
                pieces.release(piece.data.nbytes)
                decibels = {name: t.sqnr_db or 0.0 for name, t in encoded.items()}
                behind.submit(outputs.write_encoded, tensor, encoded, record, at_most=2)
                del encoded
            elif not tensor.tied_to:
                replaced = {} if piece.read_sha256 is None else self._replaced(tensor)
                behind.submit(self._write_kept, outputs, piece, own, replaced, record, pieces)
            else:
                pieces.release(piece.data.nbytes)
            if piece.read_sha256 is None:
                continue
            record["read_sha256"] = piece.read_sha256.result()
            pending.append(record)
            uncommitted += entry.nbytes
            if uncommitted >= COMMIT_BYTES:
                behind.submit(self._commit, outputs, pending)
                pending, uncommitted = [], 0
            self.done_bytes += entry.nbytes
            yield Progress(tensor, self.done_bytes, self.total_bytes, decibels)
        behind.submit(self._commit, outputs, pending)

    def _read(
        self,
        shard: SourceShard,
        tensors: list[PlannedTensor],
        digest: Any,
        hashing: InOrder,
        reserve: Callable[[int], None],
    ) -> Iterator[_Piece]:
        """The tensors' bytes in order; has them hashed into `digest`."""
        for tensor in tensors:
            entry = tensor.entry
            whole = tensor.decision.quantize
            data = self._memory(entry) if whole else None
            if data is None:
                self._spare = None  # what is read now needs the room
            for offset in range(0, entry.nbytes, CHUNK_BYTES) or [0]:
                length = min(CHUNK_BYTES, entry.nbytes - offset)
                reserve(length)
                begin = entry.begin + offset
                chunk = memory_for(begin, length) if data is None else data[offset:][:length]
                self.plan.source.files.read_into(shard.name, begin, chunk.data)
                hashing.submit(digest.update, chunk)
                ends = offset + length == entry.nbytes
                read_sha256 = hashing.submit(digest.hexdigest) if ends else None
                if data is None:
                    yield _Piece(tensor, offset, chunk, read_sha256)
                elif ends:
                    yield _Piece(tensor, 0, data, read_sha256)

    def _memory(self, entry: TensorEntry) -> np.ndarray:
        """For a whole tensor; that of the one encoded last if it is enough: new memory has to be
        cleared first.
        """
        if entry.begin % ITEM_BYTES[entry.dtype]:
            return np.empty(entry.nbytes, np.uint8)
        spare, self._spare = self._spare, None
        return memory_for(entry.begin, entry.nbytes, spare)

    def _digest_of_done(
        self, shard: SourceShard, done: list[PlannedTensor], records: list[Record]
    ) -> Any:
        """SHA-256 of the shard up to the first tensor not yet done, read again and compared."""
        digest = hashlib.sha256(shard.header.raw)
        with InOrder() as hashing:
            for _ in self._read(shard, done, digest, hashing, lambda nbytes: hashing.wait()):
                pass
        if records and digest.hexdigest() != records[-1]["read_sha256"]:
            raise SourceError(
                f"{shard.name}: changed since this run began; delete {self.out} and start again"
            )
        return digest

    def _encode(
        self, shard: SourceShard, tensor: PlannedTensor, data: np.ndarray
    ) -> dict[str, TritTensor]:
        """The digits by config name: the calibrator's, or those of the matrix alone."""
        found = self._calibrated(tensor)
        depths = {config.name: config.depth_of(tensor.module) for config in self.plan.configs}
        alone = sorted({depth for name, depth in depths.items() if name not in found})
        if not alone:
            return found
        encoded = self._encode_alone(shard, tensor, data, alone)
        return {name: found[name] if name in found else encoded[d] for name, d in depths.items()}

    def _calibrated(self, tensor: PlannedTensor) -> dict[str, TritTensor]:
        found = {}
        for config in self.plan.configs if self.encodings else ():
            encoded = self.encodings.encoded(tensor, config) if self.encodings else None
            if encoded is None:
                continue
            depth = config.depth_of(tensor.module)
            if (encoded.shape, encoded.depth) != (tensor.matrix_shape, depth):
                raise self._damaged(tensor, f"{encoded.shape} at depth {encoded.depth}")
            found[config.name] = encoded
        return found

    def _replaced(self, tensor: PlannedTensor) -> dict[str, np.ndarray]:
        """New values of a kept tensor, by config name."""
        found = {}
        entry = tensor.entry
        for config in self.plan.configs if self.encodings else ():
            values = self.encodings.replaced(tensor, config) if self.encodings else None
            if values is None:
                continue
            dtype = NUMPY_OF_SAFETENSORS.get(entry.dtype)
            if (values.shape, values.dtype) != (entry.shape, dtype):
                raise self._damaged(tensor, f"{values.dtype} {values.shape}")
            found[config.name] = np.ascontiguousarray(values)
        return found

    def _damaged(self, tensor: PlannedTensor, what: str) -> OutputError:
        return OutputError(
            f"{self.out}: the result kept for {tensor.entry.name} is {what}, which is not its "
            f"source's; delete {self.out} and start again"
        )

    def _encode_alone(
        self, shard: SourceShard, tensor: PlannedTensor, data: np.ndarray, depths: list[int]
    ) -> dict[int, TritTensor]:
        entry = tensor.entry
        weight = data.view(NUMPY_OF_SAFETENSORS[entry.dtype]).reshape(entry.shape)
        if tensor.decision.transposed:
            weight = np.ascontiguousarray(weight.T)
        try:
            return encode_depths(weight, depths, self.plan.codec, self.threads)
        except ValueError as error:
            raise SourceError(
                f"{shard.name}: tensor {entry.name}: {error}; fix the source, "
                f"or keep the tensor with --exclude '{entry.name}'"
            ) from None

    # What follows runs in the writing thread.

    def _write_kept(
        self,
        outputs: ShardOutputs,
        piece: _Piece,
        own: Any,
        replaced: dict[str, np.ndarray],
        record: Record,
        pieces: ReadAhead[_Piece],
    ) -> None:
        data = piece.data.data
        own.update(data)
        outputs.write_kept(piece.tensor, piece.position, data)
        if piece.read_sha256 is not None:
            hashes = {piece.tensor.entry.name: own.hexdigest()}
            record["configs"] = {c.name: {"sha256": hashes} for c in self.plan.configs}
            for name, values in replaced.items():
                outputs.write_replaced(piece.tensor, name, values, record)
        pieces.release(piece.data.nbytes)

    def _commit(self, outputs: ShardOutputs, records: list[Record]) -> None:
        outputs.sync()
        self.journal.add(records)
