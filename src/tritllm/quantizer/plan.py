"""What a run will write, worked out from headers alone, before the first byte is written."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tritllm.errors import OutputError, SourceError, TritError
from tritllm.format.layout import tensors_of
from tritllm.format.safetensors_header import Header, TensorEntry
from tritllm.machine import available_memory
from tritllm.quantizer.configs import Config
from tritllm.quantizer.linear_weights import Decision, decide
from tritllm.quantizer.source import Source, SourceShard
from tritllm.storage.model_folder import CHUNK_BYTES, model_dtype, shard_header
from tritllm.version import __version__

KINDS = ("packed", "model")
CHUNKS_AHEAD = 3  # of the source, at least, read while a tensor is encoded
_INTERPRETER_BYTES = 130 << 20  # Python, NumPy and the blocks the codec works on
_MORE_BYTES = 300 << 20  # that a run may take besides three times the largest matrix
_PER_WEIGHT_BYTES = 1.5  # group statistics of the codec


@dataclass(frozen=True)
class PlannedTensor:
    """A source tensor and what becomes of it. `tied_to` names the equal tensor stored instead."""

    entry: TensorEntry
    decision: Decision
    tied_to: str | None = None

    @property
    def module(self) -> str:
        """The tensor's name without `.weight`."""
        return self.entry.name.removesuffix(".weight")

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out_features, in_features) of a quantized tensor."""
        rows, columns = self.entry.shape
        return (columns, rows) if self.decision.transposed else (rows, columns)


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on. Two runs with equal fingerprints write equal bytes."""

    source: Source
    configs: list[Config]
    kinds: tuple[str, ...]
    codec: str
    dtype: str
    tensors: dict[str, list[PlannedTensor]]
    fingerprint: dict[str, Any]

    @property
    def all_tensors(self) -> list[PlannedTensor]:
        """Every source tensor, in stored order."""
        return [tensor for shard in self.tensors.values() for tensor in shard]

    @property
    def quantized(self) -> list[PlannedTensor]:
        """The tensors that are quantized."""
        return [tensor for tensor in self.all_tensors if tensor.decision.quantize]

    @property
    def parameters(self) -> int:
        """Parameters of the model; a tied tensor counts once."""
        return sum(tensor.entry.size for tensor in self.all_tensors if not tensor.tied_to)

    @property
    def coverage(self) -> float:
        """Share of the parameters that are quantized, 0..1."""
        return sum(tensor.entry.size for tensor in self.quantized) / self.parameters

    def header(self, shard: SourceShard, config: Config, kind: str) -> Header:
        """The header of the output shard that belongs to a source shard."""
        layout = []
        for tensor in self.tensors[shard.name]:
            if tensor.tied_to:
                continue
            if kind == "packed":
                layout += packed_layout(tensor, config)
            else:
                dtype = model_dtype(tensor.entry.dtype, self.dtype)
                layout.append((tensor.entry.name, dtype, tensor.entry.shape))
        return shard_header(layout)

    def output_bytes(self, config: Config, kind: str) -> int:
        """Bytes of weights and side files of one output folder."""
        weights = 0
        for shard in self.source.shards:
            header = self.header(shard, config, kind)
            weights += len(header.raw) + sum(entry.nbytes for entry in header.entries.values())
        return weights + sum(self.source.side_files.values())

    @property
    def disk_bytes(self) -> int:
        """Bytes of all outputs together."""
        return sum(
            self.output_bytes(config, kind) for config in self.configs for kind in self.kinds
        )

    @property
    def peak_memory_bytes(self) -> int:
        """Estimate: the interpreter, what is read ahead, the largest matrix and its results."""
        return _INTERPRETER_BYTES + 2 * CHUNK_BYTES + self._read_ahead_bytes + self._matrix_bytes

    @property
    def source_bytes_held(self) -> int:
        """How much of the source may be in memory: the largest matrix, and what is read ahead."""
        largest = max((tensor.entry.nbytes for tensor in self.quantized), default=0)
        return largest + self._read_ahead_bytes

    @property
    def _read_ahead_bytes(self) -> int:
        """As much as a matrix, if all together stays within three times the largest and 300 MB."""
        largest = max((tensor.entry.nbytes for tensor in self.quantized), default=0)
        others = _INTERPRETER_BYTES + 2 * CHUNK_BYTES + self._matrix_bytes
        return max(min(largest, 3 * largest + _MORE_BYTES - others), CHUNKS_AHEAD * CHUNK_BYTES)

    @property
    def _matrix_bytes(self) -> int:
        """The largest matrix, and the results at every depth of three: of one that is encoded, one
        that is written and one that waits.
        """
        need = 0
        for tensor in self.quantized:
            depths = {config.depth_of(tensor.module) for config in self.configs}
            packed = sum(1.6 * depth + 0.3 for depth in depths) / 8
            copies = 2 if tensor.decision.transposed else 1
            need = max(
                need,
                tensor.entry.nbytes * copies
                + int(tensor.entry.size * (3 * packed + _PER_WEIGHT_BYTES)),
            )
        return need


