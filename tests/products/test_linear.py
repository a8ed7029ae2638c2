"""Products of every instruction set that runs here against the reference."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.native_library import needs_library
from support.weights import random_weights

from tritllm import encode
from tritllm import products as kernels
from tritllm.codec import TritTensor
from tritllm.format import trits
from tritllm.native.arrays import address, aligned_bytes
from tritllm.native.structures import OK, Input, Product
from tritllm.products import reference

pytestmark = needs_library

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)
REFERENCE = {
    kernels.GROUPS: reference.quantized, kernels.EXACT: reference.exact,
    kernels.PER_TOKEN: reference.per_token,
}  # fmt: skip
EPSILON = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a unit, relative


def activations(seed: int, batch: int, columns: int, dtype: type) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, columns)).astype(dtype)


def assert_close(y, expected, bound):
    """Y of its dtype within `bound` of the float32 values expected, and its own rounding."""
    assert y.shape == expected.shape
    rounding = EPSILON[y.dtype.name] * (np.abs(expected) + bound) + 1e-7
    assert (np.abs(y.astype(np.float64) - expected) <= bound + rounding).all()


def run_many(prepared, x, threads, fields=None):
    """Several products of one x in one call; `fields` in place of what a product would say."""
    batch, columns = x.shape
    outputs = [np.zeros((batch, w.shape[0]), np.float32) for w in prepared]
    products = (Product * len(prepared))()
    for product, w, y in zip(products, prepared, outputs, strict=True):
        said = {
            "prepared": address(w.memory),
            "size": w.nbytes,
            "rows": w.shape[0],
            "layout": w.layout,
            "depth": w.depth,
            "y": address(y),
            "stride": w.shape[0],
            "dtype": 2,
        }
        for name, value in {**said, **(fields or {})}.items():
            setattr(product, name, value)
    scratch = aligned_bytes(kernels.scratch_size(batch, columns))
    call = Input(address(x), columns, batch, columns, 2, 0)
    status = kernels.run_function()(threads, call, address(scratch), products, len(products))
    assert status == OK, f"status {status}"
    return outputs


@settings(max_examples=60)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    depth=st.integers(1, 4),
    drop=st.integers(0, 3),
    batch=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    bias_dtype=st.sampled_from([None, *DTYPES]),
    arithmetic=st.sampled_from([kernels.GROUPS, kernels.EXACT, kernels.PER_TOKEN]),
    threads=st.integers(1, 3),
    planes_apart=st.booleans(),
)
@example(1, 1, 4, 0, 1, np.float32, None, kernels.GROUPS, 1, False)
@example(16, 96, 2, 0, 1, np.float32, None, kernels.PER_TOKEN, 1, True)
@example(17, 97, 3, 0, 2, np.float16, np.float16, kernels.EXACT, 2, False)
@example(300, 300, 4, 3, 40, ml_dtypes.bfloat16, np.float32, kernels.GROUPS, 2, True)
def test_products_agree_with_the_reference(
    isa, rows, columns, depth, drop, batch, dtype, bias_dtype, arithmetic, threads, planes_apart
):
    planes = max(1, depth - drop)
    w = random_weights(rows, rows, columns, depth)
    x = activations(columns, batch, columns, dtype)
    bias = None
    expected = REFERENCE[arithmetic](*w.at(planes), x.astype(np.float32)).astype(np.float64)
    bound = reference.bound(*w.at(planes), x.astype(np.float32))
    if bias_dtype:
        bias = activations(7, 1, rows, bias_dtype)[0]
        expected = expected + bias.astype(np.float64)
        bound = bound + 2.0**-23 * (np.abs(expected) + np.abs(bias.astype(np.float64)))
    prepared = kernels.prepare(w.tensor, planes, threads, isa, planes_apart)
    assert (prepared.shape, prepared.depth) == ((rows, columns), planes)
    y = kernels.linear(prepared, x, bias, threads, arithmetic)
    assert y.dtype == x.dtype
    assert_close(y, expected, bound)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7, 97, 110])
def test_integer_parts_are_exact(isa, depth, batch):
    """With one group and scales of a power of two nothing is rounded."""
    w = random_weights(depth, 40, 16, depth)
    steps = np.full((depth, 27), 0.5, np.float32)
    tensor = type(w.tensor)(w.tensor.weight, w.tensor.scale, steps, 16)
    q = np.random.default_rng(batch).integers(-127, 128, (batch, 16)).astype(np.float32)
    q[:, 0] = 127
    y = kernels.linear(kernels.prepare(tensor, isa=isa), q)
    assert (y == 0.5 * (q @ tensor.levels().T.astype(np.float32))).all()


@pytest.mark.parametrize("columns", [95, 96, 97, 576, 577, 1160])
@pytest.mark.parametrize("batch", [1, 4, 13, 100])
def test_long_rows(isa, columns, batch):
    w = random_weights(3, 50, columns, 2)
    x = activations(1, batch, columns, np.float32)
    y = kernels.linear(kernels.prepare(w.tensor, isa=isa), x, threads=2)
    assert_close(y, reference.quantized(*w.at(2), x), reference.bound(*w.at(2), x))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("columns", [1, 190, 193, 700])
@pytest.mark.parametrize("batch", [1, 5, 16, 100])
def test_superblocks_agree_with_the_reference(isa, depth, columns, batch):
    w = random_weights(depth, 50, columns, depth)
    x = activations(columns, batch, columns, np.float32)
    if isa in reference.KEEP_LEVELS:
        expected = reference.level_superblocks(*w.at(depth), x)
    else:
        expected = reference.superblocks(*w.at(depth), x, (3**depth - 1) // 2)
    prepared = kernels.prepare(w.tensor, isa=isa)
    y = kernels.linear(prepared, x, threads=2, arithmetic=kernels.SUPERBLOCKS)
    assert_close(y, expected, 2 * reference.bound(*w.at(depth), x))


def test_superblocks_of_more_rows_than_a_panel_serves(isa):
    """Nor do more tiles take turns on one thread: the bits are those of fewer of both."""
    w, x = random_weights(3, 150, 700, 3), activations(5, 270, 700, np.float32)
    prepared = kernels.prepare(w.tensor, isa=isa)
    y = kernels.linear(prepared, x, arithmetic=kernels.SUPERBLOCKS)
    for rows in (slice(0, 90), slice(90, 180), slice(180, 270)):
        part = kernels.linear(prepared, x[rows], threads=4, arithmetic=kernels.SUPERBLOCKS)
        assert part.tobytes() == y[rows].tobytes()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_superblocks_do_not_overflow(isa, depth):
    """The largest levels at the largest step times the largest activations, of all signs."""
    signs = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]]).repeat(8, 0)
    level = (np.tile(signs, 288) * trits.max_level(depth)).astype(np.int8)
    packed = trits.pack_trits(trits.levels_to_trits(level, depth))
    scale = trits.pack_scale_index(np.zeros((32, 36), np.uint8))
    tensor = TritTensor(packed, scale, np.ones((depth, 27), np.float32), 576)
    x = np.tile(signs, 288).astype(np.float32) * 127
    y = kernels.linear(kernels.prepare(tensor, isa=isa), x, arithmetic=kernels.SUPERBLOCKS)
    np.testing.assert_allclose(y, x @ level.T.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("arithmetic", [*REFERENCE, kernels.SUPERBLOCKS])
@pytest.mark.parametrize(("rows", "columns"), [(1, 17), (50, 333), (40, 700)])
def test_rows_with_one_scale(isa, arithmetic, rows, columns):
    """Their memory is smaller; a token's product with them is one sum of integers."""
    w = random_weights(rows, rows, columns, 1, row_scales=True)
    prepared = kernels.prepare(w.tensor, isa=isa)
    general = kernels.prepare(random_weights(rows, rows, columns, 1).tensor, isa=isa)
    assert columns <= 96 or prepared.nbytes < general.nbytes
    for batch in (1, 2, 3, 4, 5, 7, 100):
        x = activations(batch, batch, columns, np.float32)
        bias = activations(7, 1, rows, np.float32)[0]
        y = kernels.linear(prepared, x, bias, threads=2, arithmetic=arithmetic)
        if arithmetic == kernels.PER_TOKEN:
            rounded = reference.quantize_token(x)
            dot = rounded.q.reshape(batch, -1)[:, :columns].astype(np.int32) @ w.tensor.levels().T
            step = w.tensor.codebook[0][w.index[:, -1]]
            assert (y == dot.astype(np.float32) * rounded.scale[:, :1] * step + bias).all()
        else:
            # The bits of the same weights with scale indices of their own for every group.
            assert y.tobytes() == as_groups(w, x, bias, arithmetic, isa).tobytes()


