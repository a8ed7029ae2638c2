"""The calibrated encoder: closer outputs than data-free, on every kind of matrix and Hessian."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.matrices import DTYPES, KINDS, matrix
from support.native_library import needs_library

from tritllm import native
from tritllm.codec import TritTensor, encode
from tritllm.codec.calibrated import (
    CalibratedMatrix,
    Curvature,
    SingularHessianError,
    TooFewTokensError,
    encode_calibrated,
    encode_nested,
    native_search,
    search,
)
from tritllm.codec.calibrated.matrix import Matrix
from tritllm.codec.calibrated.passes import Passes, loss
from tritllm.codec.calibrated.search import Columns, Limits
from tritllm.codec.calibrated.steps import ascending, normal_equations, solve_steps, step_products
from tritllm.codec.encoders.v3 import V3
from tritllm.format.trits import max_level

DEPTHS = (1, 2, 3, 4)
CHAINS = [(2, 4), (2, 3), (1, 2), (1, 2, 4)]
FLOAT32 = np.dtype(np.float32)


def inputs(columns: int, tokens: int = 400, seed: int = 0) -> np.ndarray:
    """Correlated inputs [tokens, columns] that do not average to 0."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(tokens, columns)) @ random.normal(size=(columns, columns))
    return mixed / np.sqrt(columns) + 0.5 * random.normal(size=columns)


def curvature_of(x: np.ndarray) -> Curvature:
    return Curvature.of(x.T @ x, len(x))


def normal(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return matrix(np.random.default_rng(seed), (rows, columns), "normal", FLOAT32)


def decoded(result: CalibratedMatrix, columns: int, planes: int | None = None) -> np.ndarray:
    e = result.encoded
    return TritTensor(e.weight, e.scale, e.codebook, columns, e.error, e.energy).decode(planes)


def output_error(weight: np.ndarray, found: np.ndarray, x: np.ndarray) -> float:
    return float(np.square((weight - found) @ x.T).sum() / np.square(weight @ x.T).sum())


def difference(a: CalibratedMatrix, b: CalibratedMatrix) -> list[str]:
    """Fields in which two results differ in any bit."""
    names = ("weight", "scale", "codebook")
    differ = [
        n for n in names if getattr(a.encoded, n).tobytes() != getattr(b.encoded, n).tobytes()
    ]
    sums = [(r.loss_before, r.loss_after, r.encoded.error, r.encoded.energy) for r in (a, b)]
    return differ + ([] if sums[0] == sums[1] else ["sums"])


# --- What it brings -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS)
def test_output_is_closer_than_without_calibration(depth: int) -> None:
    x, weight = inputs(80), normal(48, 80)
    result = encode_calibrated(weight, curvature_of(x), None, depth)
    assert result.loss_after < 0.7 * result.loss_before
    found = output_error(weight, decoded(result, 80), x)
    assert found < 0.7 * output_error(weight, encode(weight, depth).decode(), x)


def test_losses_are_those_of_the_decoded_matrix() -> None:
    x, weight = inputs(75), normal(21, 75)
    curvature = curvature_of(x)
    result = encode_calibrated(weight, curvature, None, 2)
    hessian = x.T @ x
    hessian += curvature.damping * np.diagonal(hessian).mean() * np.eye(75)

    def cost(error: np.ndarray) -> float:
        return float(np.trace(error @ hessian @ error.T))

    energy = cost(weight)
    assert cost(weight - decoded(result, 75)) / energy == pytest.approx(result.loss_after, rel=1e-4)
    plain = encode(weight, 2).decode()
    assert cost(weight - plain) / energy == pytest.approx(result.loss_before, rel=1e-4)


def test_cross_moves_the_target_to_the_wanted_output() -> None:
    x, weight = inputs(64), normal(32, 64)
    wanted = x @ weight.T + 0.3 * inputs(64, seed=5) @ normal(32, 64, 7).T
    extra = wanted - x @ weight.T
    curvature = curvature_of(x)
    with_cross = decoded(encode_calibrated(weight, curvature, extra.T @ x, 3), 64)
    without = decoded(encode_calibrated(weight, curvature, None, 3), 64)
    assert np.square(wanted - x @ with_cross.T).sum() < np.square(wanted - x @ without.T).sum()


@pytest.mark.parametrize("depth", DEPTHS)
def test_equal_curvature_everywhere_is_at_least_as_good_as_v3(depth: int) -> None:
    weight = normal(40, 100)
    result = encode_calibrated(weight, Curvature.of(np.eye(100), 100), np.zeros((40, 100)), depth)
    assert result.encoded.error <= encode(weight, depth).error * (1 + 1e-6)


def test_every_pass_lowers_the_loss() -> None:
    matrix = Matrix.of(normal(64, 200), curvature_of(inputs(200)), None)
    plain = matrix.fit_of(V3.encode(matrix.weight, (2,))[2])
    passes = Passes(matrix, 2, Limits(max_level(2)))
    fit = passes.start(plain.steps)
    losses = [loss(matrix, plain), loss(matrix, fit)]
    for turn in range(3):
        for step in (
            passes.best_steps,
            lambda f, turn=turn: passes.regroup(f, turn),
            passes.descend,
        ):
            fit = step(fit)
            losses.append(loss(matrix, fit))
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(losses))
    assert losses[-1] < 0.95 * losses[1]


