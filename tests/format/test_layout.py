"""Names, dtypes, shapes and sizes of the three tensors of a matrix."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tritllm
from tritllm.errors import FormatError
from tritllm.format import layout
from tritllm.format.layout import TensorSpec
from tritllm.format.safetensors_header import build_header

SPECS = layout.tensors_of("x.weight", 3, 37, 2)


def test_what_docs_format_says():
    assert SPECS == (
        ("x.weight", "U8", (2, 3, 8)),
        ("x.weight_scale", "U8", (3, 2)),
        ("x.weight_codebook", "F32", (2, 27)),
    )


@given(st.integers(1, 40), st.integers(1, 400), st.integers(1, 4))
def test_sizes(rows, columns, depth):
    groups = math.ceil(columns / 16)
    expected = depth * rows * math.ceil(columns / 5) + rows * math.ceil(3 * groups / 5)
    assert layout.nbytes(rows, columns, depth) == expected + 108 * depth
    header = build_header(layout.tensors_of("x.weight", rows, columns, depth), {})
    assert sum(entry.nbytes for entry in header.entries.values()) == expected + 108 * depth


def test_an_encoded_matrix_has_this_layout():
    tensor = tritllm.encode(np.ones((3, 37), np.float32), 2)
    arrays = (tensor.weight, tensor.scale, tensor.codebook)
    assert [array.shape for array in arrays] == [spec.shape for spec in SPECS]
    assert tensor.nbytes == layout.nbytes(3, 37, 2)


def test_what_is_right_passes():
    entries = {spec.name: spec for spec in SPECS}
    parts = layout.parts_of(entries, "x.weight", "file")
    layout.check(parts, 3, 37, 2, "file")


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_missing_part(part):
    entries = {spec.name: spec for spec in SPECS if spec is not SPECS[part]}
    says = f"file: tensor {SPECS[part].name} is missing"
    with pytest.raises(FormatError, match=f"^{re.escape(says)}$"):
        layout.parts_of(entries, "x.weight", "file")


@pytest.mark.parametrize("shape", [(3, 8), (0, 3, 8), (5, 3, 8), ()])
def test_planes_that_are_not(shape):
    entries = {spec.name: spec for spec in SPECS}
    entries["x.weight"] = TensorSpec("x.weight", "U8", shape)
    with pytest.raises(FormatError, match=r"file: tensor x\.weight has shape .* expected"):
        layout.parts_of(entries, "x.weight", "file")


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("wrong", ["dtype", "shape"])
def test_a_part_that_does_not_follow(part, wrong):
    parts = list(SPECS)
    good = parts[part]
    shape = (*good.shape[:-1], good.shape[-1] + 1) if wrong == "shape" else good.shape
    parts[part] = TensorSpec(good.name, "I8" if wrong == "dtype" else good.dtype, shape)
    with pytest.raises(FormatError, match=f"file: tensor {good.name} is .*, expected .* from N, K"):
        layout.check(parts, 3, 37, 2, "file")