def as_groups(w, x, bias, arithmetic, isa):
    """The product with memory of two planes, of which one is read: it has all scale indices."""
    two = np.concatenate([w.tensor.weight, w.tensor.weight])
    codebook = np.concatenate([w.tensor.codebook, w.tensor.codebook])
    tensor = dataclasses.replace(w.tensor, weight=two, codebook=codebook)
    prepared = kernels.prepare(tensor, isa=isa, planes_apart=True)
    return kernels.linear(prepared, x, bias, arithmetic=arithmetic, planes=1)


def test_superblocks_take_rows_that_are_zero_or_not_finite(isa):
    w = random_weights(8, 20, 400, 2)
    prepared = kernels.prepare(w.tensor, isa=isa)
    x = activations(2, 50, 400, np.float32)
    clean = kernels.linear(prepared, x, arithmetic=kernels.SUPERBLOCKS)
    x[1] = 0
    x[0, 399] = np.inf
    y = kernels.linear(prepared, x, arithmetic=kernels.SUPERBLOCKS)
    assert np.isnan(y[0]).all()
    assert not y[1].any()
    assert y[2:].tobytes() == clean[2:].tobytes()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_superblocks_lose_little(isa, depth):
    """On normal weights and activations, 1 % of a result's norm; groups lose half as much."""
    tensor = encode(np.random.default_rng(0).standard_normal((64, 1536)).astype(np.float32), depth)
    x = activations(1, 64, 1536, np.float32)
    exact = x.astype(np.float64) @ tensor.decode().T.astype(np.float64)
    prepared = kernels.prepare(tensor, isa=isa)

    def error(arithmetic: int) -> float:
        y = kernels.linear(prepared, x, arithmetic=arithmetic)
        return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))

    assert error(kernels.GROUPS) < 0.005
    assert error(kernels.GROUPS) < error(kernels.SUPERBLOCKS) < 0.012


