"""What --include adds runs in a packed model, or is refused before the work."""

from __future__ import annotations

import numpy as np
import pytest
from support.model_folders import QUANTIZE, llama, random_tensors, write_model

from tritllm import quantize
from tritllm.errors import SourceError

LAYER = "layers.0"
REFUSED = [
    ("llama", "model.embed_tokens", "an embedding table"),
    ("bert", "bert.embeddings.word_embeddings", "an embedding table"),
    ("t5", "shared", "an embedding table"),
    ("t5", f"encoder.{LAYER}.SelfAttention.relative_attention_bias", "an embedding table"),
    ("siglip", "vision_model.head.attention.out_proj", "a weight that siglip models"),
    ("mamba", f"backbone.{LAYER}.mixer.dt_proj", "a weight that mamba models"),
    ("jamba", f"model.{LAYER}.mamba.dt_proj", "a weight that jamba models"),
    ("rwkv", "rwkv.blocks.0.attention.output", "a weight that rwkv models"),
    ("qwen3_moe", f"model.{LAYER}.mlp.gate", "a router of experts"),
]
RUN = [
    ("t5", f"encoder.{LAYER}.SelfAttention.q"),
    ("t5", f"encoder.{LAYER}.DenseReluDense.wo"),
    ("mamba", f"backbone.{LAYER}.mixer.in_proj"),
    ("mamba2", "lm_head"),
    ("rwkv", "rwkv.blocks.0.attention.value"),
    ("qwen2_moe", f"model.{LAYER}.mlp.shared_expert_gate"),
    ("llama", "lm_head"),
]


def source_with(folder, model_type, module):
    tensors = random_tensors({n: s for n, s in llama().items() if s[1] == QUANTIZE})
    tensors[f"{module}.weight"] = np.ones((32, 48), np.float16)
    return write_model(folder, {"model_type": model_type}, [tensors])


@pytest.mark.parametrize(("model_type", "module", "what"), REFUSED)
def test_it_is_refused_at_planning(tmp_path, model_type, module, what):
    source = source_with(tmp_path / "source", model_type, module)
    arguments = {"include": [module], "allow_low_coverage": True}
    with pytest.raises(SourceError, match=rf"tensor {module}\.weight: {what}.*--exclude") as raised:
        quantize(str(source), ["uniform-d2"], tmp_path / "out", **arguments)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    (report,) = quantize(
        str(source), ["uniform-d2"], tmp_path / "out", write=["model"], **arguments
    )
    assert f"{module}.weight" in report["quantized"]


@pytest.mark.parametrize(("model_type", "module"), RUN)
def test_linear_layers_beside_them_are_not(tmp_path, model_type, module):
    source = source_with(tmp_path / "source", model_type, module)
    (report,) = quantize(
        str(source), ["uniform-d2"], tmp_path / "out", include=[module], allow_low_coverage=True
    )
    assert f"{module}.weight" in report["quantized"]
