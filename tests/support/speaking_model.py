"""A tiny packed model with a tokenizer of single bytes and a chat template."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers

from tritllm import quantize

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def speaking_model(folder: Path) -> Path:
    """The packed folder of a random Llama that writes ASCII without end, at depth 2."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*letters, "<end>"])}
    bytewise = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token="<end>", chat_template=TEMPLATE
    )
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=vocabulary["<end>"],
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        for letter, row in vocabulary.items():
            if not ("!" <= letter <= "~" or letter == "Ġ"):  # Ġ stands for the space
                model.lm_head.weight[row] = 0
    model.half().save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    quantize(str(folder / "source"), ["uniform-d2"], folder / "out", threads=1)
    return folder / "out/uniform-d2/packed"
