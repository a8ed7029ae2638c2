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
from tritllm.integrations.transformers.compat import WeightConverter
from tritllm.integrations.transformers.fused_modules import (
    BIASES,
    DOWN,
    DOWN_BIAS,
    GATE_UP_BIAS,
    fused_leaves,
    is_gated,
    is_interleaved,
    is_plain_gate,
    is_transposed,
    joined,
)
from tritllm.integrations.transformers.layers import float_weight
from tritllm.ops.trit_linear import TritLinear
from tritllm.quantizer.fused_experts import FUSED_EXPERTS

_NORM = "post_expert_norm"
_MERGES = {("MergeModulelist", "Concatenate"): 2, ("MergeModulelist",): 1}


@dataclass(frozen=True)
class ExpertNames:
    """What a checkpoint calls an expert's matrices: gate_proj and up_proj, or up_proj alone, which
    take its input; and down_proj.
    """

    first: tuple[str, ...]
    down: str


class TritExpert(nn.Module):  # type: ignore[misc]
    """One expert's layers, under the checkpoint's names."""

    def __init__(self, names: ExpertNames, hidden: int, inner: int, like: torch.Tensor) -> None:
        super().__init__()
        self.names = names
        where: dict[str, Any] = {"bias": False, "device": like.device, "dtype": like.dtype}
        for name in names.first:
            self.add_module(name, nn.Linear(hidden, inner, **where))
        self.add_module(names.down, nn.Linear(inner, hidden, **where))

    def forward(self, x: torch.Tensor, gated: Callable[..., torch.Tensor]) -> torch.Tensor:
        """down(gated(gate(x), up(x))), X [T, H] -> [T, H]."""
        layers = self._modules
        names = self.names
        return layers[names.down](gated(*(layers[name](x) for name in names.first)))


