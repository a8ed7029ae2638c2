"""Matrices between torch tensors and NumPy arrays."""

from __future__ import annotations

import numpy as np
import torch

from tritllm.codec import TritTensor
from tritllm.ops.dtypes import NUMPY_OF_TORCH


def torch_parts(tensor: TritTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Planes, scale indices and codebook as torch tensors that share the arrays' memory."""
    parts = (tensor.weight, tensor.scale, tensor.codebook)
    planes, scale, codebook = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return planes, scale, codebook


def numpy_matrix(weight: torch.Tensor) -> np.ndarray:
    """A float matrix as NumPy has it, bfloat16 included; other dtypes as float32."""
    weight = weight.detach().cpu().contiguous()
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.uint16).numpy().view(NUMPY_OF_TORCH[torch.bfloat16])
    return (weight if weight.dtype in NUMPY_OF_TORCH else weight.float()).numpy()
