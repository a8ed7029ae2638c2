"""The streaming quantizer: source shards in, packed and dequantized folders out.

One source tensor and its results are in memory at a time, whatever the model's size. Outputs grow
in `*.partial` folders and take their names only when they are whole.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.checkpoint.configs import parse_config
from tritllm.checkpoint.dequantized_tensor import write_cast, write_decoded
from tritllm.checkpoint.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.checkpoint.finish import finish_config, partial_folder
from tritllm.checkpoint.journal import FOLDER, Journal, differences, remove_empty
from tritllm.checkpoint.model_files import open_files
from tritllm.checkpoint.model_folder import CHUNK_BYTES, model_dtype
from tritllm.checkpoint.plan import Plan, PlannedTensor, check_resources, make_plan
from tritllm.checkpoint.report import REPORT, Report, read_report
from tritllm.checkpoint.shard_writer import ShardWriter, output_errors
from tritllm.checkpoint.source import SourceShard, open_source
from tritllm.codec import CODECS, TritTensor, encode_depths
from tritllm.errors import OutputError, SourceError, TritError

COMMIT_BYTES = 256 << 20  # source bytes between two durable records within a shard
Key = tuple[str, str]  # config name, kind


@dataclass(frozen=True)
class Progress:
    """What a caller may show after each tensor: bytes are of the source."""

    tensor: PlannedTensor
    done_bytes: int
    total_bytes: int
    sqnr_db: dict[int, float] = field(default_factory=dict)


def quantize(
    model: str,
    configs: Sequence[str],
    out: str | Path,
    *,
    revision: str | None = None,
    stream: bool = False,
    codec: str = "v3",
    write: Sequence[str] = ("packed", "model"),
    dtype: str = "float16",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    depth: Sequence[str] = (),
    threads: int | None = None,
    dry_run: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Report]:
    """Quantize a model at several depths in one pass; resumes an interrupted run of itself.

    Args:
        model: local folder or Hub id.
        configs: names such as "uniform-d2"; each gives OUT/<config>/packed and OUT/<config>/model.
        out: the output folder.
        revision: branch, tag or commit of a Hub id.
        stream: read a Hub id in place by byte ranges, store nothing of it.
        codec: "v3" (least error) or "v2" (the published rule).
        write: "packed", "model" (dequantized, for stock transformers), or both.
        dtype: of the dequantized model, "float16" or "bfloat16".
        include: globs on tensor names to quantize although their names are not recognised.
        exclude: globs on tensor names to keep.
        depth: overrides GLOB=DEPTH on module names.
        threads: for the codec; default is the number of processors.
        dry_run: stop after the plan.
        on_plan: called with the plan before anything is written.
        on_progress: called after each tensor.

    Returns one report a config (none for a dry run).

    Raises TritError (SourceError, FormatError, OutputError): one line, nothing half-written under
    a final name, everything finished kept.
    """
    started = time.monotonic()
    if codec not in CODECS:
        raise TritError(f"unknown codec {codec!r}; known: {', '.join(CODECS)}")
    out = Path(out)
    parsed = [parse_config(name, depth) for name in dict.fromkeys(configs)]
    source = open_source(open_files(model, revision, stream))
    kinds = [kind for kind in ("packed", "model") if kind in write] + [
        kind for kind in write if kind not in ("packed", "model")
    ]
    plan = make_plan(source, parsed, kinds, codec, dtype, include, exclude)
    if on_plan:
        on_plan(plan)
    with output_errors(out):
        finished = _finished_reports(plan, out)
    if finished or dry_run:
        if not finished:
            check_resources(plan, out, 0)
        return finished or []
    with output_errors(out):
        _check_folder(plan, out)
    check_resources(plan, out, sum(_bytes_below(out / config.name) for config in parsed))
    with Journal(out, plan.fingerprint) as journal:
        run = _Run(plan, out, journal, threads or os.cpu_count() or 1, on_progress)
        for shard in source.shards:
            run.shard(shard)
        reports = [
            finish_config(plan, config, out, journal.records, time.monotonic() - started)
            for config in parsed
        ]
        journal.remove()
    return reports


def _finished_reports(plan: Plan, out: Path) -> list[Report]:
    """The reports of a run of the same settings that is complete; empty if there is none."""
    if (out / FOLDER / "journal.jsonl").exists():
        return []
    reports = []
    for config in plan.configs:
        path = out / config.name / REPORT
        if not path.is_file():
            return []
        report = read_report(path)
        if differing := differences(report["fingerprint"], plan.fingerprint):
            raise OutputError(
                f"{out / config.name}: already holds a finished result of other settings "
                f"({differing}); choose another folder, or delete it"
            )
        for kind in plan.kinds:
            if not (out / config.name / kind).is_dir():
                raise OutputError(
                    f"{out / config.name / kind}: is gone, though the run was finished; "
                    f"delete {out / config.name} and start again"
                )
        reports.append(report)
    remove_empty(out / FOLDER)  # of a run that was killed in its very last step
    return reports


def _check_folder(plan: Plan, out: Path) -> None:
    """Raise OutputError if `out` holds anything but this tool's own folders, or lies in the source.

    What is written into the source would be taken for its side files when the run is resumed.
    """
    if os.path.isdir(plan.source.files.name) and Path(plan.source.files.name) in (
        out.resolve(),
        *out.resolve().parents,
    ):
        raise OutputError(f"{out}: lies in the source's own folder; choose another")
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is not a folder")
    if (out / FOLDER / "journal.jsonl").exists():
        return  # the journal tells of what run it is
    wanted = {config.name for config in plan.configs}
    for path in sorted(out.iterdir()):
        if path.name == FOLDER or ((path / REPORT).is_file() and path.name not in wanted):
            continue
        raise OutputError(
            f"{out}: holds {path.name}, which is not of this run; choose another folder"
        )


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _Run:
    """The state of one pass over the source."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        journal: Journal,
        threads: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.plan = plan
        self.out = out
        self.journal = journal
        self.threads = threads
        self.on_progress = on_progress
        self.total_bytes = sum(tensor.entry.nbytes for tensor in plan.all_tensors)
        self.done_bytes = 0

    def shard(self, shard: SourceShard) -> None:
        """Carry one source shard to its output shards, from where the journal says."""
        records = [record for record in self.journal.records if record["shard"] == shard.name]
        tensors = self.plan.tensors[shard.name]
        done = len(records) - sum("shard_sha256" in record for record in records)
        self.done_bytes += sum(tensor.entry.nbytes for tensor in tensors[:done])
        if records and "shard_sha256" in records[-1]:
            return
        digest = self._digest_of_done(shard, tensors[:done], records)
        writers = self._open_writers(shard, resume=done > 0)
        try:
            pending: list[dict[str, Any]] = []
            uncommitted = 0
            for tensor in tensors[done:]:
                results = self._tensor(shard, tensor, writers, digest)
                pending.append(
                    {
                        "shard": shard.name,
                        "tensor": tensor.entry.name,
                        "read_sha256": digest.hexdigest(),
                        "configs": results,
                    }
                )
                uncommitted += tensor.entry.nbytes
                if uncommitted >= COMMIT_BYTES:
                    self._commit(writers, pending)
                    pending, uncommitted = [], 0
            pending.append({"shard": shard.name, "shard_sha256": digest.hexdigest()})
            self._commit(writers, pending)
        finally:
            for writer in writers.values():
                writer.close()

    def _commit(self, writers: dict[Key, ShardWriter], records: list[dict[str, Any]]) -> None:
        for writer in writers.values():
            writer.sync()
        self.journal.add(records)

    def _digest_of_done(
        self, shard: SourceShard, done: list[PlannedTensor], records: list[dict[str, Any]]
    ) -> Any:
        """SHA-256 of the shard up to the first tensor not yet done, read again and compared."""
        digest = hashlib.sha256(shard.header.raw)
        for tensor in done:
            for chunk in self._chunks(shard, tensor):
                digest.update(chunk)
        if records and digest.hexdigest() != records[-1]["read_sha256"]:
            raise SourceError(
                f"{shard.name}: changed since this run began; delete {self.out} and start again"
            )
        return digest

    def _open_writers(self, shard: SourceShard, resume: bool) -> dict[Key, ShardWriter]:
        writers: dict[Key, ShardWriter] = {}
        try:
            for config in self.plan.configs:
                for kind in self.plan.kinds:
                    folder = partial_folder(self.out, config, kind)
                    with output_errors(folder):
                        folder.mkdir(parents=True, exist_ok=True)
                    header = self.plan.header(shard, config, kind)
                    writers[config.name, kind] = ShardWriter(folder / shard.name, header, resume)
        except BaseException:
            for writer in writers.values():
                writer.close()
            raise
        return writers

    def _chunks(self, shard: SourceShard, tensor: PlannedTensor) -> Any:
        for offset in range(0, tensor.entry.nbytes, CHUNK_BYTES):
            length = min(CHUNK_BYTES, tensor.entry.nbytes - offset)
            yield self.plan.source.files.read(shard.name, tensor.entry.begin + offset, length)

    def _tensor(
        self,
        shard: SourceShard,
        tensor: PlannedTensor,
        writers: dict[Key, ShardWriter],
        digest: Any,
    ) -> dict[str, Any]:
        if tensor.decision.quantize:
            results, sqnr = self._quantized(shard, tensor, writers, digest)
        else:
            results, sqnr = self._kept(shard, tensor, writers, digest), {}
        self.done_bytes += tensor.entry.nbytes
        if self.on_progress:
            self.on_progress(Progress(tensor, self.done_bytes, self.total_bytes, sqnr))
        return results

    def _kept(
        self,
        shard: SourceShard,
        tensor: PlannedTensor,
        writers: dict[Key, ShardWriter],
        digest: Any,
    ) -> dict[str, Any]:
        entry = tensor.entry
        target = model_dtype(entry.dtype, self.plan.dtype)
        own = hashlib.sha256()
        position = 0
        for chunk in self._chunks(shard, tensor):
            digest.update(chunk)
            own.update(chunk)
            if not tensor.tied_to:
                for (_, kind), writer in writers.items():
                    if kind == "packed":
                        writer.write(entry.name, position, chunk)
                    else:
                        write_cast(writer, entry, position, chunk, target)
            position += len(chunk)
        if tensor.tied_to:
            return {}
        hashes = {entry.name: own.hexdigest()}
        return {config.name: {"sha256": hashes} for config in self.plan.configs}

    def _quantized(
        self,
        shard: SourceShard,
        tensor: PlannedTensor,
        writers: dict[Key, ShardWriter],
        digest: Any,
    ) -> tuple[dict[str, Any], dict[int, float]]:
        entry = tensor.entry
        depths = {config.depth_of(tensor.module) for config in self.plan.configs}
        encoded = self._encode(shard, tensor, sorted(depths), digest)
        results = {}
        for config in self.plan.configs:
            packed = encoded[config.depth_of(tensor.module)]
            hashes = {}
            parts = {"": packed.weight, "_scale": packed.scale, "_codebook": packed.codebook}
            for suffix, array in parts.items():
                data = memoryview(np.ascontiguousarray(array)).cast("B")
                hashes[entry.name + suffix] = hashlib.sha256(data).hexdigest()
                if (config.name, "packed") in writers:
                    writers[config.name, "packed"].write(entry.name + suffix, 0, data)
            if (config.name, "model") in writers:
                writer = writers[config.name, "model"]
                target = model_dtype(entry.dtype, self.plan.dtype)
                write_decoded(
                    writer, entry.name, packed, target, tensor.decision.transposed, self.threads
                )
            results[config.name] = {"sha256": hashes, "depth": packed.depth, "nmse": packed.nmse}
        return results, {depth: packed.sqnr_db or 0.0 for depth, packed in encoded.items()}

    def _encode(
        self, shard: SourceShard, tensor: PlannedTensor, depths: list[int], digest: Any
    ) -> dict[int, TritTensor]:
        entry = tensor.entry
        data = bytearray(entry.nbytes)
        position = 0
        for chunk in self._chunks(shard, tensor):
            digest.update(chunk)
            data[position : position + len(chunk)] = chunk
            position += len(chunk)
        weight = np.frombuffer(data, NUMPY_OF_SAFETENSORS[entry.dtype]).reshape(entry.shape)
        if tensor.decision.transposed:
            weight = np.ascontiguousarray(weight.T)
        try:
            return encode_depths(weight, depths, self.plan.codec, self.threads)
        except ValueError as error:
            raise SourceError(
                f"{shard.name}: tensor {entry.name}: {error}; mend the source, "
                f"or keep the tensor with --exclude '{entry.name}'"
            ) from None
