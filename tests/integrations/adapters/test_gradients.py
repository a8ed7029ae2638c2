"""An adapter's gradients on a packed model are those on the dequantized one."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.adapters import adapted, load, twin
from support.tiny_models import some_ids

from tritllm import native
from tritllm.integrations.peft.lora_layer import TritLoraLinear
from tritllm.integrations.transformers.layers import float_layer
from tritllm.ops.trit_linear import TritLinear

NATIVE = ["exact", "int8"] if native.available() else []
# Relative difference of gradients: exact kernels sum in another order; int8 rounds activations,
# which a random model of two blocks passes on tenfold.
BOUNDS = {"torch": 2e-5, "exact": 2e-4, "int8": 0.3}
LORA = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")


def gradients(model, checkpointing=False, dtype=None, unused=False):
    """Loss, and the gradient of everything that trains, by name."""
    if checkpointing:
        model.enable_input_require_grads()
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    torch.manual_seed(5)  # GPT-2 has dropout
    ids = some_ids()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert found
    if unused:  # experts that no token chose
        found = {name: grad for name, grad in found.items() if grad is not None}
    assert all(grad is not None for grad in found.values())
    return loss.item(), found


def assert_equal(ours, theirs, bound):
    assert abs(ours[0] - theirs[0]) <= bound * abs(theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in ours[1].items():
        assert grad.norm() > 0, name
        difference = (grad - theirs[1][name]).norm() / theirs[1][name].norm()
        assert difference <= bound, (name, difference)


@pytest.mark.parametrize(
    ("family", "mode"),
    [*((family, "torch") for family in ("llama", "gpt2")), *(("llama", mode) for mode in NATIVE)],
)
def test_lora(tiny, family, mode):
    folder = tiny(family, 2) / "packed"
    packed = adapted(load(folder, mode), LORA)
    plain = twin(packed, load(folder), LORA)
    assert_equal(gradients(packed), gradients(plain), BOUNDS[mode])


def test_lora_on_experts(tiny):
    """Fused experts have other adapters, so these stay apart over float layers."""
    packed = adapted(load(tiny("mixtral", 2) / "packed"), LORA)
    plain = copy.deepcopy(packed)
    wrapped = [module for module in plain.modules() if isinstance(module, TritLoraLinear)]
    assert len(wrapped) == 32
    for module in wrapped:
        module.base_layer = float_layer(module.base_layer, torch.float32).requires_grad_(False)
    ours, theirs = (gradients(model, unused=True) for model in (packed, plain))
    assert len(ours[1]) > 2 * 8
    assert_equal(ours, theirs, BOUNDS["torch"])


def test_lora_with_checkpointing_and_a_packed_output_layer(tiny):
    config = LoraConfig(
        r=3, use_rslora=True, target_modules=["q_proj", "down_proj", "lm_head"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    folder = tiny("llama_tied", 3) / "packed"
    packed = adapted(load(folder, lm_head_depth=4), config)
    assert isinstance(packed.get_base_model().lm_head.base_layer, TritLinear)
    plain = twin(packed, load(folder, lm_head_depth=4), config)
    without = gradients(copy.deepcopy(packed))
    with_it = gradients(packed, checkpointing=True)
    assert_equal(with_it, without, 1e-6)
    assert_equal(with_it, gradients(plain), BOUNDS["torch"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_of_16_bits(tiny, dtype):
    """Everything between the layers is rounded to the model's dtype; so are gradients."""
    folder = tiny("llama", 2) / "packed"
    packed = adapted(load(folder, dtype=dtype), LORA)
    plain = twin(packed, load(folder, dtype=dtype), LORA)
    true = twin(packed, load(folder), LORA)
    ours, theirs, exact = (gradients(model)[1] for model in (packed, plain, true))
    for name, grad in ours.items():
        assert grad.dtype is torch.float32  # peft keeps adapters so
        wrong = (theirs[name] - exact[name]).norm() / exact[name].norm()
        assert (grad - exact[name]).norm() / exact[name].norm() <= 1.5 * wrong + 1e-3, name


def test_under_autocast(tiny):
    folder = tiny("llama", 2) / "packed"
    packed = adapted(load(folder), LORA)
    plain = twin(packed, load(folder), LORA)
    assert_equal(*(gradients(model, dtype=torch.bfloat16) for model in (packed, plain)), 0.05)


def test_trained_biases_and_a_batch_of_one_token(tiny):
    """peft's bias="all" trains the packed layers' biases, too."""
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj"], bias="all", task_type="CAUSAL_LM")
    folder = tiny("qwen2", 2) / "packed"
    packed = get_peft_model(load(folder), copy.deepcopy(config))
    plain = twin(packed, load(folder), config)
    ours, theirs = gradients(packed), gradients(plain)
    for found in (ours, theirs):  # B is zero in the beginning, so A has no gradient
        for name in [name for name in found[1] if "lora_A" in name]:
            assert not found[1].pop(name).any()
    assert_equal(ours, theirs, BOUNDS["torch"])
    assert any("bias" in name for name in ours[1])
    ids = some_ids(1, 1)
    for model in (packed, plain):
        model.zero_grad()
        model(input_ids=ids).logits[..., 5].sum().backward()
    trained = [
        (p.grad, q.grad) for p, q in zip(
            (p for p in packed.parameters() if p.requires_grad),
            (p for p in plain.parameters() if p.requires_grad), strict=True,
        )
    ]  # fmt: skip
    for mine, other in trained:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
