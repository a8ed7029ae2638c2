"""Quality of quantized models beside their float model: scores on a text, and a sample of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tritllm.evaluation.divergence import Scores, compare

SEED = 2026
SAMPLE_TOKENS = 40


@dataclass(frozen=True)
class Quality:
    """Of one model: its scores on the text, and one line that continues the prompt."""

    scores: Scores
    sample: str


def measure_quality(
    reference: str | Path, candidates: Mapping[str, str | Path], text: str, prompt: str
) -> dict[str, Quality]:
    """Measure causal language models of transformers, in float32, against a float reference.

    Args:
        reference: folder of the float model, and of the tokenizer of all; measured too, under the
            name "float".
        candidates: model folders by name, with the reference's vocabulary.
        text: what they are scored on, as `compare` does.
        prompt: what each continues, sampled with a fixed seed.

    Raises ValueError for a text of fewer than two tokens.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(reference)
    float_model = _load(reference)
    models = {name: _load(folder) for name, folder in candidates.items()}
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    scores = compare(float_model, models, ids)
    return {
        name: Quality(scores[name], _sample(model, tokenizer, prompt))
        for name, model in {"float": float_model, **models}.items()
    }


def _load(folder: str | Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _sample(model: Any, tokenizer: Any, prompt: str) -> str:
    """One line the model continues `prompt` with."""
    torch.manual_seed(SEED)
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=SAMPLE_TOKENS,
        do_sample=True,
        temperature=0.7,
        top_k=40,
        pad_token_id=tokenizer.eos_token_id,
    )
    continuation = output[0][inputs["input_ids"].shape[1] :]
    return " ".join(tokenizer.decode(continuation, skip_special_tokens=True).split())
