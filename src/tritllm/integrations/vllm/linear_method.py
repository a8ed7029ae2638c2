"""Linear layers of vLLM, and its output layer, on packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    ReplicatedLinear,
    RowParallelLinear,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from tritllm.checkpoint.packed_headers import StoredMatrix
from tritllm.errors import FormatError
from tritllm.format.layout import packed_shapes
from tritllm.integrations.vllm import weights
from tritllm.integrations.vllm.cut import Columns
from tritllm.integrations.vllm.parameters import RowsParameter, StepsParameter
from tritllm.integrations.vllm.stored import where
from tritllm.ops.definitions import Packed


@register_weight_loader_v2_supported_method
class TritLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """y = x W^T + bias for a layer whose matrices are packed.

    Until it is loaded, a layer has the parameters of the file's three tensors, `weight`,
    `weight_scale` and `weight_codebook`; afterwards `weight` is memory in the device's own layout
    (or still the planes, where it has none), and `weight_scale` is gone with the planes.

    Args:
        matrices: those that the layer is made of, in its order; one, or one for each part.
        depth: planes that are read of each.
    """

    def __init__(self, matrices: Sequence[StoredMatrix], depth: int) -> None:
        super().__init__()
        self.matrices, self.depth = matrices, depth

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register the parameters that vLLM's loaders fill.

        Raises FormatError where a stored shape does not follow from the layer's columns.
        """
        for matrix in self.matrices:
            matrix.check(matrix.parts[0].shape[1], input_size)
        cut = isinstance(layer, RowParallelLinear)
        rank, degree = (layer.tp_rank, layer.tp_size) if cut else (0, 1)
        layer.columns = columns = Columns.of_rank(input_size, rank, degree)
        layer.part_rows = list(output_partition_sizes)
        rows = sum(output_partition_sizes)
        shapes = packed_shapes(rows, columns.width, self.depth)
        loaders: Any = {"weight_loader": extra_weight_attrs["weight_loader"]}
        if isinstance(layer, ReplicatedLinear):
            loaders = {"weight_loader": _load_whole}
        elif isinstance(layer, VocabParallelEmbedding):
            loaders = {"weight_loader": _VocabularyRows(layer)}
        common = {"matrices": self.matrices, **loaders}
        layer.register_parameter("weight", RowsParameter(shapes[0], columns=columns, **common))
        layer.register_parameter(
            "weight_scale", RowsParameter(shapes[1], columns=columns, **common)
        )
        layer.register_parameter(
            "weight_codebook",
            StepsParameter(len(output_partition_sizes), depth=self.depth, **common),
        )

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Check what was loaded, and prepare it for the device.

        Raises FormatError where a tensor was not among the model's files, or its bytes are no
        trits.
        """
        planes, scale, steps = layer.weight, layer.weight_scale, layer.weight_codebook
        if not isinstance(planes, RowsParameter):  # done before
            return
        self._check_loaded(layer)
        part_rows = layer.part_rows if len(self.matrices) > 1 else None
        own = steps.data if part_rows else steps.data[0]
        call, memory, scale_kept = weights.prepare(
            Packed(planes.data, scale.data, own, layer.columns.width, part_rows), planes.stored
        )
        layer.call = call
        layer.weight = frozen(memory)
        layer.weight_scale = None if scale_kept is None else frozen(scale_kept)
        layer.weight_codebook = frozen(own.clone())

    def _check_loaded(self, layer: nn.Module) -> None:
        rows = sum(layer.part_rows)
        if isinstance(layer, VocabParallelEmbedding):
            rows = layer.num_org_embeddings_per_partition
        for parameter in (layer.weight, layer.weight_scale):
            if parameter.filled < rows:
                names = ", ".join(where(matrix) + parameter.suffix for matrix in self.matrices)
                raise FormatError(f"{names}: only {parameter.filled} of {rows} rows were loaded")
        for part in range(len(layer.part_rows)):
            if part not in layer.weight_codebook.loaded:
                raise FormatError(f"{layer.weight_codebook.stored(part)} was not loaded")

    def apply(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """X [..., K] -> [..., N]."""
        if layer.columns.pads is not None:
            x = nn.functional.pad(x, layer.columns.pads)
        return layer.call.run(x, layer.weight, layer.weight_scale, layer.weight_codebook, bias)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """An output layer that the file holds packed is not the embeddings, which are not."""
        return layer


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    """What a layer keeps of a tensor."""
    return nn.Parameter(tensor, requires_grad=False)


def _load_whole(parameter: Any, loaded_weight: torch.Tensor) -> None:
    """For layers that every rank holds whole."""
    parameter.load_all_rows(loaded_weight)


class _VocabularyRows:
    """Loads a rank's rows of the vocabulary; those that only pad it stay zero."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, parameter: Any, loaded_weight: torch.Tensor) -> None:
        indices = self._layer.shard_indices
        first = indices.org_vocab_start_index
        rows = indices.org_vocab_end_index - first
        if isinstance(parameter, StepsParameter):
            parameter.load_all_rows(loaded_weight)
        elif rows:
            parameter.load_rows(loaded_weight, first, 0, rows, 0)
