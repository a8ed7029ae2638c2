"""What `info` counts from a config alone against the files that quantizing really writes."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from support.bitnet_models import FORMS, write_bitnet
from support.native_library import needs_library
from support.tiny_models import FAMILIES, write_tiny
from typer.testing import CliRunner

from tritllm import TritError, quantize
from tritllm.cli.console import console
from tritllm.cli.main import app
from tritllm.integrations.transformers.load_model import load_model
from tritllm.ops.definitions import Packed
from tritllm.ops.trit_linear import TritLinear
from tritllm.ops.triton_kernels import layout
from tritllm.publish.info import stored_entries
from tritllm.run.info import info
from tritllm.storage.model_files import LocalFiles

CONFIGS = [f"uniform-d{depth}" for depth in (1, 2, 3, 4)]


@pytest.fixture(scope="module", params=FAMILIES)
def quantized(request, tmp_path_factory):
    """A tiny model quantized at each depth: (folder with its config alone, outputs)."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tiny(folder / "source", request.param, torch.bfloat16)
    quantize(str(folder / "source"), CONFIGS, folder / "out", threads=1, dtype="bfloat16")
    (folder / "alone").mkdir()
    shutil.copy(folder / "source/config.json", folder / "alone")
    return folder


def stored_bytes(folder) -> int:
    return sum(entry.nbytes for entry in stored_entries(LocalFiles(folder)))


def test_bytes_equal_those_of_the_files(quantized):
    facts = info(str(quantized / "alone"))
    rows = {row.name: row for row in facts.serving.rows}
    assert list(rows) == ["16 bits", "d=1", "d=2", "d=3", "d=4"]
    for depth, config in enumerate(CONFIGS, start=1):
        assert rows[f"d={depth}"].file_bytes == stored_bytes(quantized / f"out/{config}/packed")
    assert rows["16 bits"].file_bytes == stored_bytes(quantized / "out/uniform-d1/model")


def test_a_config_tells_what_its_weights_do(quantized):
    alone = info(str(quantized / "alone"))
    there = info(str(quantized / "source"), serving=True)
    assert alone.serving == there.serving
    for field in ("parameters", "dtypes", "weight_bytes", "context_length", "architecture"):
        assert getattr(alone, field) == getattr(there, field)
    assert info(str(quantized / "source")).serving is None


def test_a_packed_folder_is_counted_as_it_is(quantized):
    packed = info(str(quantized / "out/uniform-d3/packed"), serving=True).serving
    alone = info(str(quantized / "alone")).serving
    assert [row.name for row in packed.rows] == ["16 bits", "as packed"]
    as_d3 = alone.rows[3]
    assert (packed.rows[1].file_bytes, packed.rows[1].cpu_bytes) == (
        as_d3.file_bytes,
        as_d3.cpu_bytes,
    )
    assert packed.cache == alone.cache


def test_a_file_of_any_name_with_or_without_tritllms_part(quantized, tmp_path):
    shutil.copy(quantized / "source/config.json", tmp_path / "model.json")
    shutil.copy(quantized / "out/uniform-d2/packed/config.json", tmp_path / "packed.json")
    plain, packed = (info(str(tmp_path / name)) for name in ("model.json", "packed.json"))
    assert plain.serving == packed.serving == info(str(quantized / "alone")).serving


def test_a_source_that_is_ternary_by_its_own_method(tmp_path, run):
    """It is no model that somebody quantized: what depth 1 makes of it is counted."""
    source = write_bitnet(tmp_path / "source", FORMS["Falcon3"])
    (tmp_path / "alone").mkdir()
    shutil.copy(source / "config.json", tmp_path / "alone")
    quantize(str(source), ["uniform-d1"], tmp_path / "out", threads=1, write=["packed"])
    stored = stored_bytes(tmp_path / "out/uniform-d1/packed")
    alone, there = (info(str(tmp_path / name), serving=True) for name in ("alone", "source"))
    scales = 7 * 2  # of each matrix one, which only the files have
    assert there.parameters == alone.parameters + scales
    for facts in (alone, there):
        assert facts.born_ternary
        assert [row.name for row in facts.serving.rows] == ["16 bits", "d=1"]
        assert facts.serving.rows[1].file_bytes == stored
    assert "tritllm quantize --configs uniform-d1" in " ".join(run(str(tmp_path / "alone")).split())
    assert not info(str(tmp_path / "out/uniform-d1/packed")).born_ternary