def packed_layout(tensor: PlannedTensor, config: Config) -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, dtypes and shapes that stand in a packed file for one source tensor."""
    entry = tensor.entry
    if not tensor.decision.quantize:
        return [(entry.name, entry.dtype, entry.shape)]
    return list(tensors_of(entry.name, *tensor.matrix_shape, config.depth_of(tensor.module)))


def make_plan(
    source: Source,
    configs: Sequence[Config],
    kinds: Sequence[str],
    codec: str,
    dtype: str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> Plan:
    """Decide on every tensor.

    Raises SourceError where a tensor cannot become what its name says, TritError for an argument.
    """
    if not configs:
        raise TritError("no config given; for example --configs uniform-d2")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise TritError(f"--write takes packed, model or both, not {','.join(kinds)!r}")
    if dtype not in ("float16", "bfloat16"):
        raise TritError(f"--dtype takes float16 or bfloat16, not {dtype!r}")
    tied = _tied_duplicates(source)
    tensors = {
        shard.name: [
            PlannedTensor(entry, Decision(False, f"tied to {tied[entry.name]}, stored once"),
                          tied[entry.name])
            if entry.name in tied
            else PlannedTensor(entry, _decide(shard, entry, source.model_type, include, exclude))
            for entry in shard.header.entries.values()
        ]
        for shard in source.shards
    }  # fmt: skip
    for name, planned in tensors.items():
        for tensor in planned:
            _check_dtype(name, tensor.entry, kinds)
    fingerprint = {
        "tool_version": __version__,
        "codec": codec,
        "configs": [config.name for config in configs],
        "depth_overrides": [f"{glob}={depth}" for glob, depth in configs[0].overrides],
        "write": list(kinds),
        "dtype": dtype,
        "include": list(include),
        "exclude": list(exclude),
        "source": source.files.name,
        "revision": source.files.revision,
        "source_config": hashlib.sha256(repr(sorted(source.config.items())).encode()).hexdigest(),
        "shards": {
            shard.name: {
                "size": shard.size,
                "header_sha256": hashlib.sha256(shard.header.raw).hexdigest(),
                "modified": source.files.stamp(shard.name),
            }
            for shard in source.shards
        },
    }
    _check_globs(source, include, exclude, configs[0])
    plan = Plan(source, list(configs), tuple(kinds), codec, dtype, tensors, fingerprint)
    if not plan.quantized:
        raise SourceError(
            f"{source.files.name}: no linear weight recognised in model type {source.model_type}; "
            "name them with --include 'GLOB'"
        )
    return plan


def _check_globs(
    source: Source, include: Sequence[str], exclude: Sequence[str], config: Config
) -> None:
    """A glob that matches nothing is a slip of the pen."""
    names = [entry.name for entry in source.tensors]
    modules = [name.removesuffix(".weight") for name in names]
    for flag, globs, among in (
        ("--include", include, names),
        ("--exclude", exclude, names),
        ("--depth", [glob for glob, _ in config.overrides], modules),
    ):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in among):
                raise TritError(f"{flag} {glob!r} matches nothing in {source.files.name}")


def check_resources(plan: Plan, out: Path, already_written: int) -> None:
    """Raise OutputError where the disk, or TritError where the memory, will not do."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    need = plan.disk_bytes - already_written
    if need > free:
        raise OutputError(
            f"{out}: {need / 1e9:.2f} GB more are needed and {free / 1e9:.2f} GB are free; "
            "free some, or write less (--write packed, fewer --configs)"
        )
    available = available_memory()
    if plan.peak_memory_bytes > available:
        raise TritError(
            f"about {plan.peak_memory_bytes / 1e9:.1f} GB of memory are needed and "
            f"{available / 1e9:.1f} GB are available; run fewer --configs at once"
        )


def _decide(
    shard: SourceShard,
    entry: TensorEntry,
    model_type: str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> Decision:
    try:
        return decide(entry, model_type, include, exclude)
    except SourceError as error:
        raise SourceError(f"{shard.name}: {error}") from None


def _check_dtype(file: str, entry: TensorEntry, kinds: Sequence[str]) -> None:
    if entry.dtype.startswith("F8") or (entry.dtype == "F64" and "model" in kinds):
        raise SourceError(
            f"{file}: tensor {entry.name}: dtype {entry.dtype} is not supported; "
            "convert the source to float16, bfloat16 or float32 first"
        )


def _tied_duplicates(source: Source) -> dict[str, str]:
    """lm_head stored beside equal embeddings in a model that ties them: {lm_head: embedding}."""
    text_config = source.config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    if not source.config.get("tie_word_embeddings", nested.get("tie_word_embeddings", False)):
        return {}
    by_name = {
        entry.name: (shard, entry)
        for shard in source.shards
        for entry in shard.header.entries.values()
    }
    head = next((name for name in by_name if name.split(".")[-2:] == ["lm_head", "weight"]), None)
    embedding = next(
        (name for name in by_name if name.split(".")[-2:] in (["embed_tokens", "weight"],
                                                             ["wte", "weight"])), None
    )  # fmt: skip
    if (
        head is None
        or embedding is None
        or not _same_bytes(source, by_name[head], by_name[embedding])
    ):
        return {}
    return {head: embedding}


def _same_bytes(
    source: Source, one: tuple[SourceShard, TensorEntry], other: tuple[SourceShard, TensorEntry]
) -> bool:
    (shard_a, a), (shard_b, b) = one, other
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    for offset in range(0, a.nbytes, CHUNK_BYTES):
        length = min(CHUNK_BYTES, a.nbytes - offset)
        if source.files.read(shard_a.name, a.begin + offset, length) != source.files.read(
            shard_b.name, b.begin + offset, length
        ):
            return False
    return True
