"""Models whose decode step is native: transformers' numbers, and its own forward elsewhere."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import transformers
from support.tiny_models import random_model

from tritllm import quantize
from tritllm.integrations.transformers import load_model
from tritllm.integrations.transformers.native_step import model as native_model

pytestmark = pytest.mark.usefixtures("exact")

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    "llama": lambda **more: transformers.LlamaConfig(**{**SIZES, **more}),
    "bitnet": lambda **more: transformers.BitNetConfig(
        **{**SIZES, "num_attention_heads": 2, **more}
    ),
    "mistral": lambda **more: transformers.MistralConfig(
        **{"sliding_window": None, **SIZES, **more}
    ),
    "qwen2": lambda **more: transformers.Qwen2Config(**SIZES, **more),
    "qwen3": lambda **more: transformers.Qwen3Config(**SIZES, **more),
    "phi3": lambda **more: transformers.Phi3Config(**{**SIZES, **more}),
    "mixtral": lambda **more: transformers.MixtralConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, **more
    ),
    "qwen2_moe": lambda **more: transformers.Qwen2MoeConfig(
        **SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=48,
        shared_expert_intermediate_size=80, mlp_only_layers=[1], **more
    ),
    "qwen3_moe": lambda **more: transformers.Qwen3MoeConfig(
        **SIZES, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=48,
        norm_topk_prob=True, **more
    ),
    "gemma2": lambda **more: transformers.Gemma2Config(
        **{**SIZES, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0,
           "sliding_window": 5, **more}
    ),
    "gemma3": lambda **more: transformers.Gemma3TextConfig(
        **{**SIZES, "query_pre_attn_scalar": 20, "sliding_window": 5, **more},
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(family, **config) -> a packed model, made once."""
    made = {}

    def make(family: str, **more) -> str:
        key = (family, *sorted(map(str, more.items())))
        if key not in made:
            place = tmp_path_factory.mktemp(family)
            model = random_model(CONFIGS[family](**more), noise=0.25)
            model.save_pretrained(place / "source")
            quantize(str(place / "source"), ["uniform-d2"], place / "out", threads=1)
            made[key] = place / "out" / "uniform-d2" / "packed"
        return made[key]

    return make


def stock(model):
    """The same model with transformers' own forward."""
    model.model.__class__ = model.model.stock
    return model


def ids(rows: int = 1, length: int = 7, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (rows, length), generator=generator)


@torch.no_grad()
def decode(model, rows: int = 1, tokens: int = 5, mask=None, past=None) -> torch.Tensor:
    """Logits of `tokens` tokens after a prompt, one at a time."""
    prompt, more = ids(rows), ids(rows, tokens, seed=4)
    out = model(prompt, attention_mask=mask, past_key_values=past, use_cache=True)
    found = []
    for i in range(tokens):
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        out = model(more[:, i : i + 1], attention_mask=mask, past_key_values=out.past_key_values,
                    use_cache=True)  # fmt: skip
        found.append(out.logits[:, -1])
    return torch.stack(found)


def load(packed, **options):
    return load_model(packed, dtype=options.pop("dtype", "float32"), **options)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("rows", [1, 3])
def test_same_logits(folder, steps, family, rows):
    packed = folder(family)
    ours = decode(load(packed), rows)
    assert len(steps) == 5
    theirs = decode(stock(load(packed)), rows)
    assert len(steps) == 5
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_near_in_half_the_bits(folder, steps, dtype):
    ours = decode(load(folder("qwen2"), dtype=dtype)).float()
    assert len(steps) == 5
    exact = decode(stock(load(folder("qwen2"), dtype="float32")))
    theirs = decode(stock(load(folder("qwen2"), dtype=dtype))).float()
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()  # it rounds less often


def test_int8_activations(folder, steps, native):
    exact = decode(stock(load(folder("llama"))))
    native("int8")
    ours = decode(load(folder("llama")))
    assert len(steps) == 5
    assert (ours - exact).norm() < 3e-2 * exact.norm()


def test_padding_on_the_left(folder, steps):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 1, 1, 1, 1, 1, 1]])
    ours = decode(load(folder("llama")), 3, mask=mask)
    assert len(steps) == 5
    torch.testing.assert_close(
        ours, decode(stock(load(folder("llama"))), 3, mask=mask), rtol=1e-4, atol=1e-4
    )


