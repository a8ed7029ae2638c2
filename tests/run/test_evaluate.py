"""tritllm eval: figures, files, cache and refusals, on a tiny model with a tokenizer."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
import typer
from typer.testing import CliRunner

from tritllm import dequantize, evaluate
from tritllm.cli import eval as eval_command
from tritllm.cli.console import console
from tritllm.cli.eval_text import print_evaluation
from tritllm.errors import TritError
from tritllm.evaluation.corpus import read_text, tokenize, windows
from tritllm.format.layout import nbytes
from tritllm.run import evaluated_model, measure_models
from tritllm.run.measure_models import groups_that_fit
from tritllm.storage.model_files import LocalFiles
from tritllm.storage.model_json import read_manifest

TEXT = "In the beginning God created the heaven and the earth. " * 5


@pytest.fixture(scope="module")
def source(speaking):
    return speaking.parents[2] / "source"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def measured(source, text):
    """evaluate() in windows of 32 tokens."""

    def run(*folders, **options):
        return evaluate(folders, **{"reference": source, "text": text, "context": 32} | options)

    return run


def dense(folder):
    """Logits of a plain folder in float64."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


@torch.no_grad()
def by_definition(model, reference, cut):
    kl, nll, base = [], [], []
    for window in cut:
        ids = torch.from_numpy(window.ids)[None]
        q, p = (torch.log_softmax(m(ids).logits[0, window.first - 1 : -1], -1)
                for m in (model, reference))  # fmt: skip
        targets = ids[0, window.first :, None]
        kl += (p.exp() * (p - q)).sum(-1).tolist()
        nll += (-q.gather(-1, targets))[:, 0].tolist()
        base += (-p.gather(-1, targets))[:, 0].tolist()
    return np.array(kl), np.array(nll), np.array(base)


@pytest.mark.parametrize("stride", [None, 10])
def test_figures_are_those_of_a_dense_model_in_float64(measured, speaking, source, text, stride):
    result = measured(speaking, speaking.parent / "model", stride=stride)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    cut = windows(tokenize(read_text(text), tokenizer), 32, stride=stride)
    kl, nll, base = by_definition(dense(speaking.parent / "model"), dense(source), cut)
    assert [row.name for row in result.models] == ["packed", "model"]
    for row in result.models:
        found = row.statistics
        assert found.predictions == len(kl)
        assert found.kl.mean.value == pytest.approx(kl.mean(), rel=2e-3)  # codebooks in float16
        assert found.kl.percentiles[50.0] == pytest.approx(np.median(kl), rel=5e-3)
        assert found.perplexity.value == pytest.approx(math.exp(nll.mean()), rel=1e-4)
        assert found.ln_ratio.value == pytest.approx((nll - base).mean(), rel=1e-2)
        spread = np.std(nll - base) / math.sqrt(len(nll) - 1)
        assert found.ln_ratio.error == pytest.approx(spread, rel=1e-2)
    exact = result.models[1].statistics
    assert exact.kl.mean.value == pytest.approx(kl.mean(), rel=1e-5)
    assert result.reference_perplexity.value == pytest.approx(math.exp(base.mean()), rel=1e-6)


def test_the_protocol_is_told(measured, speaking, text):
    protocol = measured(speaking, windows=3).protocol
    assert protocol.text_sha256 == read_text(text).sha256
    assert (protocol.context, protocol.stride, protocol.bos) == (32, 32, None)
    assert (protocol.windows, protocol.predictions) == (3, 93)
    assert protocol.tokens == len(TEXT)
    assert set(protocol.versions) == {"tritllm", "torch", "transformers"}
    assert measured(speaking, context=None).protocol.context == 256  # all that the model has


def test_sizes_are_counted_from_the_files(measured, speaking):
    packed, model = measured(speaking, speaking.parent / "model").models
    assert packed.size.file_bytes == (speaking / "model.safetensors").stat().st_size
    manifest = read_manifest(files := LocalFiles(speaking), files.sizes())
    stored = sum(
        math.prod(record["shape"]) * {"U8": 1, "F32": 4}[record["dtype"]]
        for record in manifest["tensors"].values()
        if "kept" not in record
    )
    weights = 2 * (4 * 48 * 48 + 3 * 48 * 72)
    assert packed.size.weight_bits == 8 * stored / weights
    assert model.size.weight_bits == 16
    whole = weights + 2 * 257 * 48 + 5 * 48
    assert packed.size.parameter_bits == pytest.approx(8 * packed.size.file_bytes / whole)
    assert (packed.made, packed.kind) == ("data-free", "packed")
    assert (model.made, model.kind) == ("other", "transformers")


