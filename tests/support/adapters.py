"""Adapters of peft on tiny packed models, beside the same adapters on the dequantized ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from tritllm.integrations.transformers import load_model
from tritllm.ops.trit_linear import TritLinear


def load(folder: Any, mode: str = "torch", dtype: str = "float32", **options: Any) -> Any:
    """A packed model whose layers compute in a mode."""
    model = load_model(folder, dtype=dtype, **options)
    layers = [module for module in model.modules() if isinstance(module, TritLinear)]
    assert layers
    for layer in layers:
        layer.mode = mode
    return model


def adapted(model: Any, config: Any, seed: int = 0) -> Any:
    """The model with an adapter that changes something: every trainable number is random."""
    made = get_peft_model(model, copy.deepcopy(config))
    randomize(made, seed)
    return made


def randomize(model: Any, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def twin(packed: Any, model: Any, config: Any) -> Any:
    """The same adapter on the dequantized model. model: a packed model without adapters."""
    plain = get_peft_model(model.dequantize(), copy.deepcopy(config))
    found = set_peft_model_state_dict(
        plain, get_peft_model_state_dict(packed, save_embedding_layers=False)
    )
    assert not found.unexpected_keys
    return plain
