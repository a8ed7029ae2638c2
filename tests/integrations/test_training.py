"""What is not packed trains through packed layers as through the dequantized model's."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from support.tiny_models import some_ids

from tritllm import quantize
from tritllm.integrations.transformers import load_model
from tritllm.integrations.transformers.layers import float_weight
from tritllm.ops.trit_linear import TritLinear

# Relative differences of the losses. The product with exact kernels sums in another order; int8
# rounds activations, 1/254 of a group's largest at most, and its gradient is the exact product's.
BOUNDS = {"torch": 1e-6, "exact": 1e-4, "int8": 5e-2}
TRAINED = BOUNDS | {"exact": 1e-3, "int8": 1e-1}  # of the values after the last step
STEPS = 10


@pytest.fixture(params=BOUNDS)
def mode(request, native):
    if request.param != "torch":
        native(request.param)
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A packed Llama whose blocks have a native step."""
    place = tmp_path_factory.mktemp("training")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=112, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place / "source")
    quantize(str(place / "source"), ["uniform-d3"], place / "out", threads=1)
    return place / "out/uniform-d3/packed"


def pair(folder, mode):
    """The packed model and the float model of the same numbers, in float32."""
    packed = load_model(folder, dtype="float32")
    layers = [module for module in packed.modules() if isinstance(module, TritLinear)]
    assert layers
    for layer in layers:
        layer.mode = mode
    plain = copy.deepcopy(packed)  # of transformers' own class
    for name, module in list(plain.named_modules()):
        if isinstance(module, TritLinear):
            linear = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight.data = float_weight(module, torch.float32)
            plain.set_submodule(name, linear)
    for model in (packed, plain):
        model.requires_grad_(False)
    return packed, plain


def prompt_of(model):
    """A soft prompt [4, H]."""
    generator = torch.Generator().manual_seed(3)
    width = model.config.hidden_size
    return torch.nn.Parameter(torch.randn(4, width, generator=generator) * 0.1)


def trained(model, what):
    """The parameters to train, and a soft prompt where that is what trains."""
    prompt = None
    if what == "prompt":
        prompt = prompt_of(model)
        return [prompt], prompt
    named = "norm" if what == "norms" else "embed_tokens"
    found = [p.requires_grad_() for n, p in model.named_parameters() if named in n]
    assert found
    return found, prompt


def checkpoint(model, wanted):
    """Transformers 5 renames these, and warns of the old names."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if hasattr(model, f"{name}_enable"):
            getattr(model, f"{name}_{'enable' if wanted else 'disable'}")()
            break
    if not wanted:
        model.disable_input_require_grads()  # or its hook stays, and the native step is not taken


def losses(model, what, checkpointing):
    """The loss before each step, and the parameters' values after the last."""
    parameters, prompt = trained(model, what)
    if checkpointing:
        checkpoint(model, True)
    model.train()
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    ids, found = some_ids(), []
    for _ in range(STEPS):
        embeds, labels = model.get_input_embeddings()(ids), ids
        if prompt is not None:
            embeds = torch.cat([prompt.expand(len(ids), -1, -1), embeds], dim=1)
            labels = torch.cat([ids.new_full((len(ids), len(prompt)), -100), ids], dim=1)
        loss = model(inputs_embeds=embeds, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    model.eval()
    if checkpointing:
        checkpoint(model, False)
    return torch.tensor(found, dtype=torch.float64), parameters


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("what", ["prompt", "norms", "embeddings"])
def test_the_losses_are_the_dequantized_models(folder, steps, mode, what, checkpointing):
    packed, plain = pair(folder, mode)
    before = copy.deepcopy(packed.state_dict())
    ids = some_ids(1)
    first = packed.generate(ids, max_new_tokens=2, do_sample=False)  # the step holds addresses
    assert first.shape[1] == ids.shape[1] + 2
    ours, parameters = losses(packed, what, checkpointing)
    theirs, others = losses(plain, what, checkpointing)
    torch.testing.assert_close(ours, theirs, rtol=BOUNDS[mode], atol=0)
    assert ours[-1] < ours[0] - 1e-3  # every one of them learns
    for mine, other in zip(parameters, others, strict=True):
        difference = (mine - other).norm() / other.norm()
        assert difference <= TRAINED[mode]
    for name, tensor in packed.state_dict().items():  # packed weights are frozen
        if name.endswith(("_scale", "_codebook")) or tensor.dtype == torch.uint8:
            assert torch.equal(tensor, before[name])
    steps.clear()
    generated = packed.generate(
        ids, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert bool(steps) == (mode != "torch")
    with torch.no_grad():  # with the trained values, the native step too
        for mine, other in zip(parameters, others, strict=True):
            other.copy_(mine)
        expected = plain(generated.sequences[:, :-1]).logits[0, ids.shape[1] - 1 :]
    difference = torch.cat(generated.logits) - expected
    assert difference.norm() <= max(TRAINED[mode], 1e-5) * expected.norm()
