"""Writes a tiny random mixture of experts: python checks/tiny_experts.py TOKENIZER OUT.

Its shapes are the least that vLLM's own kernels for the CPU take.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    """Of Qwen3's kind, with the tokenizer of another model's folder."""
    tokenizer, out = map(Path, sys.argv[1:])
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=1536,
        hidden_size=128,
        intermediate_size=192,
        moe_intermediate_size=96,
        num_experts=8,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # logits that differ
    model.to(torch.float16).save_pretrained(out)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, out)


if __name__ == "__main__":
    main()
