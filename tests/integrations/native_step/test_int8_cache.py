"""The cache of int8 keys and values, in native steps and in transformers' own forward."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers
from support.tiny_models import random_model

from tritllm import quantize
from tritllm.errors import TritError
from tritllm.integrations.transformers import Int8Cache, int8_cache, load_model
from tritllm.step import int8_cache as definition

pytestmark = pytest.mark.usefixtures("exact")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A packed Qwen2, whose keys have biases."""
    place = tmp_path_factory.mktemp("int8")
    config = transformers.Qwen2Config(
        vocab_size=96, hidden_size=64, intermediate_size=112, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    random_model(config, noise=1).save_pretrained(place / "source")
    quantize(str(place / "source"), ["uniform-d2"], place / "out", threads=1)
    return place / "out" / "uniform-d2" / "packed"


def load(folder, stock: bool = False):
    model = load_model(folder, dtype="float32")
    if stock:
        model.model.__class__ = model.model.stock
    return model


def ids(rows: int, length: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, past, rows: int = 2, lengths=(1, 4, 1)) -> torch.Tensor:
    out = model(ids(rows, 9), past_key_values=past, use_cache=True)
    found = []
    for part in ids(rows, sum(lengths), seed=4).split(lengths, dim=1):
        out = model(part, past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits)
    return torch.cat(found, dim=1)


def test_as_its_definition():
    x = torch.randn(3, 2, 5, 96) * torch.tensor([1, 100, 1e-4]).repeat_interleave(32)
    x[0, 0, 0, :32], x[1, 0, 0, 40], x[2, 1, 1, 70] = 0, torch.nan, torch.inf
    for ours, theirs in zip(int8_cache.quantized(x), definition.quantized(x.numpy())):
        assert np.array_equal(ours.numpy(), theirs, equal_nan=True)


def test_near_a_cache_that_is_not_rounded(folder, steps):
    ours = logits(load(folder), Int8Cache())
    assert len(steps) == 3
    rounded = logits(load(folder, stock=True), Int8Cache())
    assert len(steps) == 3
    plain = logits(load(folder), transformers.DynamicCache())
    assert 0 < (ours - plain).norm() < 2e-2 * plain.norm()
    # A step sees its own keys and values as they are kept, transformers' forward as they came.
    assert (ours - rounded).norm() < 1e-2 * plain.norm()


def test_generate(folder, steps):
    prompt = ids(2, 9)
    how = {"max_new_tokens": 70, "min_new_tokens": 70, "attention_mask": torch.ones_like(prompt)}
    past = Int8Cache()
    greedy = load(folder).generate(prompt, past_key_values=past, do_sample=False, **how)
    assert greedy.shape == (2, 79)
    assert len(steps) == 69  # through memory that has grown
    assert past.get_seq_length() == 78
    assert past.layers[0].room.keys.dtype is torch.int8
    beams = load(folder).generate(prompt, past_key_values=Int8Cache(), num_beams=3, **how)
    assert len(steps) == 138
    assert beams.shape == (2, 79)


def test_generate_by_name(folder, steps):
    """By an argument, or for every call; also with drafts, and with what a caller brings."""
    model, prompt = load(folder), ids(1, 9)
    how = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "output_scores": True,
           "attention_mask": torch.ones_like(prompt), "return_dict_in_generate": True}  # fmt: skip
    expected = model.generate(prompt, past_key_values=Int8Cache(), **how)
    named = model.generate(prompt, kv_cache="int8", **how)
    assert type(named.past_key_values) is Int8Cache
    assert torch.equal(torch.stack(named.scores), torch.stack(expected.scores))
    model.set_kv_cache("int8")
    drafted = model.generate(prompt, draft="planes=1", **how)
    assert type(drafted.past_key_values) is Int8Cache
    assert torch.equal(drafted.sequences, expected.sequences)
    own = transformers.DynamicCache()
    assert model.generate(prompt, past_key_values=own, **how).past_key_values is own
    model.set_kv_cache(None)
    assert type(model.generate(prompt, **how).past_key_values) is transformers.DynamicCache


def test_models_that_it_does_not_fit(folder):
    model = load(folder)
    with pytest.raises(TritError, match="kv_cache 'int4' is not 'int8'"):
        model.set_kv_cache("int4")
    for name, value, says in (
        ("head_dim", 48, "its heads are 48 wide"),
        ("kv_lora_rank", 8, "its layers keep more"),
        ("layer_types", ["full_attention", "mamba"], "it has layers of the kind mamba"),
    ):
        other = load(folder)
        setattr(other.config, name, value)
        with pytest.raises(TritError, match=says):
            other.generate(ids(1, 2), kv_cache="int8")


@torch.no_grad()
def test_what_a_cache_offers(folder, steps):
    """Shortened in place, sequences chosen and repeated, a copy, a reset."""
    model = load(folder)
    past = Int8Cache()
    model(ids(3, 9), past_key_values=past, use_cache=True)
    first = model(ids(3, 2), past_key_values=past, use_cache=True).logits
    rooms = [layer.room for layer in past.layers]
    past.crop(-2)
    kept = copy.deepcopy(past)
    assert torch.equal(model(ids(3, 2), past_key_values=past, use_cache=True).logits, first)
    assert [layer.room for layer in past.layers] == rooms
    kept.reorder_cache(torch.tensor([2, 0, 0]))
    kept.batch_select_indices(torch.tensor([0, 2]))
    kept.batch_repeat_interleave(2)
    chosen = model(ids(3, 2)[[2, 2, 0, 0]], past_key_values=kept, use_cache=True).logits
    torch.testing.assert_close(chosen, first[[2, 2, 0, 0]])
    assert len(steps) == 3
    assert past.layers[0].keys.shape == (3, 2, 11, 32)
    past.reset()
    assert past.get_seq_length() == 0
    assert past.layers[0].keys is None


def test_what_it_cannot_hold(folder):
    layer = int8_cache.Int8Layer()
    with pytest.raises(ValueError, match="a multiple of 32 wide"):
        layer.update(torch.zeros(1, 2, 3, 48), torch.zeros(1, 2, 3, 48))
    with pytest.raises(AttributeError, match="makes its tensors itself"):
        layer.keys = torch.zeros(1, 2, 3, 64)
    layer.update(torch.ones(1, 2, 3, 64), torch.ones(1, 2, 3, 64))
    with pytest.raises(ValueError, match="negative"):
        layer.crop(2)
