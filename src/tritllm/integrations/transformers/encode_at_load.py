"""Quantizing a float checkpoint while transformers loads it."""

from __future__ import annotations

from typing import Any

import torch

from tritllm.codec import encode, encode_source
from tritllm.format.layout import SUFFIXES
from tritllm.format.safetensors_header import TensorEntry
from tritllm.integrations.transformers.compat import ConversionOps
from tritllm.ops.numpy_arrays import numpy_matrix, torch_parts
from tritllm.ops.trit_linear import TritLinear
from tritllm.quantizer.decisions import decide


def is_linear_weight(module_name: str, shape: tuple[int, ...], model_type: str) -> bool:
    """Whether `tritllm quantize` would quantize this module's weight."""
    entry = TensorEntry(f"{module_name}.weight", "F32", shape, 0, 0)
    return decide(entry, model_type).quantize


class Encode(ConversionOps):  # type: ignore[misc]
    """From a float weight [N, K] ([K, N] where stored transposed) to the three packed tensors.

    transformers turns what is raised here into a long report, so the first fault is kept in
    `faults` for the quantizer to raise when loading ends.
    """

    def __init__(self, depths: dict[str, int], codec: str, faults: list[str]) -> None:
        self.depths, self.codec, self.faults = depths, codec, faults

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: Any, **_: Any
    ) -> dict[str, torch.Tensor]:
        """Called by transformers with the float weight of one layer."""
        value = next(iter(input_dict.values()))
        weight = value[0] if isinstance(value, list) else value
        name = full_layer_name.removesuffix(".weight")
        layer: TritLinear = model.get_submodule(name)
        matrix = weight.t() if layer.transposed else weight
        depth = self.depths[name]
        try:
            found = encode_source(
                numpy_matrix(matrix), [depth], self.codec, torch.get_num_threads()
            )
            tensor = found[depth]
        except ValueError as error:
            self.faults.append(f"tensor {full_layer_name}: {error}")
            tensor = encode(numpy_matrix(torch.zeros_like(matrix)), depth, self.codec)
        suffixes = SUFFIXES
        return {
            full_layer_name + suffix: part.to(weight.device)
            for suffix, part in zip(suffixes, torch_parts(tensor), strict=True)
        }
