"""The routed experts of a block of vLLM on packed weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase

from tritllm.checkpoint.packed_headers import StoredMatrix
from tritllm.errors import FormatError, TritError
from tritllm.format.layout import packed_shapes
from tritllm.integrations.vllm import weights
from tritllm.integrations.vllm.cut import Columns
from tritllm.integrations.vllm.experts_operator import ACTIVATIONS, experts
from tritllm.integrations.vllm.linear_method import frozen
from tritllm.integrations.vllm.parameters import RowsParameter, StepsParameter
from tritllm.integrations.vllm.stored import StoredMatrices, where
from tritllm.ops.definitions import Packed

_ALIGNMENT = 256  # bytes between the prepared memories of two experts are a multiple of this


class TritExpertsMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """down(act(gate(x)) * up(x)) for gated experts without biases, one expert after the other.

    The rows of all experts of a rank lie one behind the other: gate and up of the first, of the
    second, and so on, in `w13_*`; their downs in `w2_*`.

    Args:
        moe: vLLM's configuration of the block.
        gate_up: the two matrices of each expert of the model. down: the one.
        stored: says how many planes are read.
    """

    def __init__(
        self,
        moe: Any,
        gate_up: list[StoredMatrix],
        down: list[StoredMatrix],
        stored: StoredMatrices,
    ) -> None:
        super().__init__(moe)
        self.gate_up, self.down = gate_up, down
        self.depths = stored.depth_read(gate_up[0]), stored.depth_read(down[0])

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Register the parameters that vLLM's loaders fill.

        Raises FormatError where a stored shape does not follow from the model's.
        """
        inner = self.moe.intermediate_size
        for matrix in self.gate_up:
            matrix.check(inner, hidden_size)
        for matrix in self.down:
            matrix.check(hidden_size, inner)
        layer.inner = inner // self.moe.tp_size
        whole = Columns.of_rank(hidden_size, 0, 1)
        layer.columns = Columns.of_rank(inner, self.moe.tp_rank, self.moe.tp_size)
        here = [e for e in range(len(self.down)) if _place(layer, e) >= 0]
        here.sort(key=lambda expert: _place(layer, expert))
        own = [[self.gate_up[2 * e + part] for e in here for part in (0, 1)]]
        own.append([self.down[e] for e in here])
        rows = (layer.inner, hidden_size)
        for name, matrices, n, columns, depth in zip(
            ("w13", "w2"), own, rows, (whole, layer.columns), self.depths, strict=True
        ):
            shapes = packed_shapes(n * len(matrices), columns.width, depth)
            common: Any = {"matrices": matrices, "weight_loader": _Loader(layer, n)}
            planes = RowsParameter(shapes[0], columns=columns, **common)
            layer.register_parameter(f"{name}_weight", planes)
            scale = RowsParameter(shapes[1], columns=columns, **common)
            layer.register_parameter(f"{name}_weight_scale", scale)
            steps = StepsParameter(len(matrices), depth=depth, **common)
            layer.register_parameter(f"{name}_weight_codebook", steps)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check what was loaded, and prepare each expert for the device; raises FormatError."""
        if not isinstance(layer.w13_weight, RowsParameter):  # done before
            return
        inner = layer.inner
        for name, parts in (("w13", [inner, inner]), ("w2", None)):
            planes = getattr(layer, f"{name}_weight")
            scale = getattr(layer, f"{name}_weight_scale")
            steps = getattr(layer, f"{name}_weight_codebook")
            _check_loaded(planes, scale, steps)
            count = len(planes.matrices) // (len(parts) if parts else 1)
            call, made = _prepare_each(planes, scale.data, steps.data, count, parts)
            setattr(layer, f"{name}_call", call.numbers())
            for suffix, tensor in zip(("", "_scale", "_codebook"), made, strict=True):
                own = None if tensor is None else frozen(tensor)
                setattr(layer, f"{name}_weight{suffix}", own)

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        """None: no kernel of vLLM's own runs them."""

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        """X [T, H] -> [T, H], of which vLLM adds up the ranks' results."""
        return experts(
            x, topk_weights, topk_ids, layer.expert_map, layer.activation.value,
            layer.w13_weight, layer.w13_weight_scale, layer.w13_weight_codebook, layer.w13_call,
            layer.w2_weight, layer.w2_weight_scale, layer.w2_weight_codebook, layer.w2_call,
            list(layer.columns.pads or (0, 0)),
        )  # fmt: skip


