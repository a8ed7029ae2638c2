"""Between two native steps of generate: transformers' own inputs and outputs, made cheaply."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from support.tiny_models import random_model
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from tritllm import quantize
from tritllm.integrations.transformers import Int8Cache, load_model
from tritllm.integrations.transformers.compat import output_of
from tritllm.integrations.transformers.native_step import decode_inputs
from tritllm.integrations.transformers.packed_model import PackedGenerator

pytestmark = pytest.mark.usefixtures("exact")

TOKENS = 80  # more than positions are laid out at once
GREEDY = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    place = tmp_path_factory.mktemp("generate")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=112, num_hidden_layers=2, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    random_model(config).save_pretrained(place / "source")
    quantize(str(place / "source"), ["uniform-d2"], place / "out", threads=1, write=["packed"])
    return place / "out" / "uniform-d2" / "packed"


@pytest.fixture
def model(packed):
    return load_model(packed, dtype="float32")


def ids(rows: int = 1, length: int = 5, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


def same(ours, theirs) -> bool:
    """Whether two of the model's arguments or outputs are equal."""
    if not isinstance(ours, torch.Tensor):
        return ours is theirs or ours == theirs
    return ours.dtype is theirs.dtype and torch.equal(ours, theirs)


@pytest.fixture
def compared(monkeypatch):
    """Compares all that is made here with what transformers makes; how often it was."""
    count = {"inputs": 0, "arguments": 0, "transformers": 0}

    def check(ours, theirs, name: str) -> None:
        count[name] += 1
        assert ours.keys() == theirs.keys()
        assert all(same(ours[key], theirs[key]) for key in ours)

    def inputs(self, input_ids, *args, **kwargs):
        made = decode_inputs.next_inputs(input_ids, kwargs)
        found = real_inputs(self, input_ids, *args, **kwargs)
        if made is not None:
            theirs = GenerationMixin.prepare_inputs_for_generation(self, input_ids, **kwargs)
            check(found, theirs, "inputs")
        else:
            count["transformers"] += 1
        return found

    def arguments(self, outputs, held, *args, **kwargs):
        before = dict(held)
        found = real_arguments(self, outputs, held, *args, **kwargs)
        if hasattr(found["position_ids"], decode_inputs._AHEAD):
            theirs = GenerationMixin._update_model_kwargs_for_generation(self, outputs, before)
            check(found, theirs, "arguments")
        return found

    real_inputs = PackedGenerator.prepare_inputs_for_generation
    real_arguments = PackedGenerator._update_model_kwargs_for_generation
    inputs.__signature__ = inspect.signature(real_inputs)  # generate looks at it
    monkeypatch.setattr(PackedGenerator, "prepare_inputs_for_generation", inputs)
    monkeypatch.setattr(PackedGenerator, "_update_model_kwargs_for_generation", arguments)
    return count


@pytest.mark.parametrize(
    ("rows", "mask", "options"),
    [
        (1, None, {}),
        (3, LEFT, {}),
        (1, None, {"kv_cache": "int8"}),
        (1, None, {"do_sample": True, "top_k": 5}),
    ],
    ids=["greedy", "padded", "int8", "sampled"],
)
def test_a_token_s_inputs(model, steps, compared, rows, mask, options):
    prompt = ids(rows)
    mask = torch.ones_like(prompt) if mask is None else mask
    model.generate(prompt, attention_mask=mask, **{**GREEDY, **options})
    assert len(steps) == TOKENS - 1
    # The prompt is transformers' own, and where a stock cache becomes ours the token after it.
    assert compared["transformers"] <= 2
    assert compared["inputs"] == compared["arguments"] - 1 >= TOKENS - 3


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 4},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"output_hidden_states": True, "return_dict_in_generate": True},
    ],
    ids=["beams", "drafts", "no cache", "static", "hidden states"],
)
def test_other_generations_give_what_transformers_gives(packed, options):
    how = {**GREEDY, "max_new_tokens": 12, "min_new_tokens": 12, **options}
    prompt = ids(1, 4).repeat(1, 3)
    found = []
    for stock in (False, True):
        model = load_model(packed, dtype="float32")
        if stock:
            model.model.__class__ = model.model.stock
            model.__class__ = LlamaForCausalLM
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        found.append(out.sequences if "return_dict_in_generate" in options else out)
    assert torch.equal(*found)


