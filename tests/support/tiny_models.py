"""Tiny models of five families, made by transformers itself, and their quantized folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tritllm import quantize

VOCABULARY = 96
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 72,  # 72 = 4.5 groups, 14.4 bytes: padding in every matrix
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**_DECODER, tie_word_embeddings=False),
    "llama_tied": lambda: transformers.LlamaConfig(**_DECODER, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**_DECODER, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=128,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40, head_dim=12
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **_DECODER, num_local_experts=4, num_experts_per_tok=2
    ),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)


def random_model(
    config: Any,
    times: float = 4,
    noise: float = 0,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A model whose logits differ: random, its matrices scaled.

    noise: standard deviation of what is added to biases and the weights of norms.
    """
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(times)
            elif noise:
                parameter.add_(noise * torch.randn_like(parameter))
    return model


def write_tiny(folder: Path, family: str, dtype: torch.dtype = torch.float16) -> Path:
    """A random model's folder, biases not zero."""
    torch.manual_seed(len(family))
    config = CONFIGS[family]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
            elif parameter.ndim > 1:
                parameter.mul_(4)  # logits that differ
    model.to(dtype).save_pretrained(folder)
    return folder


def quantize_tiny(folder: Path, family: str, trits: int = 2, **options: Any) -> Path:
    """folder/source and folder/uniform-d<trits>/{packed,model}; returns the latter's folder."""
    source = folder / "source"
    if not source.exists():
        write_tiny(source, family)
    quantize(str(source), [f"uniform-d{trits}"], folder / "out", threads=1, **options)
    return folder / "out" / f"uniform-d{trits}"


def some_ids(rows: int = 2, length: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    return model(some_ids() if ids is None else ids).logits