def test_fewer_planes_cost_quality_and_take_less(measured, speaking, tmp_path):
    one, two = measured(speaking, planes=[1, 2]).models
    (whole,) = measured(speaking).models
    assert [one.name, two.name, whole.name] == ["uniform-d2 r=1", "uniform-d2 r=2", "uniform-d2"]
    assert two.statistics == whole.statistics
    assert two.size == whole.size
    dequantize(speaking, tmp_path / "r1", planes=1)
    (cut,) = measured(tmp_path / "r1").models
    assert one.statistics.kl.mean.value == pytest.approx(cut.statistics.kl.mean.value, rel=5e-3)
    assert one.statistics.kl.mean.value > 2 * whole.statistics.kl.mean.value
    shapes = [(48, 48)] * 4 + [(72, 48)] * 2 + [(48, 72)]
    stored = sum(nbytes(rows, columns, 1) for rows, columns in shapes)
    assert one.size.weight_bits == 8 * stored / sum(a * b for a, b in shapes)


def test_cached_figures_are_the_streamed_ones(measured, speaking, tmp_path, monkeypatch):
    streamed = measured(speaking).models[0].statistics
    cached = measured(speaking, cache=tmp_path).models[0].statistics
    assert abs(cached.kl.mean.value - streamed.kl.mean.value) < 1e-7
    assert cached.perplexity == streamed.perplexity
    assert cached.ratio == streamed.ratio
    assert cached.same_top == streamed.same_top
    assert len(list(tmp_path.iterdir())) == 1

    loaded = []
    load = evaluated_model.EvaluatedModel.load
    monkeypatch.setattr(
        evaluated_model.EvaluatedModel,
        "load",
        lambda self, *a: (loaded.append(self.name), load(self, *a))[1],
    )
    again = measured(speaking, cache=tmp_path)
    assert again.models[0].statistics == cached
    assert loaded == ["uniform-d2"]  # the reference is not needed
    assert again.protocol.reference_logits == "cached"


def test_an_interrupted_cache_goes_on(measured, speaking, tmp_path, monkeypatch):
    def stop(what, done, total):
        if what == "the reference" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(speaking, cache=tmp_path, batch=1, on_progress=stop)
    (folder,) = tmp_path.iterdir()
    there = sorted(folder.glob("window-*.npz"))
    assert len(there) == 3
    times = [path.stat().st_mtime_ns for path in there]
    (folder / ".window-000003.npz.tmp").write_bytes(b"half")
    told = []
    goes_on = measured(
        speaking, cache=tmp_path, batch=1, on_progress=lambda *step: told.append(step)
    )
    assert [path.stat().st_mtime_ns for path in there] == times
    assert [done for what, done, _ in told if what == "the reference"] == [4, 5, 6, 7, 8, 9]
    fresh = measured(speaking, cache=tmp_path / "fresh", batch=1)
    assert goes_on.models[0].statistics == fresh.models[0].statistics


