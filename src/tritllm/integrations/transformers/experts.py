"""Mixture-of-experts blocks with one packed linear layer a matrix and expert.

transformers holds the experts of a block fused in two 3-D parameters and merges a checkpoint's
per-expert matrices at load. Packed matrices each have a codebook, may differ in depth, and are
never expanded, so here the experts stay apart, under the names that the file gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tritllm.errors import TritError
from tritllm.integrations.transformers.compat import WeightConverter, experts_gate
from tritllm.integrations.transformers.layers import float_weight
from tritllm.ops.trit_linear import TritLinear

_MERGES = {("MergeModulelist", "Concatenate"): 2, ("MergeModulelist",): 1}


@dataclass(frozen=True)
class ExpertNames:
    """What a checkpoint calls an expert's three matrices: gate_proj, up_proj, down_proj."""

    gate: str
    up: str
    down: str


class TritExpert(nn.Module):  # type: ignore[misc]
    """One expert: down(act(gate(x)) * up(x)), its layers under the checkpoint's names."""

    def __init__(self, names: ExpertNames, hidden: int, inner: int, like: torch.Tensor) -> None:
        super().__init__()
        self.names = names
        where: dict[str, Any] = {"bias": False, "device": like.device, "dtype": like.dtype}
        self.add_module(names.gate, nn.Linear(hidden, inner, **where))
        self.add_module(names.up, nn.Linear(hidden, inner, **where))
        self.add_module(names.down, nn.Linear(inner, hidden, **where))

    def forward(self, x: torch.Tensor, activation: nn.Module) -> torch.Tensor:
        """X [T, H] -> [T, H]."""
        layers = self._modules
        names = self.names
        gated = activation(layers[names.gate](x)) * layers[names.up](x)
        return layers[names.down](gated)


class TritExperts(nn.Module):  # type: ignore[misc]
    """The experts of a block, in place of a module with fused `gate_up_proj` and `down_proj`.

    Called as that module is: hidden_states [T, H], top_k_index int [T, k], top_k_weights [T, k];
    returns [T, H]. An index of num_experts or above marks a token that no expert here takes.
    """

    def __init__(self, fused: Any, names: ExpertNames) -> None:
        experts, double, hidden = fused.gate_up_proj.shape
        like = fused.gate_up_proj
        super().__init__()
        for index in range(experts):
            self.add_module(str(index), TritExpert(names, hidden, double // 2, like))
        self.names = names
        self.num_experts = experts
        self.act_fn = fused.act_fn
        self._fused = (fused,)  # in a tuple: not a module of this one

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """Each token by the experts it chose, weighted and summed in the experts' order."""
        out = torch.zeros_like(hidden_states)
        for index in sorted(set(top_k_index.reshape(-1).tolist())):
            if index >= self.num_experts:
                continue
            token, place = torch.where(top_k_index == index)
            expert = self.get_submodule(str(index))
            result = expert(hidden_states[token], self.act_fn)
            result = result * top_k_weights[token, place, None]
            out.index_add_(0, token, result.to(out.dtype))
        return out

    def to_fused(self, dtype: torch.dtype) -> nn.Module:
        """The block as transformers has it, with the experts' dequantized weights."""
        fused = self._fused[0]

        def stack(*leaves: str) -> nn.Parameter:
            experts = []
            for index in range(self.num_experts):
                layers = [self.get_submodule(f"{index}.{leaf}") for leaf in leaves]
                experts.append(torch.cat([_as_floats(layer, dtype) for layer in layers]))
            return nn.Parameter(torch.stack(experts))

        fused.gate_up_proj = stack(self.names.gate, self.names.up)
        fused.down_proj = stack(self.names.down)
        return fused


def _as_floats(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] of a packed or an ordinary layer."""
    if isinstance(layer, TritLinear):
        return float_weight(layer, dtype)
    weight: torch.Tensor = layer.weight.detach().to(dtype)
    return weight


def unfuse_experts(model: nn.Module, conversions: Sequence[Any]) -> list[Any]:
    """Replace the fused experts of a model on meta; returns the conversions that fused them.

    conversions: transformers' weight conversions of the model, which tell the checkpoint's names.

    Raises TritError for experts that do more than gated two-layer experts do.
    """
    merges = _merges(conversions)
    used: list[Any] = []
    for name, module in list(model.named_modules()):
        gate_up, down = (_match(merges, f"{name}.{p}") for p in ("gate_up_proj", "down_proj"))
        if gate_up is None or down is None or not hasattr(module, "gate_up_proj"):
            continue
        _check_supported(name, module)
        (gate, up), (down_leaf,) = _leaves(gate_up), _leaves(down)
        model.set_submodule(name, TritExperts(module, ExpertNames(gate, up, down_leaf)))
        used += [gate_up, down]
    return used


def _merges(conversions: Sequence[Any]) -> list[Any]:
    """Converters that stack per-expert matrices into one parameter, and nothing more."""
    found = []
    for conversion in conversions:
        if not isinstance(conversion, WeightConverter):
            continue
        operations = tuple(type(operation).__name__ for operation in conversion.operations)
        sources = conversion.source_patterns
        if _MERGES.get(operations) == len(sources) and all(".*." in s for s in sources):
            found.append(conversion)
    return found


def _match(merges: Sequence[Any], parameter: str) -> Any:
    for conversion in merges:
        target = conversion.target_patterns[0].lstrip(".")
        if parameter == target or parameter.endswith(f".{target}"):
            return conversion
    return None


def _leaves(conversion: Any) -> list[str]:
    """[gate_proj, up_proj] of patterns such as mlp.experts.*.gate_proj.weight."""
    return [source.replace("\\", "").split(".")[-2] for source in conversion.source_patterns]


def _check_supported(name: str, module: Any) -> None:
    plain_gate = experts_gate(module) in (None, "transformers.integrations.moe")
    plain = not any(
        getattr(module, flag, False)
        for flag in ("is_transposed", "has_bias", "has_post_expert_norm")
    )
    if not plain_gate or not plain or not hasattr(module, "act_fn"):
        raise TritError(
            f"{name}: experts of class {type(module).__name__} cannot run packed; "
            "quantize with --exclude '*experts*', or load the dequantized model"
        )
