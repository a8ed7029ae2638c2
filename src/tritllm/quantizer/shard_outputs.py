"""The output shards of one source shard: a packed and a dequantized one for each config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.checkpoint.dequantized_tensor import DecodedMatrix, write_cast, write_decoded
from tritllm.codec import TritTensor
from tritllm.format.layout import part_names
from tritllm.quantizer.decisions import PlannedTensor, SourcePart
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.source import SourceShard
from tritllm.quantizer.write_folder import partial_folder
from tritllm.storage.model_folder import model_dtype
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import ShardWriter

Record = dict[str, Any]  # of the journal: what was written of a part of a tensor, by config


class ShardOutputs:
    """Open files that take the results of tensors; a context manager that closes them.

    resume: whether finished tensors must be in them already.
    """

    def __init__(
        self, plan: Plan, out: Path, shard: SourceShard, threads: int, resume: bool
    ) -> None:
        self.plan = plan
        self.threads = threads
        self._writers: dict[tuple[str, str], ShardWriter] = {}  # by config name and kind
        try:
            for config in plan.configs:
                for kind in plan.kinds:
                    folder = partial_folder(out, config, kind)
                    with output_errors(folder):
                        folder.mkdir(parents=True, exist_ok=True)
                    header = plan.headers(config, kind)[shard.name]
                    path = folder / shard.name
                    self._writers[config.name, kind] = ShardWriter(path, header, resume)
        except BaseException:
            self.close()
            raise

    def write_kept(self, tensor: PlannedTensor, position: int, data: memoryview) -> None:
        """Write bytes of a tensor that is kept, from `position` of its source bytes."""
        entry = tensor.entry
        for (_, kind), writer in self._writers.items():
            if kind == "packed":
                writer.write(entry.name, position, data)
            else:
                target = model_dtype(entry.dtype, self.plan.dtype)
                write_cast(writer, entry, position, data, target)

    def write_replaced(
        self, tensor: PlannedTensor, config: str, values: np.ndarray, record: Record
    ) -> None:
        """Write other values of a kept tensor into the folders of one config, over the source's;
        its record says so.
        """
        entry = tensor.entry
        data = memoryview(values.reshape(-1).view(np.uint8))
        if (config, "packed") in self._writers:
            self._writers[config, "packed"].write(entry.name, 0, data)
        if (config, "model") in self._writers:
            target = model_dtype(entry.dtype, self.plan.dtype)
            write_cast(self._writers[config, "model"], entry, 0, data, target)
        digest = hashlib.sha256(data).hexdigest()
        record["configs"][config] = {"sha256": {entry.name: digest}, "trained": True}

    def write_encoded(
        self, part: SourcePart, encoded: Sequence[Mapping[str, TritTensor]], record: Record
    ) -> None:
        """Write the matrices of a part, each encoded under every config; completes its record."""
        entry = part.tensor.entry
        for config in self.plan.configs:
            hashes: dict[str, str] = {}
            results: dict[str, Any] = {}
            for matrix, by_config in zip(part.matrices, encoded, strict=True):
                packed = by_config[config.name]
                arrays = (packed.weight, packed.scale, packed.codebook)
                for name, array in zip(part_names(matrix.name), arrays, strict=True):
                    data = memoryview(np.ascontiguousarray(array)).cast("B")
                    hashes[name] = hashlib.sha256(data).hexdigest()
                    if (config.name, "packed") in self._writers:
                        self._writers[config.name, "packed"].write(name, 0, data)
                results[matrix.name] = {"depth": packed.depth, "nmse": packed.nmse}
                if packed.ternary:
                    results[matrix.name]["ternary"] = True
            if (config.name, "model") in self._writers:
                write_decoded(
                    self._writers[config.name, "model"],
                    entry.name,
                    [
                        DecodedMatrix(by_config[config.name], matrix.transposed, matrix.slice_of)
                        for matrix, by_config in zip(part.matrices, encoded, strict=True)
                    ],
                    model_dtype(part.tensor.model_entry[0], self.plan.dtype),
                    self.threads,
                )
            record["configs"][config.name] = {"sha256": hashes, "matrices": results}

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        for writer in self._writers.values():
            writer.sync()

    def close(self) -> None:
        """Close the files; what is written stays."""
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> ShardOutputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
