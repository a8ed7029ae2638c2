"""What people do with a loaded packed model: train around it, copy, move, cast and reload it."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from support.tiny_models import logits, quantize_tiny, random_model, some_ids

from tritllm import native as library
from tritllm.errors import TritError
from tritllm.integrations.transformers import load_model
from tritllm.integrations.transformers.layers import float_weight
from tritllm.ops.trit_linear import TritLinear

MODES = ["torch"] + (["exact", "int8"] if library.available() else [])


def generated(model, **options) -> list[list[int]]:
    return model.generate(
        some_ids(1, 5), max_new_tokens=6, do_sample=False, eos_token_id=None, **options
    ).tolist()


@pytest.fixture(params=MODES)
def mode(request, monkeypatch):
    monkeypatch.setenv("TRITLLM_LINEAR", request.param)
    return request.param


def packed_and_plain(folder):
    """A packed model, and the ordinary one of the very same numbers."""
    plain = load_model(folder, dtype="float32").dequantize(torch.float32)
    return load_model(folder, dtype="float32"), plain


def step_of(model, **forward) -> dict[str, torch.Tensor]:
    """Gradients of everything that is trained, after one backward pass of a loss."""
    model.zero_grad()
    ids = some_ids()
    model(ids, labels=ids, **forward).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


# --- Training around packed weights ---------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step(tiny, mode, checkpointing):
    """Norms and embeddings get the dequantized model's gradients."""
    packed, plain = packed_and_plain(tiny("llama", 2) / "packed")
    for model in (packed, plain):
        model.train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name or "embed_tokens" in name)
        if checkpointing:
            model.enable_input_require_grads()
            with warnings.catch_warnings():  # of its name, which transformers 6 will not have
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable()
    ours, theirs = step_of(packed, use_cache=False), step_of(plain, use_cache=False)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 6
    for name, gradient in ours.items():
        # Activations in int8 change what the exact gradients are taken at.
        bound = (0.1 if mode == "int8" else 1e-4) * theirs[name].norm()
        assert (gradient - theirs[name]).norm() <= bound, name


def test_inputs_that_require_gradients(tiny, mode):
    """As adapters switch it on: gradients pass through packed layers to the embeddings' output."""
    model = load_model(tiny("llama", 2) / "packed", dtype="float32")
    model.requires_grad_(False)
    assert not model(some_ids()).logits.requires_grad
    model.enable_input_require_grads()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda *given: seen.append(given[-1]))
    loss = model(some_ids()).logits.square().sum()
    assert torch.autograd.grad(loss, seen[0])[0].abs().sum(-1).gt(0).all()
    model.disable_input_require_grads()
    assert not model(some_ids()).logits.requires_grad


def test_a_soft_prompt_is_trained_as_through_the_dequantized_model(tiny, mode):
    """Ten steps of gradient descent on a prompt's embeddings.

    exact and torch: products differ in the order of float32 sums alone. int8: straight-through
    gradients follow the same way, roughly.
    """
    packed, plain = packed_and_plain(tiny("llama", 3) / "packed")
    found = []
    for model in (packed, plain):
        model.requires_grad_(False)
        prompt = torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(5))
        prompt.requires_grad_()
        ids = some_ids()
        labels = torch.cat([torch.full((2, 4), -100), ids], dim=1)
        losses = []
        for _ in range(10):
            embeds = model.get_input_embeddings()(ids)
            embeds = torch.cat([prompt.expand(2, -1, -1), embeds], dim=1)
            loss = model(inputs_embeds=embeds, labels=labels).loss
            (gradient,) = torch.autograd.grad(loss, prompt)
            with torch.no_grad():
                prompt -= gradient
            losses.append(float(loss.detach()))
        found.append(losses)
    ours, theirs = found
    assert theirs[-1] < theirs[0] - 1e-3
    assert ours == pytest.approx(theirs, rel=2e-2 if mode == "int8" else 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_gradients(tiny, mode, dtype):
    model = load_model(tiny("llama", 2) / "packed", dtype="float32")
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = layer(x)
    (ours,) = torch.autograd.grad(y.float().sum(), x)
    assert (y.dtype, ours.dtype) == (dtype, torch.float32)
    weight = float_weight(layer, torch.float32)
    expected = weight.sum(0).expand(3, -1)
    assert (ours - expected).norm() < 1e-2 * expected.norm()


# --- Casts, copies, moves -------------------------------------------------------------------------


def test_generate_in_double(tiny, mode):
    model = load_model(tiny("llama", 2) / "packed", dtype="float32")
    model.double()
    again = load_model(tiny("llama", 2) / "packed", dtype="float64")
    assert model.dtype == again.dtype == torch.float64
    assert generated(model) == generated(again)
    if mode != "int8":  # where greedy choices are not near
        assert generated(model) == generated(again.dequantize(torch.float64))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_copies_generate_the_same(tiny, mode, family):
    model = load_model(tiny(family, 2) / "packed", dtype="float32")
    before = generated(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stream, weights_only=False),
    ):
        assert generated(other) == before
        assert torch.equal(logits(other), logits(model))
    assert generated(model) == before


def test_moving_to_meta_and_back_loses_the_numbers_and_nothing_else(tiny, mode):
    model = load_model(tiny("llama", 2) / "packed", dtype="float32")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = generated(model)
    model.to("meta")
    layers = [module for module in model.modules() if isinstance(module, TritLinear)]
    assert all(layer.prepared is None and layer.weight.is_meta for layer in layers)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        model.to("cpu")
    model.to_empty(device="cpu")
    fresh = load_model(tiny("llama", 2) / "packed", dtype="float32")
    model.model.rotary_emb = fresh.model.rotary_emb  # not in the state
    model.load_state_dict(state)
    assert generated(model) == before


def test_offloaded_to_disk(tiny, tmp_path, mode):
    """Floats are offloaded; packed tensors are buffers, which stay unless it is asked otherwise."""
    folder = tiny("llama", 2) / "packed"
    where = dict.fromkeys(
        ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
    )
    options = {
        "device_map": {**where, "model.layers.1": "disk"}, "offload_folder": str(tmp_path),
    }  # fmt: skip
    model = load_model(folder, **options)
    plain = load_model(folder)
    assert generated(model) == generated(plain)
    assert torch.equal(logits(model), logits(plain))
    with pytest.raises(TritError, match=r"weight: is on meta.*offload_buffers"):
        load_model(folder, offload_buffers=True, **options)


# --- Loading a state into a model that runs -------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_state_is_what_the_native_step_runs(tmp_path, native, steps, assign):
    """Two models of the shapes that the native step takes; the second's weights in the first."""
    native("exact")
    one, other = (_with_native_step(tmp_path / name, seed) for seed, name in enumerate("ab", 1))
    before, expected = generated(one), generated(other)
    assert before != expected
    count = len(steps)
    assert count > 0
    one.load_state_dict({n: t.clone() for n, t in other.state_dict().items()}, assign=assign)
    assert generated(one) == expected
    assert len(steps) == count * 3 // 2


def _with_native_step(place, seed):
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    random_model(config, seed=seed).save_pretrained(place / "source")
    packed = quantize_tiny(place, "llama", 2) / "packed"
    return load_model(packed, dtype="float32")
