"""A model in memory reads fewer of its planes: what it computes, and what it leaves alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.tiny_models import logits, some_ids
from transformers import AutoModel, AutoModelForCausalLM

from tritllm import TritError
from tritllm.integrations.transformers import TritConfig, TritLinear, load_model
from tritllm.integrations.transformers.layers import float_weight
from tritllm.ops import changes

pytestmark = pytest.mark.usefixtures("torch_only")
FAMILIES = ("llama", "gpt2", "qwen3_moe")


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_what_a_shallower_model_holds(tiny, family):
    packed = tiny(family, 3) / "packed"
    model = load_model(packed)
    whole = logits(model)
    for planes in (1, 2, 3):
        model.set_planes(planes)
        assert torch.equal(logits(model), logits(load_model(packed, planes=planes)))
    model.set_planes(1)
    with model.planes(2):
        assert torch.equal(logits(model), logits(load_model(packed, planes=2)))
        with model.planes(None):
            assert torch.equal(logits(model), whole)
    assert torch.equal(logits(model), logits(load_model(packed, planes=1)))
    model.set_planes(None)
    assert torch.equal(logits(model), whole)


def test_planes_come_back_after_an_error(tiny):
    model = load_model(tiny("llama", 3) / "packed")
    model.set_planes(2)
    with pytest.raises(KeyError), model.planes(1):
        raise KeyError
    assert {layer.planes for layer in packed(model)} == {2}


def test_generate_reads_them_for_as_long_as_it_takes(tiny):
    folder = tiny("llama", 3) / "packed"
    model = load_model(folder)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    ids = some_ids(1)
    shallow = load_model(folder, planes=1).generate(ids, **settings)
    deep = model.generate(ids, **settings)
    assert not torch.equal(shallow, deep)
    assert torch.equal(model.generate(ids, planes=1, **settings), shallow)
    assert torch.equal(model.generate(ids, **settings), deep)


def test_saves_all_and_dequantizes_what_is_read(tiny, tmp_path):
    folder = tiny("llama", 3) / "packed"
    model = load_model(folder)
    whole = logits(model)
    model.set_planes(2)
    read = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), whole)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(again), read)
        again.set_planes(None)
        assert torch.equal(logits(again), whole)
    model.dequantize()
    torch.testing.assert_close(logits(model), read)
    with pytest.raises(TritError, match=r"planes 1 is not 1\.\.0"):
        model.set_planes(1)


def test_layers_of_less_depth_and_a_packed_head_stay(tiny, tmp_path):
    source = tiny("llama", 3) / "model"
    depths = {"model.layers.0.*": 1, "model.layers.1.*": 4}
    AutoModelForCausalLM.from_pretrained(
        source, quantization_config=TritConfig(depth=depths)
    ).save_pretrained(tmp_path)
    model = load_model(tmp_path, lm_head_depth=4)
    model.set_planes(2)
    planes = [layer.mlp.up_proj.planes for layer in model.model.layers]
    assert planes == [1, 2]
    assert model.lm_head.planes == 4
    model.set_planes(4)
    assert [layer.mlp.up_proj.planes for layer in model.model.layers] == [1, 4]
    for wrong in (0, 5, -1, "2", 1.5):
        with pytest.raises(TritError, match=r"is not 1\.\.4"):
            model.set_planes(wrong)


def test_a_decoder_alone_has_them_too(tiny):
    model = AutoModel.from_pretrained(tiny("llama", 3) / "packed")
    model.set_planes(1)
    again = copy.deepcopy(model)
    assert {layer.planes for layer in packed(again)} == {1}
    assert type(model).__name__ == "LlamaModel"


def test_a_layer_has_its_own_and_changes_nothing_else(tiny):
    model = load_model(tiny("llama", 3) / "packed")
    layer = model.model.layers[0].mlp.up_proj
    before = changes.count()
    layer.planes = 2
    assert changes.count() == before  # else the native step would be set up anew
    assert (layer.planes, layer.depth) == (2, 3)
    assert "depth=3, planes=2" in repr(layer)
    x = torch.randn(2, layer.in_features)
    expected = x.half() @ float_weight(layer, torch.float16).T
    assert torch.equal(layer(x.half()), expected)
    with pytest.raises(TritError, match="is not"):
        layer.planes = 4


def packed(model) -> list[TritLinear]:
    return [module for module in model.modules() if isinstance(module, TritLinear)]
