"""Every change of a model shows in its next token, and costs no looking in the others."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import transformers
from support.tiny_models import quantize_tiny, random_model
from torch.nn.utils import parametrize, prune

from tritllm import quantize
from tritllm.integrations.transformers import load_model
from tritllm.integrations.transformers.native_step import model as native_model
from tritllm.integrations.transformers.native_step.watch import WatchedModule
from tritllm.ops import changes
from tritllm.ops.trit_linear import TritLinear

IDS = torch.tensor([[5, 9, 11, 4, 7]])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    place = tmp_path_factory.mktemp("qwen2")
    config = transformers.Qwen2Config(
        vocab_size=96, hidden_size=64, intermediate_size=112, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    random_model(config, noise=0.25).save_pretrained(place / "source")
    quantize(str(place / "source"), ["uniform-d2"], place / "out", threads=1)
    return place / "out/uniform-d2/packed"


@pytest.fixture
def model(packed, native):
    native("exact")
    return load_model(packed, dtype="float32")


@torch.no_grad()
def started(model):
    """A cache with a prompt and one token, so that the model's parts have been looked at."""
    past = model(IDS, use_cache=True).past_key_values
    model(torch.tensor([[8]]), past_key_values=past, use_cache=True)
    return past


@torch.no_grad()
def token(model, past):
    return model(torch.tensor([[3]]), past_key_values=past, use_cache=True).logits


class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def other_norm(model):
    norm = copy.deepcopy(model.model.norm)
    norm.weight.data.mul_(3)
    return norm


def other_linear(layer):
    return TritLinear.from_tensor(layer.tensor(), -layer.bias if layer.bias is not None else None)


def set_data(tensor_of):
    def change(model):
        tensor = tensor_of(model)
        tensor.data = tensor.data * 3

    return change


def monkeypatch_forward(module_of):
    def change(model):
        module = module_of(model)
        real = type(module).forward
        module.forward = lambda *args, **more: 3 * real(module, *args, **more)

    return change


def monkeypatch_rotary(model):
    rotary = model.model.rotary_emb
    real = type(rotary).forward
    rotary.forward = lambda x, position_ids: real(rotary, x, position_ids + 9)


def accelerates_way(model):
    """accelerate and torch.func write into a module's dict."""
    norm = model.model.layers[1].input_layernorm
    norm._parameters["weight"] = torch.nn.Parameter(norm.weight.detach() * 3)


def prune_norm(model):
    prune.l1_unstructured(model.model.layers[0].input_layernorm, "weight", amount=0.5)


def parametrize_norm(model):
    parametrize.register_parametrization(model.model.norm, "weight", Doubled())


def tie(model):
    model.model.layers[0].input_layernorm.weight = model.model.norm.weight


def load_state(model, **how):
    state = {n: t.clone() for n, t in model.state_dict().items()}
    for name in state:
        if name.endswith("layernorm.weight"):
            state[name] = 3 * state[name]
    model.load_state_dict(state, **how)


