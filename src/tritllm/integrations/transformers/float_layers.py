"""Packed layers in place of those that are quantized while a float checkpoint is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tritllm.codec import ENCODERS
from tritllm.errors import TritError
from tritllm.format.modules import matches, unmatched
from tritllm.integrations.transformers.compat import Conv1D, keep_in_float32
from tritllm.integrations.transformers.config import TritConfig
from tritllm.integrations.transformers.encode_at_load import is_linear_weight
from tritllm.integrations.transformers.layers import packed_like
from tritllm.integrations.transformers.split_at_load import fuse_again

_LAYER_NUMBER = re.compile(r"\.\d+\.")
_EXPERT = re.compile(r"\.experts\.\d+\.")


def check_on_the_fly(config: TritConfig) -> None:
    """Raise TritError where a config does not say how to quantize."""
    if config.depth is None:
        raise TritError("to quantize while loading, give TritConfig a depth of 1..4")
    if config.codec not in ENCODERS:
        raise TritError(
            f"to quantize while loading, TritConfig's codec {config.codec!r} "
            f"must be one of {', '.join(ENCODERS)}"
        )
    if config.planes is not None:
        raise TritError("TritConfig: planes are of a packed model; give a float model a depth")
    if config.verify:
        raise TritError("TritConfig: verify is for a packed model; a float model has no manifest")


def swap_float_layers(model: Any, config: TritConfig, splitting: set[str]) -> dict[str, int]:
    """Swap them in a model on meta, where their weights then come as floats; returns the depths.

    `config.modules_to_not_convert` becomes the list of all that is kept. splitting: parameters that
    hold experts; those of which none is wanted are taken out, and stay fused.

    Raises TritError where nothing is to be quantized, or a glob of the config means no module.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding))
    }
    asked, include = config.modules_to_not_convert or [], config.modules_to_convert or []
    _refuse_unmatched("modules_to_not_convert", asked, dict(model.named_modules()))
    _refuse_unmatched("modules_to_convert", include, dict(model.named_modules()))
    config.modules_to_convert = None  # the model's layers tell it from now on
    if isinstance(config.depth, dict):
        _refuse_unmatched("depth", config.depth, linears)
    depths: dict[str, int] = {}
    for name, module in linears.items():
        depth = _depth_of(name, config.depth)
        if depth is None or matches(name, asked):
            continue
        if _is_wanted(name, module, model, include):
            depths[name] = depth
    undone = fuse_again(model, depths)
    splitting -= undone
    for name, depth in depths.items():
        module = linears[name]
        layer = packed_like(module, depth, name)
        shape = tuple(module.weight.shape)
        layer.weight = torch.empty(shape, dtype=torch.float32, device="meta")  # as it comes
        model.set_submodule(name, layer)
    if not depths:
        raise TritError(
            f"no linear weight recognised in model type {model.config.model_type}; "
            "name the modules with modules_to_convert"
        )
    if isinstance(config.depth, dict):
        config.depth = dict(depths)
    there = dict(model.named_modules())
    config.modules_to_not_convert = [
        name for name in linears if name not in depths and name in there
    ]
    # The encoder wants what the file holds, not what the model's dtype makes of it.
    names = {f"{name}.weight" for name in depths}
    kept = {f"{name}.weight" for name in config.modules_to_not_convert}
    fused = {f"{glob}$" for glob in _patterns(splitting, undone)}
    keep_in_float32(model, _patterns(names, kept) | fused)
    return depths


def _is_wanted(name: str, module: nn.Module, model: Any, include: Sequence[str]) -> bool:
    """Whether `tritllm quantize` would quantize the module's weight."""
    if isinstance(module, nn.Embedding):
        return False
    in_expert = _EXPERT.search(f".{name}.") is not None
    shape = tuple(module.weight.shape)
    return in_expert or is_linear_weight(name, shape, model.config.model_type, include)


def _depth_of(name: str, depth: int | dict[str, int] | None) -> int | None:
    """A module's depth; of a map, that of the last glob which means it, None where none does."""
    if not isinstance(depth, dict):
        return depth
    return next((depth[glob] for glob in reversed(depth) if matches(name, (glob,))), None)


def _refuse_unmatched(field: str, globs: Any, modules: Any) -> None:
    missing = unmatched(globs, modules)
    if missing:
        raise TritError(
            f"TritConfig: {field} names {missing[0][:80]!r}, which is no module of the model"
        )


def _patterns(names: set[str], others: set[str]) -> set[str]:
    """Few globs that match `names` and none of `others`; the names themselves if there are none."""
    globs = {_LAYER_NUMBER.sub(".*.", name) for name in names}
    return names if globs & {_LAYER_NUMBER.sub(".*.", name) for name in others} else globs
