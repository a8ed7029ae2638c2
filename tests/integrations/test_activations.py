"""What int8 activations do to the demo's model: to its perplexity, and to each of its products."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import transformers

from tritllm import quantize
from tritllm.evaluation.divergence import compare
from tritllm.format.trits import DEPTHS
from tritllm.integrations.transformers import TritLinear, load_model
from tritllm.ops.backends import cpu

DATA = Path(str(files("tritllm") / "demo_data"))
TEXT_CHARACTERS = 8000  # of the held-out text: some 2200 tokens
WINDOW = 256


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory) -> Path:
    """The folder of the demo model at every depth."""
    out = tmp_path_factory.mktemp("demo") / "out"
    quantize(str(DATA / "model"), [f"uniform-d{depth}" for depth in DEPTHS], out, threads=1)
    return out


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "model")
    text = (DATA / "heldout.txt").read_text("utf-8")[:TEXT_CHARACTERS]
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_perplexity_is_that_of_the_dequantized_model(demo_model, token_ids, native, depth):
    native("int8")
    folder = demo_model / f"uniform-d{depth}"
    dequantized = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32
    )
    packed = load_model(folder / "packed", dtype=torch.float32)
    scores = compare(dequantized, {"int8": packed}, token_ids, context=WINDOW)
    assert scores["int8"].perplexity == pytest.approx(scores["float"].perplexity, rel=5e-3)


@pytest.mark.parametrize(("prefill", "most"), [("groups", 0.01), ("superblocks", 0.015)])
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_product_is_near_the_exact_one(
    demo_model, token_ids, native, monkeypatch, depth, prefill, most
):
    """On the inputs that the layers have in the model; lm_head is packed, too."""
    monkeypatch.setattr(
        cpu, "superblock_rows", lambda: 1 if prefill == "superblocks" else sys.maxsize
    )
    native("exact")
    model = load_model(
        demo_model / f"uniform-d{depth}/packed", dtype=torch.float32, lm_head_depth=4
    )
    inputs = activations(model, token_ids[: 2 * WINDOW])
    assert len(inputs) == 29  # seven in each of four layers, and lm_head
    exact = products(model, inputs)
    for name in inputs:
        model.get_submodule(name).mode = "int8"
    for name, product in products(model, inputs).items():
        error = (product - exact[name]).norm() / exact[name].norm()
        assert 0 < error < most, (name, float(error))


def activations(model, token_ids: list[int]) -> dict[str, torch.Tensor]:
    """What each packed layer is multiplied with when the model reads windows of a text."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str):
        return lambda layer, inputs, output: seen.update({name: inputs[0]})

    hooks = [
        layer.register_forward_hook(keep(name))
        for name, layer in model.named_modules()
        if isinstance(layer, TritLinear)
    ]
    with torch.inference_mode():
        model(torch.tensor(token_ids).view(-1, WINDOW))
    for hook in hooks:
        hook.remove()
    return seen


@torch.inference_mode()
def products(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name)(x) for name, x in inputs.items()}
