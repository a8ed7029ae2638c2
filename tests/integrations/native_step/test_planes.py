"""The native step reads as many planes as the layers do, and is not set up anew for it."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.tiny_models import random_model

from tritllm import quantize
from tritllm.integrations.transformers import Draft, load_model
from tritllm.integrations.transformers.native_step import model as native_model

SETTINGS = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    place = tmp_path_factory.mktemp("planes")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=112, num_hidden_layers=2, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    random_model(config).save_pretrained(place / "source")
    quantize(str(place / "source"), ["uniform-d4"], place / "out", threads=1, write=["packed"])
    return place / "out" / "uniform-d4" / "packed"


@torch.no_grad()
def decoded(model) -> torch.Tensor:
    """Logits of a token after a prompt, by the native step."""
    ids = torch.arange(5, 14)[None]
    past = model(ids[:, :-1], use_cache=True).past_key_values
    return model(ids[:, -1:], past_key_values=past, use_cache=True).logits


@pytest.mark.parametrize("mode", ["exact", "int8"])
def test_steps_of_fewer_planes(packed, native, steps, mode):
    native(mode)
    expected = {
        planes: decoded(load_model(packed, dtype="float32", planes=planes)) for planes in (1, 2, 3)
    }
    del steps[:]
    model = load_model(packed, dtype="float32")
    with model.planes(1):  # the first time memory may be made again, so that planes are apart
        pass
    first = decoded(model)
    parts = model.model.__dict__[native_model._PARTS]
    blocks, known = parts.blocks, {4: first}
    for planes in (1, 2, 3):
        with model.planes(planes):
            known[planes] = decoded(model)
            assert parts.blocks is not blocks
        torch.testing.assert_close(known[planes], expected[planes], rtol=1e-4, atol=1e-4)
    assert len(steps) == 4
    assert not any(torch.allclose(known[a], known[a + 1], atol=1e-3) for a in (1, 2))
    assert torch.equal(decoded(model), first)
    assert parts.blocks is blocks
    assert model.model.__dict__[native_model._PARTS] is parts  # no switch set it up anew


@pytest.mark.parametrize("source", ["planes=1", "planes=3", "itself"])
def test_drafts_are_steps(packed, native, steps, source):
    native("int8")
    model = load_model(packed, dtype="float32")
    plain = model.generate(torch.arange(5, 14)[None], **SETTINGS)
    del steps[:]
    draft = Draft(model, load_model(packed, dtype="float32") if source == "itself" else source)
    out = model.generate(torch.arange(5, 14)[None], draft=draft, **SETTINGS)
    assert torch.equal(out, plain)
    report = draft.report
    # A second model's first draft begins with its own prompt, which is no step.
    assert len(steps) >= report.drafted + report.rounds - (source == "itself")
    assert max(steps) > 1
    assert model.model.layers[0].mlp.up_proj.planes == 4
