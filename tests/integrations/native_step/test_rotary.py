"""Tables of cosines and sines: the rotary module's own bits, and the module where none can be."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tritllm.integrations.transformers.native_step.rotary import RotaryTables

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "llama3": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
}  # fmt: skip


def rotary(kind: str = "default") -> torch.nn.Module:
    return LlamaRotaryEmbedding(
        transformers.LlamaConfig(
            hidden_size=64, num_attention_heads=2, max_position_embeddings=256,
            rope_parameters=dict(ROPES[kind]),
        )
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """Counts how often a rotary module is asked."""
    count = []
    real = LlamaRotaryEmbedding.forward

    def counted(self, *arguments):
        count.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", counted)
    return count


@pytest.mark.parametrize("kind", ["default", "llama3", "yarn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_table_is_what_the_module_says(kind, dtype, asked):
    module, hidden = rotary(kind), torch.zeros(1, 1, 64, dtype=dtype)
    tables = RotaryTables(module)
    for position in (0, 1, 63, 64, 65, 200, 40_000, 5):
        positions = torch.tensor([[position]])
        for ours, theirs in zip(tables.at(hidden, positions), module(hidden, positions)):
            assert torch.equal(ours, theirs)
            assert ours.is_contiguous()
    assert len(asked) == 8 + 2 * 4  # of four tables


def test_several_tokens_and_rows(asked):
    module, hidden = rotary(), torch.zeros(3, 4, 64)
    tables = RotaryTables(module)
    tables.at(hidden, torch.tensor([[7]]))
    before = len(asked)
    inside = torch.arange(61, 65)[None]
    for positions in (inside, inside.expand(3, 4)):
        for ours, theirs in zip(tables.at(hidden, positions), module(hidden, inside)):
            assert torch.equal(ours, theirs)
    assert len(asked) == before + 2
    for positions in ([[1], [2], [1]], [[4, 6]], [[6, 5]]):
        given = torch.tensor(positions)
        for ours, theirs in zip(tables.at(hidden, given), module(hidden, given)):
            assert torch.equal(ours, theirs)
    assert len(asked) == before + 8


def test_another_dtype_asks_again():
    module, tables = rotary(), RotaryTables(rotary())
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        hidden = torch.zeros(1, 1, 64, dtype=dtype)
        cos, _ = tables.at(hidden, torch.tensor([[3]]))
        assert cos.dtype is dtype
        assert torch.equal(cos, module(hidden, torch.tensor([[3]]))[0])


def test_changed_frequencies_are_seen():
    module, hidden = rotary(), torch.zeros(1, 1, 64)
    tables, positions = RotaryTables(module), torch.tensor([[9]])
    before, _ = tables.at(hidden, positions)
    module.inv_freq.data.mul_(2)
    after, _ = tables.at(hidden, positions)
    assert not torch.equal(before, after)
    assert torch.equal(after, module(hidden, positions)[0])


def test_frequencies_that_depend_on_the_length_are_asked_for(asked):
    """Asking for positions to come would change the module."""
    module, hidden = rotary("dynamic"), torch.zeros(1, 1, 64)
    tables = RotaryTables(module)
    before = module.inv_freq.clone()
    for position in (249, 250):
        tables.at(hidden, torch.tensor([[position]]))
    assert len(asked) == 2
    assert torch.equal(module.inv_freq, before)


def test_a_module_of_two_kinds_of_layers():
    rope = {"full_attention": dict(ROPES["default"]), "sliding_attention": dict(ROPES["default"])}
    rope["sliding_attention"]["rope_theta"] = 1e2
    module = Gemma3RotaryEmbedding(
        transformers.Gemma3TextConfig(
            hidden_size=64, num_attention_heads=2, head_dim=32, num_hidden_layers=6,
            rope_parameters=rope,
        )
    )  # fmt: skip
    hidden, found = torch.zeros(1, 1, 64), []
    for kind in rope:
        tables = RotaryTables(module, kind)
        for position in (7, 9):
            positions = torch.tensor([[position]])
            found.append(tables.at(hidden, positions)[0])
            assert torch.equal(found[-1], module(hidden, positions, kind)[0])
    assert not torch.equal(found[1], found[3])


def test_a_module_that_says_something_else_is_asked(asked):
    class Shifting(LlamaRotaryEmbedding):
        def forward(self, x, position_ids):
            return super().forward(x, position_ids + position_ids.max())

    module, hidden = Shifting(rotary().config), torch.zeros(1, 1, 64)
    tables = RotaryTables(module)
    for position in (5, 6, 7):
        positions = torch.tensor([[position]])
        assert torch.equal(tables.at(hidden, positions)[0], module(hidden, positions)[0])
