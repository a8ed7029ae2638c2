"""from_pretrained on packed folders: the dequantized model's logits, and nothing left over."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.tiny_models import FAMILIES, logits, quantize_tiny, some_ids
from transformers import AutoModel, AutoModelForCausalLM

from tritllm import dequantize
from tritllm.errors import TritError
from tritllm.integrations.transformers import TritConfig, TritLinear, load_model

MOE = ("qwen3_moe", "mixtral")


def reference(folder, family: str = "llama", **kwargs):
    """The dequantized folder, its experts computed one after the other as ours are."""
    if family in MOE:
        kwargs["experts_implementation"] = "eager"
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_dequantized_models(tiny, torch_only, family):
    folder = tiny(family, 3)
    model, info = AutoModelForCausalLM.from_pretrained(folder / "packed", output_loading_info=True)
    assert not any(info.values()), info
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert not any(parameter.requires_grad for parameter in _packed_parameters(model))
    expected = logits(reference(folder / "model", family))
    if family == "gpt2":  # Conv1D multiplies by a transposed weight, which torch may sum otherwise
        torch.testing.assert_close(logits(model), expected, rtol=2**-9, atol=2**-9)
    else:
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_native_logits_are_near(tiny, native, family):
    folder = tiny(family, 3)
    expected = logits(reference(folder / "model", family)).float()
    for mode, bound in (("exact", 5e-3), ("int8", 4e-2)):  # float16 activations; 2 layers
        native(mode)
        model = load_model(folder / "packed")
        assert all(layer.prepared is not None for layer in _packed_modules(model))
        assert (logits(model).float() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_every_depth(tiny, torch_only, depth):
    folder = tiny("qwen2", depth)
    assert torch.equal(logits(load_model(folder / "packed")), logits(reference(folder / "model")))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-3), (torch.bfloat16, 3e-2)])
def test_other_dtypes(tiny, torch_only, dtype, bound):
    """The folder holds float16, so its weights are rounded twice, or more coarsely."""
    folder = tiny("qwen2", 3)
    ours = logits(AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=dtype))
    theirs = logits(AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype))
    assert ours.dtype == dtype
    assert (ours - theirs).float().norm() <= bound * theirs.float().norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loader", [AutoModel, AutoModelForCausalLM], ids=lambda c: c.__name__)
def test_kept_floats_have_the_models_dtype(tiny, torch_only, family, loader):
    """Also those that transformers loads under another name than the file's."""
    for dtype in (torch.bfloat16, torch.float32):
        model = loader.from_pretrained(tiny(family, 3) / "packed", dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        with torch.no_grad():
            assert model(some_ids())[0].isfinite().all()


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_map(tiny, torch_only, device_map):
    folder = tiny("llama_tied", 2)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder / "packed", device_map=device_map, output_loading_info=True
    )
    assert not any(info.values())
    assert torch.equal(logits(model), logits(reference(folder / "model")))


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "gpt2"])
def test_tied_embeddings_share_memory(tiny, family):
    model = load_model(tiny(family, 2) / "packed")
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight.data_ptr() == embeddings.weight.data_ptr()


def test_a_base_model_loads_too(tiny, torch_only):
    folder = tiny("qwen2", 2)
    model, info = AutoModel.from_pretrained(folder / "packed", output_loading_info=True)
    assert not any(info.values())
    expected = AutoModel.from_pretrained(folder / "model")
    with torch.no_grad():
        ours, theirs = (m(some_ids()).last_hidden_state for m in (model, expected))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("planes", [1, 2])
def test_planes_are_those_of_dequantize(tiny, torch_only, tmp_path, family, planes):
    packed = tiny(family, 3) / "packed"
    dequantize(packed, tmp_path / "coarse", planes=planes)
    model = load_model(packed, planes=planes)
    assert all(layer.depth == planes for layer in _packed_modules(model))
    assert torch.equal(logits(model), logits(reference(tmp_path / "coarse", family)))