def test_another_text_or_reference_has_another_cache(
    measured, speaking, source, text, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    other_text = tmp_path / "other.txt"
    other_text.write_text(TEXT.replace("God", "god"))
    other_model = shutil.copytree(source, tmp_path / "other")
    few = {"windows": 3}
    for options in (few, few | {"text": other_text}, few | {"context": 16},
                    few | {"reference": other_model}):  # fmt: skip
        expected = measured(speaking, **options).models[0].statistics
        found = measured(speaking, cache=cache, **options).models[0].statistics
        assert found.perplexity == expected.perplexity
        assert found.kl.mean.value == pytest.approx(expected.kl.mean.value, abs=1e-6)
    assert len(list(cache.iterdir())) == 4
    same_text = tmp_path / "same.txt"
    shutil.copy(text, same_text)
    measured(speaking, cache=cache, text=same_text, windows=3)
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_or_foreign_cache_is_refused(measured, speaking, tmp_path):
    measured(speaking, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    window = folder / "window-000002.npz"
    data = window.read_bytes()
    window.write_bytes(data[: len(data) // 2])
    with pytest.raises(TritError, match=r"window-000002\.npz: damaged or gone"):
        measured(speaking, cache=tmp_path)
    window.unlink()
    (folder / "reference.json").write_text("{}")
    with pytest.raises(TritError, match="describes another reference"):
        measured(speaking, cache=tmp_path)


def test_a_cache_without_room_is_refused_before_the_reference_runs(
    measured, speaking, tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(TritError, match=r"take 0\.0 GB, 0\.0 GB are free; give another --cache"):
        measured(speaking, cache=tmp_path)


def test_models_are_grouped_by_what_fits():
    assert groups_that_fit(10, [5, 5, 5], 25) == [[0, 1, 2]]
    assert groups_that_fit(10, [5, 5, 5], 24) == [[0, 1], [2]]
    assert groups_that_fit(10, [5, 14, 5], 24) == [[0], [1], [2]]
    assert groups_that_fit(10, [5, 15], 24) is None


def test_groups_give_what_all_together_give(measured, speaking, monkeypatch):
    folders = (speaking, speaking.parent / "model")
    together = measured(*folders)
    monkeypatch.setattr(measure_models, "groups_that_fit", lambda *sizes: [[0], [1]])
    apart = measured(*folders)
    for a, b in zip(together.models, apart.models):
        assert a.statistics == b.statistics
    monkeypatch.setattr(measure_models, "groups_that_fit", groups_that_fit)
    monkeypatch.setattr(measure_models, "available_memory", lambda: 1 << 30)
    with pytest.raises(TritError, match=r"do not fit in .* GB of memory; give --cache DIR"):
        measured(*folders)


def without_a_tensor(source, folder):
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def with_nan(source, folder):
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][tokens_of(source, "b")] = math.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def tokens_of(folder, text):
    return transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def test_broken_models_are_refused(measured, speaking, source, tmp_path):
    with pytest.raises(TritError, match=r"lost: 1 tensors missing, such as model.layers.1.mlp.up"):
        measured(without_a_tensor(source, tmp_path / "lost"))
    nan = with_nan(source, tmp_path / "nan")
    with pytest.raises(TritError, match="nan: NaN or infinite logits in window 0, prediction"):
        measured(nan)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(TritError, match="the reference: NaN or infinite logits in window 0"):
            measured(speaking, reference=nan, cache=cache)
    config = json.loads((source / "config.json").read_text())
    wide = shutil.copytree(source, tmp_path / "wide")
    (wide / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(TritError, match="wide: a vocabulary of 300, but the reference has 257"):
        measured(wide)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": None}, "nothing to measure; give --text FILE or --dataset NAME, or --tasks"),
        ({"dataset": "x"}, "--text and --dataset are two texts"),
        ({"reference": None}, "a text needs --reference"),
        ({"reference": "./nowhere"}, "nowhere: no such folder"),
        ({"context": 257}, "--context 257: the model's context is 256 tokens"),
        ({"stride": 33}, r"--stride 33 is not 1\.\.32"),
        ({"bos": "always"}, "has no BOS token"),
        ({"windows": 0}, "--windows 0 is less than 1"),
        ({"batch": 0}, "--batch 0 is less than 1"),
        ({"planes": [3]}, r"holds 2 planes, --planes 3 is not 1\.\.2"),
        ({"dtype": "int4"}, "--dtype int4 is not one of"),
        ({"plot_file": "plot.pdf"}, r"plot\.pdf: the name of a PNG file ends in \.png"),
    ],
)
def test_arguments_that_make_no_sense(measured, speaking, options, says):
    with pytest.raises(TritError, match=says):
        measured(speaking, **options)


def test_a_gguf_file_is_one_more_model(measured, tmp_path, speaking, source):
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    for name, values in load_file(source / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # as llama.cpp's converter
            rows, columns = values.shape
            values = values.reshape(heads, 2, rows // heads // 2, columns)
            values = values.swapaxes(1, 2).reshape(rows, columns)
        values = values.astype(np.float32 if values.ndim == 1 else np.float16)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (row,) = measured(path).models
    assert (row.kind, row.made, row.size.weight_bits) == ("GGUF", "other", 16)
    assert row.size.file_bytes == path.stat().st_size
    assert abs(row.statistics.kl.mean.value) < 1e-5
    (tmp_path / "broken.gguf").write_bytes(path.read_bytes()[:500])
    with pytest.raises(TritError, match=r"broken\.gguf: "):
        measured(tmp_path / "broken.gguf")


def test_planes_are_for_packed_folders(measured, speaking):
    with pytest.raises(TritError, match="--planes is for packed folders"):
        measured(speaking.parent / "model", planes=[1])


def test_command(speaking, source, text, tmp_path, threads_kept):
    app = typer.Typer()
    app.command()(eval_command.command)
    result = CliRunner().invoke(
        app,
        [str(speaking), str(speaking.parent / "model"), "--reference", str(source),
         "--text", str(text), "--context", "32", "--planes", "1,2", "--threads", "1",
         "--json", str(tmp_path / "found.json"), "--plot", str(tmp_path / "plot.png")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"sha256 {read_text(text).sha256}" in result.stdout
    assert "9 of 32 tokens, stride 32, no BOS; 266 predictions" in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["name"] for row in found["models"]] == ["packed r=1", "packed r=2", "model"]
    kl = found["models"][1]["statistics"]["kl"]
    assert re.search(rf"KL mean .*{kl['mean']['value']:.6f} ± ", result.stdout)
    assert re.search(rf"KL 99\.9 % .*{kl['percentiles']['99.9']:.6f}", result.stdout)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(measured, speaking, monkeypatch, capsys, width):
    result = measured(speaking, speaking.parent / "model", planes=[1, 2])
    monkeypatch.setattr(console, "_width", width)
    print_evaluation(result)
    lines = capsys.readouterr().out.splitlines()[4:]  # the protocol's may be long
    assert len(lines) > 40
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