def test_positions_that_are_given(folder, steps):
    model, reference = load(folder("qwen3")), stock(load(folder("qwen3")))
    found = []
    with torch.no_grad():
        for m in (model, reference):
            past = m(ids(2), use_cache=True).past_key_values
            positions = torch.tensor([[11], [3]])
            out = m(ids(2, 1), past_key_values=past, position_ids=positions, use_cache=True)
            found.append(out.logits)
    assert len(steps) == 1
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_embeddings_for_ids(folder, steps):
    model = load(folder("llama"))
    with torch.no_grad():
        past = model(ids(), use_cache=True).past_key_values
        again = copy.deepcopy(past)
        given = model.get_input_embeddings()(ids(1, 1))
        before = given.clone()
        ours = model(inputs_embeds=given, past_key_values=past, use_cache=True).logits
        theirs = model(ids(1, 1), past_key_values=again, use_cache=True).logits
    assert len(steps) == 2
    assert torch.equal(ours, theirs)
    assert torch.equal(given, before)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True], ids=["one", "padded"])
def test_several_new_tokens(folder, steps, masked):
    """As transformers' forward takes them, and to the bit as one after the other."""
    mask, rows = None, 1
    if masked:
        mask, rows = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 1, 1, 1, 1, 1, 1]]), 3
    prompt, more = ids(rows), ids(rows, 7, seed=4)
    ours, theirs = load(folder("qwen3")), stock(load(folder("qwen3")))

    def states(model, lengths: list[int]) -> torch.Tensor:
        model = model.model  # torch's own lm_head has other bits for other numbers of rows
        out = model(prompt, attention_mask=mask, use_cache=True)
        found, seen = [], mask
        for part in more.split(lengths, dim=1):
            if mask is not None:
                seen = torch.nn.functional.pad(seen, (0, part.shape[1]), value=1)
            out = model(part, attention_mask=seen, past_key_values=out.past_key_values,
                        use_cache=True)  # fmt: skip
            found.append(out.last_hidden_state)
        return torch.cat(found, dim=1)

    together = states(ours, [1, 4, 2])
    assert len(steps) == 3
    assert torch.equal(together, states(ours, [1] * 7))
    torch.testing.assert_close(together, states(theirs, [1, 4, 2]), rtol=1e-4, atol=1e-4)


def test_a_long_continuation_is_transformers_own(folder, steps):
    model = load(folder("llama"))
    with torch.no_grad():
        past = model(ids(), use_cache=True).past_key_values
        model(ids(1, 16), past_key_values=past, use_cache=True)
        assert len(steps) == 1
        model(ids(1, 17), past_key_values=past, use_cache=True)
    assert len(steps) == 1


def test_drafts_are_verified_in_native_steps(folder, steps):
    """transformers' assisted generation: several tokens at once, and a cache that is shortened."""
    model = load(folder("llama"))
    how = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    prompt = ids(1, 4).repeat(1, 3)
    alone = model.generate(prompt, **how)
    assert len(steps) == 29
    assisted = model.generate(prompt, prompt_lookup_num_tokens=4, **how)
    assert 30 <= len(steps) < 58
    assert torch.equal(assisted, alone)


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}], ids=["greedy", "beams"]
)
def test_generate(folder, steps, options):
    how = {"max_new_tokens": 90, "min_new_tokens": 90, **options}  # more than one room
    prompt = ids(2)
    mask = torch.ones_like(prompt)
    ours = load(folder("qwen2")).generate(prompt, attention_mask=mask, **how)
    assert len(steps) >= 88
    theirs = stock(load(folder("qwen2"))).generate(prompt, attention_mask=mask, **how)
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_the_cache_stays_transformers_own(folder, steps):
    """What a cache offers works in between: copies, cropping, a second prompt, its tensors."""
    found = []
    for model in (load(folder("llama")), stock(load(folder("llama")))):
        past = model(ids(), use_cache=True).past_key_values
        for token in (5, 6, 7):
            model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
        kept = copy.deepcopy(past)
        early = past.layers[0].keys
        logits = [model(torch.tensor([[8]]), past_key_values=past, use_cache=True).logits]
        assert early.shape[2] == 10  # a token does not change what was handed out
        assert past.get_seq_length() == 11
        past.crop(-2)
        assert past.get_seq_length() == 9
        logits += [
            model(torch.tensor([[token]]), past_key_values=past, use_cache=True).logits
            for token in (9, 10)
        ]
        logits.append(
            model(ids(1, 20, seed=9), past_key_values=past, use_cache=True).logits[:, -1:]
        )
        logits.append(model(torch.tensor([[11]]), past_key_values=past, use_cache=True).logits)
        # The copy has gone its own way.
        assert kept.get_seq_length() == 10
        logits.append(model(torch.tensor([[12]]), past_key_values=kept, use_cache=True).logits)
        logits.append(torch.cat([layer.keys.flatten() for layer in kept.layers])[None, None])
        found.append(logits)
    assert len(steps) == 8
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_cropped_cache_does_not_write_into_what_was_handed_out(folder):
    model = load(folder("llama"))
    with torch.no_grad():
        past = model(ids(), use_cache=True).past_key_values
        model(torch.tensor([[5]]), past_key_values=past, use_cache=True)
        handed_out = past.layers[1].keys
        before = handed_out.clone()
        past.crop(-3)
        model(torch.tensor([[6]]), past_key_values=past, use_cache=True)
    assert torch.equal(handed_out, before)


