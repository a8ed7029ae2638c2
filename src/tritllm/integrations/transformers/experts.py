"""Mixture-of-experts blocks with one packed linear layer a matrix and expert.

transformers holds the experts of a block fused in two 3-D parameters, and merges a checkpoint's
per-expert matrices at load where it has them. Packed matrices each have a codebook, may differ in
depth, and are never expanded, so here the experts stay apart, under the names that the file gives
them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn

from tritllm.errors import TritError
from tritllm.integrations.transformers.compat import WeightConverter, experts_gate
from tritllm.integrations.transformers.layers import float_weight
from tritllm.ops.trit_linear import TritLinear
from tritllm.quantizer.fused_experts import FUSED_EXPERTS

GATE_UP, DOWN = "gate_up_proj", "down_proj"
BIASES = GATE_UP_BIAS, DOWN_BIAS = "gate_up_proj_bias", "down_proj_bias"
_MERGES = {("MergeModulelist", "Concatenate"): 2, ("MergeModulelist",): 1}


@dataclass(frozen=True)
class ExpertNames:
    """What a checkpoint calls an expert's three matrices: gate_proj, up_proj, down_proj."""

    gate: str
    up: str
    down: str


class TritExpert(nn.Module):  # type: ignore[misc]
    """One expert's three layers, under the checkpoint's names."""

    def __init__(self, names: ExpertNames, hidden: int, inner: int, like: torch.Tensor) -> None:
        super().__init__()
        self.names = names
        where: dict[str, Any] = {"bias": False, "device": like.device, "dtype": like.dtype}
        self.add_module(names.gate, nn.Linear(hidden, inner, **where))
        self.add_module(names.up, nn.Linear(hidden, inner, **where))
        self.add_module(names.down, nn.Linear(inner, hidden, **where))

    def forward(
        self, x: torch.Tensor, gated: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """down(gated(gate(x), up(x))), X [T, H] -> [T, H]."""
        layers = self._modules
        names = self.names
        return layers[names.down](gated(layers[names.gate](x), layers[names.up](x)))


class TritExperts(nn.Module):  # type: ignore[misc]
    """The experts of a block, in place of a module with fused `gate_up_proj` and `down_proj`.

    Called as that module is: hidden_states [T, H], top_k_index int [T, k], top_k_weights [T, k];
    returns [T, H]. An index of num_experts or above marks a token that no expert here takes. Biases
    stay as that module has them, [experts, features]; so does the way in which it gates.
    """

    def __init__(self, fused: Any, names: ExpertNames) -> None:
        super().__init__()
        like = fused.gate_up_proj
        experts, double, hidden = like.mT.shape if is_transposed(fused) else like.shape
        for index in range(experts):
            self.add_module(str(index), TritExpert(names, hidden, double // 2, like))
        self.names = names
        self.num_experts = experts
        if hasattr(fused, "act_fn"):
            self.act_fn = fused.act_fn
        for leaf in BIASES:
            if (bias := getattr(fused, leaf, None)) is not None:
                self.register_parameter(leaf, bias)
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
            result = self._run(index, hidden_states[token])
            result = result * top_k_weights[token, place, None]
            out.index_add_(0, token, result.to(out.dtype))
        return out

    def _run(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """One expert, with its biases. x [T, H] -> [T, H]."""
        result: torch.Tensor = self.get_submodule(str(index))(x, partial(self.gated, index))
        bias = self._parameters.get(DOWN_BIAS)
        return result if bias is None else result + bias[index]

    def gated(self, index: int, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """What goes into an expert's last layer, of its gate and up layers' [T, I]."""
        fused, bias = self._fused[0], self._parameters.get(GATE_UP_BIAS)
        if bias is None and is_plain_gate(fused):
            product: torch.Tensor = self.act_fn(gate) * up
            return product
        both = _joined(gate, up, is_interleaved(fused))
        gated: torch.Tensor = fused._apply_gate(both if bias is None else both + bias[index])
        return gated

    @property
    def fused(self) -> nn.Module:
        """The module in whose place this one is, its experts' parameters on meta."""
        fused: nn.Module = self._fused[0]
        return fused

    def matrices(self, leaf: str, fused: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The name below this module, and the float weight [N, K], of all that a fused parameter
        `leaf` holds: gate_up_proj or down_proj.
        """
        stored = fused.mT if is_transposed(self._fused[0]) else fused
        for index, rows in enumerate(stored):
            if leaf == DOWN:
                yield f"{index}.{self.names.down}", rows
                continue
            halves = (rows[0::2], rows[1::2]) if is_interleaved(self._fused[0]) else rows.chunk(2)
            for name, half in zip((self.names.gate, self.names.up), halves, strict=True):
                yield f"{index}.{name}", half

    def to_fused(self, dtype: torch.dtype) -> nn.Module:
        """The block as transformers has it, with the experts' dequantized weights."""
        fused = self._fused[0]

        def floats(index: int, leaf: str) -> torch.Tensor:
            return _as_floats(self.get_submodule(f"{index}.{leaf}"), dtype)

        def stack(experts: list[torch.Tensor]) -> nn.Parameter:
            stacked = torch.stack(experts)
            return nn.Parameter(stacked.mT.contiguous() if is_transposed(fused) else stacked)

        names, every = self.names, range(self.num_experts)
        fused.gate_up_proj = stack(
            [
                _joined(floats(i, names.gate).T, floats(i, names.up).T, is_interleaved(fused)).T
                for i in every
            ]
        )
        fused.down_proj = stack([floats(i, names.down) for i in every])
        for leaf in BIASES:
            if leaf in self._parameters:
                setattr(fused, leaf, nn.Parameter(self._parameters[leaf].detach().to(dtype)))
        return fused


class TritSortedExperts(TritExperts):
    """Experts that get every token, [experts * T, H] by expert, zero where they are not chosen.

    As Llama 4 calls them. A zero row gives zero, and is not computed.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Each expert on its rows that are not zero."""
        rows = hidden_states.view(self.num_experts, -1, hidden_states.shape[-1])
        out = []
        for index, mine in enumerate(rows):
            (chosen,) = torch.where(mine.any(dim=-1))
            empty = torch.zeros_like(mine)
            result = self._run(index, mine[chosen]) if len(chosen) else mine[chosen]
            out.append(empty.index_copy(0, chosen, result.to(empty.dtype)))
        return torch.stack(out).view(hidden_states.shape)


def _joined(gate: torch.Tensor, up: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Gate and up, [..., I] each, as one [..., 2 I]."""
    if interleaved:
        return torch.stack((gate, up), dim=-1).flatten(-2)
    return torch.cat((gate, up), dim=-1)


def _as_floats(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] of a packed or an ordinary layer."""
    if isinstance(layer, TritLinear):
        return float_weight(layer, dtype)
    weight: torch.Tensor = layer.weight.detach().to(dtype)
    return weight


def unfuse_experts(
    model: nn.Module, conversions: Sequence[Any], fused: Collection[str] = ()
) -> list[Any]:
    """Replace the fused experts of a model on meta; returns the conversions that fused them.

    conversions: transformers' weight conversions of the model, which tell the checkpoint's names.
    fused: names of parameters of the model that a checkpoint has fused, which stay.

    Raises TritError for experts that do more than gated two-layer experts do.
    """
    merges = _merges(conversions)
    used: list[Any] = []
    for name, module in list(model.named_modules()):
        if not is_fused(module) or f"{name}.{GATE_UP}" in fused:
            continue
        gate_up, down = (_match(merges, f"{name}.{p}") for p in (GATE_UP, DOWN))
        if gate_up is not None and down is not None:
            (gate, up), (down_leaf,) = _leaves(gate_up), _leaves(down)
            names: ExpertNames | None = ExpertNames(gate, up, down_leaf)
            used += [gate_up, down]
        else:
            names = names_of_family(model)
        if names is not None:
            model.set_submodule(name, unfused(name, module, names))
    return used


def unfused(name: str, module: Any, names: ExpertNames) -> TritExperts:
    """What takes the place of a module with fused experts, `name` in its model.

    Raises TritError for experts that do more than gated two-layer experts do.
    """
    if getattr(module, "has_post_expert_norm", False) or not (
        hasattr(module, "_apply_gate") or hasattr(module, "act_fn")
    ):
        raise TritError(
            f"{name}: experts of class {type(module).__name__} cannot run packed; "
            "quantize with --exclude '*experts*', or load the dequantized model"
        )
    by_token = "top_k_weights" in signature(module.forward).parameters
    by_token = by_token or "routing_weights" in signature(module.forward).parameters
    return (TritExperts if by_token else TritSortedExperts)(module, names)


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds its experts in two 3-D parameters, gates and ups in one of them."""
    return all(
        isinstance(parameter := getattr(module, leaf, None), torch.Tensor) and parameter.ndim == 3
        for leaf in (GATE_UP, DOWN)
    )


def is_transposed(fused: Any) -> bool:
    """Whether fused experts are [experts, in, out]."""
    hidden: int = fused.down_proj.shape[2]  # or I, of which the other has 2 I
    return fused.gate_up_proj.shape[1] == hidden


def is_interleaved(fused: Any) -> bool:
    """Whether the rows of gate and up alternate."""
    return not getattr(fused, "is_concatenated", True)


def is_plain_gate(fused: Any) -> bool:
    """Whether fused experts gate by act_fn(gate) * up."""
    return experts_gate(fused) in (None, "transformers.integrations.moe")


def names_of_family(model: Any) -> ExpertNames | None:
    """The names by which experts of a fused source are packed; None where there is no rule."""
    rows = FUSED_EXPERTS.get(model.config.model_type)
    return None if rows is None else ExpertNames(*rows[0].leaves, *rows[1].leaves)


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
