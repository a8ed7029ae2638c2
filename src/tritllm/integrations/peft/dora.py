"""DoRA on a packed layer: y = m / ||W + scaling B A|| (W + scaling B A) x, norms those of the rows.

peft's own layer asks the base for its whole float weight, and multiplies the identity by A and B.
Here rows are decoded a block at a time, when the norms are taken and not before.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant

from tritllm.ops.trit_linear import TritLinear


class TritDora(DoraLinearVariant):  # type: ignore[misc]
    """peft's variant, with this file's layer in the place of its own."""

    @staticmethod
    def init(module: Any, adapter_name: str, **_: Any) -> None:
        """Add the magnitudes of an adapter to a LoRA layer: at first the norms of its rows."""
        if not module.lora_magnitude_vector:
            module.adapter_layer_names = (*module.adapter_layer_names, "lora_magnitude_vector")
        layer = TritDoraLayer(fan_in_fan_out=False)
        layer.update_layer(
            base_layer=module.get_base_layer(),
            lora_A=module.lora_A[adapter_name].weight,
            lora_B=module.lora_B[adapter_name].weight,
            scaling=module.scaling[adapter_name],
        )
        module.lora_magnitude_vector[adapter_name] = layer


class TritDoraLayer(DoraLinearLayer):  # type: ignore[misc]
    """Magnitudes [N] of a packed layer's rows, and what DoRA adds to its result."""

    def update_layer(
        self,
        *,
        base_layer: TritLinear,
        lora_A: torch.Tensor,
        lora_B: torch.Tensor,
        scaling: float,
        place_on_cpu: bool = False,
    ) -> None:
        """Make the magnitudes. Arguments as peft passes them; place_on_cpu has no use here."""
        self.weight = torch.nn.Parameter(row_norms(base_layer, lora_A, lora_B, scaling))

    def factor(self, base: TritLinear, a: torch.Tensor, b: torch.Tensor, s: float) -> torch.Tensor:
        """m / ||W + s B A||, [N]; the norms have no gradient, as in the paper (section 4.3)."""
        return self.weight / row_norms(base, a, b, s)

    def forward(
        self,
        x: torch.Tensor,
        *,
        lora_A: Any,
        lora_B: Any,
        scaling: float,
        base_layer: TritLinear,
        base_result: torch.Tensor | None = None,
        adapter_name: str = "default",
    ) -> torch.Tensor:
        """What is added to the base's result. base_result: that, unless it is to be of this x."""
        factor = self.factor(base_layer, lora_A.weight, lora_B.weight, scaling)
        if base_result is None:
            base_result = base_layer(x)
        if base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        return (factor - 1) * base_result + factor * lora_B(lora_A(x)) * scaling


@torch.no_grad()
def row_norms(layer: TritLinear, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """||W + scaling B A|| of each row, [N] in B's dtype; a: [r, K], b: [N, r]."""
    norms = []
    for rows, weight in layer.weights().blocks(torch.float32):
        weight.addmm_(b[rows].float(), a.float(), alpha=scaling)
        norms.append(torch.linalg.vector_norm(weight, dim=1))
    return torch.cat(norms).to(b.dtype)
