"""A packed output layer (lm_head) in a model whose file keeps it as floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tritllm.codec import encode
from tritllm.errors import TritError
from tritllm.integrations.transformers.compat import untie
from tritllm.ops.numpy_arrays import numpy_matrix
from tritllm.ops.trit_linear import TritLinear


def pack_output_layer(model: Any, depth: int) -> TritLinear | None:
    """Quantize lm_head and return it; None for a model that has none.

    One that is packed already stays; one tied to the embeddings is untied, for they stay as they
    are. Raises TritError for an output layer that is not linear or not finite.
    """
    head = model.get_output_embeddings()
    if head is None or isinstance(head, TritLinear):
        return head
    name = next(name for name, module in model.named_modules() if module is head)
    if not isinstance(head, nn.Linear):
        raise TritError(f"lm_head_depth: {name} is {type(head).__name__}, not a linear layer")
    try:
        tensor = encode(numpy_matrix(head.weight), depth, threads=torch.get_num_threads())
    except ValueError as error:
        raise TritError(f"lm_head_depth: tensor {name}.weight: {error}") from None
    layer = TritLinear.from_tensor(tensor, head.bias).to(head.weight.device)
    model.set_submodule(name, layer)
    untie(model, name)
    return layer
