"""What the encoder is given, against two whole models that run densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from support.calibrated import calibrate, plan_of
from support.tiny_models import write_tiny
from support.tiny_text import write_text, write_tokenizer

from tritllm import codec
from tritllm.calibration import encode
from tritllm.calibration.calibrator import TextCalibrator
from tritllm.codec.calibrated import CalibratedMatrix
from tritllm.integrations.transformers.compat import Conv1D

CONTEXT = 24
ADDED = {  # output layers of the sublayers, and what is added to the residual stream where
    "self_attn.o_proj": "input_layernorm",
    "mlp.down_proj": "post_attention_layernorm",
    "attn.c_proj": "ln_1",
    "mlp.c_proj": "ln_2",
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_statistics_are_those_of_two_whole_models(family, tmp_path, monkeypatch):
    source = write_tiny(tmp_path / "source", family)
    write_tokenizer(source)
    given = []
    hessians = []
    of = encode.Curvature.of

    class Curvature:
        @staticmethod
        def of(hessian, tokens):
            hessians.append(hessian.copy())
            return of(hessian, tokens)

    def record(weight, curvature, cross, depth, threads):
        given.append((weight.copy(), hessians[-1], cross))
        found = codec.encode(weight, depth)  # quick; what is given is looked at, not the digits
        return CalibratedMatrix(found, 1.0, 1.0)

    monkeypatch.setattr(encode, "Curvature", Curvature)
    monkeypatch.setattr(encode, "encode_calibrated", record)
    text = write_text(tmp_path / "text.txt")
    calibrator = TextCalibrator(text, context=CONTEXT)
    plan = plan_of(source)
    encodings = calibrate(calibrator, plan, tmp_path / "run")
    ids = ids_of(calibrator, plan)

    floating = load(source)
    quantized = load(source)
    by_weight = {hash(w.tobytes()): (w, h, c) for w, h, c in given}
    assert len(by_weight) == len(plan.quantized)
    for name in order_of(floating, plan, ids):
        tensor = next(t for t in plan.quantized if t.module == name)
        weight = dense_weight(floating, name)
        _, hessian, cross = by_weight[hash(weight.tobytes())]
        xf, rf = inputs_of(floating, name, ids)
        x, r = inputs_of(quantized, name, ids)
        wanted = (xf - x) @ weight.T.astype(np.float64) + (rf - r)
        np.testing.assert_allclose(hessian, x.T @ x, rtol=1e-4, atol=1e-4 * hessian.max())
        expected = wanted.T @ x
        scale = np.abs(expected).max() + 1e-6 * np.abs(weight).max() * hessian.max()
        np.testing.assert_allclose(cross, expected, rtol=0, atol=1e-3 * scale)
        put(quantized, name, encodings.encoded(tensor, plan.configs[0]).decode())


def ids_of(calibrator, plan):
    from tritllm.calibration.windows import windows_of

    ids, _ = windows_of(plan.source, calibrator.text, None, CONTEXT, 0)
    return torch.from_numpy(ids)


def load(source):
    return transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


def dense_weight(model, name):
    module = model.get_submodule(name)
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    return np.ascontiguousarray(weight.detach().numpy())


def put(model, name, weight):
    """Siblings that share an input are encoded from the same statistics, in any order."""
    module = model.get_submodule(name)
    new = torch.from_numpy(weight)
    module.weight.data = new.T.contiguous() if isinstance(module, Conv1D) else new


@torch.no_grad()
def inputs_of(model, name, ids):
    """The input of a module, and the residual stream its output is added to (0 for none)."""
    found = {}
    block = name.split(".")[:3]
    leaf = name.removeprefix(".".join(block) + ".")
    model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: found.setdefault("x", args[0])
    )
    if leaf in ADDED:
        norm = model.get_submodule(".".join([*block, ADDED[leaf]]))
        norm.register_forward_pre_hook(lambda _, args: found.setdefault("r", args[0]))
    model(ids)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    x = found["x"].double().reshape(-1, found["x"].shape[-1]).numpy()
    r = found["r"].double().reshape(len(x), -1).numpy() if "r" in found else 0.0
    return x, r


def order_of(model, plan, ids):
    order = []
    for tensor in plan.quantized:
        model.get_submodule(tensor.module).register_forward_pre_hook(
            lambda *_, name=tensor.module: order.append(name)
        )
    with torch.no_grad():
        model(ids[:1])
    for module in model.modules():
        module._forward_pre_hooks.clear()
    return order
