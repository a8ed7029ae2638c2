"""A model of transformers without its weights, and parts of it filled from the source on demand.

The architecture is built with parameters on meta; buffers are real, since no checkpoint has them.
Experts of a mixture stay apart, under the names by which they are packed, whether the checkpoint
stores them one by one or fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tritllm.errors import SourceError, TritError, first_line
from tritllm.extras import require
from tritllm.format.safetensors_header import TensorEntry
from tritllm.integrations.transformers.compat import (
    Conv1D,
    WeightConverter,
    WeightRenaming,
    get_model_conversion_mapping,
    name_in_model,
)
from tritllm.integrations.transformers.empty_model import (
    TORCH_OF_SAFETENSORS,
    empty_model,
    filled_config,
)
from tritllm.integrations.transformers.experts import TritExperts, unfuse_experts
from tritllm.quantizer.fused_experts import expert_matrices
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.source import Source


@dataclass(frozen=True)
class _Stored:
    """Where a parameter of the model is: all of a shard's tensor, or one expert's matrix in it."""

    shard: str
    entry: TensorEntry
    matrix: SourceMatrix | None = None

    @property
    def name(self) -> str:
        """Of the tensor, or the name by which the expert's matrix is packed."""
        return self.matrix.name if self.matrix else self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape if self.matrix else self.entry.shape


