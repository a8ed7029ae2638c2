"""Writes tiny random mixtures of experts: python checks/tiny_experts.py TOKENIZER OUT KIND.

Their shapes are the least that vLLM's own kernels for the CPU take. As transformers saves them,
`qwen3_moe` has its experts apart, and the others have those of a block in two tensors;
`qwen3_moe_fused` is the first with its experts fused as well.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

SIZES: dict[str, Any] = {
    "vocab_size": 1536,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
}
_INNER = {"intermediate_size": 96, "num_local_experts": 8}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"intermediate_size": 192, "moe_intermediate_size": 96, "num_experts": 8},
    ),
    "granitemoe": ("GraniteMoeConfig", _INNER),
    "gpt_oss": ("GptOssConfig", _INNER),
    "llama4": ("Llama4TextConfig", {**_INNER, "intermediate_size_mlp": 192}),
}


def main() -> None:
    """With the tokenizer of another model's folder."""
    tokenizer, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.manual_seed(0)
    name, sizes = KINDS[kind.removesuffix("_fused")]
    config = getattr(transformers, name)(**{**SIZES, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # logits that differ
    model.to(torch.float16).save_pretrained(out)
    if kind.endswith("_fused"):
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, out / "model.safetensors", {"format": "pt"})
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, out)


if __name__ == "__main__":
    main()
