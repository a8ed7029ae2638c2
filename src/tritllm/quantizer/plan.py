"""What a run will write, worked out from headers alone, before the first byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tritllm.errors import SourceError, TritError
from tritllm.format.layout import TensorSpec, tensors_of
from tritllm.format.modules import matches
from tritllm.format.safetensors_header import Header
from tritllm.quantizer.bitnet import BitnetMethod
from tritllm.quantizer.configs import Config
from tritllm.quantizer.decisions import (
    PlannedTensor,
    SourcePart,
    check_globs,
    decide_all,
    modules_of,
)
from tritllm.quantizer.encodings import Calibrator
from tritllm.quantizer.fingerprint import Settings, fingerprint_of
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.resources import CalibrationNeed, MemoryNeed, memory_need
from tritllm.quantizer.source import Source
from tritllm.quantizer.ternary_source import TernarySource, ternary_source
from tritllm.storage.model_folder import model_dtype, shard_header

KINDS = ("packed", "model")
Headers = Mapping[str, Header]  # by shard name


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on; it can be pickled.

    tensors: by shard name, in stored order. packed: by config name, the headers of the packed
    shards (also where only models are written: the manifest and the report speak of them). model:
    the headers of the dequantized shards, the same for every config; empty if none are written.
    calibration: what the calibrator takes; None for a data-free run. command_options: words of the
    command line that give its settings again. bitnet: the method of a source that is ternary by it.
    """

    source: Source
    configs: tuple[Config, ...]
    kinds: tuple[str, ...]
    codec: str
    dtype: str
    tensors: Mapping[str, list[PlannedTensor]]
    packed: Mapping[str, Headers]
    model: Headers
    fingerprint: dict[str, Any]
    calibration: CalibrationNeed | None = None
    command_options: tuple[str, ...] = ()
    bitnet: BitnetMethod | None = None

    @cached_property
    def all_tensors(self) -> list[PlannedTensor]:
        """Every source tensor, in stored order."""
        return [tensor for shard in self.tensors.values() for tensor in shard]

    @cached_property
    def quantized(self) -> list[SourceMatrix]:
        """The matrices that are packed, in stored order; a tensor of experts has several."""
        return [matrix for tensor in self.all_tensors for matrix in tensor.matrices]

    def parts(self, shard: str) -> list[SourcePart]:
        """What is read of a shard and worked on at a time, in stored order."""
        return [part for tensor in self.tensors[shard] for part in tensor.parts]

    @cached_property
    def parameters(self) -> int:
        """Parameters of the model; a tied tensor counts once."""
        return sum(tensor.size for tensor in self.all_tensors if not tensor.tied_to)

    @property
    def coverage(self) -> float:
        """Share of the parameters that are quantized, 0..1."""
        return sum(matrix.size for matrix in self.quantized) / self.parameters

    def headers(self, config: Config, kind: str) -> Headers:
        """The headers of the output shards of a config and kind, by shard name."""
        return self.packed[config.name] if kind == "packed" else self.model

    def output_bytes(self, config: Config, kind: str) -> int:
        """Bytes of weights and side files of one output folder."""
        weights = sum(header.file_bytes for header in self.headers(config, kind).values())
        return weights + sum(self.source.side_files.values())

    @property
    def disk_bytes(self) -> int:
        """Bytes of all outputs together, and of what is kept beside them while the run works."""
        outputs = sum(
            self.output_bytes(config, kind) for config in self.configs for kind in self.kinds
        )
        return outputs + (self.calibration.disk if self.calibration else 0)

    @property
    def peak_memory(self) -> int:
        """Estimate of the most memory that any part of the run takes, in bytes."""
        return max(self.memory.peak, self.calibration.memory if self.calibration else 0)

    @cached_property
    def memory(self) -> MemoryNeed:
        """Estimates of the memory that the pass over the shards takes."""
        headers = [*self.model.values()]
        for by_shard in self.packed.values():
            headers += by_shard.values()
        header_bytes = sum(len(header.raw) for header in headers)
        parts = [part for tensor in self.all_tensors for part in tensor.parts if part.matrices]
        return memory_need(parts, self.configs, header_bytes, shared=self.calibration is None)