@torch.no_grad()
def test_a_cropped_cache_stays_in_its_memory_where_nobody_looked(folder):
    """And where somebody did, the tokens that they were shown are not written again."""
    model = load(folder("llama"))
    past = model(ids(), use_cache=True).past_key_values
    for token in (5, 6, 7):
        model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
    rooms = [layer.room for layer in past.layers]
    past.crop(-2)
    assert past.get_seq_length() == 8
    model(torch.tensor([[8]]), past_key_values=past, use_cache=True)
    assert [layer.room for layer in past.layers] == rooms
    assert past.layers[0].keys.shape[2] == 9
    past.crop(-1)
    model(torch.tensor([[8]]), past_key_values=past, use_cache=True)
    assert past.layers[0].room is not rooms[0]


@torch.no_grad()
def test_a_layer_that_is_looked_at_is_transformers_own_in_copies(folder):
    model = load(folder("llama"))
    past = model(ids(), use_cache=True).past_key_values
    stock_kind = type(past.layers[0])
    model(torch.tensor([[5]]), past_key_values=past, use_cache=True)
    layer = past.layers[1]
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is stock_kind
        assert "room" not in vars(other)
        assert torch.equal(other.keys, layer.keys)
        assert torch.equal(other.values, layer.values)
    before = layer.values
    layer.keys = torch.zeros_like(layer.keys)
    assert type(layer) is stock_kind
    assert not layer.keys.any()
    assert torch.equal(layer.values, before)


@torch.no_grad()
def test_a_cache_of_which_one_layer_was_cropped_is_copied(folder, steps):
    found = []
    for model in (load(folder("llama")), stock(load(folder("llama")))):
        past = model(ids(), use_cache=True).past_key_values
        model(torch.tensor([[5]]), past_key_values=past, use_cache=True)
        past.layers[2].crop(-1)
        past.layers[0].crop(-1)
        past.layers[1].crop(-1)
        past.layers[1].keys = past.layers[1].keys * 2
        found.append(model(torch.tensor([[6]]), past_key_values=past, use_cache=True).logits)
    assert len(steps) == 2
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_two_threads_at_once(folder):
    model = load(folder("qwen2"))
    expected = decode(model, 2, 40)
    found = [None, None]

    def work(i: int) -> None:
        found[i] = decode(model, 2, 40)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(logits, expected) for logits in found)


# --- Where transformers' own forward must run -----------------------------------------------------


@torch.no_grad()
def one_token(model, past=None, **options):
    past = past or model(ids(), use_cache=True).past_key_values
    return model(ids(1, 1), past_key_values=past, use_cache=True, **options)


def test_hidden_states_and_attentions(folder, steps):
    model = load(folder("llama"))
    assert len(one_token(model, output_hidden_states=True).hidden_states) == 4
    model.set_attn_implementation("eager")
    assert len(one_token(model, output_attentions=True).attentions) == 3
    assert not steps


def test_another_attention(folder, steps):
    one_token(load(folder("llama"), attn_implementation="eager"))
    assert not steps


def test_hooks_are_called(folder, steps):
    model = load(folder("llama"))
    called = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda module, inputs, output: called.append(output.shape)
    )
    one_token(model)
    assert called == [(1, 7, 64), (1, 1, 64)]
    assert not steps
    handle.remove()
    one_token(model)
    assert len(steps) == 1


def test_a_replaced_layer_is_used(folder, steps):
    model = load(folder("llama"))
    before = one_token(model).logits
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 112, bias=False)
    assert not torch.equal(one_token(model).logits, before)
    assert len(steps) == 1