class Skeleton:
    """A model of which any part can be filled from its source, and emptied.

    Attributes:
        model: the module, in evaluation mode; parameters are on meta until they are filled.
        planned: by the model's name of a module, the matrix that is packed and is its weight.
        blocks: the modules that the model runs one after the other, by name, in order.
        tables: as `planned`, the embedding tables that are quantized.
        absent: names of matrices that are no linear layer of this model, and why.

    Raises TritError where transformers cannot build the model, or it is none that can be
    calibrated; without calibration it can still be quantized.
    """

    def __init__(self, source: Source, quantized: Sequence[SourceMatrix]) -> None:
        self.source = source
        self.model = _build(source)
        self._stored: dict[str, _Stored] = {}
        self._piece: tuple[tuple[str, int], np.ndarray] | None = None  # read last
        self._name_tensors()
        matrices = {matrix.name: matrix for matrix in quantized}
        self.planned: dict[str, SourceMatrix] = {}
        self.tables: dict[str, SourceMatrix] = {}
        for name, stored in self._stored.items():
            if stored.name not in matrices:
                continue
            module = self.model.get_submodule(name.removesuffix(".weight"))
            if is_linear(module):
                self.planned[name.removesuffix(".weight")] = matrices[stored.name]
            elif isinstance(module, nn.Embedding):
                self.tables[name.removesuffix(".weight")] = matrices[stored.name]
        found = {matrix.name for matrix in self.planned.values()}
        why = f"not a linear layer of {type(self.model).__name__}"
        self.absent = {matrix.name: why for matrix in quantized if matrix.name not in found}
        self.blocks = _blocks(self.model, self.planned, source.files.name)

    def _name_tensors(self) -> None:
        """What the model calls each tensor of the source, and each expert in one."""
        source, conversions = self.source, get_model_conversion_mapping(self.model)
        kind, text_config = source.model_type, source.text_config
        fused = {e.name: expert_matrices(e, kind, text_config) for e in source.tensors}
        apart = any(fused.values()) or any(".experts.0." in name for name in fused)
        known = self.model.state_dict()
        used = unfuse_experts(self.model, conversions) if apart else []
        targets = [conversion.target_patterns for conversion in used]
        left = [c for c in conversions if c.target_patterns not in targets]
        renamings = [c for c in left if isinstance(c, WeightRenaming)]
        state = self.model.state_dict()
        known |= state
        for shard in source.shards:
            for entry in shard.header.entries.values():
                name = name_in_model(entry.name, renamings, self.model, known)
                if name in state:
                    self._stored[name] = _Stored(shard.name, entry)
                elif fused[entry.name] and name in known:
                    self._name_experts(name, shard.name, entry, fused[entry.name])
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        self._tied = {name: other for name, other in tied.items() if name not in self._stored}
        names = [name for name, _ in self.model.named_parameters()]
        missing = [name for name in names if self._tied.get(name, name) not in self._stored]
        shapes = {name: tuple(state[name].shape) for name in self._stored}
        missing += [name for name, stored in self._stored.items() if stored.shape != shapes[name]]
        if missing:
            converted = any(isinstance(conversion, WeightConverter) for conversion in left)
            note = " (transformers converts it while loading)" if converted else ""
            raise TritError(
                f"{source.files.name}: cannot be calibrated: parameter {missing[0]} of "
                f"{type(self.model).__name__} is no tensor of the source{note}; "
                "quantize without calibration"
            )

    def _name_experts(
        self, name: str, shard: str, entry: TensorEntry, matrices: Sequence[SourceMatrix]
    ) -> None:
        """The matrices of a tensor that holds experts; name: of the parameter it would be."""
        mixture, _, leaf = name.rpartition(".")
        experts: TritExperts = self.model.get_submodule(mixture)
        below = [part for part, _ in experts.matrices(leaf, getattr(experts.fused, leaf))]
        for part, matrix in zip(below, matrices, strict=True):
            self._stored[f"{mixture}.{part}.weight"] = _Stored(shard, entry, matrix)

    def is_transposed(self, module: str) -> bool:
        """Whether the model has a quantized module's weight [in_features, out_features]."""
        matrix = self.planned.get(module) or self.tables[module]
        return matrix.transposed and matrix.slice_of is None

    def weight(self, module: str) -> torch.Tensor:
        """The source's weight of a quantized module, float32 [out_features, in_features]."""
        weight = self._read(f"{module}.weight").float()
        return weight.T.contiguous() if self.is_transposed(module) else weight

    def fill(self, root: str, device: torch.device) -> None:
        """Fill the parameters at and below a module, float32, and move its buffers."""
        for name in self._below(root):
            self._set(name, self._read(name).to(device))
        for module in self.model.get_submodule(root).modules():
            _move_buffers(module, device)

    def fill_all(self, device: torch.device) -> None:
        """Fill the whole model; parameters that are tied are one."""
        self.fill("", device)
        for name, other in self._tied.items():
            module, _, leaf = name.rpartition(".")
            tied = self.model.get_parameter(other)
            self.model.get_submodule(module)._parameters[leaf] = tied

    def entry(self, name: str) -> TensorEntry:
        """The source's tensor that is, or holds, a parameter, by the model's name for it."""
        return self._stored[self._tied.get(name, name)].entry

    @contextmanager
    def outside(self, device: torch.device) -> Iterator[None]:
        """Within it what lies outside the blocks is filled as soon as it is called."""
        inside = tuple(f"{name}." for name in self.blocks)
        filled: list[str] = []
        handles = []

        def hook(module_name: str) -> Any:
            prefix = f"{module_name}." if module_name else ""

            def fill(module: nn.Module, *_: Any) -> None:
                for leaf, parameter in module._parameters.items():
                    if parameter is not None and parameter.device.type == "meta":
                        name = prefix + leaf
                        self._set(name, self._read(self._tied.get(name, name)).to(device))
                        filled.append(name)

            return fill

        for name, module in self.model.named_modules():
            if name in self.blocks or name.startswith(inside):
                continue
            _move_buffers(module, device)
            handles.append(module.register_forward_pre_hook(hook(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name in filled:
                self._set(name, self.model.get_parameter(name).to("meta"))

    def empty(self, root: str) -> None:
        """Forget the parameters at and below a module; its buffers stay, as they are small."""
        prefix = f"{root}." if root else ""
        for name, parameter in list(self.model.get_submodule(root).named_parameters()):
            self._set(prefix + name, parameter.to("meta"))

    def _below(self, root: str) -> Iterator[str]:
        prefix = f"{root}." if root else ""
        return (name for name in self._stored if name.startswith(prefix))

    def _set(self, name: str, value: torch.Tensor) -> None:
        module_name, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(module_name)
        if value.is_floating_point():
            value = value.float()
        if leaf in module._buffers:
            module._buffers[leaf] = value
            return
        module._parameters[leaf] = nn.Parameter(value.detach(), requires_grad=False)

    def _read(self, name: str) -> torch.Tensor:
        """A parameter in the source's dtype, by the model's name for it."""
        stored = self._stored[name]
        entry, matrix = stored.entry, stored.matrix
        if entry.dtype not in TORCH_OF_SAFETENSORS:
            raise SourceError(
                f"{stored.shard}: tensor {entry.name}: dtype {entry.dtype} cannot be calibrated "
                "with; convert the source to float16, bfloat16 or float32 first"
            )
        dtype = TORCH_OF_SAFETENSORS[entry.dtype]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        if matrix is None:
            data = self._bytes(stored, 0, entry.nbytes)
        else:  # gate and up are of one piece, which is not to be fetched twice
            place = entry.name, matrix.piece
            if self._piece is None or self._piece[0] != place:
                nbytes = entry.nbytes // entry.shape[0]
                self._piece = place, self._bytes(stored, matrix.piece * nbytes, nbytes)
            data = np.array(matrix.values(self._piece[1])).reshape(-1).view(np.uint8)
        return torch.from_numpy(data).view(dtype).reshape(stored.shape)

    def _bytes(self, stored: _Stored, begin: int, nbytes: int) -> np.ndarray:
        """uint8 [nbytes] from an offset in a tensor."""
        data = np.empty(nbytes, np.uint8)
        self.source.files.read_into(stored.shard, stored.entry.begin + begin, data.data)
        return data


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, in one of transformers' two forms."""
    return isinstance(module, (nn.Linear, Conv1D))


def _build(source: Source) -> Any:
    """The model with parameters on meta and buffers in memory, in evaluation mode."""
    require("calibration", "transformers", "accelerate")
    from accelerate import init_empty_weights

    name = source.files.name
    try:
        config = filled_config(source.config)
        config.use_cache = False
        with init_empty_weights(include_buffers=False):
            model = empty_model(config, torch.float32)
    except Exception as error:  # whatever a model's own code raises
        raise TritError(
            f"{name}: cannot be calibrated: transformers cannot build its model "
            f"({first_line(error)}); quantize without calibration"
        ) from None
    return model.eval()


def _blocks(model: nn.Module, planned: dict[str, Any], source: str) -> list[str]:
    """The children of the longest list of modules that hold quantized matrices.

    Lists within such a list's children do not count: they belong to a block.
    """
    lists: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(
            name.startswith(f"{outer}.") for outer in lists
        ):
            continue
        children = [f"{name}.{child}" for child, _ in module.named_children()]
        if any(matrix.startswith(f"{child}.") for child in children for matrix in planned):
            lists[name] = children
    if not lists:
        raise TritError(
            f"{source}: cannot be calibrated: no list of blocks with quantized matrices is found "
            f"in {type(model).__name__}; quantize without calibration"
        )
    return max(lists.values(), key=len)


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.device.type != "meta":
            module._buffers[name] = buffer.to(device)