def make_plan(source: Source, settings: Settings, calibrator: Calibrator | None = None) -> Plan:
    """Decide on every tensor and lay out every output.

    calibrator: the one whose settings are `settings.calibration`.

    Raises SourceError where a tensor cannot become what its name says, TritError for an argument.
    """
    configs, kinds, dtype = settings.configs, settings.kinds, settings.dtype
    if not configs:
        raise TritError("no config given; for example --configs uniform-d2")
    if not kinds or not set(kinds) <= set(KINDS):
        raise TritError(f"--write takes packed, model or both, not {','.join(kinds)!r}")
    if dtype not in ("float16", "bfloat16"):
        raise TritError(f"--dtype takes float16 or bfloat16, not {dtype!r}")
    for config in configs:
        if config.nested and calibrator is None:
            raise TritError("--nested needs a text to calibrate on: --calibrate TEXT")
        globs = [glob for glob, _ in config.overrides]
        check_globs("--depth", globs, modules_of(source), source.files.name)
    ternary = ternary_source(source)
    if ternary is not None:
        _check_ternary(ternary, source, settings, calibrator is not None)
    tensors = decide_all(source, kinds, settings.include, settings.exclude, ternary)
    if not any(tensor.decision.quantize for shard in tensors.values() for tensor in shard):
        raise SourceError(
            f"{source.files.name}: no linear weight recognised in model type {source.model_type}; "
            "name them with --include 'GLOB'"
        )
    plan = Plan(
        source,
        configs,
        kinds,
        settings.codec,
        dtype,
        tensors,
        {
            config.name: {
                shard: shard_header(
                    spec for tensor in planned for spec in _packed_specs(tensor, config)
                )
                for shard, planned in tensors.items()
            }
            for config in configs
        },
        {
            shard: shard_header(
                _model_spec(tensor, dtype) for tensor in planned if not tensor.tied_to
            )
            for shard, planned in tensors.items()
            if "model" in kinds
        },
        fingerprint_of(source, settings),
        bitnet=ternary.method if ternary else None,
    )
    if calibrator is None:
        return plan
    need = CalibrationNeed(calibrator.memory_bytes(plan), calibrator.disk_bytes(plan))
    return replace(plan, calibration=need, command_options=tuple(calibrator.command_options))


def _packed_specs(tensor: PlannedTensor, config: Config) -> tuple[TensorSpec, ...]:
    """What stands in a packed file for one source tensor."""
    entry = tensor.entry
    if tensor.tied_to:
        return ()
    if not tensor.decision.quantize:
        return (TensorSpec(entry.name, entry.dtype, entry.shape),)
    return tuple(
        spec
        for matrix in tensor.matrices
        for spec in tensors_of(matrix.name, *matrix.shape, config.depth_of(matrix.module))
    )


def _model_spec(tensor: PlannedTensor, dtype: str) -> TensorSpec:
    own_dtype, shape = tensor.model_entry
    return TensorSpec(tensor.entry.name, model_dtype(own_dtype, dtype), shape)


def _check_ternary(
    ternary: TernarySource, source: Source, settings: Settings, calibrated: bool
) -> None:
    """Raise TritError for what a source that is ternary by its own method does not take."""
    where = f"{source.files.name}: is ternary (bitnet)"
    if calibrated:
        raise TritError(f"{where}: digits that are the source's leave nothing to calibrate")
    for config in settings.configs:
        depths = {config.depth_of(m.module) for m in ternary.matrices.values()} - {1}
        if depths:
            raise TritError(
                f"{where}, which depth 1 stores without loss; {config.name} asks for depth "
                f"{min(depths)}; use --configs uniform-d1"
            )
    for matrix in ternary.matrices.values():
        if matches(matrix.module, settings.exclude):
            raise TritError(
                f"{where}, so that {matrix.name} cannot be kept as it is stored; "
                "leave --exclude out"
            )
    if ternary.method.input_norm_eps is not None and "model" in settings.kinds:
        raise TritError(
            f"{where}, with norms before its linear layers that no dequantized model has; "
            "use --write packed"
        )
