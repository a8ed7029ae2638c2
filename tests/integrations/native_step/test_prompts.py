"""Prompts through the native blocks: transformers' numbers, and its own forward elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from support.tiny_models import random_model
from transformers import DynamicCache

from tritllm import quantize
from tritllm.integrations.transformers import Int8Cache, load_model
from tritllm.integrations.transformers.native_step import cache
from tritllm.native import structures

pytestmark = pytest.mark.usefixtures("exact", "prompts_pay")

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "phi3": lambda: transformers.Phi3Config(**SIZES, sliding_window=60),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, query_pre_attn_scalar=20, attn_logit_softcapping=2.0, sliding_window=80
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2
    ),
}
DENSE = ("qwen2", "phi3", "gemma2")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load(family, stock=False, dtype="float32") -> a model; folders are made once."""
    made = {}

    def loaded(family: str, stock: bool = False, dtype: str = "float32"):
        if family not in made:
            place = tmp_path_factory.mktemp(family)
            random_model(CONFIGS[family](), noise=0.25).save_pretrained(place / "source")
            quantize(str(place / "source"), ["uniform-d2"], place / "out", threads=1)
            made[family] = place / "out" / "uniform-d2" / "packed"
        model = load_model(made[family], dtype=dtype)
        if stock:
            model.model.__class__ = model.model.stock
        return model

    return loaded


def ids(rows: int, length: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def states(model, lengths, rows: int = 2, mask=None) -> torch.Tensor:
    """Hidden states of all tokens, taken so many at a time into one cache."""
    past = DynamicCache(config=model.config)
    found, begin = [], 0
    for length in lengths:
        part = ids(rows, sum(lengths))[:, begin : begin + length]
        begin += length
        seen = None if mask is None else mask[:, :begin]
        out = model.model(part, attention_mask=seen, past_key_values=past, use_cache=True)
        assert out.past_key_values is past
        assert past.get_seq_length() == begin
        found.append(out.last_hidden_state)
    return torch.cat(found, 1)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", DENSE)
def test_as_transformers_own_forward(load, steps, monkeypatch, family, padded):
    """A prompt in two runs, tokens, and a second prompt."""
    monkeypatch.setattr(cache, "_PROMPT_ROWS", 50)
    mask = torch.ones(2, 59, dtype=torch.long)
    if padded:
        mask[1, :5] = 0
    lengths = (40, 1, 18)
    ours = states(load(family), lengths, mask=mask)
    assert steps == [20, 20, 1, 18]
    theirs = states(load(family, stock=True), lengths, mask=mask)
    visible = mask.bool()
    torch.testing.assert_close(ours[visible], theirs[visible], rtol=1e-4, atol=1e-4)


def test_nearer_than_transformers_in_half_the_bits(load, steps):
    exact = states(load("qwen2", stock=True), (70,))
    ours = states(load("qwen2", dtype="bfloat16"), (70,)).float()
    assert steps == [70]
    theirs = states(load("qwen2", stock=True, dtype="bfloat16"), (70,)).float()
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


@pytest.mark.parametrize("rows", [17, 1000])
def test_products_are_those_of_many_rows(load, steps, native, monkeypatch, rows):
    """By superblocks from as many rows on as a packed layer alone takes them."""
    exact = states(load("qwen2", stock=True), (40,), 1)
    native("int8")
    monkeypatch.setattr("tritllm.integrations.transformers.native_step.parts.superblock_rows",
                        lambda: rows)  # fmt: skip
    taken = []
    model = load("qwen2")
    real = cache.PreallocatedCache.step

    def step(self, blocks, *arguments):
        taken.append(blocks[0].arithmetic)
        real(self, blocks, *arguments)

    monkeypatch.setattr(cache.PreallocatedCache, "step", step)
    ours = states(model, (40, 1), 1)[:, :40]
    many = structures.SUPERBLOCKS if rows == 17 else structures.GROUPS
    assert taken == [many, structures.GROUPS]
    assert 1e-6 < (ours - exact).norm() / exact.norm() < 3e-2


@torch.no_grad()
def test_generate(load, steps):
    how = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    prompt = ids(2, 30)
    ours = load("qwen2").generate(prompt, attention_mask=torch.ones_like(prompt), **how)
    assert steps == [30] + 11 * [1]
    theirs = load("qwen2", stock=True)
    assert torch.equal(ours, theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **how))


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_the_cache_is_transformers_own(load, steps, family):
    """One without layers too; copies, crops and what is put behind a prompt elsewhere."""
    found, other = [], load(family, stock=True)
    for model in (load(family), load(family, stock=True)):
        past = DynamicCache() if family == "qwen2" else DynamicCache(config=model.config)
        model(ids(1, 30), past_key_values=past, use_cache=True)
        copied = copy.deepcopy(past)
        past.crop(-4)
        logits = model(ids(1, 1), past_key_values=past, use_cache=True).logits
        again = other.model(ids(1, 3), past_key_values=copied, use_cache=True)
        found.append([logits, again.last_hidden_state, *(layer.keys for layer in copied.layers)])
        assert past.get_seq_length() == 27
        assert copied.get_seq_length() == 33
        past.reset()
        assert past.get_seq_length() == 0
        found[-1].append(model(ids(1, 20), past_key_values=past, use_cache=True).logits)
    assert steps == [30, 1, 20]
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def of_a_window(model):
    model(ids(1, 61), past_key_values=DynamicCache(config=model.config), use_cache=True)


def of_int8(model):
    model(ids(1, 20), past_key_values=Int8Cache(), use_cache=True)


def without_a_cache(model):
    model(ids(1, 20), use_cache=False)


def of_few_tokens(model):
    model(ids(1, 16), past_key_values=DynamicCache(config=model.config), use_cache=True)


def of_a_mixture(model):
    model(ids(1, 20), past_key_values=DynamicCache(config=model.config), use_cache=True)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "call"),
    [("phi3", of_a_window), ("qwen2", of_int8), ("qwen2", without_a_cache),
     ("qwen2", of_few_tokens), ("mixtral", of_a_mixture)],
)  # fmt: skip
def test_transformers_own_forward_takes_the_others(load, steps, family, call):
    call(load(family))
    assert not steps


def test_gradients(load, steps):
    model = load("qwen2")
    weight = model.model.layers[0].input_layernorm.weight.requires_grad_()
    past = DynamicCache(config=model.config)
    model(ids(1, 20), past_key_values=past, use_cache=True).logits.sum().backward()
    assert not steps
    assert weight.grad.abs().sum() > 0