@needs_library
def test_memory_is_what_a_loaded_model_holds(tmp_path):
    """On the CPU; and what the GPU's kernels would hold, prepared here as well."""
    write_tiny(tmp_path / "source", "llama")
    quantize(str(tmp_path / "source"), ["uniform-d2"], tmp_path / "out", threads=1)
    packed = tmp_path / "out/uniform-d2/packed"
    model = load_model(packed)
    layers = [module for module in model.modules() if isinstance(module, TritLinear)]
    prepared = sum(layer.prepared.nbytes for layer in layers)
    floats = sum(parameter.nbytes for parameter in model.parameters())
    on_gpu = sum(
        layout.prepare(
            Packed(layer.weight, layer.weight_scale, layer.weight_codebook[-1], layer.in_features)
        ).nbytes
        for layer in layers
    )
    row = info(str(packed), serving=True).serving.rows[1]
    assert row.cpu_bytes == prepared + floats
    assert row.gpu_bytes == on_gpu + floats


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "vocab_size": 100,
}


@pytest.fixture
def config(tmp_path):
    def write(**fields: object):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(LLAMA | fields))
        return str(path)

    return write


def test_defaults_are_those_of_the_family(config):
    """Mistral slides over 4,096 tokens unless its config says otherwise."""
    sliding, full = (
        info(config(model_type="mistral", **fields), context=[32768]).serving.cache[0].nbytes
        for fields in ({}, {"sliding_window": None})
    )
    assert full == 8 * sliding == 2 * 2 * 2 * 16 * 2 * 32768


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "no-such"}, "transformers does not take this config"),
        ({"hidden_size": "wide"}, "transformers does not take this config"),
        ({"num_attention_heads": 7, "head_dim": 0}, "config"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized, and not by trit"),
        (
            {"quantization_config": {"quant_method": "bitnet", "linear_class": "conv"}},
            "linear_class 'conv' is unknown to bitnet",
        ),
        ({"model_type": "vit"}, "config"),
    ],
)
def test_a_config_that_gives_no_model(config, fields, says):
    with pytest.raises(TritError, match=says) as raised:
        info(config(**fields))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": []}, "--context takes one or more"),
        ({"context": [0]}, "--context takes one or more"),
        ({"context": [1 << 50]}, "more than can be counted"),
        ({"sequences": 0}, "--sequences 0"),
        ({"revision": "main"}, "is a local file"),
    ],
)
def test_arguments_that_cannot_be(config, options, says):
    with pytest.raises(TritError, match=says):
        info(config(), **options)


@pytest.fixture
def run(monkeypatch):
    def of_80_columns(*words: str) -> str:
        result = CliRunner().invoke(app, ["info", *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    monkeypatch.setattr(console, "_width", 80)
    return of_80_columns


def test_the_table_fits_a_terminal_and_the_json_says_the_same(config, run):
    path = config()
    table = run(path, "--context", "4096,100000", "--sequences", "3")
    assert max(map(len, table.splitlines())) <= 80
    assert "100,000 tokens, 3 sequences" in table
    facts = json.loads(run(path, "--context", "4096,100000", "--sequences", "3", "--json"))
    assert [cache["context"] for cache in facts["serving"]["cache"]] == [4096, 100000]
    assert facts["serving"]["degrees"][3] == {
        "gpus": 8,
        "allowed": False,
        "reason": "4 attention heads: not divisible by 8",
    }
    assert re.search(r"TP 8: no +4 attention heads: not divisible by 8", table)
    assert re.search(r"TP 2: yes +down_proj: 160 columns / 16 = 10 groups: divisible by 2", table)


def test_numbers_that_are_none(config):
    result = CliRunner().invoke(app, ["info", config(), "--context", "8k"])
    assert isinstance(result.exception, TritError)
    assert str(result.exception).startswith("--context takes numbers of tokens")


def test_an_unknown_cache_is_said(config, run):
    text = run(config(mamba_d_state=16))
    assert "KV cache and GPUs: not known: layers keep a state of their own" in text


def test_a_model_with_nothing_to_quantize(config):
    with pytest.raises(TritError, match="no linear weight recognised"):
        info(config(model_type="ctrl"))