def test_changed_numbers_are_used(folder, steps):
    model, reference = load(folder("qwen2")), stock(load(folder("qwen2")))
    one_token(model)
    for m in (model, reference):
        m.model.layers[0].input_layernorm.weight.data.mul_(2)
        m.model.layers[1].self_attn.q_proj.bias.data = torch.ones(128)
    torch.testing.assert_close(
        one_token(model).logits, one_token(reference).logits, rtol=1e-4, atol=1e-4
    )
    assert len(steps) == 2


def test_a_cast_model(folder, steps):
    model = load(folder("qwen2"))
    one_token(model)
    model.to(torch.bfloat16)
    expected = decode(stock(load(folder("qwen2"), dtype="bfloat16"))).float()
    ours = decode(model).float()
    assert len(steps) == 6
    assert (ours - expected).norm() < 0.05 * expected.norm()


def test_a_dequantized_model(folder, steps):
    model = load(folder("llama"))
    ours = decode(model)
    assert len(steps) == 5
    model.dequantize(torch.float32)
    torch.testing.assert_close(decode(model), ours, rtol=1e-3, atol=1e-3)
    assert len(steps) == 5


def test_where_gradients_are_wanted(folder, steps):
    model = load(folder("llama"))
    with torch.no_grad():
        past = model(ids(), use_cache=True).past_key_values
    given = model.get_input_embeddings()(ids(1, 1)).detach().requires_grad_()
    model(inputs_embeds=given, past_key_values=past, use_cache=True)
    assert not steps


def test_other_caches(folder, steps):
    model, reference = load(folder("llama")), stock(load(folder("llama")))
    for m in (model, reference):
        static = transformers.StaticCache(config=m.config, max_cache_len=20)
        m.static = decode(m, past=static)
    torch.testing.assert_close(model.static, reference.static, rtol=1e-4, atol=1e-4)
    assert not steps


WINDOWS = {
    "in the prompt": ("mistral", {"sliding_window": 5}),
    "while decoding": ("phi3", {"sliding_window": 9}),
    "of some layers": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    ),
    "of some layers of Gemma 3": ("gemma3", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_sliding_windows(folder, steps, name):
    family, more = WINDOWS[name]
    model, reference = load(folder(family, **more)), stock(load(folder(family, **more)))
    torch.testing.assert_close(decode(model), decode(reference), rtol=1e-4, atol=1e-4)
    # A cache without windows does not make the model one without.
    ours, theirs = (decode(m, past=transformers.DynamicCache()) for m in (model, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(steps) == 10


@torch.no_grad()
def test_a_cache_of_windows_stays_transformers_own(folder, steps):
    """Its tensors, lengths, copies, a second prompt, and crops where it keeps what is past."""
    found = []
    for model in (load(folder("gemma3")), stock(load(folder("gemma3")))):
        past = model(ids(), use_cache=True).past_key_values
        kinds = [type(layer) for layer in past.layers]
        model(torch.tensor([[5]]), past_key_values=past, use_cache=True)
        copied = copy.deepcopy(past)
        assert [type(layer) for layer in copied.layers] == kinds
        logits = [
            model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits
            for cache in (past, copied)
            for token in (6, 7)
        ]
        for cache in (past, copied):
            logits += [layer.keys.flatten()[None, None] for layer in cache.layers]
            logits.append(torch.tensor([layer.get_mask_sizes(1) for layer in cache.layers]))
            logits.append(torch.tensor([layer.get_seq_length() for layer in cache.layers]))
        logits.append(model(ids(1, 20, 9), past_key_values=past, use_cache=True).logits[:, -1:])
        logits.append(model(torch.tensor([[8]]), past_key_values=past, use_cache=True).logits)
        with pytest.raises(RuntimeError, match="crop"):
            past.crop(-1)
        for layer in copied.layers:
            if hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()
        for token in (9, 10, 11):
            model(torch.tensor([[token]]), past_key_values=copied, use_cache=True)
        copied.crop(-2)
        logits.append(torch.tensor([layer.get_seq_length() for layer in copied.layers]))
        for token in (12, 13):
            logits.append(
                model(torch.tensor([[token]]), past_key_values=copied, use_cache=True).logits
            )
        found.append(logits)
    assert len(steps) == 1 + 4 + 1 + 3 + 2
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_moe", "gemma2", "gemma3"])
def test_generate_with_other_families(folder, steps, family):
    """Past the room that the first tokens find, and past windows."""
    prompt = ids(2)
    how = {"max_new_tokens": 70, "min_new_tokens": 70, "do_sample": False,
           "attention_mask": torch.ones_like(prompt)}  # fmt: skip
    ours = load(folder(family)).generate(prompt, **how)
    assert len(steps) >= 68
    theirs = stock(load(folder(family))).generate(prompt, **how)
    assert torch.equal(ours, theirs)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16,
        "long_factor": [2.0] * 16, "original_max_position_embeddings": 12}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "more"),
    [("phi3", {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1,
               "head_dim": 64, "rope_parameters": {**LONG, "partial_rotary_factor": 0.5},
               "original_max_position_embeddings": 12}),
     ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
                "max_position_embeddings": 9})],
    ids=["longrope, half of a head", "dynamic"],
)  # fmt: skip
def test_rotations_that_change_with_the_length(folder, steps, family, more):
    """Past the length where they do."""
    made = folder(family, **more)
    torch.testing.assert_close(
        decode(load(made), tokens=9), decode(stock(load(made)), tokens=9), rtol=1e-4, atol=1e-4
    )
    assert len(steps) == 9


