"""Packed layers that models ask for the dtype of their weight: T5's wo, Mamba's output layer."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from support.family_models import MODELS

from tritllm import quantize
from tritllm.integrations.transformers import TritLinear, load_model
from tritllm.integrations.transformers.layers import packed_layers

BLOCK = "encoder.block.0.layer.1.DenseReluDense.wo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("t5")
    MODELS["t5"].build().half().save_pretrained(place / "source")
    quantize(str(place / "source"), ["uniform-d2"], place / "out", threads=1)
    return place / "out" / "uniform-d2"


@pytest.mark.parametrize("kind", ["model", "packed"])
def test_float16_does_not_reach_wo(folder, torch_only, kind):
    """transformers keeps it in float32 so that large activations do not overflow."""
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder / kind, dtype="auto")
    layer = model.get_submodule(BLOCK)
    assert isinstance(layer, TritLinear) == (kind == "packed")
    assert layer.weight.dtype == torch.float32
    seen = []
    layer.register_forward_hook(lambda module, args, out: seen.extend((args[0].dtype, out.dtype)))
    model.encoder(torch.tensor([[5, 6, 7]]))
    assert seen == [torch.float32] * 2


def test_it_is_a_packed_layer_in_everything_else(folder, torch_only, tmp_path):
    kind = transformers.T5ForConditionalGeneration
    model = kind.from_pretrained(folder / "packed", dtype="auto")
    layer = model.get_submodule(BLOCK)
    assert layer.state_dict()["weight"].dtype == torch.uint8
    assert (layer.depth, layer.planes) == (2, 2)
    again = copy.deepcopy(model).to(torch.bfloat16).get_submodule(BLOCK)
    assert again.weight.dtype == torch.bfloat16
    assert torch.equal(again.state_dict()["weight"], layer.state_dict()["weight"])
    coarse = kind.from_pretrained(folder / "packed", dtype="auto")
    for packed in packed_layers(coarse).values():
        packed.keep_planes(1)
    assert coarse.get_submodule(BLOCK).depth == 1
    model.dequantize()
    plain = model.get_submodule(BLOCK)
    expected = kind.from_pretrained(folder / "model", dtype="auto").get_submodule(BLOCK)
    assert torch.equal(plain.weight, expected.weight.half())


def test_an_output_layer_can_be_packed_at_load(tmp_path, torch_only):
    MODELS["mamba2"].build().save_pretrained(tmp_path / "source")
    quantize(str(tmp_path / "source"), ["uniform-d2"], tmp_path / "out", threads=1)
    model = load_model(tmp_path / "out/uniform-d2/packed", lm_head_depth=4)
    assert model.lm_head.depth == 4
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
