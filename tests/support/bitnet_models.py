"""Tiny models in every form that transformers' bitnet method stores, made by its own code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny_models import random_model
from transformers.integrations.bitnet import WeightQuant, pack_weights, unpack_weights

_SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How a source is stored. floats: trits as floats instead of two bits. norm: `rms_norm` before
    every linear layer.
    """

    model: type = transformers.BitNetConfig
    linear_class: str = "autobitlinear"
    online: bool = False
    floats: bool = False
    norm: bool = False


FORMS = {
    "2B4T": Form(),
    "2B4T in bfloat16": Form(online=True),
    "Falcon3": Form(transformers.LlamaConfig, "bitlinear"),
    "Falcon-E": Form(transformers.LlamaConfig, "bitlinear", norm=True),
    "Falcon-E in bfloat16": Form(transformers.LlamaConfig, online=True, norm=True),
    "floats and a scale": Form(floats=True),
}


def write_bitnet(folder: Path, form: Form) -> Path:
    """A random model's folder."""
    model = random_model(form.model(**_SIZES), noise=0.25, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name].float()
        if form.norm:
            norm = 1 + torch.randn(weight.shape[1]) / 8
            tensors[f"{name.removesuffix('weight')}rms_norm.weight"] = norm.bfloat16()
        if form.online:
            continue
        step = weight.abs().mean()
        trits = (weight / step).round().clamp(-1, 1)
        scale = 1 / step if form.linear_class == "bitlinear" else step
        tensors[name] = trits.bfloat16() if form.floats else pack_weights(trits)
        tensors[f"{name}_scale"] = scale.bfloat16().reshape(1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, {
        "quant_method": "bitnet", "linear_class": form.linear_class,
        "quantization_mode": "online" if form.online else "offline", "use_rms_norm": form.norm,
        "rms_norm_eps": 1e-5, "modules_to_not_convert": None,
    })  # fmt: skip
    return folder


def edit_config(folder: Path, stored: dict[str, Any]) -> None:
    """Give config.json other values in its quantization_config."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {**config.get("quantization_config", {}), **stored}
    path.write_text(json.dumps(config))


def weights_of(folder: Path, form: Form) -> dict[str, torch.Tensor]:
    """By name the weights, float32, that transformers computes with; its own code unpacks."""
    tensors = load_file(folder / "model.safetensors")
    found = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        stored = tensors[name]
        if form.online:
            found[name] = WeightQuant.apply(stored).float()
            continue
        trits = stored.float() if form.floats else unpack_weights(stored, torch.float32)
        scale = tensors[f"{name}_scale"].float()
        found[name] = trits / scale if form.linear_class == "bitlinear" else trits * scale
    return found
