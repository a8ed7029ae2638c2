"""Experts that a float checkpoint stores as one tensor, split while transformers loads it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from tritllm.integrations.transformers.experts import TritExperts, names_of_family, unfused
from tritllm.integrations.transformers.fused_modules import DOWN, fused_leaves


def split_experts(model: Any, fused: Collection[str]) -> set[str]:
    """Replace the experts of a model on meta whose parameters come fused; returns these parameters.

    Until they have come, the new modules keep the fused parameters, for transformers to find them.

    fused: names of the model's parameters that the checkpoint has fused.

    Raises TritError for experts that do more than two-layer experts do.
    """
    names = names_of_family(model)
    found: set[str] = set()
    for name, module in list(model.named_modules()):
        leaves = fused_leaves(module)
        if names is None or leaves is None or f"{name}.{leaves[0]}" not in fused:
            continue
        split = unfused(name, module, names)
        for leaf in leaves:
            split.register_parameter(leaf, getattr(module, leaf))
            found.add(f"{name}.{leaf}")
        model.set_submodule(name, split)
    return found


def fuse_again(model: Any, depths: Collection[str]) -> set[str]:
    """Undo `split_experts` where no expert is to be packed; returns the parameters concerned.

    depths: the modules that are to be packed.
    """
    undone: set[str] = set()
    for name, module in list(model.named_modules()):
        if not isinstance(module, TritExperts) or DOWN not in module._parameters:
            continue
        layers = (n for n, layer in module.named_modules() if isinstance(layer, nn.Linear))
        if not any(f"{name}.{layer}" in depths for layer in layers):
            model.set_submodule(name, module.fused)
            undone |= {f"{name}.{leaf}" for leaf in fused_leaves(module.fused) or ()}
    return undone
