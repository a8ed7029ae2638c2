"""What a packed folder's manifest says in numbers: sizes, bits a weight, error."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tritllm.codec import to_decibel
from tritllm.format.safetensors_header import ITEM_BYTES


@dataclass(frozen=True)
class Measures:
    """Figures that follow from a manifest. depths: weights at each depth."""

    depths: dict[int, int]
    quantized: int
    kept: dict[str, int]
    parameters: int
    packed_bytes: int
    model_bytes: int
    file_bits: float
    sqnr_mean_db: float | None
    sqnr_lowest_db: float | None

    @property
    def coverage_percent(self) -> float:
        """Quantized share of the parameters."""
        return 100 * sum(self.depths.values()) / self.parameters

    @property
    def information_bits(self) -> float:
        """(d + 3/16) log2 3, over the quantized weights."""
        total = sum(self.depths.values())
        return sum(n * (d + 3 / 16) * math.log2(3) for d, n in self.depths.items()) / total


def measure(manifest: dict[str, Any]) -> Measures:
    """Sizes, bits a weight and mean SQNR of a packed checkpoint."""
    depths: Counter[int] = Counter()
    kept: Counter[str] = Counter()
    decibels: list[float] = []
    quantized_bytes = kept_bytes = kept_parameters = kept_model_bytes = 0
    floats = ("F16", "BF16", "F32")
    for tensor in manifest["tensors"].values():
        size = math.prod(tensor["shape"])
        nbytes = size * ITEM_BYTES[tensor["dtype"]]
        if "kept" in tensor:
            kept[tensor["kept"]] += 1
            kept_bytes += nbytes
            kept_parameters += size
            kept_model_bytes += 2 * size if tensor["dtype"] in floats else nbytes
        else:
            quantized_bytes += nbytes
        if "depth" in tensor:
            depths[tensor["depth"]] += tensor["shape"][1] * tensor["in_features"]
            if tensor["nmse"]:
                decibels.append(to_decibel(tensor["nmse"]))
    weights = sum(depths.values())
    return Measures(
        depths=dict(depths),
        quantized=sum("depth" in tensor for tensor in manifest["tensors"].values()),
        kept=dict(kept),
        parameters=weights + kept_parameters,
        packed_bytes=quantized_bytes + kept_bytes,
        model_bytes=2 * weights + kept_model_bytes,
        file_bits=8 * quantized_bytes / weights,
        sqnr_mean_db=sum(decibels) / len(decibels) if decibels else None,
        sqnr_lowest_db=min(decibels, default=None),
    )


def architectures_of(config: dict[str, Any]) -> list[str]:
    """The architectures that a config.json names; none where it holds anything else."""
    names = config.get("architectures")
    return [str(name) for name in names if name] if isinstance(names, list) else []
