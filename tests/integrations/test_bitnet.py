"""Models of transformers' bitnet method: their trits are kept, and they run with its tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.bitnet_models import FORMS, edit_config, weights_of, write_bitnet

from tritllm import dequantize, quantize
from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.errors import FormatError, TritError
from tritllm.integrations.transformers import TritConfig, load_model, widened_linear
from tritllm.ops import backends
from tritllm.quantizer.verify_source import verify_source

PER_TOKEN = {"activations": "per-token"}


@pytest.fixture(autouse=True, scope="module")
def eager():
    """transformers compiles its layers of this method; here they run as they are written."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(form) -> a folder with `source` and `packed`, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            place = tmp_path_factory.mktemp("bitnet")
            write_bitnet(place / "source", FORMS[name])
            kinds = ("packed",) if FORMS[name].norm else ("packed", "model")
            quantize(str(place / "source"), ["uniform-d1"], place / "out", threads=1, write=kinds)
            made[name] = place
        return made[name]

    return make


def packed_of(place: Path) -> Path:
    return place / "out" / "uniform-d1" / "packed"


def theirs(place: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        place / "source", dtype=torch.bfloat16
    ).eval()


def ids(rows: int = 8, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(ids()).logits.float()


@pytest.mark.parametrize("form", FORMS)
def test_every_trit_and_weight_is_the_source_s(folder, form):
    place = folder(form)
    checkpoint = PackedCheckpoint(packed_of(place))
    wanted = weights_of(place / "source", FORMS[form])
    assert sorted(checkpoint.quantized) == sorted(wanted)
    for name, weight in wanted.items():
        tensor = checkpoint.tensor(name)
        np.testing.assert_array_equal(tensor.decode(), weight.numpy())
        np.testing.assert_array_equal(tensor.levels(), weight.sign().numpy())
    compared = verify_source(packed_of(place), str(place / "source"))
    assert (compared.matrices, compared.exact, compared.trained) == (14, 14, 0)
    stated = checkpoint.manifest["encoder"]
    assert stated["ternary"] == {"of": 14, "matrices": 14, "exact": 14}
    assert stated["source"]["linear_class"] == FORMS[form].linear_class


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_those_of_transformers(folder, form):
    """Its own forward runs in bfloat16 alone, which makes near-ties; elsewhere tokens are equal."""
    place = folder(form)
    expected = logits(theirs(place))
    best = expected.topk(2, dim=-1).values
    clear = (best[..., 0] - best[..., 1]) > 0.1 * expected.std()
    assert clear.float().mean() > 0.7
    for options in (PER_TOKEN, {}):
        ours = logits(load_model(packed_of(place), dtype="bfloat16", **options))
        same = ours.argmax(-1) == expected.argmax(-1)
        assert same[clear].all()
        assert same.float().mean() > 0.95
        assert (ours - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.online])
def test_without_kernels_the_bits_are_those_of_transformers(folder, monkeypatch, form):
    """The same operations in the same order, where its weights are not multiplied by a scale."""
    place = folder(form)
    monkeypatch.setattr(backends, "prepare", lambda *_: None)
    monkeypatch.setattr(widened_linear, "has_bfloat16_products", lambda: True)  # torch's lm_head
    ours = logits(load_model(packed_of(place), dtype="bfloat16", **PER_TOKEN))
    assert torch.equal(ours, logits(theirs(place)))


@torch.no_grad()
def decoded(model, tokens: int = 6) -> torch.Tensor:
    out = model(ids(2, 7), use_cache=True)
    found = []
    for token in ids(2, tokens).T:
        out = model(token[:, None], past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits[:, -1])
    return torch.stack(found)


@pytest.mark.parametrize("options", [{}, PER_TOKEN])
def test_the_native_step_is_that_of_the_modules(folder, steps, native, options):
    native("exact")
    model = load_model(packed_of(folder("2B4T")), dtype="float32", **options)
    ours = decoded(model)
    assert len(steps) == 6
    model.model.__class__ = model.model.stock
    expected = decoded(model)
    assert len(steps) == 6
    # Where activations are rounded, a rounding may fall the other way.
    assert (ours - expected).norm() < (1e-5 if not options else 1e-2) * expected.norm()


def test_norms_before_layers_are_saved_and_not_dequantized(folder, tmp_path):
    model = load_model(packed_of(folder("Falcon-E")), dtype="bfloat16")
    expected = logits(model)
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), expected)
    with pytest.raises(TritError, match="norms before them"):
        model.dequantize()


@pytest.mark.parametrize("form", ["2B4T", "Falcon3"])
def test_the_dequantized_folder_has_the_weights(folder, tmp_path, form):
    place = folder(form)
    model = place / "out" / "uniform-d1" / "model"
    stock = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16)
    state = stock.state_dict()
    for name, weight in weights_of(place / "source", FORMS[form]).items():
        assert torch.equal(state[name], weight.half())
    dequantize(packed_of(place), tmp_path / "model")
    same = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert same == (model / "model.safetensors").read_bytes()