class TritExperts(nn.Module):  # type: ignore[misc]
    """The experts of a block, in place of a module that has them fused.

    Called as that module is: hidden_states [T, H], top_k_index int [T, k], top_k_weights [T, k];
    returns [T, H]. An index of num_experts or above marks a token that no expert here takes. Biases
    stay as that module has them, [experts, features]; so do the way in which it gates, and the norm
    of what each expert gives.
    """

    def __init__(self, fused: Any, names: ExpertNames) -> None:
        super().__init__()
        like = fused.down_proj
        experts, hidden, inner = like.mT.shape if is_transposed(fused) else like.shape
        for index in range(experts):
            self.add_module(str(index), TritExpert(names, hidden, inner, like))
        self.names = names
        self.num_experts = experts
        if hasattr(fused, "act_fn"):
            self.act_fn = fused.act_fn
        if hasattr(fused, _NORM):
            self.add_module(_NORM, getattr(fused, _NORM))
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
        # transformers sums experts without gates in the weights' dtype.
        dtype = hidden_states.dtype if is_gated(self.fused) else top_k_weights.dtype
        out = torch.zeros_like(hidden_states, dtype=dtype)
        for index in sorted(set(top_k_index.reshape(-1).tolist())):
            if index >= self.num_experts:
                continue
            token, place = torch.where(top_k_index == index)
            result = self._run(index, hidden_states[token])
            result = result * top_k_weights[token, place, None]
            out.index_add_(0, token, result.to(dtype))
        return out.to(hidden_states.dtype)

    def _run(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """One expert, with its biases and norm. x [T, H] -> [T, H]."""
        result: torch.Tensor = self.get_submodule(str(index))(x, partial(self.gated, index))
        bias, norm = self._parameters.get(DOWN_BIAS), self._modules.get(_NORM)
        if bias is not None:
            result = result + bias[index]
        return result if norm is None else norm(result)

    def gated(self, index: int, *results: torch.Tensor) -> torch.Tensor:
        """What goes into an expert's last layer, of the first layers' [T, I]: gate's and up's, or
        up's alone.
        """
        fused, bias = self._fused[0], self._parameters.get(GATE_UP_BIAS)
        if bias is None and is_plain_gate(fused):
            product: torch.Tensor = self.act_fn(results[0])
            return product if len(results) == 1 else product * results[1]
        gate, up = results
        both = joined(gate, up, is_interleaved(fused))
        gated: torch.Tensor = fused._apply_gate(both if bias is None else both + bias[index])
        return gated

    @property
    def fused(self) -> nn.Module:
        """The module in whose place this one is, its experts' parameters on meta."""
        fused: nn.Module = self._fused[0]
        return fused

    def matrices(self, leaf: str, fused: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The name below this module, and the float weight [N, K], of all that a fused parameter
        `leaf` holds.
        """
        stored = fused.mT if is_transposed(self._fused[0]) else fused
        names = (self.names.down,) if leaf == DOWN else self.names.first
        for index, rows in enumerate(stored):
            if len(names) == 2 and is_interleaved(self._fused[0]):
                parts: Sequence[torch.Tensor] = (rows[0::2], rows[1::2])
            else:
                parts = rows.chunk(len(names))
            for name, part in zip(names, parts, strict=True):
                yield f"{index}.{name}", part

    def to_fused(self, dtype: torch.dtype) -> nn.Module:
        """The block as transformers has it, with the experts' dequantized weights."""
        fused = self._fused[0]

        def floats(index: int, leaf: str) -> torch.Tensor:
            return _as_floats(self.get_submodule(f"{index}.{leaf}"), dtype)

        def stack(experts: list[torch.Tensor]) -> nn.Parameter:
            stacked = torch.stack(experts)
            return nn.Parameter(stacked.mT.contiguous() if is_transposed(fused) else stacked)

        def first(index: int) -> torch.Tensor:
            parts = [floats(index, leaf) for leaf in self.names.first]
            if len(parts) == 1:
                return parts[0]
            return joined(parts[0].T, parts[1].T, is_interleaved(fused)).T

        leaves = fused_leaves(fused)
        assert leaves is not None
        every = range(self.num_experts)
        setattr(fused, leaves[0], stack([first(i) for i in every]))
        setattr(fused, leaves[1], stack([floats(i, self.names.down) for i in every]))
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

    Raises TritError for experts that do more than two-layer experts do.
    """
    merges = _merges(conversions)
    used: list[Any] = []
    for name, module in list(model.named_modules()):
        leaves = fused_leaves(module)
        if leaves is None or f"{name}.{leaves[0]}" in fused:
            continue
        first, down = (_match(merges, f"{name}.{leaf}") for leaf in leaves)
        if first is not None and down is not None:
            names: ExpertNames | None = ExpertNames(tuple(_leaves(first)), *_leaves(down))
            used += [first, down]
        else:
            names = names_of_family(model)
        if names is not None:
            model.set_submodule(name, unfused(name, module, names))
    return used


def unfused(name: str, module: Any, names: ExpertNames) -> TritExperts:
    """What takes the place of a module with fused experts, `name` in its model.

    Raises TritError for experts that do more than two-layer experts do.
    """
    normed = getattr(module, "has_post_expert_norm", False)
    known = hasattr(module, "_apply_gate") or hasattr(module, "act_fn")
    if not known or normed != hasattr(module, _NORM):
        raise TritError(
            f"{name}: experts of class {type(module).__name__} cannot run packed; "
            "quantize with --exclude '*experts*', or load the dequantized model"
        )
    by_token = "top_k_weights" in signature(module.forward).parameters
    by_token = by_token or "routing_weights" in signature(module.forward).parameters
    return (TritExperts if by_token else TritSortedExperts)(module, names)


def names_of_family(model: Any) -> ExpertNames | None:
    """The names by which experts of a fused source are packed; None where there is no rule."""
    rows = FUSED_EXPERTS.get(model.config.model_type)
    if rows is None:
        return None
    first = [leaf for row in rows if not row.last for leaf in row.leaves]
    return ExpertNames(tuple(first), *(leaf for row in rows if row.last for leaf in row.leaves))


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
