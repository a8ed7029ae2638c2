"""benchmarks/quality.py: what it counts, measures and says, on our own rows of a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.speaking_model import speaking_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXT = "In the beginning the tests were without form, and void. " * 12


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    speaking_model(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality

    return quality


def test_bits_are_those_of_the_packed_file(source, quality):
    from quality_peers.__main__ import bits_a_weight
    from quality_peers.recipe import Job, linear_layers, load_model
    from quality_peers.tritllm_command import quantize

    scratch = source / "scratch"
    scratch.mkdir()
    job = Job(source / "source", scratch, 1)
    made = quantize(job, ("uniform-d1",), "--codec", "v2")["uniform-d1"]
    (packed,) = scratch.glob("*/uniform-d1/packed/model.safetensors")
    layers = linear_layers(load_model(source / "source"))
    with safe_open(packed, "pt") as file:
        stored = sum(
            file.get_tensor(name).nbytes
            for name in file.keys()  # noqa: SIM118
            if name.startswith(tuple(f"{layer}.weight" for layer in layers))
        )
    assert made.stored_bytes == stored
    assert made.weights.keys() == layers.keys()
    assert "lm_head" not in layers
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert bits_a_weight(made) == 8 * stored / weights


def test_rows_are_measured_and_kept(source, quality, monkeypatch):
    """Through `run`, with a peer that changes nothing, one that zeroes a layer and one missing."""

    def rows_of(name, arguments, windows, scratch):
        layers = quality.linear_layers(quality.load_model(arguments.model))
        weights = {k: layer.weight.detach().clone() for k, layer in layers.items()}
        if name == "hqq":
            weights["model.layers.0.mlp.down_proj"].zero_()
        save_file(weights, scratch / "weights.safetensors")
        row = {"peer": name, "name": name, "calibrated": "", "bits": 4.0, "bytes": 1, "seconds": 1}
        lost = {"peer": name, "name": f"{name} 9", "calibrated": "", "missing": "no such thing"}
        return [row | {"weights": scratch / "weights.safetensors"}, lost]

    monkeypatch.setattr(quality, "run_peer", rows_of)
    words = [str(source / "out"), "--model", str(source / "source"), "--context", "32"]
    words += ["--text", str(source / "text.txt"), "--text-tokens", "100", "--threads", "1"]
    first = quality.run(quality.parse([*words, "--only", "v3"]))
    results = quality.run(quality.parse([*words, "--only", "hqq"]))
    same, _, zeroed, lost = results["rows"]
    assert (same["name"], same["kl"], same["agreement"]) == ("v3", 0, 1)
    assert zeroed["kl"] > 1e-6
    assert lost["missing"] == "no such thing"
    assert results["settings"]["text_tokens"] == 100
    assert results["float"] == first["float"]
    assert json.loads((source / "out/results.json").read_text()) == results
    with pytest.raises(SystemExit, match="of other settings"):
        quality.run(quality.parse([*words, "--only", "v3", "--text-tokens", "50"]))


def test_verdicts(quality, capsys):
    from quality_peers.table import as_good_at, beaten_by, print_missing, print_rows

    def row(peer, name, bits, kl, calibrated=""):
        return {
            "peer": peer, "name": name, "bits": bits, "kl": kl, "calibrated": calibrated,
            "agreement": 0.5, "ppl": 9.0, "seconds": 1.0,
        }  # fmt: skip

    ours, calibrated = row("v3", "v3", 3.5, 0.02), row("calibrated", "cal", 3.5, 0.008, "text")
    peers = [
        row("ggml", "small", 3.4, 0.019),
        row("ggml", "small imatrix", 3.4, 0.007, "importance"),
        row("ggml", "large", 4.5, 0.003),
        row("v2", "v2", 3.4, 0.001),
    ]
    assert [r["name"] for r in beaten_by(ours, peers)] == ["small"]
    assert [r["name"] for r in beaten_by(calibrated, peers)] == ["small imatrix"]
    assert as_good_at(ours, peers)["name"] == "small"
    assert as_good_at(row("v3", "v3", 3.5, 0.001), peers) is None
    missing = [{"peer": "exl3", "name": f"EXL3 {n}", "missing": "no CUDA"} for n in (2, 3)]
    settings = {"text_tokens": 9, "context": 8, "calibration_tokens": 0}
    results = {"settings": settings, "float": {"ppl": 8.0}, "rows": [*peers, ours, *missing]}
    print_rows(results)
    print_missing(results)
    printed = capsys.readouterr().out
    assert "| **v3** | 3.500 | 0.02000 | 50.00% | 9.000 | weights alone | 1.0 |" in printed
    assert "- EXL3 2, EXL3 3: no CUDA" in printed


def test_rows_that_fail_cost_no_other(source, quality, monkeypatch):
    """A recipe's failure is its row's, with the reason; the others are written."""
    import types

    from quality_peers import PEERS, __main__
    from quality_peers.recipe import Encoded, Job, MissingError, Recipe

    def fails(error):
        raise error

    peer = types.ModuleType("quality_peers.three")
    peer.recipes = lambda job: [
        Recipe("absent", "", lambda: fails(ImportError("No module named 'x'"))),
        Recipe("broken", "", lambda: fails(ValueError("odd shape\nmore"))),
        Recipe("needs", "", lambda: fails(MissingError("needs CUDA"))),
        Recipe("whole", "", lambda: Encoded({"a": torch.ones(4, 8)}, 8)),
    ]
    monkeypatch.setitem(PEERS, "three", "three")
    monkeypatch.setitem(__import__("sys").modules, "quality_peers.three", peer)
    out = source / "rows"
    __main__.run_peer("three", Job(source / "source", source, 1), out)
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*/row.json"))]
    assert [row.get("missing") for row in rows] == [
        "No module named 'x'", "failed: ValueError: odd shape", "needs CUDA", None,
    ]  # fmt: skip
    assert rows[-1]["bits"] == 2
    __main__.run_peer("three", Job(source / "source", source, 1, rows="^wh"), source / "one")
    assert len([*(source / "one").iterdir()]) == 1
