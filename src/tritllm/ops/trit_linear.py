"""TritLinear: a linear layer whose weight stays packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from tritllm.codec import TritTensor
from tritllm.format.layout import packed_shapes
from tritllm.ops import cpu_kernels, torch_ops
from tritllm.ops.numpy_arrays import NUMPY_OF_TORCH, torch_parts


class TritLinear(nn.Module):  # type: ignore[misc]
    """y = x W^T + bias for packed W [out_features, in_features] = [N, K].

    Buffers, named and shaped as in the file (docs/format.md), and what `state_dict` holds:
        weight uint8 [d, N, ceil(K/5)], weight_scale uint8 [N, ceil(3G/5)],
        weight_codebook float32 [d, 27].
    bias is a parameter [N] of the model's dtype, or None. x and y are [..., K] and [..., N] of
    float32, bfloat16 or float16.

    `prepare()` makes the native kernels' own layout; without it, and on every device but the CPU,
    torch computes. Casting the module casts its bias alone.

    Args:
        transposed: the model stores the float weight as [in_features, out_features] (GPT-2).
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    weight_codebook: torch.Tensor
    prepared: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        depth: int,
        bias: torch.Tensor | None = None,
        *,
        transposed: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.transposed = transposed
        planes, scale, codebook = packed_shapes(out_features, in_features, depth)
        byte = {"dtype": torch.uint8, "device": device}
        self.register_buffer("weight", torch.empty(planes, **byte))
        self.register_buffer("weight_scale", torch.empty(scale, **byte))
        self.register_buffer(
            "weight_codebook", torch.empty(codebook, dtype=torch.float32, device=device)
        )
        self.register_buffer("prepared", None, persistent=False)
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias, requires_grad=False)
        )

    @classmethod
    def from_tensor(
        cls, tensor: TritTensor, bias: torch.Tensor | None = None, *, transposed: bool = False
    ) -> TritLinear:
        """A layer on the CPU that holds an encoded matrix."""
        layer = cls(tensor.shape[1], tensor.shape[0], tensor.depth, bias, transposed=transposed,
                    device="meta")  # fmt: skip
        layer.weight, layer.weight_scale, layer.weight_codebook = torch_parts(tensor)
        return layer

    @property
    def depth(self) -> int:
        """Trit planes that are held and read."""
        return self.weight.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that computing reads: the prepared memory or the packed planes, and the bias."""
        if self.prepared is not None:
            own = self.prepared.nbytes
        else:
            own = self.weight.nbytes + self.weight_scale.nbytes + self.weight_codebook.nbytes
        return own + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., K] -> [..., N]."""
        prepared = self._buffers["prepared"]  # past nn.Module's slow way to attributes
        bias = self._parameters["bias"]
        if prepared is not None:
            return torch_ops.linear_prepared(x, prepared, self.out_features, bias)
        steps = self.weight_codebook[-1]
        return torch_ops.linear(x, self.weight, self.weight_scale, steps, bias)

    def tensor(self) -> TritTensor:
        """The packed matrix as NumPy arrays, sharing the memory where it is the CPU's.

        Raises ValueError where a shape is wrong or the codebook is not finite and ascending.
        """
        return TritTensor(
            self.weight.cpu().numpy(),
            self.weight_scale.cpu().numpy(),
            self.weight_codebook.cpu().numpy(),
            self.in_features,
        )

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The float weight as the model stores it, of `dtype`, on the layer's device."""
        rounded = dtype if dtype in NUMPY_OF_TORCH else torch.float32
        values = self.tensor().decode(
            dtype=NUMPY_OF_TORCH[rounded], threads=torch.get_num_threads()
        )
        bits = torch.from_numpy(values.view(np.uint16 if values.itemsize == 2 else np.float32))
        weight = bits.view(rounded).to(dtype)
        return (weight.t().contiguous() if self.transposed else weight).to(self.weight.device)

    def keep_planes(self, planes: int) -> None:
        """Forget all but the top `planes` planes; on the CPU a view, so the rest is never read."""
        if planes < self.depth:
            weight, codebook = self.weight[:planes], self.weight_codebook[:planes]
            on_cpu = weight.device.type == "cpu"
            self.weight = weight if on_cpu else weight.clone()
            self.weight_codebook = codebook if on_cpu else codebook.clone()
            self.prepared = None

    def prepare(self) -> bool:
        """Make the native kernels' layout from the packed planes; False where they cannot run.

        The planes are then needed only to save, move or dequantize the layer: where they are a
        file's pages, the system is told that it may have them back.
        """
        if self.weight.device.type != "cpu" or not cpu_kernels.available():
            return False
        self.prepared = cpu_kernels.prepare(
            self.weight, self.weight_scale, self.weight_codebook[-1], self.in_features
        )
        cpu_kernels.release_pages(self.weight)
        cpu_kernels.release_pages(self.weight_scale)
        return True

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves go everywhere, casts to the bias alone: the codebook passes by as integers."""
        prepared, self.prepared = self.prepared, None
        self.weight_codebook = self.weight_codebook.view(torch.int32)
        try:
            super()._apply(fn, recurse)
        finally:
            self.weight_codebook = self.weight_codebook.view(torch.float32)
        if self.weight.device.type == "cpu":
            self.prepared = prepared
        return self

    def extra_repr(self) -> str:
        """What print(model) shows."""
        how = "prepared" if self.prepared is not None else "portable"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"depth={self.depth}, bias={self.bias is not None}, {how}"
        )