@pytest.mark.parametrize("arithmetic", REFERENCE)
@pytest.mark.parametrize("batch", [1, 2, 4, 5, 100])
def test_one_memory_serves_every_depth(isa, arithmetic, batch):
    """Fewer planes than were prepared give what memory made of those alone gives, to the bit."""
    w = random_weights(9, 50, 700, 4)
    x = activations(2, batch, 700, np.float32)
    prepared = kernels.prepare(w.tensor, isa=isa, planes_apart=True)
    for planes in (1, 2, 3, 4):
        alone = kernels.linear(kernels.prepare(w.tensor, planes, isa=isa), x, arithmetic=arithmetic)
        found = kernels.linear(prepared, x, arithmetic=arithmetic, planes=planes)
        assert found.tobytes() == alone.tobytes()
    for planes in (0, 5):
        with pytest.raises(ValueError, match=r"expected 1\.\.4"):
            kernels.linear(prepared, x, planes=planes)
    with pytest.raises(AssertionError, match="status 4"):  # whose steps are not known
        run_many([prepared], x, 1, {"depth": 3})


@pytest.mark.parametrize("arithmetic", REFERENCE)
@pytest.mark.parametrize("batch", [1, 3, 20])
def test_a_row_of_zeros_gives_the_bias(isa, arithmetic, batch):
    w = random_weights(2, 35, 130, 4)
    prepared = kernels.prepare(w.tensor, isa=isa)
    x = activations(4, batch, 130, np.float32)
    x[batch // 2] = 0
    bias = activations(5, 1, 35, np.float32)[0]
    assert (kernels.linear(prepared, x, arithmetic=arithmetic)[batch // 2] == 0).all()
    assert (kernels.linear(prepared, x, bias, arithmetic=arithmetic)[batch // 2] == bias).all()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("batch", [1, 9])
def test_large_activations_stay_finite(isa, exact, batch):
    w = random_weights(6, 33, 400, 4)
    x = np.full((batch, 400), 1e5, np.float32) * np.where(np.arange(400) % 3, 1, -1)
    x = x.astype(np.float32)
    y = kernels.linear(kernels.prepare(w.tensor, isa=isa), x, arithmetic=exact)
    assert np.isfinite(y).all()
    assert_close(
        y, reference.exact(*w.at(4), x), 0.02 * np.abs(x).max() + reference.bound(*w.at(4), x)
    )


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arithmetic", [kernels.GROUPS, kernels.PER_TOKEN])
def test_what_is_not_finite_stays_in_its_row(isa, batch, dtype, arithmetic):
    w = random_weights(8, 20, 100, 1)
    x = activations(2, batch, 100, dtype)
    clean = kernels.linear(kernels.prepare(w.tensor, isa=isa), x, arithmetic=arithmetic)
    x[0, 99] = np.nan
    y = kernels.linear(kernels.prepare(w.tensor, isa=isa), x, arithmetic=arithmetic)
    assert np.isnan(y[0].astype(np.float32)).all()
    assert y[1:].tobytes() == clean[1:].tobytes()


@pytest.mark.parametrize("batch", [1, 2, 30])
def test_threads_and_company_do_not_change_a_result(isa, batch):
    shapes = [(100, 250), (16, 250), (37, 250)]
    prepared = [
        kernels.prepare(random_weights(i, *shape, 2 + i % 3).tensor, isa=isa)
        for i, shape in enumerate(shapes)
    ]
    x = activations(3, batch, 250, np.float32)
    alone = [kernels.linear(weight, x) for weight in prepared]
    for threads in (1, 2, 3, 5):
        together = run_many(prepared, x, threads)
        assert [y.tobytes() for y in together] == [y.tobytes() for y in alone]


def test_rows_of_x_may_lie_apart(isa):
    w = random_weights(1, 20, 64, 3)
    wide = activations(1, 6, 200, np.float32)
    prepared = kernels.prepare(w.tensor, isa=isa)
    apart = kernels.linear(prepared, wide[:, 70:134])
    assert (apart == kernels.linear(prepared, wide[:, 70:134].copy())).all()
    assert kernels.linear(prepared, wide[0, :64]).shape == (20,)
    assert kernels.linear(prepared, wide[:, :64].reshape(2, 3, 64)).shape == (2, 3, 20)
    assert kernels.linear(prepared, wide[:0, :64]).shape == (0, 20)


def test_arguments_that_do_not_fit_are_refused(isa):
    prepared = kernels.prepare(random_weights(1, 20, 64, 3).tensor, isa=isa)
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="x has shape"):
        kernels.linear(prepared, x[:, 1:])
    with pytest.raises(ValueError, match="bias has shape"):
        kernels.linear(prepared, x, np.zeros(19, np.float32))
    with pytest.raises(TypeError, match="float64"):
        kernels.linear(prepared, x.astype(np.float64))
    with pytest.raises(TypeError, match="int32"):
        kernels.linear(prepared, x, np.zeros(20, np.int32))
    other = kernels.prepare(random_weights(1, 20, 65, 3).tensor, isa=isa)
    with pytest.raises(AssertionError, match="status 4"):
        run_many([prepared, other], x, 1)


@pytest.mark.parametrize(
    ("field", "off"), [("size", -64), ("rows", 1), ("rows", -1), ("layout", 1), ("depth", 1)]
)
def test_what_a_product_says_of_its_memory_is_checked(isa, field, off):
    prepared = kernels.prepare(random_weights(1, 20, 64, 3).tensor, isa=isa)
    x = activations(1, 2, 64, np.float32)
    value = {"size": prepared.nbytes, "rows": 20, "layout": prepared.layout, "depth": 3}[field]
    with pytest.raises(AssertionError, match="status 4"):
        run_many([prepared], x, 1, {field: value + off})
    with pytest.raises(AssertionError, match="status 4"):
        run_many([prepared], x, 1, {"prepared": address(prepared.memory) + 8})


def test_steps_may_be_given(isa):
    """Those that the memory was prepared with are then not used."""
    w = random_weights(5, 40, 100, 2)
    x = activations(1, 3, 100, np.float32)
    given_steps = np.ascontiguousarray(w.tensor.codebook[1] * np.float32(2))
    prepared = kernels.prepare(w.tensor, isa=isa)
    (y,) = run_many([prepared], x, 1, {"steps": address(given_steps)})
    assert (y == 2 * kernels.linear(prepared, x)).all()


def test_parts_along_the_rows_keep_their_codebooks(isa):
    """A matrix put together from parts is as many products, each writing its columns of y."""
    parts = [random_weights(seed, rows, 130, 3) for seed, rows in ((1, 37), (2, 16), (3, 50))]
    prepared = [kernels.prepare(w.tensor, isa=isa) for w in parts]
    x = activations(1, 5, 130, np.float32)
    y = np.zeros((5, 103), np.float32)
    products = (Product * 3)()
    before = 0
    for product, w in zip(products, prepared, strict=True):
        product.prepared, product.size, product.rows = address(w.memory), w.nbytes, w.shape[0]
        product.y, product.stride, product.dtype = address(y) + 4 * before, 103, 2
        before += w.shape[0]
    scratch = aligned_bytes(kernels.scratch_size(5, 130))
    call = Input(address(x), 130, 5, 130, 2, 0)
    assert kernels.run_function()(2, call, address(scratch), products, 3) == OK
    assert (y == np.concatenate([kernels.linear(w, x) for w in prepared], axis=1)).all()
