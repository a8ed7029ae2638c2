"""The native decoder gives the reference's bits, and refuses what the reference refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.matrices import DTYPES, decoded, matrix
from support.native_library import needs_library

from tritllm import native
from tritllm.codec import native_dequantize, native_encode
from tritllm.codec.encoded import Encoded
from tritllm.format import trits

pytestmark = needs_library


def encoded(rng: np.random.Generator, rows: int, columns: int, depth: int) -> Encoded:
    """Any valid file content: random trits, indices and steps."""
    digits = rng.integers(-1, 2, (depth, rows, columns)).astype(np.int8)
    index = rng.integers(0, 27, (rows, -(-columns // 16))).astype(np.uint8)
    steps = np.exp(rng.uniform(-12, 4, (depth, 27))).astype(np.float32)
    packed = trits.pack_trits(digits), trits.pack_scale_index(index)
    return Encoded(*packed, np.sort(steps, axis=1), 0.0, 0.0)


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 500),
    depth=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_same_bits(
    rows: int,
    columns: int,
    depth: int,
    dtype: np.dtype,
    threads: int,
    seed: int,
    data: st.DataObject,
) -> None:
    file = encoded(np.random.default_rng(seed), rows, columns, depth)
    planes = data.draw(st.integers(1, depth))
    first = data.draw(st.integers(0, rows - 1))
    expected = decoded(file, columns, planes, dtype)[first:]
    for isa in native.isas():
        out = np.full((rows - first, columns + 3), 7, dtype)
        native_dequantize.dequantize_rows(
            file.weight[:, first:],
            file.scale[first:],
            file.codebook[planes - 1],
            columns,
            planes,
            out[:, :columns],
            threads,
            isa=isa,
        )
        assert out[:, :columns].tobytes() == expected.tobytes(), isa
        assert (out[:, columns:] == 7).all()


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-7, 1e-5, 1e-3, 700.0, 3000.0, 1e36, 8e36])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_and_overflow(isa: str, dtype: np.dtype, scale: float) -> None:
    rng = np.random.default_rng(0)
    file = encoded(rng, 40, 160, 4)
    steps = np.sort(rng.uniform(0.01, 1, 27) * scale).astype(np.float32)
    file = Encoded(file.weight, file.scale, np.stack([steps] * 4), 0.0, 0.0)
    out = np.empty((40, 160), dtype)
    native_dequantize.dequantize_rows(file.weight, file.scale, steps, 160, 4, out, isa=isa)
    assert out.tobytes() == decoded(file, 160, 4, dtype).tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_was_encoded(isa: str, dtype: np.dtype) -> None:
    weight = matrix(np.random.default_rng(6), (33, 345), "heavy", dtype)
    file = native_encode.encode_v3(weight, [4])[4]
    for planes in (1, 2, 3, 4):
        out = np.empty(weight.shape, dtype)
        steps = file.codebook[planes - 1]
        native_dequantize.dequantize_rows(file.weight, file.scale, steps, 345, planes, out, isa=isa)
        assert out.tobytes() == decoded(file, 345, planes, dtype).tobytes()


@pytest.mark.parametrize("where", ["weight", "scale"])
@pytest.mark.parametrize("columns", [13, 176, 333])
def test_refuses_what_the_reference_refuses(isa: str, where: str, columns: int) -> None:
    file = encoded(np.random.default_rng(7), 5, columns, 2)
    array = getattr(file, where)
    out = np.empty((5, columns), np.float16)

    def decode() -> None:
        native_dequantize.dequantize_rows(
            file.weight, file.scale, file.codebook[1], columns, 2, out, isa=isa
        )

    decode()
    for place in (0, array.shape[-1] // 2, array.shape[-1] - 1):
        for value in (243, 255):
            saved = array[..., 3, place].copy()
            array[..., 3, place] = value
            with pytest.raises(ValueError, match=f"byte {value} at .*is not five trits"):
                decode()
            array[..., 3, place] = saved
    array[..., 2, -1] = 242  # every trit 1, the missing ones too
    with pytest.raises(ValueError, match="padding after trit"):
        decode()


def test_planes_that_are_not_read_may_hold_anything() -> None:
    file = encoded(np.random.default_rng(8), 3, 50, 3)
    expected = decoded(file, 50, 2, np.dtype(np.float32))
    file.weight[2] = 255
    out = np.empty((3, 50), np.float32)
    native_dequantize.dequantize_rows(file.weight, file.scale, file.codebook[1], 50, 2, out)
    assert out.tobytes() == expected.tobytes()


def test_refuses_shapes_and_types_that_do_not_fit() -> None:
    file = encoded(np.random.default_rng(9), 3, 50, 2)
    steps, out = file.codebook[1], np.empty((3, 50), np.float16)
    frozen = out.copy()
    frozen.flags.writeable = False
    bad_steps = steps.copy()
    bad_steps[4] = np.nan
    refused = [
        (ValueError, (file.weight, file.scale, steps, 51, 2, out)),
        (ValueError, (file.weight, file.scale, steps, 60, 2, out)),
        (ValueError, (file.weight, file.scale[:2], steps, 50, 2, out)),
        (ValueError, (file.weight, file.scale, steps[:26], 50, 2, out)),
        (ValueError, (file.weight, file.scale, bad_steps, 50, 2, out)),
        (ValueError, (file.weight, file.scale, steps, 50, 3, out)),
        (ValueError, (file.weight, file.scale, steps, 50, 0, out)),
        (ValueError, (file.weight, file.scale, steps, 50, 2, out.T.copy().T)),
        (ValueError, (file.weight, file.scale, steps, 50, 2, frozen)),
        (TypeError, (file.weight.astype(np.int8), file.scale, steps, 50, 2, out)),
        (TypeError, (file.weight, file.scale, steps.astype(np.float64), 50, 2, out)),
        (TypeError, (file.weight, file.scale, steps, 50, 2, out.astype(np.float64))),
    ]
    for error, arguments in refused:
        with pytest.raises(error):
            native_dequantize.dequantize_rows(*arguments)