# --- Nested depths ------------------------------------------------------------------------------


@pytest.mark.parametrize("depths", CHAINS, ids=str)
def test_upper_planes_of_a_nested_matrix_are_the_shallow_encoding(depths: tuple[int, ...]) -> None:
    x, weight = inputs(72), normal(20, 72)
    curvature = curvature_of(x)
    shallow = encode_calibrated(weight, curvature, None, depths[0]).encoded
    nested = encode_nested(weight, curvature, None, depths)
    np.testing.assert_array_equal(nested.encoded.weight[: depths[0]], shallow.weight)
    np.testing.assert_array_equal(nested.encoded.scale, shallow.scale)
    np.testing.assert_array_equal(nested.encoded.codebook[depths[0] - 1], shallow.codebook[-1])
    errors = [output_error(weight, decoded(nested, 72, depth), x) for depth in depths]
    assert all(deep < upper / 2 for upper, deep in pairwise(errors))


@pytest.mark.parametrize("depths", [(2,), (4, 2), (2, 2), (0, 2), (2, 5), ()], ids=str)
def test_wrong_chains_are_refused(depths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="depth"):
        encode_nested(normal(4, 16), Curvature.of(np.eye(16), 16), None, depths)


def test_fewer_planes_of_a_calibrated_matrix_are_ever_coarser() -> None:
    x, weight = inputs(96), normal(64, 96)
    result = encode_calibrated(weight, curvature_of(x), None, 4)
    errors = [output_error(weight, decoded(result, 96, planes), x) for planes in DEPTHS]
    assert all(finer < coarser / 3 for coarser, finer in pairwise(errors))
    assert errors[0] < 0.6


