"""A model of transformers without its weights, and parts of it filled from the source on demand.

The architecture is built with parameters on meta; buffers are real, since no checkpoint has them.
Experts of a mixture stay apart, under the names that the checkpoint gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from tritllm.integrations.transformers.experts import unfuse_experts
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.source import Source


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
        self._entries: dict[str, tuple[str, TensorEntry]] = {}
        self._name_tensors()
        matrices = {matrix.name: matrix for matrix in quantized}
        self.planned: dict[str, SourceMatrix] = {}
        self.tables: dict[str, SourceMatrix] = {}
        for name, (_, entry) in self._entries.items():
            if entry.name not in matrices:
                continue
            module = self.model.get_submodule(name.removesuffix(".weight"))
            if is_linear(module):
                self.planned[name.removesuffix(".weight")] = matrices[entry.name]
            elif isinstance(module, nn.Embedding):
                self.tables[name.removesuffix(".weight")] = matrices[entry.name]
        found = {matrix.name for matrix in self.planned.values()}
        self.absent = {m.name: self._why_absent(m) for m in quantized if m.name not in found}
        self.blocks = _blocks(self.model, self.planned, source.files.name)

    def _name_tensors(self) -> None:
        """What the model calls each tensor of the source."""
        conversions = get_model_conversion_mapping(self.model)
        per_expert = any(".experts.0." in entry.name for entry in self.source.tensors)
        used = unfuse_experts(self.model, conversions) if per_expert else []
        targets = [conversion.target_patterns for conversion in used]
        left = [c for c in conversions if c.target_patterns not in targets]
        renamings = [c for c in left if isinstance(c, WeightRenaming)]
        converters = [c for c in left if isinstance(c, WeightConverter)]
        state = self.model.state_dict()
        for shard in self.source.shards:
            for entry in shard.header.entries.values():
                name = name_in_model(entry.name, renamings, self.model, state)
                if name in state:
                    self._entries[name] = shard.name, entry
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        self._tied = {name: other for name, other in tied.items() if name not in self._entries}
        names = [name for name, _ in self.model.named_parameters()]
        missing = [name for name in names if self._tied.get(name, name) not in self._entries]
        if missing:
            converted = " (transformers converts it while loading)" if converters else ""
            raise TritError(
                f"{self.source.files.name}: cannot be calibrated: parameter {missing[0]} of "
                f"{type(self.model).__name__} is no tensor of the source{converted}; "
                "quantize without calibration"
            )

    def _why_absent(self, matrix: SourceMatrix) -> str:
        if matrix.slice_of:
            leaf = matrix.slice_of.tensor.rpartition(".")[2]
            return f"an expert of a tensor that holds them all, {leaf}"
        return f"not a linear layer of {type(self.model).__name__}"

    def weight(self, module: str) -> torch.Tensor:
        """The source's weight of a quantized module, float32 [out_features, in_features]."""
        weight = self._read(f"{module}.weight").float()
        transposed = module in self.planned and self.planned[module].transposed
        return weight.T.contiguous() if transposed else weight

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
        """The source's tensor that is a parameter of the model, by the model's name for it."""
        return self._entries[self._tied.get(name, name)][1]

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
        """Forget the parameters at and below a module."""
        for name in self._below(root):
            self._set(name, self.model.get_parameter(name).to("meta"))

    def _below(self, root: str) -> Iterator[str]:
        prefix = f"{root}." if root else ""
        return (name for name in self._entries if name.startswith(prefix))

    def _set(self, name: str, value: torch.Tensor) -> None:
        module_name, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(module_name)
        if leaf in module._buffers:
            module._buffers[leaf] = value
            return
        if value.is_floating_point():
            value = value.float()
        module._parameters[leaf] = nn.Parameter(value.detach(), requires_grad=False)

    def _read(self, name: str) -> torch.Tensor:
        """A tensor in the source's dtype, by the model's name for it."""
        shard, entry = self._entries[name]
        if entry.dtype not in TORCH_OF_SAFETENSORS:
            raise SourceError(
                f"{shard}: tensor {entry.name}: dtype {entry.dtype} cannot be calibrated with; "
                "convert the source to float16, bfloat16 or float32 first"
            )
        data = np.empty(entry.nbytes, np.uint8)
        self.source.files.read_into(shard, entry.begin, data.data)
        if not data.size:
            return torch.empty(entry.shape, dtype=TORCH_OF_SAFETENSORS[entry.dtype])
        return torch.from_numpy(data).view(TORCH_OF_SAFETENSORS[entry.dtype]).reshape(entry.shape)


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