def test_planes_by_transformers_own_argument(tiny, torch_only):
    packed = tiny("llama", 3) / "packed"
    with pytest.warns(UserWarning, match="loading attributes"):  # transformers' habit
        model = AutoModelForCausalLM.from_pretrained(
            packed, quantization_config=TritConfig(planes=1)
        )
    assert torch.equal(logits(model), logits(load_model(packed, planes=1)))


def test_mixed_depths(tmp_path, torch_only):
    folder = quantize_tiny(tmp_path, "mixtral", 2, depth=["*.w2=4", "*experts.1.*=1"])
    model = load_model(folder / "packed")
    assert {layer.depth for layer in _packed_modules(model)} == {1, 2, 4}
    assert torch.equal(logits(model), logits(reference(folder / "model", "mixtral")))


def test_experts_left_in_16_bits(tmp_path, torch_only):
    folder = quantize_tiny(tmp_path, "qwen3_moe", 2, exclude=["*experts*"])
    model, info = AutoModelForCausalLM.from_pretrained(
        folder / "packed", output_loading_info=True, experts_implementation="eager"
    )
    assert not any(info.values())
    assert torch.equal(logits(model), logits(reference(folder / "model", "qwen3_moe")))


def test_some_experts_left_in_16_bits(tmp_path, torch_only):
    folder = quantize_tiny(tmp_path, "qwen3_moe", 2, exclude=["*experts.1.*"])
    model, info = AutoModelForCausalLM.from_pretrained(folder / "packed", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(model), logits(reference(folder / "model", "qwen3_moe")))


@pytest.mark.parametrize("family", FAMILIES)
def test_generate(tiny, torch_only, family):
    folder = tiny(family, 3)
    how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    ours = load_model(folder / "packed").generate(some_ids(), **how)
    assert torch.equal(ours, reference(folder / "model", family).generate(some_ids(), **how))


def test_generate_compiled_with_a_static_cache(tiny, torch_only):
    model = load_model(tiny("llama", 2) / "packed")
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(some_ids(), **how)
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(model.generate(some_ids(), cache_implementation="static", **how), expected)


def test_casting_leaves_codes_and_steps_alone(tiny, torch_only):
    model = load_model(tiny("qwen2", 2) / "packed")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = model.model.layers[0].self_attn.q_proj
    model.to(torch.bfloat16)
    assert layer.bias.dtype == torch.bfloat16
    model.to(torch.float64).to("cpu")
    for name, tensor in model.state_dict().items():
        if name.endswith(("_scale", "_codebook")) or before[name].dtype == torch.uint8:
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name]), name
    assert layer.weight_codebook.dtype == torch.float32


def test_moving_keeps_prepared_memory_off_other_devices(tiny, native):
    native("int8")
    model = load_model(tiny("llama", 2) / "packed")
    layer = model.model.layers[0].self_attn.q_proj
    model.to(torch.bfloat16)
    assert layer.prepared is not None
    model.to("meta")
    assert layer.prepared is None
    assert layer.weight_codebook.dtype == torch.float32


def test_native_compiled_is_native_eager(tiny, native):
    native("int8")
    model = load_model(tiny("qwen2", 2) / "packed", dtype=torch.float32)
    torch._dynamo.reset()  # of what other tests compiled
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            torch.testing.assert_close(logits(compiled), logits(model))


def test_load_model_says_what_is_no_packed_model(tiny, tmp_path):
    with pytest.raises(TritError, match=r"no config.json there"):
        load_model(tmp_path)
    with pytest.raises(TritError, match="not a packed model"):
        load_model(tiny("llama", 2) / "model")


def test_repr_tells_the_depth(tiny, torch_only):
    text = repr(load_model(tiny("llama", 2) / "packed"))
    assert "TritLinear(in_features=48, out_features=72, depth=2, bias=False, portable)" in text


def _packed_modules(model: transformers.PreTrainedModel) -> list[TritLinear]:
    found = [module for module in model.modules() if isinstance(module, TritLinear)]
    assert found
    return found


def _packed_parameters(model: transformers.PreTrainedModel) -> list[torch.nn.Parameter]:
    return [p for layer in _packed_modules(model) for p in layer.parameters()]
