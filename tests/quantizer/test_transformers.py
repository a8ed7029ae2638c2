"""What stock transformers saves goes in; it loads the model that comes out, nothing packed."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tritllm import PackedCheckpoint, dequantize, quantize, verify  # noqa: E402

SMALL = {
    "vocab_size": 60,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SMALL),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SMALL | {"tie_word_embeddings": True}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 60, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        SMALL
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 12},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", SMALL | {"num_local_experts": 3}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", SMALL | {"head_dim": 12}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", SMALL),
    "bert": (
        "BertForMaskedLM",
        "BertConfig",
        {key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
    ),
}  # fmt: skip

# Matrices a layer, and how many beside the layers.
LINEARS = {
    "llama": (7, 0),
    "qwen2": (7, 0),
    "gpt2": (4, 0),
    "qwen3_moe": (4 + 3 * 4, 0),
    "mixtral": (4 + 3 * 3, 0),
    "gemma": (7, 0),
    "phi3": (4, 0),
    "bert": (6, 1),
}


def build(kind: str, **changes):
    torch.manual_seed(0)
    model_class, config_class, settings = MODELS[kind]
    config = getattr(transformers, config_class)(**settings | changes)
    return getattr(transformers, model_class)(config).eval()


@pytest.fixture(scope="module", params=MODELS)
def quantized(request, tmp_path_factory):
    """(kind, source folder, OUT/uniform-d3, report) of a model that transformers saved."""
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param).save_pretrained(folder / "source", max_shard_size="60KB")
    assert len(list((folder / "source").glob("*.safetensors"))) > 1
    (report,) = quantize(str(folder / "source"), ["uniform-d3"], folder / "out")
    return request.param, folder / "source", folder / "out/uniform-d3", report


def load(kind: str, folder, **arguments):
    model_class = getattr(transformers, MODELS[kind][0])
    return model_class.from_pretrained(folder, output_loading_info=True, **arguments)


def test_every_linear_weight_is_found(quantized):
    kind, _, out, report = quantized
    a_layer, beside = LINEARS[kind]
    assert len(report["quantized"]) == 2 * a_layer + beside
    unknown = {n: reason for n, reason in report["kept"].items() if "recognised" in reason}
    assert unknown == {}
    verify(out / "packed")


def test_stock_transformers_loads_the_dequantized_model(quantized):
    kind, _, out, _ = quantized
    model, loading = load(kind, out / "model", dtype="auto")
    assert not any(loading.values()), loading
    assert model.dtype == torch.float16
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 20)[None]).logits
    assert torch.isfinite(logits).all()


def test_the_dequantized_model_speaks_like_the_source(quantized):
    """At 27 levels the logits follow the source's; a wrongly transposed weight would not."""
    kind, source, out, _ = quantized
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        before = load(kind, source, dtype=torch.float32)[0](input_ids=tokens).logits
        after = load(kind, out / "model", dtype=torch.float32)[0](input_ids=tokens).logits
    noise = (after - before).square().mean() / before.square().mean()
    assert noise < 0.02


def test_the_same_through_dequantize(quantized, tmp_path):
    kind, _, out, _ = quantized
    dequantize(out / "packed", tmp_path / "model", planes=2)
    _, loading = load(kind, tmp_path / "model", dtype="auto")
    assert not any(loading.values()), loading


def test_qwen3_moe_experts_lie_one_by_one(tmp_path):
    """Transformers fuses experts in memory and parts them again on the disk."""
    build("qwen3_moe").save_pretrained(tmp_path / "source")
    (report,) = quantize(str(tmp_path / "source"), ["uniform-d2"], tmp_path / "out")
    experts = [name for name in report["quantized"] if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    checkpoint = PackedCheckpoint(tmp_path / "out/uniform-d2/packed")
    assert checkpoint.tensor(experts[0]).shape[1] in (48, 32)


def test_a_bfloat16_model_stays_one_on_request(tmp_path):
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "source")
    assert json.loads((tmp_path / "source/config.json").read_text())["dtype"] == "bfloat16"
    quantize(str(tmp_path / "source"), ["uniform-d2"], tmp_path / "out", dtype="bfloat16")
    model, loading = load("llama", tmp_path / "out/uniform-d2/model", dtype="auto")
    assert not any(loading.values()), loading
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.arange(1, 9)[None]).logits).all()


LOAD = """
import sys, transformers
for name, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        getattr(transformers, name).from_pretrained(folder)
    except (RuntimeError, ValueError) as error:
        print(name, "raises", type(error).__name__)
"""


def test_the_packed_folder_does_not_load_silently(tmp_path, forked_program):
    """In a process without tritllm, transformers must stop, not go on with random weights."""
    kinds = ("llama", "qwen3_moe")
    arguments = []
    for kind in kinds:
        build(kind).save_pretrained(tmp_path / kind)
        quantize(str(tmp_path / kind), ["uniform-d2"], tmp_path / f"{kind}-out", write=["packed"])
        arguments += [MODELS[kind][0], str(tmp_path / f"{kind}-out/uniform-d2/packed")]
    done = forked_program(LOAD, *arguments)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [MODELS[kind][0], "raises"] for kind in kinds
    ]
