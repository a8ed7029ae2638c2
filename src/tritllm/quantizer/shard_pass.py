"""One pass over the source's shards: read ahead, encode, write behind, and keep the journal.

A thread reads the source ahead, by a matrix or an expert at most, and another hashes what it has
read; the caller's thread encodes; one more hashes and writes the results of the tensors before; a
last one waits until they are on the disk and keeps the journal. None of them waits where one shard
ends and the next begins. The slowest sets the pace, and the plan says how much of the source is
held at a time. All threads of the codec share a large matrix; of small ones each takes its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.codec import TritTensor
from tritllm.quantizer.decisions import SourcePart
from tritllm.quantizer.encodings import Encodings
from tritllm.quantizer.journal import Journal, is_finished
from tritllm.quantizer.pipeline import InOrder, ReadAhead
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.shard_encoder import ShardEncoder
from tritllm.quantizer.shard_outputs import Record, ShardOutputs
from tritllm.quantizer.shard_reader import (
    Item,
    OpenShard,
    Piece,
    ShardBegins,
    ShardEnds,
    ShardReader,
)
from tritllm.quantizer.source import SourceShard

COMMIT_BYTES = 256 << 20  # source bytes between two durable records within a shard
_COMMITS = 2  # on their way to the disk at a time, so that little waits in the system's memory
_JOBS_BEHIND = 64  # at the end of a shard at most; so many shards' files may be open at once


@dataclass(frozen=True)
class Progress:
    """What a caller may show after each part of a tensor: bytes are of the source.

    sqnr_db: of the part's matrices, the lowest, by config name; empty where it is kept.
    """

    part: SourcePart
    done_bytes: int
    total_bytes: int
    sqnr_db: dict[str, float] = field(default_factory=dict)


@dataclass
class _Writing:
    """The shard whose results are written: what is not committed yet, and of the part under way
    its digest and record.
    """

    shard: str
    outputs: ShardOutputs
    pending: list[Record] = field(default_factory=list)
    uncommitted: int = 0
    own: Any = None
    record: Record = field(default_factory=dict)


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

    def process(self, shards: Sequence[SourceShard]) -> Generator[Progress, None, None]:
        """Write the output shards of source shards, yielding after each part of a tensor; those
        that are done are passed over. To close the generator is to stop: what is committed stays.
        """
        opened = list(self._opened(shards))
        with ExitStack() as files, InOrder() as hashing:
            reader = ShardReader(
                self.plan.source.files, hashing, f"delete {self.out} and start again"
            )
            with (
                ReadAhead(partial(reader.read, opened), self.plan.memory.source_held) as items,
                InOrder() as committing,
                InOrder() as behind,
                ShardEncoder(self.plan, self.out, self.threads, self.encodings) as encoder,
            ):
                write_encoded = partial(
                    self._write_encoded, items=items, reader=reader, behind=behind,
                    committing=committing,
                )  # fmt: skip
                for item in items:
                    if isinstance(item, ShardBegins):
                        writing = self._begin(item.begun, files)
                        continue
                    while encoder.under_way and not encoder.takes(item):
                        yield write_encoded(*encoder.next_result(), writing)
                    if isinstance(item, ShardEnds):
                        end: Record = {"shard": writing.shard, "shard_sha256": item.sha256.result()}
                        writing.pending.append(end)
                        behind.submit(self._finish, writing, committing, at_most=_JOBS_BEHIND)
                    elif encoder.takes(item):
                        encoder.submit(writing.shard, item)
                    elif item.part.matrices:
                        encoded = encoder.encode(writing.shard, item)
                        yield write_encoded(item, encoded, writing)
                    else:
                        self._take_kept(item, encoder, writing, items, behind)
                        if item.read_sha256 is not None:
                            yield self._note(item, {}, writing, behind, committing)

    def _opened(self, shards: Sequence[SourceShard]) -> Iterator[OpenShard]:
        """Those that are not finished; counts what is done."""
        for shard in shards:
            records, parts = self.journal.of_shard(shard.name), self.plan.parts(shard.name)
            done = len(records) - sum("shard_sha256" in record for record in records)
            self.done_bytes += sum(part.nbytes for part in parts[:done])
            if not is_finished(records):
                sha256 = records[-1]["read_sha256"] if records else None
                yield OpenShard(shard, parts[:done], parts[done:], sha256)

    def _begin(self, begun: OpenShard, files: ExitStack) -> _Writing:
        """Open the outputs of a shard, until `files` is left."""
        resume = bool(begun.done)
        outputs = ShardOutputs(self.plan, self.out, begun.shard, self.threads, resume)
        return _Writing(begun.shard.name, files.enter_context(outputs))

    def _write_encoded(
        self,
        piece: Piece,
        encoded: Sequence[Mapping[str, TritTensor]],
        writing: _Writing,
        *,
        items: ReadAhead[Item],
        reader: ShardReader,
        behind: InOrder,
        committing: InOrder,
    ) -> Progress:
        """Have the results of a piece written."""
        assert piece.read_sha256
        piece.read_sha256.result()  # hashed as well: the memory is free
        reader.reuse(piece.data)
        items.release(piece.data.nbytes)
        writing.record = self._new_record(piece, writing)
        behind.submit(writing.outputs.write_encoded, piece.part, encoded, writing.record, at_most=2)
        decibels = {
            config.name: min(each[config.name].sqnr_db or 0.0 for each in encoded)
            for config in self.plan.configs
        }
        return self._note(piece, decibels, writing, behind, committing)

    def _take_kept(
        self,
        piece: Piece,
        encoder: ShardEncoder,
        writing: _Writing,
        items: ReadAhead[Item],
        behind: InOrder,
    ) -> None:
        """Pass on a piece of a tensor that is kept, or stored with another."""
        tensor = piece.part.tensor
        if piece.position == 0:
            writing.own = hashlib.sha256()
            writing.record = self._new_record(piece, writing)
        if tensor.tied_to:
            items.release(piece.data.nbytes)
        else:
            replaced = {} if piece.read_sha256 is None else encoder.replaced(tensor)
            behind.submit(
                self._write_kept, writing.outputs, piece, writing.own, replaced, writing.record,
                items,
            )  # fmt: skip

    @staticmethod
    def _new_record(piece: Piece, writing: _Writing) -> Record:
        return {"shard": writing.shard, "tensor": piece.part.tensor.entry.name, "configs": {}}

    def _note(
        self,
        piece: Piece,
        decibels: dict[str, float],
        writing: _Writing,
        behind: InOrder,
        committing: InOrder,
    ) -> Progress:
        """A part is done: its record, and a commit where enough has come together."""
        assert piece.read_sha256
        writing.record["read_sha256"] = piece.read_sha256.result()
        writing.pending.append(writing.record)
        writing.uncommitted += piece.part.nbytes
        if writing.uncommitted >= COMMIT_BYTES:
            behind.submit(self._written, writing.outputs, writing.pending, committing)
            writing.pending, writing.uncommitted = [], 0
        self.done_bytes += piece.part.nbytes
        return Progress(piece.part, self.done_bytes, self.total_bytes, decibels)

    # What follows runs in the writing thread.

    def _write_kept(
        self,
        outputs: ShardOutputs,
        piece: Piece,
        own: Any,
        replaced: dict[str, np.ndarray],
        record: Record,
        items: ReadAhead[Item],
    ) -> None:
        data = piece.data.data
        own.update(data)
        tensor = piece.part.tensor
        outputs.write_kept(tensor, piece.position, data)
        if piece.read_sha256 is not None:
            hashes = {tensor.entry.name: own.hexdigest()}
            record["configs"] = {c.name: {"sha256": hashes} for c in self.plan.configs}
            for name, values in replaced.items():
                outputs.write_replaced(tensor, name, values, record)
        items.release(piece.data.nbytes)

    def _written(self, outputs: ShardOutputs, records: list[Record], committing: InOrder) -> None:
        """What the records speak of is written; let it be made durable while more is."""
        committing.submit(self._commit, outputs, records, at_most=_COMMITS)

    def _finish(self, writing: _Writing, committing: InOrder) -> None:
        """All of a shard is written."""
        self._written(writing.outputs, writing.pending, committing)
        committing.submit(writing.outputs.close)

    # What follows runs in the committing thread.

    def _commit(self, outputs: ShardOutputs, records: list[Record]) -> None:
        outputs.sync()
        self.journal.add(records)
