"""The matrices of a source that is ternary by its own method, and the scales of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tritllm.errors import SourceError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.format.layout import SCALE
from tritllm.format.safetensors_header import TensorEntry
from tritllm.quantizer.bitnet import (
    INPUT_NORM,
    BitnetMethod,
    MeanRuleMatrix,
    ScaledMatrix,
    TwoBitMatrix,
    bitnet_method,
)
from tritllm.quantizer.families import FAMILIES, UNKNOWN_FAMILY
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.source import Source, SourceShard


@dataclass(frozen=True)
class TernarySource:
    """method: of the source. matrices: by the name of their X.weight. scales: of a tensor that is
    the scale of a matrix, the matrix's name.
    """

    method: BitnetMethod
    matrices: dict[str, SourceMatrix]
    scales: dict[str, str]


def ternary_source(source: Source) -> TernarySource | None:
    """What a source of transformers' bitnet method holds; None for any other.

    Reads the scales, a number each. Raises SourceError where a tensor cannot be what its method
    says.
    """
    method = bitnet_method(source.config, source.files.name)
    if method is None:
        return None
    family = FAMILIES.get(source.model_type, UNKNOWN_FAMILY)
    entries = source.stored
    found = TernarySource(method, {}, {})
    for name, (shard, entry) in entries.items():
        module = name.removesuffix(".weight")
        if module == name or len(entry.shape) != 2 or 0 in entry.shape:
            continue
        scaled = not method.online and name + SCALE in entries
        two_bits = entry.dtype == "U8"
        if two_bits and not scaled:
            raise SourceError(
                f"{shard.name}: tensor {name}: two-bit weights without {name + SCALE}; "
                "fetch the source again"
            )
        named = scaled or re.fullmatch(family.linear, module) is not None
        if not named or not method.holds(module) or not (scaled or method.online):
            continue
        scale = _scale(source, method, *entries[name + SCALE]) if scaled else 1.0
        found.matrices[name] = _matrix(method, entry, scale)
        if scaled:
            found.scales[name + SCALE] = name
        if method.input_norm_eps is not None and module + INPUT_NORM not in entries:
            raise SourceError(
                f"{shard.name}: tensor {module + INPUT_NORM} is missing; config.json says that "
                "inputs are normalized (use_rms_norm)"
            )
    return found


def _matrix(method: BitnetMethod, entry: TensorEntry, scale: float) -> SourceMatrix:
    rows, columns = entry.shape
    if entry.dtype == "U8":
        return TwoBitMatrix(entry.name, (4 * rows, columns), entry, scale=scale)
    if entry.dtype not in NUMPY_OF_SAFETENSORS:
        raise SourceError(
            f"tensor {entry.name}: dtype {entry.dtype} is none that transformers' bitnet reads"
        )
    if method.online:
        dtype = method.dtype or entry.dtype
        return MeanRuleMatrix(entry.name, (rows, columns), entry, dtype=dtype)
    return ScaledMatrix(entry.name, (rows, columns), entry, scale=scale)


def _scale(source: Source, method: BitnetMethod, shard: SourceShard, entry: TensorEntry) -> float:
    """What a trit of 1 stands for: a float32."""
    where = f"{shard.name}: tensor {entry.name}"
    if entry.size != 1 or entry.dtype not in NUMPY_OF_SAFETENSORS:
        raise SourceError(f"{where}: {entry.dtype} {list(entry.shape)} is not one number")
    stored = source.files.read(shard.name, entry.begin, entry.nbytes)
    value = np.frombuffer(stored, NUMPY_OF_SAFETENSORS[entry.dtype]).astype(np.float32)[0]
    with np.errstate(divide="ignore", over="ignore"):
        scale = np.float32(1) / value if method.divides else value
    if not (np.isfinite(scale) and np.isfinite(value) and scale > 0):
        raise SourceError(f"{where}: {value} is no scale; fetch the source again")
    return float(scale)
