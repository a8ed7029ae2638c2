"""docs/test_vectors.json against the reference and every instruction set of the native library."""

import hashlib
import json
import math
import subprocess
import sys
import textwrap
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from support.codecs import NATIVE, REFERENCE

from tritllm import native
from tritllm.codec import native_dequantize, reference
from tritllm.format import trits

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "test_vectors.json"
VECTORS = json.loads(FILE.read_text("utf-8"))
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
ENGINES = ["reference", *(native.isas() if native.available() else ())]

by_name = {"ids": lambda case: case["name"]}
every_engine = pytest.mark.parametrize("engine", ENGINES)
every_case = pytest.mark.parametrize("case", VECTORS["cases"], **by_name)
every_large = pytest.mark.parametrize("case", VECTORS["large"], **by_name)


def encode(engine, weight, depth, codec, threads=1):
    if engine == "reference":
        return REFERENCE[codec](weight, (depth,))[depth]
    return NATIVE[codec](weight, (depth,), threads, isa=engine)[depth]


def decode(engine, packed, scale, steps, columns, planes, dtype):
    out = np.empty((packed.shape[1], columns), dtype)
    if engine == "reference":
        level = trits.trits_to_levels(trits.unpack_trits(packed[:planes], columns))
        index = trits.unpack_scale_index(scale, -(-columns // 16))
        with np.errstate(over="ignore"):
            out[:] = reference.dequantize(level, index, steps).astype(dtype)
    else:
        native_dequantize.dequantize_rows(packed, scale, steps, columns, planes, out, isa=engine)
    return out


def from_hex(rows, dtype):
    """Nested lists of hex rows -> array with the patterns' values."""
    if isinstance(rows, list):
        return np.stack([from_hex(row, dtype) for row in rows])
    digits = 2 * np.dtype(dtype).itemsize
    bits = [int(rows[i : i + digits], 16) for i in range(0, len(rows), digits)]
    return np.array(bits, f"u{digits // 2}").view(dtype)


def from_trits(rows):
    if isinstance(rows, list):
        return np.stack([from_trits(row) for row in rows])
    return np.array(["-0+".index(t) - 1 for t in rows], np.int8)


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    unsigned = f"u{got.dtype.itemsize}"
    np.testing.assert_array_equal(
        np.ascontiguousarray(got).view(unsigned), np.ascontiguousarray(expected).view(unsigned)
    )


@every_engine
@every_case
def test_encode(engine, case):
    weight = from_hex(case["input"], DTYPES[case["input_dtype"]])
    assert list(weight.shape) == case["shape"]
    encoded = encode(engine, weight, case["depth"], case["codec"])
    assert_same_bits(encoded.weight, from_hex(case["planes"], np.uint8))
    assert_same_bits(encoded.scale, from_hex(case["scale"], np.uint8))
    assert_same_bits(encoded.codebook, from_hex(case["codebook"], np.float32))


@every_engine
@every_case
def test_decode(engine, case):
    planes, scale = from_hex(case["planes"], np.uint8), from_hex(case["scale"], np.uint8)
    codebook, columns = from_hex(case["codebook"], np.float32), case["shape"][1]
    for name, dtype in DTYPES.items():
        expected = from_hex(case["dequantized"][name], dtype)
        assert len(expected) == case["depth"]
        for r, weight in enumerate(expected, 1):
            got = decode(engine, planes, scale, codebook[r - 1], columns, r, dtype)
            assert_same_bits(got, weight)


@every_case
def test_the_decoder_of_the_specification(case):
    """The ten lines of docs/format.md, run as they stand there."""
    text = (ROOT / "docs" / "format.md").read_text("utf-8")
    code = text.split("## A decoder\n")[1].split("**Size**")[0]
    names = {"ceil": math.ceil, "float32": np.float32}
    exec(textwrap.dedent(code), names)
    tensors = SimpleNamespace(
        weight=from_hex(case["planes"], np.uint8).tobytes(),
        scale=from_hex(case["scale"], np.uint8).tobytes(),
        codebook=from_hex(case["codebook"], np.float32),
    )
    for r, expected in enumerate(case["dequantized"]["float32"], 1):
        decoded = np.array(list(names["decode"](tensors, *case["shape"], r)))
        assert_same_bits(decoded.reshape(case["shape"]), from_hex(expected, np.float32))


@every_case
def test_trits_and_indices(case):
    columns = case["shape"][1]
    planes, scale = from_hex(case["planes"], np.uint8), from_hex(case["scale"], np.uint8)
    digits, index = from_trits(case["trits"]), np.array(case["scale_index"], np.uint8)
    assert_same_bits(trits.unpack_trits(planes, columns), digits)
    assert_same_bits(trits.pack_trits(digits), planes)
    assert_same_bits(trits.unpack_scale_index(scale, index.shape[1]), index)
    assert_same_bits(trits.pack_scale_index(index), scale)


def test_bytes():
    digits = from_trits(VECTORS["bytes"]["valid"])
    every_byte = np.arange(243, dtype=np.uint8)[:, None]
    assert_same_bits(trits.unpack_trits(every_byte, 5), digits)
    assert_same_bits(trits.pack_trits(digits), every_byte)
    for value in VECTORS["bytes"]["invalid"]:
        with pytest.raises(ValueError, match=f"byte {value} at"):
            trits.unpack_trits(np.array([[121, value]], np.uint8), 10)
    assert VECTORS["bytes"]["invalid"] == list(range(243, 256))


@every_engine
@every_large
def test_large(engine, case):
    weight = large_input(*case["shape"], case["seed"])
    assert digest(weight) == case["input"]
    encoded = encode(engine, weight, case["depth"], case["codec"], threads=2)
    assert digest(encoded.weight) == case["planes"]
    assert digest(encoded.scale) == case["scale"]
    assert digest(encoded.codebook) == case["codebook"]
    for r, expected in enumerate(case["dequantized_float32"], 1):
        steps, columns = encoded.codebook[r - 1], weight.shape[1]
        got = decode(engine, encoded.weight, encoded.scale, steps, columns, r, np.float32)
        assert digest(got) == expected


@cache
def large_input(rows, columns, seed):
    """Written again from the words in the file's header."""

    def draws():
        x = seed
        while True:
            x = (x * 1664525 + 1013904223) % 2**32
            yield x >> 16

    u = np.fromiter(islice(draws(), 4 * rows * columns), np.int64).reshape(rows, columns, 4)
    w = np.ldexp((u.sum(axis=2) - 131070).astype(np.float32), np.arange(rows)[:, None] % 7 - 20)
    w[u[:, :, 0] < 64] *= 32
    return w.astype(np.float16)


def digest(array):
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()


def test_the_file_is_what_the_script_writes(tmp_path):
    script = ROOT / "scripts" / "make_test_vectors.py"
    subprocess.run([sys.executable, script, tmp_path / "vectors.json"], check=True)
    assert (tmp_path / "vectors.json").read_text("utf-8") == FILE.read_text("utf-8")


def test_the_file_has_what_it_promises():
    cases = VECTORS["cases"]
    met = {(case["shape"][1], case["depth"], case["codec"]) for case in cases}
    widths = {1, 5, 15, 16, 17, 79, 80, 81}
    assert {(k, d, c) for k in widths for d in (1, 2, 3, 4) for c in ("v2", "v3")} <= met
    assert {case["input_dtype"] for case in cases} == set(DTYPES)
    assert FILE.stat().st_size < 600_000


def test_ties_of_rint_are_in_the_file():
    case = next(c for c in VECTORS["cases"] if c["name"] == "ties_of_rint-d2-v2")
    weight = from_hex(case["input"], np.float32)
    steps = from_hex(case["codebook"], np.float32)[-1]
    quotient = weight / steps[case["scale_index"]]
    assert (np.abs(quotient % 1) == 0.5).sum() == 20
    level = from_hex(case["dequantized"]["float32"], np.float32)[-1] / steps[0]
    np.testing.assert_array_equal(level, np.round(quotient))  # half to even