# --- Every kind of input ------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(2, 100),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    depth=st.sampled_from(DEPTHS),
    dead=st.booleans(),
    rank=st.sampled_from([1, 3, 300]),
    power=st.sampled_from([-150, -20, 0, 20, 150]),
    seed=st.integers(0, 2**32 - 1),
)
def test_never_worse_than_data_free(
    rows: int,
    columns: int,
    kind: str,
    dtype: np.dtype,
    depth: int,
    dead: bool,
    rank: int,
    power: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    weight = matrix(random, (rows, columns), kind, dtype)
    x = random.normal(size=(rank, columns))
    if dead:
        x[:, columns // 2] = 0
    x *= 2.0**power
    result = encode_calibrated(weight, Curvature.of(x.T @ x, columns), None, depth)
    assert 0 <= result.loss_after <= result.loss_before
    assert np.isfinite(decoded(result, columns)).all()  # the tensor also checks the codebook


@pytest.mark.parametrize("depth", [1, 4])
def test_dead_columns_keep_their_weights(depth: int) -> None:
    x, weight = inputs(64), normal(16, 64)
    x[:, [3, 40]] = 0
    cross = np.random.default_rng(3).normal(size=(16, 64))  # also where nothing can have come
    curvature = curvature_of(x)
    assert curvature.dead.sum() == 2
    matrix = Matrix.of(weight, curvature, cross)
    places = np.flatnonzero(curvature.dead)
    np.testing.assert_array_equal(matrix.target[places], matrix.source[places])
    assert encode_calibrated(weight, curvature, cross, depth).loss_after > 0


def test_a_matrix_of_zeros_stays_one() -> None:
    result = encode_calibrated(np.zeros((3, 20), np.float32), Curvature.of(np.eye(20), 20), None, 2)
    assert not decoded(result, 20).any()
    assert (result.loss_before, result.loss_after) == (0, 0)


def test_a_hessian_of_one_direction_is_damped() -> None:
    x = inputs(48, tokens=1)
    curvature = Curvature.of(x.T @ x, 48)
    assert curvature.damping == 0.05
    assert encode_calibrated(normal(8, 48), curvature, None, 2).loss_after > 0


def test_an_indefinite_hessian_takes_more_damping_or_is_refused() -> None:
    hessian = np.eye(32)
    hessian[0, 1] = hessian[1, 0] = 1.5
    assert Curvature.of(hessian, 32).damping == pytest.approx(5)
    hessian[0, 1] = hessian[1, 0] = 1e6
    with pytest.raises(SingularHessianError, match="not positive definite"):
        Curvature.of(hessian, 32)
    with pytest.raises(SingularHessianError, match="all 32 inputs"):
        Curvature.of(np.zeros((32, 32)), 32)
    with pytest.raises(TooFewTokensError, match="7 tokens reached a layer of 32 inputs"):
        Curvature.of(np.eye(32), 7)


def test_values_that_are_not_finite_are_named() -> None:
    curvature = Curvature.of(np.eye(16), 16)
    weight, cross, hessian = normal(2, 16), np.zeros((2, 16)), np.eye(16)
    weight[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"weight\[1, 3\] is nan"):
        encode_calibrated(weight, curvature, None, 2)
    cross[0, 5] = np.inf
    with pytest.raises(ValueError, match=r"cross\[0, 5\] is inf"):
        encode_calibrated(normal(2, 16), curvature, cross, 2)
    with pytest.raises(ValueError, match="too large"):
        encode_calibrated(normal(2, 16), curvature, np.full((2, 16), 1e60), 2)
    hessian[4, 4] = np.nan
    with pytest.raises(ValueError, match=r"hessian\[4, 4\] is nan"):
        Curvature.of(hessian, 16)
    with pytest.raises(ValueError, match=r"hessian\[0, 0\] is -1"):
        Curvature.of(-np.eye(16), 16)


@pytest.mark.parametrize(
    ("weight", "cross", "said"),
    [
        (normal(2, 17), None, "weight has 17 columns, the curvature is of 16"),
        (normal(2, 16), np.zeros((16, 2)), "cross has shape"),
        (normal(2, 16), np.zeros((2, 16), np.int64), "cross is int64"),
        (normal(2, 16).astype(np.float64), None, "weight is float64"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    weight: np.ndarray, cross: np.ndarray | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        encode_calibrated(weight, Curvature.of(np.eye(16), 16), cross, 2)


# --- Parts --------------------------------------------------------------------------------------


def test_the_factor_is_that_of_the_damped_hessian() -> None:
    curvature = curvature_of(inputs(40))
    square = curvature.triangle @ curvature.triangle.T
    np.testing.assert_allclose(square, curvature.hessian, rtol=1e-6, atol=1e-6)
    assert not np.tril(curvature.triangle, -1).any()
    right = np.random.default_rng(2).normal(size=(48, 5))
    solved = curvature.solve(right.copy())
    np.testing.assert_allclose(square @ solved, right, rtol=1e-6, atol=1e-9)
    sums = np.diagonal(curvature.hessian).reshape(-1, 16)[:2].sum(axis=1)  # the third is padded
    assert sums[0] >= sums[1]


def test_step_equations_are_those_of_dense_products() -> None:
    random = np.random.default_rng(4)
    x = random.normal(size=(100, 48))
    hessian = (x.T @ x / 100).astype(np.float32)
    level = random.integers(-4, 5, (48, 10)).astype(np.float32)
    index = random.integers(0, 27, (3, 10)).astype(np.int32)
    target = random.normal(size=(48, 10)).astype(np.float32)
    masks = [np.where(np.repeat(index, 16, axis=0) == j, level, 0) for j in range(27)]
    products = step_products(level, index, hessian)
    found = normal_equations(products, level, index, hessian @ target)
    square = [[np.sum(a * (hessian @ b)) for b in masks] for a in masks]
    np.testing.assert_allclose(found[0], square, atol=1e-3)
    np.testing.assert_allclose(found[1], [np.sum(a * (hessian @ target)) for a in masks], atol=1e-3)
    steps = solve_steps(*found, np.full(27, 0.5, np.float32))
    assert (steps >= 0).all()


def test_pooling_is_the_nearest_ascending_sequence() -> None:
    np.testing.assert_array_equal(
        ascending(np.array([1.0, 3, 2, 2, 5]), np.array([1.0, 1, 1, 2, 1])),
        [1, 2.25, 2.25, 2.25, 5],
    )
    np.testing.assert_array_equal(ascending(np.array([-1.0, 2]), np.ones(2)), [0, 2])


# --- The native twin ----------------------------------------------------------------------------


@needs_library
@settings(deadline=None, max_examples=25)
@given(
    groups=st.integers(1, 3),
    tiles=st.integers(1, 3),
    depth=st.sampled_from(DEPTHS),
    centred=st.booleans(),
    fixed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_native_passes_give_the_bits_of_the_reference(
    groups: int, tiles: int, depth: int, centred: bool, fixed: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    columns, n = 16 * groups, 16 * tiles

    def numbers(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    index = random.integers(0, 27, (groups, n)).astype(np.int32)
    centre = 9 * np.rint(numbers(columns, n))

    def block() -> Columns:
        return Columns(
            target=target,
            given=given_,
            coupling=coupling,
            feedback=feedback,
            solve=solve,
            importance=importance,
            steps=steps,
            limits=Limits(max_level(depth), centre if centred else None, index if fixed else None),
            level=np.zeros((columns, n), np.float32),
            index=index.copy(),
            value=value.copy(),
        )

    target, given_, value = numbers(columns, n), numbers(columns, n), numbers(columns, n)
    coupling, importance = 0.3 * numbers(columns, columns), np.square(numbers(groups, 16))
    feedback, solve = 0.3 * numbers(groups, 16, 16), 0.3 * numbers(groups, 16, 16)
    steps = np.sort(np.abs(numbers(27)))
    steps[: random.integers(0, 3)] = 0
    for reference_pass, twin in (
        (search.feed_back, native_search.feed_back),
        (search.descend, native_search.descend),
    ):
        expected = block()
        reference_pass(expected)
        for isa in native.isas("codec"):
            found = block()
            twin(found, isa)
            for field in ("level", "index", "value"):
                np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    hessian, level = coupling + coupling.T, np.rint(4 * numbers(columns, n))[:, : n - 3]
    sums = step_products(level, index[:, : n - 3], hessian)
    for threads, isa in enumerate(native.isas("codec"), 1):
        found_sums = native_search.step_products(level, index[:, : n - 3], hessian, threads, isa)
        np.testing.assert_array_equal(found_sums, sums)


@needs_library
def test_native_encoding_gives_the_bits_of_the_reference(isa: str) -> None:
    weight, x = normal(18, 40), inputs(40)
    curvature, cross = curvature_of(x), 0.05 * weight @ (x.T @ x)
    for depth in (1, 3):
        expected = encode_calibrated(weight, curvature, cross, depth, isa="reference")
        found = encode_calibrated(weight, curvature, cross, depth, threads=2, isa=isa)
        assert not difference(expected, found)
    expected = encode_nested(weight, curvature, cross, (2, 4), isa="reference")
    assert not difference(expected, encode_nested(weight, curvature, cross, (2, 4), isa=isa))


@needs_library
@pytest.mark.parametrize("threads", [2, 7])
def test_threads_change_no_bit(threads: int) -> None:
    weight, x = normal(600, 64), inputs(64)  # three panels
    curvature, cross = curvature_of(x), 0.05 * normal(600, 64) @ (x.T @ x)
    expected = encode_calibrated(weight, curvature, cross, 2)
    found = encode_calibrated(weight, curvature, cross, 2, threads=threads)
    assert not difference(expected, found)
    assert (found.loss_before, found.loss_after) == (expected.loss_before, expected.loss_after)