CHANGES = {
    "final norm": lambda m: setattr(m.model, "norm", other_norm(m)),
    "final norm's data": set_data(lambda m: m.model.norm.weight),
    "a norm's data": set_data(lambda m: m.model.layers[2].post_attention_layernorm.weight),
    "a bias's data": set_data(lambda m: m.model.layers[2].self_attn.k_proj.bias),
    "a norm in place": lambda m: m.model.layers[1].input_layernorm.weight.data.mul_(3),
    "a norm's parameter": lambda m: setattr(
        m.model.layers[1].input_layernorm, "weight", torch.nn.Parameter(torch.ones(64))
    ),
    "a dict's entry": accelerates_way,
    "final epsilon": lambda m: setattr(m.model.norm, "variance_epsilon", 3.0),
    "a block's epsilon": lambda m: setattr(
        m.model.layers[1].post_attention_layernorm, "variance_epsilon", 3.0
    ),
    "all epsilons": lambda m: [
        setattr(module, "variance_epsilon", 3.0)
        for module in m.modules()
        if hasattr(module, "variance_epsilon")
    ],
    "scaling": lambda m: setattr(m.model.layers[1].self_attn, "scaling", 3.0),
    "a linear": lambda m: setattr(
        m.model.layers[0].self_attn, "q_proj", other_linear(m.model.layers[0].self_attn.q_proj)
    ),
    "a linear by submodule": lambda m: m.set_submodule(
        "model.layers.1.self_attn.v_proj", other_linear(m.model.layers[1].self_attn.v_proj)
    ),
    "a linear's forward": monkeypatch_forward(lambda m: m.model.layers[0].mlp.up_proj),
    "an mlp": lambda m: setattr(m.model.layers[1], "mlp", Doubled()),
    "an mlp in a dict": lambda m: m.model.layers[1]._modules.update(mlp=Doubled()),
    "an mlp's forward": monkeypatch_forward(lambda m: m.model.layers[1].mlp),
    "an activation": lambda m: setattr(m.model.layers[0].mlp, "act_fn", torch.nn.ReLU()),
    "a norm's forward": monkeypatch_forward(lambda m: m.model.layers[2].input_layernorm),
    "the final norm's forward": monkeypatch_forward(lambda m: m.model.norm),
    "rotary frequencies' data": set_data(lambda m: m.model.rotary_emb.inv_freq),
    "rotary frequencies in place": lambda m: m.model.rotary_emb.inv_freq.data.mul_(3),
    "rotary scaling": lambda m: setattr(m.model.rotary_emb, "attention_scaling", 0.5),
    "rotary's forward": monkeypatch_rotary,
    "layers swapped": lambda m: m.model.layers.__setitem__(0, m.model.layers[1]),
    "one bias less": lambda m: setattr(m.model.layers[0].self_attn.q_proj, "bias", None),
    "weights tied": tie,
    "prune": prune_norm,
    "parametrize": parametrize_norm,
    "load_state_dict": load_state,
    "load_state_dict, assigned": lambda m: load_state(m, assign=True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows_in_the_next_token(model, packed, steps, name):
    """What transformers' own forward makes of the changed model."""
    reference = load_model(packed, dtype="float32")
    reference.model.__class__ = native_model.kind_of(reference.model)
    pasts = started(model), started(reference)
    assert len(steps) == 1
    before = token(model, copy.deepcopy(pasts[0]))
    for m in (model, reference):
        CHANGES[name](m)
    ours, theirs = token(model, pasts[0]), token(reference, pasts[1])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [lambda layers: layers.pop(-1),
                                    lambda layers: layers.__delitem__(-1)])  # fmt: skip
def test_a_layer_less(model, packed, change):
    reference = load_model(packed, dtype="float32")
    reference.model.__class__ = native_model.kind_of(reference.model)
    started(model)
    for m in (model, reference):
        change(m.model.layers)
    ours, theirs = (token(m, started(m)) for m in (model, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_deleted_module_is_not_computed_with(model):
    past = started(model)
    del model.model.layers[1].mlp
    with pytest.raises(AttributeError, match="mlp"):
        token(model, past)


def test_functional_call(model, packed, steps):
    reference = load_model(packed, dtype="float32")
    reference.model.__class__ = native_model.kind_of(reference.model)
    changed = {"model.norm.weight": torch.full((64,), 3.0)}
    found = []
    for m in (model, reference):
        past = started(m)
        with torch.no_grad():
            found.append(torch.func.functional_call(
                m, changed, (torch.tensor([[3]]),), {"past_key_values": past, "use_cache": True}
            ).logits)  # fmt: skip
        found.append(token(m, past))  # and with its own weights again
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-4, atol=1e-4)


def test_hooks_and_settings_in_the_middle(model, steps):
    past = started(model)
    called = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: called.append(1))
    token(model, past)
    assert (len(called), len(steps)) == (1, 1)
    handle.remove()
    token(model, past)
    assert (len(called), len(steps)) == (1, 2)
    for name, value in (("output_hidden_states", True), ("sliding_window", 4),
                        ("_attn_implementation", "eager"),
                        ("layer_types", ["sliding_attention"] * 3)):  # fmt: skip
        own = getattr(model.config, name)
        setattr(model.config, name, value)
        parts = model.model.__dict__[native_model._PARTS]
        assert not (parts.unchanged() and parts.may_be_bypassed()), name
        again = native_model.Parts(model.model)
        assert again.blocks is None or not again.may_be_bypassed() or name == "sliding_window"
        setattr(model.config, name, own)
    model.config.layer_types[1] = "sliding_attention"
    assert not model.model.__dict__[native_model._PARTS].unchanged()
    model.config.layer_types[1] = "full_attention"
    token(model, past)
    assert len(steps) == 3


def test_training_with_dropout_is_transformers_own(model, steps):
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    started(model)
    assert len(steps) == 1
    model.train()
    started(model)
    assert len(steps) == 1
    model.eval()
    started(model)
    assert len(steps) == 2


def test_a_token_changes_nothing_that_is_counted(model, steps):
    past = started(model)
    before = changes.count(), model.model.__dict__[native_model._PARTS]
    for _ in range(3):
        token(model, past)
    assert (changes.count(), model.model.__dict__[native_model._PARTS]) == before
    assert len(steps) == 4


def test_copies_pickles_and_saved_models_are_stock_throughout(model):
    past = started(model)
    expected = token(model, copy.deepcopy(past))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    copies = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stream, weights_only=False),
    )
    for other in copies:
        for module in other.modules():
            assert not isinstance(module, WatchedModule)
            assert (module is other) == hasattr(module, "set_planes")
            assert {type(module._modules), type(module._parameters), type(module._buffers)} == {
                dict
            }
        torch.testing.assert_close(
            token(other, copy.deepcopy(past)), expected, rtol=1e-4, atol=1e-4
        )
    shallow = copy.deepcopy(model.model.layers[0].mlp)
    assert type(shallow) is native_model.kind_of(model.model.layers[0].mlp)