def check_supported(layer: Any, matrix: StoredMatrix) -> None:
    """Raise TritError for experts that do more than plain gated ones. matrix: one of theirs."""
    moe, activation = layer.moe_config, layer.activation.value
    extras = [layer.swiglu_limit, layer.swiglu_alpha, layer.swiglu_beta]
    if (
        activation not in ACTIVATIONS
        or moe.has_bias
        or layer.apply_router_weight_on_input
        or any(extra is not None for extra in extras)
    ):
        more = [", biases"] if moe.has_bias else []
        more += [", weighted inputs"] if layer.apply_router_weight_on_input else []
        raise TritError(
            f"{where(matrix)}: experts of this kind ({activation}{''.join(more)}) cannot run "
            "packed in vLLM; quantize with --exclude '*experts*', or serve the dequantized model"
        )


def _place(layer: Any, expert: int) -> int:
    """Where an expert of the model is among those of this rank; -1 for another's."""
    return int(layer._map_global_expert_id_to_local_expert_id(expert))


class _Loader:
    """Loads one of an expert's matrices; `rows`: that the rank has of it."""

    def __init__(self, layer: Any, rows: int) -> None:
        self._layer, self._rows = layer, rows

    def __call__(
        self,
        param: Any,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
        return_success: bool = False,
    ) -> bool | None:
        place = _place(self._layer, expert_id)
        if place >= 0:
            down = shard_id == "w2"
            part = place if down else 2 * place + (shard_id == "w3")
            if isinstance(param, StepsParameter):
                param.load_part(loaded_weight, part)
            else:
                first = 0 if down else self._layer.moe_config.tp_rank * self._rows
                param.load_rows(loaded_weight, first, part * self._rows, self._rows, part)
        return place >= 0 if return_success else None


def _check_loaded(planes: RowsParameter, scale: RowsParameter, steps: StepsParameter) -> None:
    for part in range(len(planes.matrices)):
        for parameter in (planes, scale, steps):
            if part not in parameter.loaded:
                raise FormatError(f"{parameter.stored(part)} was not loaded")


def _prepare_each(
    planes: RowsParameter,
    scale: torch.Tensor,
    steps: torch.Tensor,
    count: int,
    parts: list[int] | None,
) -> tuple[weights.Call, tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    """The call of each of `count` experts, and memory, scale and steps [count, ...] of all."""
    each = len(parts) if parts else 1  # matrices an expert
    own_planes = planes.data.unflatten(1, (count, -1)).transpose(0, 1)
    own_scale = scale.unflatten(0, (count, -1))
    own_steps = (steps.view(count, each, -1) if parts else steps).clone()
    memories: torch.Tensor | None = None
    for expert in range(count):
        first = expert * each
        call, memory, _ = weights.prepare(
            Packed(
                own_planes[expert], own_scale[expert], own_steps[expert], planes.columns.width,
                parts,
            ),
            partial(_stored, planes, first),
        )  # fmt: skip
        if call.layout:
            if memories is None:
                stride = -(-call.nbytes // _ALIGNMENT) * _ALIGNMENT
                memories = memory.new_empty((count, stride))
            memories[expert, : call.nbytes] = memory
    if memories is None:
        return call, (own_planes, own_scale, own_steps)
    return call, (memories, None, own_steps)


def _stored(planes: RowsParameter, first: int, part: int) -> str:
    return planes.stored(first + part)
