"""One token's attention with the query heads as rows: transformers' numbers."""

from __future__ import annotations

import pytest
import torch
from support.family_models import ALL_MODELS
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tritllm.integrations.transformers import attention, load_model


class Module(torch.nn.Module):
    is_causal = True
    num_key_value_groups = 3


def tensors(length: int, heads: int = 6, groups: int = 2, known: int = 11, width: int = 8):
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, heads, length, width), (2, groups, known, width), (2, groups, known, width))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def some_mask(kind: str, length: int) -> torch.Tensor | None:
    if kind == "none":
        return None
    heads = 6 if kind == "per head" else 1
    mask = torch.rand(2, heads, length, 11, generator=torch.Generator().manual_seed(6)) > 0.4
    mask[..., 0] = True
    return mask if kind == "bool" else torch.where(mask, 0.0, -1e9)


@pytest.mark.parametrize("kind", ["none", "bool", "float", "per head"])
@pytest.mark.parametrize("length", [1, 4])
def test_as_sdpa(kind, length):
    query, key, value = tensors(length)
    mask = some_mask(kind, length)
    if length == 4 and mask is None:
        key, value = key[:, :, :4], value[:, :, :4]
    ours, nothing = attention.attention(Module(), query, key, value, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(Module(), query, key, value, mask, scaling=0.3)
    assert nothing is None
    assert ours.shape == (2, length, 6, 8)
    torch.testing.assert_close(ours, theirs)


def test_a_loaded_model_uses_it_unless_told_otherwise(tiny):
    packed = tiny("llama", 2) / "packed"
    assert load_model(packed).config._attn_implementation == attention.NAME
    for asked in ("eager", "sdpa"):
        model = load_model(packed, attn_implementation=asked)
        assert model.config._attn_implementation == asked


@pytest.mark.parametrize(
    ("family", "asks"), [("deepseek_v32", True), ("glm_moe_dsa", True), ("llama", False)]
)
def test_a_model_whose_code_asks_for_sdpa_by_name_keeps_it(family, asks):
    """Sparse attention would silently attend to all tokens."""
    model = ALL_MODELS[family].build()
    assert model.config._attn_implementation == "sdpa"
    attention.use_attention(model)
    assert model.config._attn_implementation == ("sdpa" if asks else attention.NAME)


def test_it_is_not_saved(tiny, tmp_path):
    load_model(tiny("llama", 2) / "packed").save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