@torch.no_grad()
@pytest.mark.parametrize("family", ["phi3", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3"])
def test_several_tokens_at_once_with_other_families(folder, steps, family):
    """And crops of them, as of drafts: transformers' cache keeps what is past for those."""
    found = []
    for model in (load(folder(family)), stock(load(folder(family)))):
        past = model(ids(2), use_cache=True).past_key_values
        for layer in past.layers:
            if hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()
        logits = []
        for length, gone in ((4, 2), (3, 1), (1, 0), (5, 3)):
            given = ids(2, length, seed=length)
            logits.append(model(given, past_key_values=past, use_cache=True).logits)
            past.crop(-gone)
        found.append(logits)
    assert len(steps) == 4
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_a_mixture_returns(folder, steps):
    model = load(folder("qwen3_moe"))
    past = model(ids(), use_cache=True).past_key_values
    out = model.model(ids(1, 1), past_key_values=past, use_cache=True)
    assert type(out).__name__ == "MoeModelOutputWithPast"
    assert len(steps) == 1
    out = model(ids(1, 1), past_key_values=past, use_cache=True, output_router_logits=True)
    assert len(out.router_logits) == 3
    assert len(steps) == 1


@torch.no_grad()
def test_changed_experts_and_routers_are_used(folder, steps):
    changes = (
        lambda m: m.model.layers[0].mlp.gate.weight.data.mul_(-1),
        lambda m: setattr(m.model.layers[2].mlp.gate, "top_k", 1),
        lambda m: setattr(m.model.layers[2].mlp.gate, "norm_topk_prob", False),
        lambda m: setattr(m.model.layers[2].mlp.gate.weight, "data",
                          m.model.layers[2].mlp.gate.weight.data.flip(0)),
        lambda m: setattr(m.model.layers[0].mlp.experts.get_submodule("2"), "up_proj",
                          m.model.layers[2].mlp.experts.get_submodule("3").up_proj),
        lambda m: setattr(m.model.layers[0].mlp.experts, "act_fn", torch.nn.ReLU()),
    )  # fmt: skip
    model, reference = load(folder("qwen3_moe")), stock(load(folder("qwen3_moe")))
    for change in changes:
        for m in (model, reference):
            change(m)
        torch.testing.assert_close(decode(model), decode(reference), rtol=1e-4, atol=1e-4)
    assert len(steps) == 5 * (len(changes) - 1)  # the native units know no ReLU


def test_without_kernels(folder, steps, native, monkeypatch):
    monkeypatch.setenv("TRITLLM_LINEAR", "torch")
    model = load(folder("llama"))
    assert not isinstance(model.model, native_model.NativeStepModel)
    one_token(model)
    assert not steps


def test_shapes_that_the_kernels_do_not_take(tiny, steps):
    """Heads of 12."""
    one_token(load(tiny("llama", 2) / "packed"))
    assert not steps


def test_copies_and_pickles_are_stock(folder, steps):
    model = load(folder("llama"))
    expected = one_token(model).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.model) is model.model.stock
        torch.testing.assert_close(one_token(other).logits, expected, rtol=1e-4, atol=1e-4)
    assert len(steps) == 1


def test_the_name_stays(folder):
    model = load(folder("llama"))
    assert isinstance(model.model, transformers.LlamaModel)
    assert type(model.model).__name__ == "LlamaModel"
