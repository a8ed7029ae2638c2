"""Bits a weight, counted in one way from the files of any method."""

from __future__ import annotations

import numpy as np
import pytest
from support.model_folders import llama, random_tensors, split, write_model

from tritllm.evaluation.sizes import memory_of, size_of, weights_of

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
SHAPES = llama()
LINEAR = [name for name, (_, what) in SHAPES.items() if what == "linear weight"]
WEIGHTS = sum(SHAPES[name][0][0] * SHAPES[name][0][1] for name in LINEAR)


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "source", CONFIG, split(random_tensors(SHAPES), 2))


def with_matrices_as(folder, parts):
    """A folder whose linear weights are `parts(module, rows, columns)`, all else as it was."""
    tensors = {n: a for n, a in random_tensors(SHAPES).items() if n not in LINEAR}
    for name in LINEAR:
        tensors |= parts(name.removesuffix(".weight"), *SHAPES[name][0])
    return write_model(folder, CONFIG, [tensors])


def test_a_float_model(source):
    weights = weights_of(source)
    assert set(weights.linear) == {name.removesuffix(".weight") for name in LINEAR}
    assert sum(weights.linear.values()) == WEIGHTS
    assert weights.parameters == sum(int(np.prod(shape)) for shape, _ in SHAPES.values())
    size = size_of(source, weights)
    assert size.weight_bits == 16
    assert size.file_bytes == sum(f.stat().st_size for f in source.glob("*.safetensors"))
    assert size.parameter_bits == 8 * size.file_bytes / weights.parameters
    assert memory_of(source, 4) == 4 * weights.parameters


def test_whatever_lies_below_a_module_counts_but_its_bias(source, tmp_path):
    """As GPTQ names it: four bits a weight, scales and zero points in groups of 8."""

    def gptq(module, rows, columns):
        return {
            f"{module}.qweight": np.zeros((columns // 8, rows, 4), np.uint8),
            f"{module}.scales": np.zeros((columns // 8, rows), np.float16),
            f"{module}.qzeros": np.zeros((columns // 8, rows), np.uint8),
            f"{module}.bias": np.zeros(rows, np.float16),
        }

    size = size_of(with_matrices_as(tmp_path / "gptq", gptq), weights_of(source))
    assert size.weight_bits == 4 + 16 / 8 + 8 / 8


def test_bits_are_not_guessed_where_a_matrix_is_missing_or_named_otherwise(source, tmp_path):
    def other(module, rows, columns):
        return {f"{module}_packed": np.zeros((rows, columns), np.uint8)}

    size = size_of(with_matrices_as(tmp_path / "other", other), weights_of(source))
    assert size.weight_bits is None
    assert size.parameter_bits == 8 * size.file_bytes / weights_of(source).parameters


def test_a_folder_without_safetensors(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1000))
    assert weights_of(tmp_path) is None
    size = size_of(tmp_path, None)
    assert (size.file_bytes, size.parameter_bits, size.weight_bits) == (1000, None, None)
