"""What is seen of a block: who shares an input, whose output is added, what need not run again."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.tiny_models import CONFIGS
from torch import nn

from tritllm.calibration.stages import Experts, Stage, structure_of
from tritllm.integrations.transformers.compat import Conv1D

HIDDEN = 48


def seen(block: nn.Module, run) -> tuple[list, tuple[str, ...], dict[str, str]]:
    matrices = [n for n, m in block.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    torch.manual_seed(2)
    structure = structure_of(block, matrices, run, torch.randn(2, 5, HIDDEN))
    return list(structure.steps), structure.closed, structure.skipped


def first_block(config):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    taken = []
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    handle = blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: taken.append((args[1:], kwargs)), with_kwargs=True
    )
    model(torch.zeros(2, 5, dtype=torch.long), use_cache=False)
    handle.remove()
    args, kwargs = taken[0]
    return blocks[0], lambda hidden: blocks[0](hidden, *args, **kwargs)


def test_a_llama_block():
    steps, closed, skipped = seen(*first_block(CONFIGS["llama"]()))
    assert steps == [
        Stage(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Stage(("self_attn.o_proj",), added=True),
        Stage(("mlp.gate_proj", "mlp.up_proj")),
        Stage(("mlp.down_proj",), added=True),
    ]
    assert closed == ("self_attn", "mlp")
    assert skipped == {}


def test_an_activation_that_adds_its_input_is_no_residual_stream():
    """gelu_new is 0.5 x (1 + tanh(c (x + 0.044715 x**3))): x is an operand of an addition."""
    config = CONFIGS["gpt2"]()
    config.n_inner = HIDDEN  # as wide as the stream
    assert config.activation_function == "gelu_new"
    steps, _, _ = seen(*first_block(config))
    assert steps == [
        Stage(("attn.c_attn",)),
        Stage(("attn.c_proj",), added=True),
        Stage(("mlp.c_fc",)),
        Stage(("mlp.c_proj",), added=True),
    ]


def test_an_output_that_is_normed_before_it_is_added_is_not_added():
    config = transformers.Gemma2Config(
        vocab_size=32, hidden_size=HIDDEN, intermediate_size=72, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12,
    )  # fmt: skip
    steps, _, _ = seen(*first_block(config))
    assert not any(step.added for step in steps)
    assert steps[0].modules == ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class Odd(nn.Module):
    """Calls a matrix twice, another never; adds in place."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(HIDDEN, HIDDEN)
        self.never = nn.Linear(HIDDEN, HIDDEN)
        self.scaled = nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(hidden))
        hidden = hidden + 0.5 * self.scaled(x)
        hidden += self.out(x)
        return hidden


def test_what_cannot_be_calibrated_is_told_and_a_scaled_output_is_not_added():
    steps, _, skipped = seen(odd := Odd(), odd)
    assert steps == [Stage(("scaled",)), Stage(("out",), added=True)]
    assert skipped == {"never": "not called", "twice": "called more than once"}


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_experts_are_one_step(family, tmp_path):
    from support.calibrated import plan_of
    from support.tiny_models import write_tiny

    from tritllm.calibration.skeleton import Skeleton

    plan = plan_of(write_tiny(tmp_path, family))
    skeleton = Skeleton(plan.source, plan.quantized)
    assert len(skeleton.blocks) == 2
    assert not skeleton.absent
    block = skeleton.model.get_submodule(skeleton.blocks[0])
    skeleton.fill(skeleton.blocks[0], torch.device("cpu"))
    rotary = skeleton.model.model.rotary_emb
    hidden = torch.randn(1, 5, HIDDEN)
    positions = rotary(hidden, torch.arange(5)[None])
    prefix = f"{skeleton.blocks[0]}."
    names = [n.removeprefix(prefix) for n in skeleton.planned if n.startswith(prefix)]
    structure = structure_of(
        block, names, lambda h: block(h, position_embeddings=positions), hidden
    )
    assert [type(step) for step in structure.steps] == [Stage, Stage, Experts]
