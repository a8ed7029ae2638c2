"""Which matrices a folder holds for a fused layer, and what is refused, without vLLM."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from pkgutil import resolve_name

import pytest
from safetensors.numpy import load_file, save_file
from support import fused_experts
from support.packed_matrices import random_matrix, store_matrices
from support.vllm_layers import FUSED

from tritllm import quantize
from tritllm.errors import FormatError, TritError
from tritllm.integrations.vllm.plugin import is_too_old, register
from tritllm.integrations.vllm.stored import (
    check_tensor_parallel,
    modules_in_file,
    read_stored,
)


@pytest.fixture
def stored_of(tmp_path):
    def read(depths, planes=None):
        matrices = {name: random_matrix((16, 48), depth) for name, depth in depths.items()}
        return store_matrices(tmp_path / "f", matrices, planes)

    return read


@pytest.fixture
def packed(tiny, tmp_path):
    """A copy of a packed model's folder."""
    folder = tmp_path / "packed"
    shutil.copytree(tiny("llama", 2) / "packed", folder)
    return folder


def line_of(call, kind=TritError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_fused_layer_is_made_of_the_files_matrices(stored_of):
    stored = stored_of({"a.q_proj": 2, "a.k_proj": 2, "a.v_proj": 2, "b.qkv_proj": 1})
    assert modules_in_file("a.qkv_proj", FUSED, stored) == ["a.q_proj", "a.k_proj", "a.v_proj"]
    assert modules_in_file("b.qkv_proj", FUSED, stored) == ["b.qkv_proj"]
    assert modules_in_file("a.o_proj", FUSED, stored) == ["a.o_proj"]
    names = [m.name for m in stored.of_modules(["a.q_proj", "a.k_proj"])]
    assert names == ["a.q_proj.weight", "a.k_proj.weight"]
    assert stored.of_modules(["a.o_proj"]) == []


def test_depths_that_differ_within_a_fused_layer(stored_of):
    stored = stored_of({"a.q_proj": 2, "a.k_proj": 3, "a.v_proj": 2})
    message = line_of(lambda: stored.of_modules(["a.q_proj", "a.k_proj"]), FormatError)
    for part in ("model.safetensors", "a.q_proj.weight", "a.k_proj.weight", "planes: 2"):
        assert part in message
    stored.planes = 2
    assert [stored.depth_read(m) for m in stored.of_modules(["a.q_proj", "a.k_proj"])] == [2, 2]


def test_only_a_part_of_a_fused_layer_is_packed(stored_of):
    stored = stored_of({"a.gate_proj": 2})
    message = line_of(lambda: stored.of_modules(["a.gate_proj", "a.up_proj"]), FormatError)
    assert "a.gate_proj.weight is packed and a.up_proj is not" in message


def test_modules_take_the_names_of_vllms_model(stored_of):
    stored = stored_of({"model.x": 1, "model.vision.y": 1})
    renamed = stored.renamed(
        lambda name: None if "vision" in name else name.replace("model.", "language_model.model.")
    )
    assert list(renamed.matrices) == ["language_model.model.x"]


def test_a_degree_that_does_not_divide_the_columns(packed):
    stored = read_stored(str(packed), None)
    for degree in (1, 2, 8):
        check_tensor_parallel(stored.matrices, degree)
    message = line_of(lambda: check_tensor_parallel(stored.matrices, 5))
    assert "down_proj.weight: 72 columns cannot be shared by 5 ranks" in message
    assert "1, 2, 3, 4, 6, 8, 9, 12" in message


def test_a_degree_that_does_not_divide_the_columns_of_experts(tiny):
    stored = read_stored(str(tiny("qwen3_moe", 2) / "packed"), None)
    message = line_of(lambda: check_tensor_parallel(stored.matrices, 3))
    assert "experts.0.down_proj.weight: 40 columns cannot be shared by 3 ranks" in message
    check_tensor_parallel(stored.matrices, 3, experts_are_cut=False)


def test_a_folder_that_is_not_whole(packed):
    (packed / "model.safetensors").rename(packed / "gone")
    message = line_of(lambda: read_stored(str(packed), None), FormatError)
    assert "model.safetensors: missing" in message
    (packed / "gone").rename(packed / "model.safetensors")
    (packed / "tritllm.json").unlink()
    assert "tritllm.json" in line_of(lambda: read_stored(str(packed), None), FormatError)


def test_a_scale_that_is_missing(packed):
    path = packed / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, path)
    message = line_of(lambda: read_stored(str(packed), None), FormatError)
    assert "model.safetensors: tensor model.layers.1.mlp.up_proj.weight_scale is missing" in message


def test_files_that_are_not_the_manifests(packed):
    text = (packed / "tritllm.json").read_text()
    (packed / "tritllm.json").write_text(text.replace('"uniform-d2"', '"uniform-d3"'))
    assert "tritllm.json" in line_of(lambda: read_stored(str(packed), None), FormatError)


def test_verify_compares_every_byte(packed):
    read_stored(str(packed), None, verify=True)
    path = packed / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    read_stored(str(packed), None)
    assert "SHA-256" in line_of(lambda: read_stored(str(packed), None, verify=True), FormatError)


def test_a_model_that_stores_its_weights_transposed(tiny):
    message = line_of(lambda: read_stored(str(tiny("gpt2", 2) / "packed"), None))
    assert "model.safetensors: tensor transformer.h.0.attn.c_attn.weight" in message
    assert "serve the dequantized model" in message


def test_experts_stored_transposed_are_read(tmp_path):
    """Each is packed as [out, in]; only a whole matrix that is stored transposed is refused."""
    source = fused_experts.write_fused(tmp_path / "source", "gpt_oss")
    quantize(
        str(source), ["uniform-d2"], tmp_path / "out", write=("packed",), allow_low_coverage=True
    )
    stored = read_stored(str(tmp_path / "out" / "uniform-d2" / "packed"), None)
    assert len(stored.matrices) == 2 * 3 * fused_experts.EXPERTS


def test_only_a_folder_can_be_verified():
    message = line_of(lambda: read_stored("owner/name", None, verify=True))
    assert "owner/name" in message


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.31.2", True), ("0.32.0", False), ("0.33.0+cu130", False), ("1.0", False), ("dev", False)],
)
def test_which_vllm_is_too_old(version, expected):
    assert is_too_old(version) is expected


def test_the_entry_point_names_the_plugin():
    settings = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8")
    (name,) = re.findall(
        r'\[project\.entry-points\."vllm\.general_plugins"\]\ntritllm = "(.+)"', settings
    )
    assert resolve_name(name) is register
