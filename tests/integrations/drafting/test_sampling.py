"""Sampling with drafts keeps the model's distribution: a chi-square, which sabotage must fail."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.tiny_models import random_model
from transformers.generation import utils as generation

from tritllm.integrations.transformers import Draft, TritConfig, load_model

TOKENS, BINS, VOCABULARY, TEMPERATURE = 500, 12, 12, 0.9


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A model of few tokens whose top plane alone says something else than the whole."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("sampled")
    random_model(config, times=20, seed=5).save_pretrained(place / "source")
    made = transformers.AutoModelForCausalLM.from_pretrained(
        place / "source", quantization_config=TritConfig(depth=4)
    )
    made.save_pretrained(place / "packed")
    return place / "packed"


def accept_all(candidate_input_ids, candidate_logits, candidate_length, new_logits, **_):
    drafted = candidate_input_ids[:, -candidate_length:]
    last = torch.multinomial(new_logits[:, -1].softmax(-1), num_samples=1)
    return torch.cat([drafted, last], dim=-1), torch.tensor(candidate_length)


@pytest.mark.parametrize(("second", "sabotaged"), [(False, False), (True, False), (False, True)])
def test_tokens_are_distributed_as_the_model_says(packed, native, monkeypatch, second, sabotaged):
    """Each token's conditional distribution is compared with that of one plain forward.

    Where tokens are p's, u = (mass of the tokens before it, in any fixed order, plus a random share
    of its own) is uniform; in the order of q / p, drafts taken unseen make it small.
    """
    native("exact")
    if sabotaged:
        monkeypatch.setattr(generation, "_speculative_sampling", accept_all)
    model, shallow = load_model(packed), load_model(packed, planes=1)
    draft = Draft(model, shallow if second else "planes=1")
    torch.manual_seed(11)
    prompt = torch.tensor([[1, 2, 3]])
    ids = model.generate(
        prompt, draft=draft, do_sample=True, temperature=TEMPERATURE, top_k=0,
        max_new_tokens=TOKENS, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.no_grad():
        p, q = (
            (m(ids).logits[0, prompt.shape[1] - 1 : -1] / TEMPERATURE).softmax(-1)
            for m in (model, shallow)
        )
    assert 0.2 < torch.minimum(p, q).sum(-1).mean() < 0.9  # drafts are often wrong
    order = (q / p).argsort(dim=-1, descending=True)
    own = order == ids[0, prompt.shape[1] :, None]
    mass = p.gather(-1, order)
    u = ((mass.cumsum(-1) - mass * torch.rand(len(own), 1)) * own).sum(-1)
    expected = len(own) / BINS
    chi_square = ((torch.histc(u, BINS, 0, 1) - expected) ** 2 / expected).sum()
    # Uniform numbers exceed 50 once in a million runs: 11 degrees of freedom. No seed settles what
    # is drawn, as the draft's length follows the time that it takes.
    assert (chi_square > 100) if sabotaged else (chi_square < 50)