def test_a_generation_that_goes_on_with_its_cache(model, compared):
    prompt = ids()
    whole = model.generate(prompt, **GREEDY)
    half = model.generate(prompt, **{**GREEDY, "max_new_tokens": 20, "min_new_tokens": 20},
                          return_dict_in_generate=True)  # fmt: skip
    again = model.generate(half.sequences, past_key_values=half.past_key_values,
                           **{**GREEDY, "max_new_tokens": 60, "min_new_tokens": 60})  # fmt: skip
    assert torch.equal(again, whole)


# --- The logits of a step -------------------------------------------------------------------------


@pytest.fixture
def stock_calls(monkeypatch):
    """Counts calls of transformers' own forward of the model for text."""
    calls = []
    real = LlamaForCausalLM.forward

    def counted(self, *arguments, **more):
        calls.append(1)
        return real(self, *arguments, **more)

    counted.__module__ = real.__module__
    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    return calls


@torch.no_grad()
def step(model, length: int = 3, **options):
    past = model(ids(2), use_cache=True).past_key_values
    return model(ids(2, length, 4), past_key_values=past, use_cache=True, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"logits_to_keep": 1}, {"logits_to_keep": 2}, {"logits_to_keep": 9},
     {"return_dict": True}],
    ids=str,
)  # fmt: skip
def test_as_transformers_returns_them(packed, model, steps, stock_calls, options):
    ours = step(model, **options)
    assert len(stock_calls) == 1  # of the prompt
    assert len(steps) == 1
    reference = load_model(packed, dtype="float32")
    reference.__class__ = LlamaForCausalLM
    theirs = step(reference, **options)
    assert len(steps) == 2
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    assert torch.equal(ours.logits, theirs.logits)
    assert ours[0] is ours.logits
    assert ours.loss is ours.hidden_states is None


@pytest.mark.parametrize(
    "options",
    [
        {"logits_to_keep": torch.tensor([0, 2])},
        {"labels": ids(2, 3, 4)},
        {"return_dict": False},
        {"output_hidden_states": True},
    ],
    ids=["positions", "labels", "tuple", "hidden states"],
)
def test_what_else_is_asked_is_transformers_own(packed, model, stock_calls, options):
    ours = step(model, **options)
    assert len(stock_calls) == 2
    reference = load_model(packed, dtype="float32")
    reference.__class__ = LlamaForCausalLM
    theirs = step(reference, **options)
    assert type(ours) is type(theirs)
    ours, theirs = (out if isinstance(out, tuple) else out.to_tuple() for out in (ours, theirs))
    assert all(same(a, b) for a, b in zip(ours, theirs) if isinstance(a, torch.Tensor))
    assert len(ours) == len(theirs)


def test_whoever_changes_the_model_for_text_is_heard(model, steps, monkeypatch):
    expected = step(model).logits
    hooks = [
        model.lm_head.register_forward_hook(lambda module, inputs, output: output + 1),
        model.register_forward_hook(lambda module, inputs, output: setattr(output, "seen", True)),
    ]
    out = step(model)
    assert len(steps) == 2
    assert out.seen
    torch.testing.assert_close(out.logits, expected + 1)
    for hook in hooks:
        hook.remove()
    hook = model.model.register_forward_hook(lambda module, inputs, output: called.append(1))
    called: list[int] = []
    step(model)
    assert called == [1, 1]
    hook.remove()
    real = LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda self, *a, **k: (real(self, *a, **k), 7))
    assert step_of_another(model) == 7


@torch.no_grad()
def step_of_another(model):
    """What the forward that someone else gave the class says of a step besides the output."""
    past = model(ids(2), use_cache=True)[0].past_key_values
    return model(ids(2, 1, 4), past_key_values=past, use_cache=True)[1]


def test_gradients_of_the_output_layer(model, steps):
    """The blocks are frozen; what comes after a step is torch's own."""
    with torch.no_grad():
        past = model(ids(2), use_cache=True).past_key_values
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is model.lm_head.weight)
    model(ids(2, 1, 4), past_key_values=past, use_cache=True).logits.sum().backward()
    assert len(steps) == 1
    assert model.lm_head.weight.grad.any()


def test_an_output_is_what_its_constructor_makes():
    values = {"logits": torch.zeros(1, 2, 3), "past_key_values": Int8Cache()}
    ours, theirs = output_of(CausalLMOutputWithPast, **values), CausalLMOutputWithPast(**values)
    assert type(ours) is type(theirs)
    assert list(ours.items()) == list(theirs.items())
    assert vars(ours) == vars(theirs)
    assert ours.to_tuple() == theirs.to_tuple()
    ours.loss = torch.ones(())
    assert list(ours)[-1] == "loss"