def test_floats_that_are_ternary_need_no_method(folder, tmp_path):
    """The dequantized folder says nothing of trits, and gives the same planes again."""
    place = folder("2B4T")
    quantize(str(place / "out/uniform-d1/model"), ["uniform-d1", "uniform-d2"], tmp_path, threads=1,
             write=("packed",))  # fmt: skip
    before = PackedCheckpoint(packed_of(place))
    after = PackedCheckpoint(tmp_path / "uniform-d1" / "packed")
    for name in before.quantized:
        assert after.read(name) == before.read(name)
    report = json.loads((tmp_path / "uniform-d1" / "report.json").read_text())
    assert report["encoder"] == {"ternary": {"of": 14, "matrices": 14, "exact": 14}}
    deeper = json.loads((tmp_path / "uniform-d2" / "report.json").read_text())
    assert "encoder" not in deeper


def test_more_scales_than_entries_are_stated(folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder("2B4T") / "out/uniform-d1/model", source)
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj.weight"
    rows = torch.rand(len(tensors[name]), 1, generator=generator) + 0.5
    tensors[name] = (tensors[name].sign() * rows).half()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (report,) = quantize(str(source), ["uniform-d1"], tmp_path / "out", threads=1)
    lowest = report["encoder"]["ternary"].pop("lowest_sqnr_db")
    assert report["encoder"]["ternary"] == {"of": 14, "matrices": 14, "exact": 13}
    assert 35 < lowest == round(report["quantized"][name]["sqnr_db"], 2)
    packed = tmp_path / "out/uniform-d1/packed"
    levels = PackedCheckpoint(packed).tensor(name).levels()
    np.testing.assert_array_equal(levels, tensors[name].sign().numpy())
    compared = verify_source(packed, str(source))
    assert (compared.exact, round(compared.lowest_sqnr_db, 1)) == (13, round(lowest, 1))


def changed(folder, tmp_path, form: str, change) -> str:
    """A copy of a source in which `change` has changed its tensors."""
    shutil.copytree(folder(form) / "source", tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return str(tmp_path / "source")


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("2B4T", lambda t: t[f"{UP}.weight"][3:4, 5:6].fill_(255), r"weight\[3, 5\] is no trit"),
        ("2B4T", lambda t: t[f"{UP}.weight_scale"].zero_(), "is no scale"),
        ("Falcon3", lambda t: t[f"{UP}.weight_scale"].zero_(), "is no scale"),
        ("2B4T", lambda t: t.update({f"{UP}.weight_scale": torch.ones(2)}), "is not one number"),
        ("2B4T", lambda t: t.pop(f"{UP}.weight_scale"), r"two-bit weights without .*weight_scale"),
        ("Falcon-E", lambda t: t.pop(f"{UP}.rms_norm.weight"), "rms_norm.weight is missing"),
        ("2B4T in bfloat16", lambda t: t[f"{UP}.weight"][0].fill_(torch.nan), "not a finite"),
    ],
)  # fmt: skip
def test_damaged_sources_are_refused(folder, tmp_path, form, change, message):
    with pytest.raises(TritError, match=message):
        quantize(changed(folder, tmp_path, form, change), ["uniform-d1"], tmp_path / "out",
                 threads=1, write=("packed",))  # fmt: skip
    assert not (tmp_path / "out" / "uniform-d1" / "packed").exists()


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("2B4T", {"configs": ["uniform-d2"]}, "depth 1 stores without loss; uniform-d2 asks"),
        ("2B4T", {"exclude": ["*.up_proj"]}, "cannot be kept as it is stored"),
        ("Falcon-E", {"write": ("packed", "model")}, "use --write packed"),
    ],
)
def test_what_a_ternary_source_does_not_take(folder, tmp_path, form, options, message):
    options = {"configs": ["uniform-d1"], **options}
    with pytest.raises(TritError, match=message):
        quantize(str(folder(form) / "source"), out=tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("field", "value"),
    [("linear_class", "other"), ("quantization_mode", 3), ("modules_to_not_convert", ["("])],
)
def test_unknown_values_of_the_method_are_refused(folder, tmp_path, field, value):
    shutil.copytree(folder("2B4T") / "source", tmp_path / "source")
    edit_config(tmp_path / "source", {field: value})
    with pytest.raises(TritError, match=f"{field} .* is unknown to bitnet"):
        quantize(str(tmp_path / "source"), ["uniform-d1"], tmp_path / "out")


def test_modules_that_the_method_leaves_out_are_kept(folder, tmp_path):
    shutil.copytree(folder("2B4T in bfloat16") / "source", tmp_path / "source")
    edit_config(tmp_path / "source", {"modules_to_not_convert": ["lm_head", r".*\.1\.mlp"]})
    (report,) = quantize(str(tmp_path / "source"), ["uniform-d1"], tmp_path / "out", threads=1)
    assert len(report["quantized"]) == 11
    kept = {n for n, reason in report["kept"].items() if reason == "not ternary in the source"}
    assert kept == {f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}


def test_another_source_is_not_this_one(folder, tmp_path):
    place = folder("2B4T")
    with pytest.raises(FormatError, match=r"the SHA-256 of its model\.safetensors"):
        verify_source(packed_of(place), str(folder("2B4T in bfloat16") / "source"))


def test_options_that_are_not_there_are_refused():
    with pytest.raises(TritError, match="activations 'per-row' is not 'per-token'"):
        TritConfig(activations="per-row")
    with pytest.raises(FormatError, match="input_norm_eps"):
        TritConfig(input_norm_eps=2.0)
