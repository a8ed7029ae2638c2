"""A calibrator without a model or torch: what it leaves depends on config, tensor and its seed."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.codec import TritTensor, encode
from tritllm.errors import OutputError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.quantizer.configs import Config
from tritllm.quantizer.decisions import PlannedTensor
from tritllm.quantizer.encodings import CalibrationProgress, Encodings
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.plan import Plan
from tritllm.storage.shard_writer import write_atomically

NORM = "model.norm.weight"


def source_array(plan: Plan, tensor: PlannedTensor) -> np.ndarray:
    """A source tensor as it is stored."""
    entry = tensor.entry
    shard = next(name for name, tensors in plan.tensors.items() if tensor in tensors)
    data = plan.source.files.read(shard, entry.begin, entry.nbytes)
    return np.frombuffer(data, NUMPY_OF_SAFETENSORS[entry.dtype]).reshape(entry.shape)


def expected_encoding(
    plan: Plan, matrix: SourceMatrix, config: Config, seed: int
) -> TritTensor | None:
    """What the stub chooses: the digits of columns scaled at random; none for one matrix."""
    if matrix.module.endswith("layers.1.mlp.down_proj"):
        return None
    (tensor,) = (tensor for tensor in plan.all_tensors if tensor.entry == matrix.source)
    weight = matrix.values(source_array(plan, tensor).reshape(-1).view(np.uint8))
    rng = np.random.default_rng(zlib.crc32(f"{seed} {config.name} {matrix.module}".encode()))
    changed = weight.astype(np.float32) * (1 + 0.2 * rng.random(weight.shape[1], np.float32))
    return encode(changed, config.depth_of(matrix.module))


def expected_values(plan: Plan, tensor: PlannedTensor, config: Config) -> np.ndarray | None:
    """What the stub trains: the last norm, of the configs with a d1 in their names."""
    if tensor.entry.name != NORM or "d1" not in config.name:
        return None
    return source_array(plan, tensor) * source_array(plan, tensor).dtype.type(1.5)


@dataclass
class StubCalibrator:
    """Keeps each result in a file of its own; `worked` counts those it had to work out."""

    seed: int = 0
    memory: int = 1 << 20
    disk: int = 1 << 20
    worked: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"text": {"name": "a text", "sha256": "5" * 64}, "seed": self.seed}

    @property
    def command_options(self) -> list[str]:
        return ["--calibrate", "a text", "--seed", str(self.seed)]

    def memory_bytes(self, plan: Plan) -> int:
        return self.memory

    def disk_bytes(self, plan: Plan) -> int:
        return self.disk

    def run(
        self,
        plan: Plan,
        folder: Path,
        threads: int,
        on_progress: Callable[[CalibrationProgress], None] | None,
    ) -> Encodings:
        pairs = [(tensor, config) for tensor in plan.all_tensors for config in plan.configs]
        for done, (tensor, config) in enumerate(pairs):
            path = file_of(folder, tensor.entry.name, config)
            if not path.exists():
                self.worked += 1
                write_atomically(path, self._result(plan, tensor, config))
            if on_progress:
                losses = {config.name: 2.0}, {config.name: 1.0}
                where = f"{tensor.module} under {config.name}"
                on_progress(
                    CalibrationProgress("calibrating", where, done + 1, len(pairs), *losses)
                )
        return StubEncodings(folder, self)

    def _result(self, plan: Plan, tensor: PlannedTensor, config: Config) -> bytes:
        arrays: dict[str, Any] = {}
        if tensor.decision.quantize:
            found = expected_encoding(plan, tensor.matrices[0], config, self.seed)
            if found:
                arrays = {name: getattr(found, name) for name in TritTensor.__dataclass_fields__}
        elif (values := expected_values(plan, tensor, config)) is not None:
            arrays = {"values": values}
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()


def file_of(folder: Path, name: str, config: Config) -> Path:
    return folder / f"{config.name} {name}.npz"


@dataclass
class StubEncodings:
    folder: Path
    calibrator: StubCalibrator

    def _stored(self, name: str, config: Config) -> dict[str, Any]:
        path = file_of(self.folder, name, config)
        try:
            with open(path, "rb") as file, np.load(file) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:
            raise OutputError(f"{path}: damaged") from error

    def encoded(self, matrix: SourceMatrix, config: Config) -> TritTensor | None:
        stored = self._stored(matrix.name, config)
        if not stored:
            return None
        numbers = {"in_features": int, "error": float, "energy": float}
        return TritTensor(**{n: numbers[n](v) if n in numbers else v for n, v in stored.items()})

    def replaced(self, tensor: PlannedTensor, config: Config) -> np.ndarray | None:
        return self._stored(tensor.entry.name, config).get("values")

    def encoder(self, config: Config) -> dict[str, Any]:
        about = {"method": "a stub", "tokens": 4096, "context": 512, "calibrated": 13}
        trained = {"trained": {"steps": 7}} if "d1" in config.name else {}
        return {**about, **self.calibrator.settings, "data_free": {"too few tokens": 1}, **trained}

    def notes(self, config: Config) -> dict[str, Any]:
        return {"of": config.name, "seconds": 1.5}
