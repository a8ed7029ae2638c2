"""Prepared memory: its header, its making, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.native_library import needs_library
from support.weights import random_weights

from tritllm import TritError, native
from tritllm import products as kernels
from tritllm.format import trits
from tritllm.native.arrays import address

pytestmark = needs_library


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_threads_make_the_same_memory(isa, depth):
    tensor = random_weights(1, 130, 1111, depth).tensor
    one, four = (kernels.prepare(tensor, threads=n, isa=isa) for n in (1, 4))
    assert one.memory.tobytes() == four.memory.tobytes()
    assert one.nbytes == kernels.size(130, 1111, depth, isa)


def test_sizes_of_the_dense_layout():
    """2, 11/3, 16/3 and 7 bits a weight for whole blocks; 22/3 where four planes lie together."""
    dense = [isa for isa in native.isas("products") if isa in ("avx512vnni", "avx512", "amx")]
    if not dense:
        pytest.skip("needs AVX-512")
    for depth, bits in zip((1, 2, 3, 4), (2, 11 / 3, 16 / 3, 7)):
        for isa in dense:
            more = 1 / 3 if depth == 4 and kernels.planes_together(4, isa) else 0
            expected = 192 + 160 * 960 * (bits + more) / 8
            assert kernels.size(160, 960, depth, isa) == pytest.approx(expected)


@pytest.mark.parametrize(("depth", "row_scales"), [(1, True), (1, False), (2, False)])
def test_rows_with_one_scale_take_fewer_bytes(isa, depth, row_scales):
    w = random_weights(1, 40, 700, depth, row_scales)
    prepared = kernels.prepare(w.tensor, isa=isa)
    saved = 3 * (8 - 1) * 64  # tiles of rows, blocks of columns but one, bytes of scale indices
    assert prepared.nbytes == kernels.size(40, 700, depth, isa) - saved * row_scales
    held = np.concatenate([prepared.memory, prepared.memory])
    assert kernels.size_of_memory(address(prepared.memory), held.nbytes) == prepared.nbytes


@pytest.mark.parametrize("group", [0, 1, 4, 5, 43])
def test_one_other_scale_is_one_too_many(isa, group):
    w = random_weights(1, 40, 700, 1, row_scales=True)
    index = w.index.copy()
    index[33, group] = (index[33, group] + 1) % 27
    tensor = dataclasses.replace(w.tensor, scale=trits.pack_scale_index(index))
    assert kernels.prepare(tensor, isa=isa).nbytes == kernels.size(40, 700, 1, isa)


@pytest.mark.parametrize("at", [0, 8, 12, 16, 18, 19, 20, 24, 32, 40, 48])
def test_a_changed_header_is_refused(isa, at):
    prepared = kernels.prepare(random_weights(2, 33, 70, 3).tensor, isa=isa)
    prepared.memory[at] ^= 1
    with pytest.raises(ValueError, match="is not that of a matrix"):
        kernels.linear(prepared, np.zeros((1, 70), np.float32))


def test_memory_cut_short_is_refused(isa):
    prepared = kernels.prepare(random_weights(2, 33, 70, 3).tensor, isa=isa)
    for nbytes in (0, 63, 191, prepared.nbytes - 64):
        short = dataclasses.replace(prepared, memory=prepared.memory[:nbytes])
        with pytest.raises(ValueError, match="is not that of a matrix"):
            kernels.linear(short, np.zeros((1, 70), np.float32))


@pytest.mark.parametrize("field", ["weight", "scale"])
@pytest.mark.parametrize("row", [0, 15, 16, 40])
def test_a_byte_that_is_no_trits_is_refused(isa, field, row):
    tensor = random_weights(3, 41, 500, 3).tensor
    bad = getattr(tensor, field).copy()
    bad[..., row, 7] = 243
    with pytest.raises(ValueError, match="byte 243"):
        kernels.prepare(dataclasses.replace(tensor, **{field: bad}), isa=isa)


@pytest.mark.parametrize("field", ["weight", "scale"])
def test_padding_that_is_not_zero_is_refused(isa, field):
    tensor = random_weights(3, 41, 33, 3).tensor
    bad = getattr(tensor, field).copy()
    bad[..., 20, -1] = 242
    with pytest.raises(ValueError, match="padding"):
        kernels.prepare(dataclasses.replace(tensor, **{field: bad}), isa=isa)


def test_planes_and_steps_are_checked(isa):
    tensor = random_weights(3, 4, 33, 2).tensor
    for planes in (0, 3):
        with pytest.raises(ValueError, match="planes"):
            kernels.prepare(tensor, planes, isa=isa)
    tensor.codebook[1, 5] = np.inf
    with pytest.raises(ValueError, match="finite"):
        kernels.prepare(tensor, isa=isa)
    kernels.prepare(tensor, 1, isa=isa)
    with pytest.raises(ValueError, match="no matrix"):
        kernels.size(4, 0, 2)
    with pytest.raises(ValueError, match="no matrix"):
        kernels.size(4, 4, 5)


def test_the_layout_is_known_without_the_memory(isa):
    assert kernels.prepare(random_weights(3, 4, 33, 2).tensor, isa=isa).layout == kernels.layout(
        isa
    )


def test_instruction_sets_by_name(monkeypatch):
    monkeypatch.delenv("TRITLLM_ISA", raising=False)
    assert native.isa("products") == native.isas("products")[0]
    monkeypatch.setenv("TRITLLM_ISA", "scalar")
    assert native.isa("products") == "scalar"
    monkeypatch.setenv("TRITLLM_ISA", "abacus")
    with pytest.raises(TritError, match="TRITLLM_ISA=abacus"):
        native.isa("products")
    missing = {"avx2", "avx512", "amx", "neon"}.difference(native.isas("products"))
    with pytest.raises(ValueError, match="cannot run here"):
        kernels.size(1, 1, 1, missing.pop())
