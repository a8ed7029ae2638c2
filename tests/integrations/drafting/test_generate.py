"""Drafts change the speed of generate and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from support.tiny_models import VOCABULARY, quantize_tiny, some_ids

from tritllm import TritError, products, quantize
from tritllm.integrations.transformers import Draft, load_model

SETTINGS = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def exact(native):
    native("exact")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load(family, depth) -> a packed model in float32; folders are made once."""
    made = {}

    def loaded(family: str = "llama", depth: int = 4):
        if (family, depth) not in made:
            place = tmp_path_factory.mktemp(f"{family}{depth}")
            made[family, depth] = quantize_tiny(place, family, depth) / "packed"
        return load_model(made[family, depth], dtype="float32")

    return loaded


def test_the_same_tokens(load):
    model = load()
    plain = model.generate(some_ids(1), **SETTINGS)
    for source in ("planes=1", "planes=3", "auto", load(depth=1)):
        draft = Draft(model, source, say=lambda line: None)
        assert torch.equal(model.generate(some_ids(1), draft=draft, **SETTINGS), plain)
        report = draft.report
        assert report.accepted + report.rejected <= report.drafted
        assert 0 < report.accepted < SETTINGS["max_new_tokens"]
        again = model.generate(some_ids(1), draft=draft, **SETTINGS)  # costs are known by now
        assert torch.equal(again, plain)


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe"])
def test_of_other_families(load, family):
    model = load(family)
    plain = model.generate(some_ids(1), **SETTINGS)
    assert torch.equal(model.generate(some_ids(1), draft="planes=1", **SETTINGS), plain)


def test_with_what_else_generate_offers(load):
    model, other = load(), load(depth=1)
    mask = torch.ones_like(some_ids(1))
    mask[:, :3] = 0
    for more in (
        {"attention_mask": mask},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"min_new_tokens": 9, "eos_token_id": list(range(40))},
        {"eos_token_id": list(range(90))},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"planes": 3},
    ):
        settings = {**SETTINGS, **more}
        plain = model.generate(some_ids(1), **settings)
        source = other if "eos_token_id" in more else "planes=2"
        assert torch.equal(model.generate(some_ids(1), draft=source, **settings), plain), more


