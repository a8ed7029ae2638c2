"""Packed layers of a model: which there are, and one in place of an ordinary layer and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from tritllm.errors import FormatError, TritError
from tritllm.integrations.transformers.compat import Conv1D
from tritllm.integrations.transformers.normed_linear import NormedTritLinear
from tritllm.ops.dtypes import NUMPY_OF_TORCH
from tritllm.ops.trit_linear import TritLinear


def packed_layers(model: nn.Module) -> dict[str, TritLinear]:
    """Every packed layer by its name."""
    return {n: module for n, module in model.named_modules() if isinstance(module, TritLinear)}


def layers_of_planes(model: Any) -> list[TritLinear]:
    """The packed layers whose planes are the model's: not an output layer that `lm_head_depth`
    packed.
    """
    config = getattr(model.config, "quantization_config", None)
    own = getattr(config, "lm_head_depth", None)
    head = None if own is None else model.get_output_embeddings()
    return [layer for layer in packed_layers(model).values() if layer is not head]


def packed_like(
    module: nn.Module, depth: int, where: str, input_norm_eps: float | None = None
) -> TritLinear:
    """An empty packed layer on meta in place of a linear one; with a norm before it, or without.

    where: named in the error, a FormatError for a module that is not a linear layer.
    """
    if isinstance(module, nn.Linear):
        out_features, in_features, transposed = module.out_features, module.in_features, False
    elif isinstance(module, Conv1D):
        out_features, in_features, transposed = module.nf, module.nx, True
    else:
        raise FormatError(f"{where}: {type(module).__name__} is not a linear layer")
    layer = TritLinear if input_norm_eps is None else NormedTritLinear
    packed = layer(
        in_features, out_features, depth, module.bias, transposed=transposed, device="meta"
    )
    if isinstance(packed, NormedTritLinear):
        packed.add_norm(module.weight.dtype, input_norm_eps)
    return packed


def float_layer(layer: TritLinear, dtype: torch.dtype) -> nn.Module:
    """An ordinary layer with the numbers that a packed one stands for, rounded to dtype.

    Raises TritError for a layer with a norm before it, which no ordinary layer has.
    """
    if isinstance(layer, NormedTritLinear):
        raise TritError(
            "dequantize: these layers have norms before them, which no linear layer has"
        )
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype))
    with torch.device("meta"):
        if layer.transposed:
            plain: Any = Conv1D(layer.out_features, layer.in_features)
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None)
    plain.weight = nn.Parameter(float_weight(layer, dtype))
    plain.bias = bias
    return plain


def float_weight(layer: TritLinear, dtype: torch.dtype) -> torch.Tensor:
    """The float weight of the planes that a packed layer reads, as the model stores it."""
    rounded = dtype if dtype in NUMPY_OF_TORCH else torch.float32
    values = layer.tensor().decode(
        layer.planes, NUMPY_OF_TORCH[rounded], threads=torch.get_num_threads()
    )
    bits = torch.from_numpy(values.view(np.uint16 if values.itemsize == 2 else np.float32))
    weight = bits.view(rounded).to(dtype)
    return (weight.t().contiguous() if layer.transposed else weight).to(layer.weight.device)
