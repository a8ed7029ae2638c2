"""Sources that transformers' `bitnet` method stores: what a tensor of theirs holds as floats.

transformers/integrations/bitnet.py is the definition. `bitlinear` has weights of two bits and
divides by their scale; `autobitlinear` multiplies, has two bits or floats, and makes trits of the
floats by itself where its mode is `online`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritllm.errors import SourceError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS, SAFETENSORS_OF_NAME
from tritllm.format.json_object import shortened
from tritllm.quantizer.matrices import SourceMatrix

METHOD = "bitnet"  # quant_method
INPUT_NORM = ".rms_norm.weight"  # of a module's input, after the module's name
PER_BYTE = 4  # rows of two bits
_ROWS = 256  # worked on at a time, where float32 is wanted of other floats
_LEAST_MEAN = np.float32(1e-5)


@dataclass(frozen=True)
class BitnetMethod:
    """`quantization_config` of such a source.

    divides: whether a trit stands for 1 / scale instead of scale (bitlinear). online: whether
    floats become trits by their mean magnitude. kept: patterns of modules that are not ternary.
    input_norm_eps: of the norm that each ternary layer has before it; None where there is none.
    dtype: safetensors' name of the dtype in which the model is loaded; None where it is not said.
    """

    divides: bool
    online: bool
    kept: tuple[str, ...]
    input_norm_eps: float | None
    dtype: str | None

    def holds(self, module: str) -> bool:
        """Whether transformers makes a linear layer of this name one of the method's."""
        boundary = r"(?:(?<=\.)|(?=\.|$))"
        return not any(
            re.match(rf"(?:{pattern}){boundary}", module) or module.endswith(pattern)
            for pattern in self.kept
        )

    def as_record(self) -> dict[str, Any]:
        """What `encoder` says of the source."""
        return {
            "quant_method": METHOD,
            "linear_class": "bitlinear" if self.divides else "autobitlinear",
            "quantization_mode": "online" if self.online else "offline",
        }


def is_bitnet(stored: Any) -> bool:
    """Whether the `quantization_config` of a config.json is of this method."""
    return isinstance(stored, dict) and stored.get("quant_method") == METHOD


def bitnet_method(config: Mapping[str, Any], where: str) -> BitnetMethod | None:
    """The method of a source; None where its config.json names none.

    Raises SourceError, which begins with `where`, for a value that transformers does not take.
    """
    stored = config.get("quantization_config")
    if not is_bitnet(stored):
        return None
    assert isinstance(stored, dict)
    linear_class = stored.get("linear_class", "bitlinear")
    mode = stored.get("quantization_mode", "offline")
    epsilon = stored.get("rms_norm_eps", 1e-6)
    kept = stored.get("modules_to_not_convert") or []
    for name, value, right in (
        ("linear_class", linear_class, linear_class in ("bitlinear", "autobitlinear")),
        ("quantization_mode", mode, mode in ("offline", "online")),
        ("rms_norm_eps", epsilon, isinstance(epsilon, float) and 0 < epsilon < 1),
        ("modules_to_not_convert", kept, _are_patterns(kept)),
    ):
        if not right:
            value = shortened(repr(value))
            raise SourceError(f"{where}: quantization_config: {name} {value} is unknown to bitnet")
    dtype = config.get("dtype", config.get("torch_dtype"))
    return BitnetMethod(
        linear_class == "bitlinear",
        mode == "online" and linear_class == "autobitlinear",
        tuple(kept),
        epsilon if stored.get("use_rms_norm") else None,
        SAFETENSORS_OF_NAME.get(dtype) if isinstance(dtype, str) else None,
    )


def _are_patterns(value: Any) -> bool:
    try:
        return isinstance(value, list) and all(re.compile(p) is not None for p in value)
    except (re.error, TypeError):
        return False


@dataclass(frozen=True)
class TwoBitMatrix(SourceMatrix):
    """Trits of two bits, four rows a byte: byte row r holds the rows r, r + N/4, r + N/2, r + 3N/4,
    the first in its lowest bits; 0, 1 and 2 stand for -scale, 0 and scale.
    """

    scale: float = 1.0

    @property
    def made_bytes(self) -> int:
        """As `SourceMatrix.made_bytes`."""
        return 5 * self.size

    def values(self, data: np.ndarray) -> np.ndarray:
        """As `SourceMatrix.values`: float32. Raises ValueError for two bits that are 3."""
        stored = data.reshape(-1, self.shape[1])
        weight = np.empty(self.shape, np.float32)
        for quarter in range(PER_BYTE):
            rows = slice(quarter * len(stored), (quarter + 1) * len(stored))
            bits = stored >> np.uint8(2 * quarter) & np.uint8(3)
            if (bits == 3).any():
                row, column = map(int, np.argwhere(bits == 3)[0])
                raise ValueError(f"weight[{rows.start + row}, {column}] is no trit: its bits are 3")
            np.multiply(bits.view(np.int8) - np.int8(1), np.float32(self.scale), out=weight[rows])
        return weight


@dataclass(frozen=True)
class ScaledMatrix(SourceMatrix):
    """Floats times a scale."""

    scale: float = 1.0

    @property
    def made_bytes(self) -> int:
        """As `SourceMatrix.made_bytes`."""
        return 4 * self.size

    def values(self, data: np.ndarray) -> np.ndarray:
        """As `SourceMatrix.values`: float32, the products rounded once."""
        stored = super().values(data)
        weight = stored.astype(np.float32)
        weight *= np.float32(self.scale)
        return weight


@dataclass(frozen=True)
class MeanRuleMatrix(SourceMatrix):
    """Floats that stand for trits: with s = 1 / max(mean(|w|), 1e-5), the weights
    min(max(rint(w s), -1), 1) / s (the rule of BitNet b1.58: Ma et al., 2024).

    dtype: safetensors' name of the dtype that the model has when the rule is applied.
    The mean is summed in float64 and rounded once to float32; transformers sums in float32, in an
    order that depends on the threads, so that its mean may differ in the last bits.
    """

    dtype: str = "F32"

    @property
    def made_bytes(self) -> int:
        """As `SourceMatrix.made_bytes`."""
        return np.dtype(NUMPY_OF_SAFETENSORS[self.dtype]).itemsize * self.size

    def values(self, data: np.ndarray) -> np.ndarray:
        """As `SourceMatrix.values`: in `dtype`. Raises ValueError for what is not finite."""
        weight = super().values(data).astype(NUMPY_OF_SAFETENSORS[self.dtype])
        blocks = [slice(row, row + _ROWS) for row in range(0, len(weight), _ROWS)]
        total = sum(float(np.abs(weight[b].astype(np.float64)).sum()) for b in blocks)
        if not np.isfinite(total):
            raise ValueError("a weight is not a finite number")
        one = np.float32(1)
        scale = one / max(np.float32(total / weight.size), _LEAST_MEAN)
        for b in blocks:
            trits = np.clip(np.rint(weight[b].astype(np.float32) * scale), -one, one)
            weight[b] = (trits / scale).astype(weight.dtype)
        return weight
