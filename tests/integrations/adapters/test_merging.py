"""Merging is decoding, adding and encoding again; what that costs is said, and can be undone."""

from __future__ import annotations

import copy
import errno
import tempfile

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from support.adapters import adapted, load, randomize, twin
from support.tiny_models import logits

from tritllm import encode
from tritllm.errors import OutputError, TritError
from tritllm.integrations.peft.lora_layer import TritLoraLinear
from tritllm.ops.trit_linear import TritLinear

TOLD = r"merged into 14 packed layers .* off by \d+ % of what the adapter adds"
LORA = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
DORA = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM")


def lora_layers(model):
    return [module for module in model.modules() if isinstance(module, TritLoraLinear)]


def parts(model):
    """The bytes of every packed layer."""
    names = ("weight", "weight_scale", "weight_codebook")
    found = [layer for layer in model.modules() if isinstance(layer, TritLinear)]
    return [getattr(layer, name).numpy().tobytes() for layer in found for name in names]


@pytest.mark.parametrize("config", [LORA, DORA], ids=["lora", "dora"])
def test_merged_layers_are_the_sums_encoded_again(tiny, config, tmp_path):
    folder = tiny("llama", 3) / "packed"
    model = adapted(load(folder), config).eval()
    with_adapter = logits(model)
    expected = {}
    for layer in lora_layers(model):
        eye = torch.eye(layer.in_features)
        with torch.no_grad():
            total = layer(eye).T.contiguous()  # of a layer without a bias
        expected[layer.get_base_layer()] = encode(total.numpy(), 3)
    with pytest.warns(UserWarning, match=TOLD if config is LORA else "merged into 4 packed"):
        merged = model.merge_and_unload()
    assert not lora_layers(merged)
    for layer, tensor in expected.items():
        found, wanted = layer.tensor().decode(), tensor.decode()
        # The sums differ in the last bit, so a few weights may be rounded the other way.
        assert np.mean(abs(found - wanted) > 1e-4 * abs(wanted).max()) < 0.02
    difference = (logits(merged) - with_adapter).norm() / with_adapter.norm()
    assert difference < 0.3
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(merged))
    again = transformers.AutoConfig.from_pretrained(tmp_path).quantization_config
    assert again["depth"] == 3


@pytest.mark.filterwarnings("ignore:Already following adapters were merged")  # of peft
def test_unmerging_gives_the_bits_back(tiny):
    folder = tiny("qwen2", 2) / "packed"
    config = LoraConfig(r=3, target_modules=["q_proj"], lora_bias=True, task_type="CAUSAL_LM")
    model = adapted(load(folder), config).eval()
    model.add_adapter("other", config)
    model.set_adapter("other")
    randomize(model, seed=3)
    before, base = logits(model), parts(model)
    biases = [layer.get_base_layer().bias.clone() for layer in lora_layers(model)]
    with pytest.warns(UserWarning, match="merged into 2 packed layers"):
        model.merge_adapter(["default"])
    once = parts(model)
    with pytest.warns(UserWarning, match="merged into 2 packed layers"):
        model.merge_adapter(["other"])
    assert base != once != parts(model)
    both = copy.deepcopy(model)
    model.unmerge_adapter()
    assert parts(model) == base
    assert torch.equal(logits(model), before)
    for layer, bias in zip(lora_layers(model), biases, strict=True):
        assert torch.equal(layer.get_base_layer().bias, bias)
    # One after the other is both at once: each is rounded once, from the base's own weights.
    with pytest.warns(UserWarning, match="merged into 2 packed layers"):
        model.merge_adapter(["default", "other"])
    assert parts(model) == parts(both)
    with both.disable_adapter():
        assert torch.equal(logits(both), logits(load(folder)))


def test_merged_experts_and_gpt2(tiny):
    for family in ("mixtral", "gpt2"):
        model = adapted(load(tiny(family, 4) / "packed"), LORA).eval()
        expected = logits(model)
        with pytest.warns(UserWarning, match="packed layers by encoding them again"):
            found = logits(model.merge_and_unload())
        assert (found - expected).norm() < 0.3 * expected.norm(), family


def refuse(**_):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_what_cannot_be_merged_changes_nothing(tiny, tmp_path, monkeypatch):
    folder = tiny("llama", 2) / "packed"
    model = adapted(load(folder), LORA)
    base = parts(model)
    with torch.no_grad():
        lora_layers(model)[0].lora_B["default"].weight[0, 0] = float("nan")
    with pytest.raises(TritError, match=r"the adapter cannot be merged: .* is nan"):
        model.merge_and_unload()
    assert parts(model) == base
    plain = load(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="fix the folder"):
        plain.save_pretrained(tmp_path / "file" / "merged")
    (tmp_path / "folder").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere
        with pytest.raises(OutputError, match="folder: Permission denied; fix the folder"):
            plain.save_pretrained(tmp_path / "folder")
    assert not list((tmp_path / "folder").iterdir())
    fewer = adapted(load(folder), LORA)
    fewer.get_base_model().set_planes(1)
    with pytest.raises(TritError, match="reads 1 of its 2 planes"):
        fewer.merge_adapter()
    both = adapted(load(folder), DORA)
    both.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(TritError, match="a DoRA scales what others would add"):
        both.merge_adapter(["default", "other"])


@pytest.mark.parametrize(("mode", "dropout"), [("torch", 0.0), ("torch", 0.3), ("int8", 0.0)])
def test_dora_is_pefts_own_on_the_dequantized_model(tiny, mode, dropout):
    config = LoraConfig(
        r=3, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=True,
        lora_dropout=dropout, task_type="CAUSAL_LM",
    )  # fmt: skip
    folder = tiny("qwen2", 2) / "packed"
    fresh = get_peft_model(load(folder), copy.deepcopy(config)).eval()
    torch.testing.assert_close(logits(fresh), logits(load(folder)))  # m is the rows' norms
    packed = adapted(load(folder, mode), config).train()
    plain = twin(packed, load(folder), config).train()
    ids = torch.arange(3, 12)[None]
    results = []
    for model in (packed, plain):
        torch.manual_seed(6)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        results.append((loss.item(), {n: p.grad for n, p in model.named_parameters()
                                      if p.requires_grad}))  # fmt: skip
    (ours, mine), (theirs, others) = results
    bound = 3e-5 if mode == "torch" else 0.3
    assert abs(ours - theirs) <= bound * abs(theirs)
    assert any("magnitude" in name for name in mine)
    for name, grad in mine.items():
        assert (grad - others[name]).norm() <= bound * others[name].norm(), name
