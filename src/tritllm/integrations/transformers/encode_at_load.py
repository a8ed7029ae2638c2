"""Quantizing a float checkpoint while transformers loads it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from tritllm.codec import encode, encode_source
from tritllm.format.layout import SUFFIXES
from tritllm.format.safetensors_header import TensorEntry
from tritllm.integrations.transformers.compat import ConversionOps
from tritllm.integrations.transformers.experts import TritExperts
from tritllm.ops.numpy_arrays import numpy_matrix, torch_parts
from tritllm.ops.trit_linear import TritLinear
from tritllm.quantizer.decisions import decide


def is_linear_weight(
    module_name: str, shape: tuple[int, ...], model_type: str, include: Sequence[str] = ()
) -> bool:
    """Whether `tritllm quantize --include ...` would quantize this module's weight."""
    entry = TensorEntry(f"{module_name}.weight", "F32", shape, 0, 0)
    return decide(entry, model_type, include).quantize


class Encode(ConversionOps):  # type: ignore[misc]
    """From a float weight [N, K] ([K, N] where stored transposed) to the three packed tensors.

    transformers turns what is raised here into a long report, so the first fault is kept in
    `faults` for the quantizer to raise when loading ends.
    """

    def __init__(
        self,
        depths: dict[str, int],
        codec: str,
        faults: list[str],
        splitting: Collection[str] = (),
    ) -> None:
        """splitting: names of parameters that hold experts."""
        self.depths, self.codec, self.faults = depths, codec, faults
        self.splitting = splitting

    def convert(
        self,
        input_dict: dict[str, Any],
        full_layer_name: str,
        model: Any,
        missing_keys: set[str] | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """Called by transformers with the float weight of one layer, or of a block's experts."""
        value = next(iter(input_dict.values()))
        weight = value[0] if isinstance(value, list) else value
        if full_layer_name in self.splitting:
            return self._split(weight, full_layer_name, model, missing_keys)
        name = full_layer_name.removesuffix(".weight")
        layer: TritLinear = model.get_submodule(name)
        return self._encoded(name, weight.t() if layer.transposed else weight)

    def _split(
        self, weight: torch.Tensor, name: str, model: Any, missing_keys: set[str] | None
    ) -> dict[str, torch.Tensor]:
        """The experts' matrices; the fused parameter has done its work."""
        module, _, leaf = name.rpartition(".")
        experts: TritExperts = model.get_submodule(module)
        parts: dict[str, torch.Tensor] = {}
        for below, matrix in experts.matrices(leaf, weight):
            layer = f"{module}.{below}"
            if layer in self.depths:
                parts |= self._encoded(layer, matrix)
            else:
                dtype = model.get_submodule(layer).weight.dtype
                parts[f"{layer}.weight"] = matrix.to(dtype).contiguous()
        del experts._parameters[leaf]
        if missing_keys is not None:
            missing_keys.discard(name)
        return parts

    def _encoded(self, name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """The packed tensors of a layer from its weight [N, K]."""
        depth = self.depths[name]
        try:
            found = encode_source(
                numpy_matrix(matrix), [depth], self.codec, torch.get_num_threads()
            )
            tensor = found[depth]
        except ValueError as error:
            self.faults.append(f"tensor {name}.weight: {error}")
            tensor = encode(numpy_matrix(torch.zeros_like(matrix)), depth, self.codec)
        return {
            f"{name}.weight{suffix}": part.to(matrix.device)
            for suffix, part in zip(SUFFIXES, torch_parts(tensor), strict=True)
        }
