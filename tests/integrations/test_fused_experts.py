"""Models whose experts transformers stores fused run packed, one layer a matrix and expert."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from safetensors import safe_open
from support.tiny_models import VOCABULARY, logits, some_ids

from tritllm import quantize, verify
from tritllm.integrations.transformers import TritConfig, load_model
from tritllm.integrations.transformers.experts import TritExperts
from tritllm.ops.trit_linear import TritLinear

_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
}  # fmt: skip
CONFIGS = {
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_TEXT, num_local_experts=4, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "llama4_text": lambda: transformers.Llama4TextConfig(
        **_TEXT | {"num_experts_per_tok": 1}, num_local_experts=4, interleave_moe_layer_step=2,
        intermediate_size_mlp=56,
    ),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**_TEXT, num_local_experts=4),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **_TEXT, num_experts=4, moe_intermediate_size=40, shared_expert_intermediate_size=40,
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    ),
    "aria_text": lambda: transformers.AriaTextConfig(
        **_TEXT, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
    ),
}  # fmt: skip


def is_saved_fused(kind: str) -> bool:
    """transformers writes single experts of Qwen3-Next, and fused ones of the others."""
    return kind != "qwen3_next"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """By family, a source and the folder of its quantized models; made once."""
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(1)
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("bias") or parameter.ndim > 1:
                        parameter.normal_(std=0.5 if name.endswith("bias") else 0.15)
            model.half().save_pretrained(folder / "source")
            quantize(
                str(folder / "source"), ["uniform-d2"], folder / "out", threads=1,
                allow_low_coverage=True,
            )  # fmt: skip
            made[kind] = folder / "source", folder / "out/uniform-d2"
        return made[kind]

    return make


def experts_of(model):
    return [module for module in model.modules() if isinstance(module, TritExperts)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_is_the_dequantized_model(kind, sources, torch_only):
    source, folder = sources(kind)
    with safe_open(source / "model.safetensors", "pt") as file:
        fused = [n for n in file.keys() if len(file.get_slice(n).get_shape()) == 3]  # noqa: SIM118
    assert any("expert" in name or "input_linear" in name for name in fused) == is_saved_fused(kind)
    packed = load_model(folder / "packed", dtype="bfloat16")
    assert experts_of(packed)
    plain = load_model(folder / "packed", dtype="bfloat16").dequantize()
    assert not experts_of(plain)
    plain.set_experts_implementation("eager")
    assert torch.equal(logits(packed), logits(plain))
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float16")
    decoded = load_model(folder / "packed", dtype="float16").dequantize().state_dict()
    assert stock.state_dict().keys() == decoded.keys()
    for name, tensor in stock.state_dict().items():
        assert torch.equal(decoded[name], tensor), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_generates_saves_and_loads_again(kind, sources, tmp_path, native):
    _, folder = sources(kind)
    native("exact")
    packed = load_model(folder / "packed", dtype="float32")
    plain = load_model(folder / "packed", dtype="float32").dequantize()
    assert torch.allclose(logits(packed), logits(plain), atol=1e-4)
    options = {"max_new_tokens": 8, "do_sample": False}
    found = [m.generate(some_ids(), **options) for m in (packed, plain)]
    assert torch.equal(*found)
    packed.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved", dtype="float32")
    written, kept = again.state_dict(), packed.state_dict()
    assert written.keys() == kept.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in kept.items())
    for other in (again, copy.deepcopy(packed)):
        assert torch.allclose(logits(other), logits(packed), atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_float_checkpoint_is_split_while_it_is_loaded(kind, sources):
    source, folder = sources(kind)
    kinds = transformers.AutoModelForCausalLM
    loaded = kinds.from_pretrained(
        source, dtype="bfloat16", quantization_config=TritConfig(depth=2)
    ).state_dict()
    stored = load_model(folder / "packed", dtype="bfloat16").state_dict()
    assert loaded.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(loaded[name], tensor), name


def test_experts_may_be_kept_by_layer(sources, tmp_path):
    """Those of one layer stay fused floats, in a packed file and on the fly alike."""
    source, _ = sources("gpt_oss")
    kept = "model.layers.0.mlp.experts"
    quantize(str(source), ["uniform-d2"], tmp_path / "out", exclude=[kept], allow_low_coverage=True)
    stored = load_model(tmp_path / "out/uniform-d2/packed", dtype="bfloat16")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        dtype="bfloat16",
        quantization_config=TritConfig(depth=2, modules_to_not_convert=[kept]),
    )
    for model in (stored, loaded):
        assert len(experts_of(model)) == 1
        assert model.model.layers[0].mlp.experts.gate_up_proj.ndim == 3
    assert torch.equal(logits(stored), logits(loaded))


def test_some_experts_may_have_another_depth(sources, tmp_path):
    source, _ = sources("granitemoe")
    depth = {"model.layers.*": 2, "*.experts.1.*": 3}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype="bfloat16", quantization_config=TritConfig(depth=depth)
    )
    quantize(
        str(source), ["uniform-d2"], tmp_path / "out", depth=["*.experts.1.*=3"],
        allow_low_coverage=True,
    )  # fmt: skip
    folder = tmp_path / "out/uniform-d2/packed"
    verify(folder)
    stored = load_model(folder, dtype="bfloat16")
    depths = {n: m.depth for n, m in stored.named_modules() if isinstance(m, TritLinear)}
    assert {d for n, d in depths.items() if ".experts.1." in n} == {3}
    assert torch.equal(logits(stored), logits(loaded))


def test_a_fused_source_of_a_family_of_single_experts(sources, tmp_path):
    """Qwen3-Next's experts as one tensor: the packed tensors of single ones."""
    source, folder = sources("qwen3_next")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="float16")
    state = {n: t.contiguous() for n, t in model.state_dict().items()}
    transformers.AutoConfig.from_pretrained(source).save_pretrained(tmp_path / "fused")
    from safetensors.torch import save_file

    save_file(state, tmp_path / "fused/model.safetensors", {"format": "pt"})
    quantize(str(tmp_path / "fused"), ["uniform-d2"], tmp_path / "out", allow_low_coverage=True)
    fused = tmp_path / "out/uniform-d2/packed"
    hashes = []
    for packed in (fused, folder / "packed"):
        records = json.loads((packed / "tritllm.json").read_text())["tensors"]
        hashes.append({name: record["sha256"] for name, record in records.items()})
    assert hashes[0] == hashes[1]
    on_the_fly = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "fused", dtype="bfloat16", quantization_config=TritConfig(depth=2)
    )
    found = [logits(load_model(each, dtype="bfloat16")) for each in (fused, folder / "packed")]
    assert torch.equal(*found)
    assert torch.equal(logits(on_the_fly), found[0])
