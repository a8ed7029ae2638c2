"""Memory with the planes of each weight together: its bytes, and the same bits as apart."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from support.native_library import needs_library
from support.weights import Weights, random_weights

from tritllm import native
from tritllm import products as kernels
from tritllm.format import trits
from tritllm.native.arrays import address
from tritllm.native.library import library
from tritllm.native.structures import PreparedHeader

pytestmark = needs_library

HEADER, UNIT, TILE, BLOCK = 192, 64, 16, 96
SHARED = {2: 4, 3: 5, 4: 7}  # units of eight steps
ARITHMETIC = (kernels.GROUPS, kernels.EXACT, kernels.SUPERBLOCKS, kernels.PER_TOKEN)


HAVE_IT = [isa for isa in native.isas("products") if kernels.planes_together(2, isa)] or ["none"]


@pytest.fixture(params=HAVE_IT)
def together(request: pytest.FixtureRequest) -> str:
    """Every instruction set that can run here whose memory has planes together."""
    return request.param


def codes_of(weights: Weights, depth: int) -> np.ndarray:
    """[tiles, blocks, 3, 8, 64]: byte 4 r + c of step s is level + L of row r, column 4 s + c."""
    level = weights.tensor.levels(depth).astype(int)
    rows, columns = (-(-n // to) * to for n, to in zip(level.shape, (TILE, BLOCK), strict=True))
    code = np.full((rows, columns), trits.max_level(depth))
    code[: level.shape[0], : level.shape[1]] += level
    tiles = code.reshape(rows // TILE, TILE, columns // BLOCK, 3, 8, 4)
    return tiles.transpose(0, 2, 3, 4, 1, 5).reshape(*tiles.shape[0:1], -1, 3, 8, UNIT)


def units_of(code: np.ndarray, depth: int) -> np.ndarray:
    """What native/src/products/fields.h says of eight steps [..., 8, 64] -> [..., units, 64]."""
    own = [code[..., k, :] for k in range(8)]
    if depth == 2:
        units = [own[k] | own[k + 4] << 4 for k in range(4)]
    elif depth == 3:
        high = [own[5] >> 2, (own[5] & 3) << 1 | (own[7] >> 1 & 1), own[6] >> 2,
                (own[6] & 3) << 1 | (own[7] & 1), own[7] >> 2]  # fmt: skip
        units = [own[k] | high[k] << 5 for k in range(5)]
    else:
        units = [own[k] | (own[7] >> k & 1) << 7 for k in range(7)]
    return np.stack(units, axis=-2).astype(np.uint8)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_bytes_are_as_defined(together, depth):
    weights = random_weights(depth, 37, 205, depth)
    prepared = kernels.prepare(weights.tensor, isa=together, threads=2)
    units = np.moveaxis(units_of(codes_of(weights, depth), depth), 2, 0)  # three streams
    assert units.shape == (3, 3, 3, SHARED[depth], UNIT)
    index_bytes = 3 * 3 * UNIT
    assert prepared.memory[HEADER + index_bytes :].tobytes() == units.tobytes()
    assert prepared.nbytes == HEADER + index_bytes + units.size
    assert prepared.nbytes == kernels.size(37, 205, depth, together)


def test_sizes():
    """13/3, 16/3 and 22/3 bits a weight, scale indices included; apart 13/3, 19/3 and 25/3."""
    for depth, bits, apart in ((2, 13 / 3, 13 / 3), (3, 16 / 3, 19 / 3), (4, 22 / 3, 25 / 3)):
        weights = 160 * 960
        found = kernels.size(160, 960, depth, "scalar")
        assert found == pytest.approx(HEADER + weights * bits / 8)
        found = kernels.size(160, 960, depth, "scalar", planes_apart=True)
        assert found == pytest.approx(HEADER + weights * apart / 8)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_same_bits_as_apart(together, depth, dtype):
    weights = random_weights(depth, 50, 500, depth)
    one = kernels.prepare(weights.tensor, isa=together)
    apart = kernels.prepare(weights.tensor, isa=together, planes_apart=True)
    assert (one.planes_together, apart.planes_together) == (True, False)
    found, expected = (kernels.decode(memory, dtype=dtype) for memory in (one, apart))
    assert found.tobytes() == expected.tobytes()
    rng = np.random.default_rng(1)
    for batch in (1, 2, 3, 4, 5, 50):
        x = rng.standard_normal((batch, 500)).astype(dtype)
        for arithmetic in ARITHMETIC:
            y, z = (kernels.linear(w, x, arithmetic=arithmetic) for w in (one, apart))
            assert y.tobytes() == z.tobytes()


def test_fewer_planes_are_refused(together):
    weights = random_weights(1, 20, 64, 3)
    prepared = kernels.prepare(weights.tensor, isa=together)
    x = np.zeros((1, 64), np.float32)
    said = "cannot read 2 of 3 planes that were prepared together"
    with pytest.raises(ValueError, match=said):
        kernels.linear(prepared, x, planes=2)
    with pytest.raises(ValueError, match=said):
        kernels.decode(prepared, planes=2)
    product = prepared.product(np.empty((20, 64), np.float32))
    product.depth = 2
    with pytest.raises(ValueError, match=said):
        kernels.decode_pointers(product, 64, 0, 20)
    one = kernels.prepare(weights.tensor, planes=2, isa=together)
    assert one.planes_together
    assert kernels.decode(one).shape == (20, 64)


def test_the_memory_says_what_it_is(isa):
    weights = random_weights(1, 20, 64, 3)
    for planes_apart in (False, True):
        prepared = kernels.prepare(weights.tensor, isa=isa, planes_apart=planes_apart)
        found = PreparedHeader()
        memory, size = address(prepared.memory), prepared.nbytes
        assert library().tritllm_linear_describe(memory, size, ctypes.byref(found)) == 0
        expected = not planes_apart and kernels.planes_together(3, isa)
        assert bool(found.planes_together) == prepared.planes_together == expected
    dense = ("avx512", "amx")  # whose codes are of five bits, and the third, for two planes
    assert kernels.planes_together(2, isa) == (isa not in (*dense, "avx512vnni"))
    assert kernels.planes_together(3, isa) == (isa not in dense)
    assert not kernels.planes_together(1, isa)
    assert not kernels.prepare(random_weights(1, 20, 64, 1).tensor, isa=isa).planes_together