def test_a_watched_model_compiles(model):
    past = started(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits)
    assert token(model, past).isfinite().all()


def test_modes_of_a_block_must_be_one(model, packed, steps):
    """A block's layers share their activations; of mixed ones every layer runs in its own mode."""
    past = started(model)
    for mode in ("int8", "torch"):
        reference = load_model(packed, dtype="float32")
        reference.model.__class__ = native_model.kind_of(reference.model)
        other = started(reference)
        for m in (model, reference):
            m.model.layers[1].mlp.down_proj.mode = mode
        ours, theirs = token(model, copy.deepcopy(past)), token(reference, other)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert len(steps) == 1
    model.model.layers[1].mlp.down_proj.mode = "exact"
    model(IDS)  # prepares it again
    token(model, past)
    assert len(steps) == 2


@pytest.mark.parametrize("first", ["exact", "int8"])
def test_blocks_of_other_modes_run_in_their_own(model, packed, first):
    """The native call has one mode for all blocks."""
    reference = load_model(packed, dtype="float32")
    reference.model.__class__ = native_model.kind_of(reference.model)
    for m in (model, reference):
        for index, layer in enumerate(m.model.layers):
            for module in layer.modules():
                if isinstance(module, TritLinear):
                    module.mode = "int8" if (index == 1) == (first == "exact") else "exact"
    ours, theirs = (token(m, started(m)) for m in (model, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_double_does_not_take_the_step(tmp_path, native):
    native("int8")
    model = load_model(quantize_tiny(tmp_path, "llama", 2) / "packed").double()
    parts = native_model.Parts(model.model)
    assert parts.blocks is None