def test_a_sliding_window(tmp_path):
    config = transformers.MistralConfig(
        vocab_size=96, hidden_size=48, intermediate_size=72, num_hidden_layers=2, head_dim=12,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(tmp_path / "source")
    quantize(str(tmp_path / "source"), ["uniform-d4"], tmp_path / "out", threads=1)
    model = load_model(tmp_path / "out" / "uniform-d4" / "packed", dtype="float32")
    plain = model.generate(some_ids(1), **SETTINGS)
    assert torch.equal(model.generate(some_ids(1), draft="planes=1", **SETTINGS), plain)


def test_the_cache_holds_what_was_verified(load):
    model = load()
    more = {"return_dict_in_generate": True, "output_scores": True, **SETTINGS}
    plain = model.generate(some_ids(1), **more)
    drafted = model.generate(some_ids(1), draft="planes=1", **more)
    assert len(drafted.scores) == len(plain.scores)
    pairs = zip(plain.past_key_values.layers, drafted.past_key_values.layers, strict=True)
    for ours, theirs in pairs:
        length = min(ours.keys.shape[2], theirs.keys.shape[2])
        assert length >= plain.sequences.shape[1] - 2
        for name in ("keys", "values"):
            a, b = (getattr(layer, name)[:, :, :length] for layer in (ours, theirs))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_streamer_gets_one_token_at_a_time(load):
    class Kept:
        def __init__(self):
            self.values, self.ended = [], False

        def put(self, value):
            self.values.append(value)

        def end(self):
            self.ended = True

    model, kept = load(), Kept()
    out = model.generate(some_ids(1), draft="planes=3", streamer=kept, **SETTINGS)
    prompt, *tokens = kept.values
    assert torch.equal(prompt, some_ids(1))
    assert all(token.shape == (1,) for token in tokens)
    assert torch.equal(torch.cat(tokens), out[0, prompt.shape[1] :])
    assert kept.ended


def test_a_second_model_shares_what_is_the_same(load):
    model, other = load(), load(depth=1)
    Draft(model, other)
    assert other.lm_head is model.lm_head
    assert other.model.embed_tokens is model.model.embed_tokens
    changed = load(depth=1)
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    Draft(model, changed)
    assert changed.lm_head is not model.lm_head


def test_a_default_is_left_out_where_it_cannot_be(load):
    model = load()
    settings = {**SETTINGS, "max_new_tokens": 6}
    plain = model.generate(some_ids(1), **settings)
    draft = Draft(model, "planes=2")
    model.set_draft(draft)
    assert torch.equal(model.generate(some_ids(1), **settings), plain)
    rounds = draft.report.rounds
    assert rounds > 0
    model.generate(some_ids(2), **settings)
    model.generate(some_ids(1), num_beams=2, **settings)
    assert copy.deepcopy(model).generate(some_ids(1), **settings).equal(plain)
    assert draft.report.rounds == rounds
    model.set_draft(None)
    model.generate(some_ids(1), **settings)
    assert draft.report.rounds == rounds


def test_one_plane_has_no_fewer(load):
    model, said = load(depth=1), []
    plain = model.generate(some_ids(1), **SETTINGS)
    draft = Draft(model, "auto", say=said.append)
    assert torch.equal(model.generate(some_ids(1), draft=draft, **SETTINGS), plain)
    assert said == ["drafting is off: a model that reads 1 planes has no fewer to draft with"]
    assert draft.report.off == said[0]


def test_auto_does_not_cost_the_memory_with_planes_together(load):
    model, said = load(), []
    layer = model.model.layers[0].mlp.up_proj
    assert layer.planes_together == products.planes_together(4)
    plain = model.generate(some_ids(1), **SETTINGS)
    memory = layer.prepared
    draft = Draft(model, "auto", say=said.append)
    assert torch.equal(model.generate(some_ids(1), draft=draft, **SETTINGS), plain)
    if products.planes_together(4):
        assert said == [
            "drafting is off: to read fewer planes this machine needs memory that is larger and "
            "slower to read whole; planes=N takes it"
        ]
        assert draft.report.off == said[0]
        assert draft.report.rounds == 0
        assert layer.prepared is memory
    else:
        assert draft.report.rounds > 0


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("planes=4", r"the model reads 4 planes, a draft takes 1\.\.3"),
        ("planes=0", r"a draft takes 1\.\.3"),
        ("planes=", "is not auto, planes=N or a packed model"),
        ("2", "is not auto, planes=N or a packed model"),
        (2, "int is not a model that generates text"),
        (torch.nn.Linear(2, 2), "Linear is not a model"),
    ],
)
def test_what_cannot_draft_is_refused(load, source, says):
    with pytest.raises(TritError, match=says):
        load().generate(some_ids(1), draft=source, **SETTINGS)


def test_where_there_can_be_no_drafts(load):
    model = load()
    for more, says in (
        ({"num_beams": 3}, "num_beams=3"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
        ({"use_cache": False}, "use_cache=True"),
        ({"cache_implementation": "static"}, "default cache, not 'static'"),
        ({"assistant_model": model}, "give one of both"),
    ):
        with pytest.raises(TritError, match=says):
            model.generate(some_ids(1), draft="planes=2", **{**SETTINGS, **more})
    with pytest.raises(TritError, match="2 sequences at once"):
        model.generate(some_ids(2), draft="planes=2", **SETTINGS)
    with pytest.raises(TritError, match="made for another model"):
        model.generate(some_ids(1), draft=Draft(load(), "planes=2"), **SETTINGS)
    small = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY - 1, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip
    with pytest.raises(TritError, match="its vocabulary has 95 tokens, the model's 96"):
        Draft(model, small)
