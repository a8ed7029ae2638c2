"""Tiny mixtures whose experts are one tensor in the source, and the same experts apart."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file
from support.family_models import MODELS
from support.tiny_text import write_tokenizer


def write_mixture(folder: Path, family: str) -> Path:
    """A random model of `MODELS` as transformers saves it, in float16, with a tokenizer."""
    MODELS[family].build().half().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_apart_and_fused(folder: Path, family: str) -> tuple[Path, Path]:
    """One model twice: its experts one by one, as transformers saves it, and fused."""
    apart, fused = folder / "apart", folder / "fused"
    model = MODELS[family].build().half()
    model.save_pretrained(apart)
    write_tokenizer(apart)
    shutil.copytree(apart, fused)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, fused / "model.safetensors", {"format": "pt"})
    return apart, fused
