"""A packed layer with an RMS norm before it, as transformers' bitnet method has them on request."""

from __future__ import annotations

import torch

from tritllm.ops.trit_linear import TritLinear


class NormedTritLinear(TritLinear):
    """y = rms_norm(x) W^T + bias; the norm's weight is `rms_norm.weight` [in_features].

    No native step runs it: a model with such layers takes transformers' own forward.
    """

    def add_norm(self, dtype: torch.dtype, epsilon: float | None) -> None:
        """Make the norm, on meta."""
        # Here: models cannot be imported yet when tritllm registers with transformers' quantizers.
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        with torch.device("meta"):
            self.rms_norm = LlamaRMSNorm(self.in_features, eps=epsilon).to(dtype)
        self.rms_norm.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `TritLinear.forward`."""
        return super().forward(self.rms_norm(x))
