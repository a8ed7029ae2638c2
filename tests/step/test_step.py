"""The native decoder step of every instruction set that runs here against the reference."""

from __future__ import annotations

import ctypes
import dataclasses
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.native_library import needs_library
from support.weights import random_weights

from tritllm import products as kernels
from tritllm.native.arrays import address, aligned_bytes
from tritllm.products import reference
from tritllm.step import native_step as decoder
from tritllm.step import reference as decoder_reference

pytestmark = needs_library

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
NUMBERS = {"float16": 0, "bfloat16": 1, "float32": 2}
# Of the largest hidden state. What an element's rounding costs when it falls the other way.
BOUND = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5}
EPSILON = 1e-6


@dataclass
class Decoder:
    """Random blocks, native and for the reference, and what keeps their memory."""

    native: ctypes.Array
    plain: list[decoder_reference.Block]
    held: list[object]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: np.dtype
    steps: list[dict[str, np.ndarray]]


def vector(values: np.ndarray | None, held: list[object]) -> decoder.Vector:
    if values is None:
        return decoder.Vector(None, 0)
    held.append(values)
    return decoder.Vector(values.ctypes.data, NUMBERS[values.dtype.name])


def random_decoder(
    isa, seed, n_blocks=2, hidden=48, wide=112, heads=4, kv_heads=2, head_dim=32, depth=2,
    dtype="float32", exact=True, bias=True, head_norms=False,
) -> Decoder:  # fmt: skip
    rng = np.random.default_rng(seed)
    kind = np.dtype(DTYPES[dtype])
    held: list[object] = []
    native, plain, in_use = [], [], []
    queries, keys = heads * head_dim, kv_heads * head_dim
    shapes = {
        "q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries),
        "gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide),
    }  # fmt: skip

    def norm(n: int) -> np.ndarray:
        return rng.uniform(0.5, 1.5, n).astype(kind)

    def product(levels, offset):
        multiply = reference.exact if exact else reference.quantized
        return lambda x: multiply(*levels, x.astype(np.float32)) + offset

    for i in range(n_blocks):
        weights, products = [], {}
        in_use.append({})
        for name, shape in shapes.items():
            w = random_weights(100 * seed + 10 * i + len(weights), *shape, depth)
            steps = (w.tensor.codebook / np.sqrt(shape[1])).astype(np.float32)
            w = type(w)(type(w.tensor)(w.tensor.weight, w.tensor.scale, steps, shape[1]), w.index)
            prepared = kernels.prepare(w.tensor, isa=isa)
            held.append(prepared)
            in_use[-1][name] = steps[depth - 1]
            offset = rng.normal(size=shape[0]).astype(kind) if bias and name in "qkv" else None
            weights.append(
                decoder.Weight(address(prepared.memory), prepared.nbytes, vector(offset, held))
            )
            products[name] = product(
                w.at(depth), 0 if offset is None else offset.astype(np.float32)
            )
        norms = [norm(hidden), norm(hidden), *([norm(head_dim)] * 2 if head_norms else [None] * 2)]
        native.append(
            decoder.Block(hidden, wide, heads, kv_heads, head_dim, NUMBERS[dtype], exact, EPSILON,
                          head_dim**-0.5, *(vector(n, held) for n in norms), *weights)
        )  # fmt: skip
        floats = [None if n is None else n.astype(np.float32) for n in norms]
        plain.append(decoder_reference.Block(**products, input_norm=floats[0], post_norm=floats[1],
                                             q_norm=floats[2], k_norm=floats[3], head_dim=head_dim,
                                             epsilon=EPSILON, scaling=head_dim**-0.5, dtype=kind)
        )  # fmt: skip
    blocks = (decoder.Block * n_blocks)(*native)
    return Decoder(blocks, plain, held, hidden, heads, kv_heads, head_dim, kind, in_use)


@dataclass
class Call:
    hidden: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]
    mask: np.ndarray | None


def random_call(
    model: Decoder, seed: int, batch: int, tokens: int, masked: bool, new: int = 1
) -> Call:
    """tokens: of a sequence, the `new` last ones included."""
    rng = np.random.default_rng(seed)
    cache = (batch, model.kv_heads, tokens, model.head_dim)
    angle = np.tile(rng.uniform(0, 6, (batch, new, model.head_dim // 2)), 2)
    mask = None
    if masked:
        mask = rng.random((batch, tokens)) < 0.6
        mask[:, -new] = True
    made = [[rng.normal(size=cache).astype(model.dtype) for _ in model.plain] for _ in ("k", "v")]
    return Call(
        rng.normal(size=(batch, new, model.hidden)).astype(model.dtype),
        np.cos(angle).astype(model.dtype), np.sin(angle).astype(model.dtype), *made, mask,
    )  # fmt: skip


def run(model: Decoder, call: Call, threads: int = 1, room: int = 0, final=None):
    """The native step on copies; (hidden, keys, values). room: tokens behind the last."""
    batch, heads, tokens, width = call.keys[0].shape
    new = call.hidden.shape[1]
    caches = []
    for part in (call.keys, call.values):
        copies = []
        for x in part:
            wide = np.full((batch, heads, tokens + room, width), np.nan, model.dtype)
            wide[:, :, :tokens] = x
            wide[:, :, tokens - new : tokens] = np.nan  # to be written
            copies.append(wide)
        caches.append(copies)
    hidden = call.hidden.copy()
    pointers = [(ctypes.c_void_p * len(part))(*(x.ctypes.data for x in part)) for part in caches]
    strides = [s // model.dtype.itemsize for s in caches[0][0].strides[:3]]
    held: list[object] = []
    norm = vector(None if final is None else final, held)
    mask = None if call.mask is None else np.ascontiguousarray(call.mask, np.uint8)
    step = decoder.Step(
        batch, new, tokens, hidden.ctypes.data, call.cos.ctypes.data, call.sin.ctypes.data,
        new * width,
        ctypes.addressof(pointers[0]), ctypes.addressof(pointers[1]), tuple(strides),
        None if mask is None else mask.ctypes.data, tokens, norm, EPSILON,
    )  # fmt: skip
    scratch = aligned_bytes(decoder.scratch_size(model.native[0], batch, new, tokens))
    decoder.llama_step(threads, model.native, step, scratch.ctypes.data)
    for part in caches:
        assert all(np.isnan(x[:, :, tokens:].astype(np.float32)).all() for x in part)
    return hidden, *([x[:, :, :tokens] for x in part] for part in caches)


def expected(model: Decoder, call: Call):
    keys, values = ([x.copy() for x in part] for part in (call.keys, call.values))
    hidden = decoder_reference.step(
        model.plain, call.hidden, call.cos, call.sin, keys, values, call.mask
    )
    return hidden, keys, values


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    n_blocks=st.integers(1, 3),
    hidden=st.sampled_from([16, 48, 96, 160]),
    wide=st.sampled_from([16, 112, 208]),
    kv_heads=st.integers(1, 3),
    share=st.integers(1, 9),
    head_dim=st.sampled_from([32, 64, 96, 256]),
    depth=st.integers(1, 4),
    dtype=st.sampled_from(sorted(DTYPES)),
    bias=st.booleans(),
    head_norms=st.booleans(),
    batch=st.integers(1, 4),
    new=st.integers(1, 5),
    before=st.integers(0, 70),
    masked=st.booleans(),
    threads=st.integers(1, 3),
)
@example(1, 2, 48, 112, 2, 17, 32, 2, "float32", True, True, 2, 3, 597, True, 2)
@example(2, 1, 96, 208, 1, 1, 64, 3, "bfloat16", False, False, 1, 16, 250, False, 1)
@example(3, 2, 16, 16, 3, 8, 96, 4, "float16", True, False, 3, 1, 0, False, 3)
def test_as_the_reference(
    isa, seed, n_blocks, hidden, wide, kv_heads, share, head_dim, depth, dtype, bias, head_norms,
    batch, new, before, masked, threads,
):  # fmt: skip
    model = random_decoder(isa, seed, n_blocks, hidden, wide, kv_heads * share, kv_heads, head_dim,
                           depth, dtype, True, bias, head_norms)  # fmt: skip
    call = random_call(model, seed, batch, before + new, masked, new)
    ours, keys, values = run(model, call, threads, room=seed % 5)
    theirs, their_keys, their_values = expected(model, call)
    bound = BOUND[dtype] * n_blocks
    assert error(ours, theirs) < bound
    for mine, reference_ in zip((*keys, *values), (*their_keys, *their_values)):
        assert error(mine, reference_) < bound


def test_int8_activations_are_near(isa):
    model = random_decoder(isa, 5, hidden=160, wide=208, depth=3, exact=False)
    call = random_call(model, 5, 2, 40, masked=False)
    ours, theirs = run(model, call)[0], expected(model, call)[0]
    assert error(ours, theirs) < 2e-2  # a rounding to int8 may fall the other way
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_token_gets_the_bits_that_it_gets_alone(isa, dtype):
    """Several new tokens as one by one, and a sequence of several as alone; over a split's end."""
    model = random_decoder(isa, 14, wide=208, dtype=dtype, exact=False, head_norms=True)
    batch, tokens, new = 2, 259, 5
    call = random_call(model, 14, batch, tokens, masked=True, new=new)
    together = run(model, call, threads=2)
    call.keys, call.values = ([x.copy() for x in part] for part in (call.keys, call.values))
    for b in range(batch):
        for i in range(new):
            end, one = tokens - new + i + 1, slice(i, i + 1)
            alone = Call(
                call.hidden[b : b + 1, one].copy(), call.cos[b : b + 1, one].copy(),
                call.sin[b : b + 1, one].copy(), [x[b : b + 1, :, :end] for x in call.keys],
                [x[b : b + 1, :, :end] for x in call.values], call.mask[b : b + 1, :end],
            )  # fmt: skip
            hidden, keys, values = run(model, alone)
            assert hidden.tobytes() == together[0][b, i].tobytes()
            for part, written in ((call.keys, keys), (call.values, values)):
                for x, y in zip(part, written):
                    x[b, :, end - 1] = y[0, :, -1]
    for mine, theirs in zip(together[1] + together[2], call.keys + call.values):
        assert mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_threads_do_not_change_a_bit(isa, dtype):
    model = random_decoder(isa, 7, wide=416, dtype=dtype, exact=False)
    call = random_call(model, 7, 3, 600, masked=True, new=2)
    alone = run(model, call)
    for threads in (2, 3, 5):
        together = run(model, call, threads)
        assert together[0].tobytes() == alone[0].tobytes()
        for mine, theirs in zip(together[1] + together[2], alone[1] + alone[2]):
            assert mine.tobytes() == theirs.tobytes()


def test_what_the_mask_hides_may_be_anything(isa):
    model = random_decoder(isa, 8)
    call = random_call(model, 8, 2, 50, masked=True)
    clean = run(model, call)[0]
    for part in (call.keys, call.values):
        for x in part:
            x[~np.repeat(call.mask[:, None], model.kv_heads, axis=1)] = np.nan
    assert run(model, call)[0].tobytes() == clean.tobytes()


def test_a_nan_stays_in_its_sequence(isa):
    model = random_decoder(isa, 9, dtype="bfloat16", exact=False)
    call = random_call(model, 9, 3, 20, masked=False)
    clean = run(model, call)[0]
    call.hidden[1, 0, 5] = np.nan
    ours = run(model, call)[0]
    assert np.isnan(ours[1].astype(np.float32)).all()
    assert ours[[0, 2]].tobytes() == clean[[0, 2]].tobytes()


def test_large_numbers(isa):
    """Scores and gates far beyond what exp can hold."""
    model = random_decoder(isa, 10)
    call = random_call(model, 10, 2, 40, masked=False)
    call.hidden *= np.float32(1e5)
    for part in call.keys:
        part *= np.float32(1e4)
    ours, theirs = run(model, call)[0], expected(model, call)[0]
    assert np.isfinite(ours).all()
    assert error(ours, theirs) < 1e-3  # of two keys the larger score wins, both ways


def test_the_final_norm(isa):
    model = random_decoder(isa, 11)
    call = random_call(model, 11, 3, 9, masked=False)
    weight = np.linspace(0.5, 2, model.hidden, dtype=np.float32)
    plain, normed = run(model, call)[0], run(model, call, final=weight)[0]
    assert error(normed, decoder_reference.rms_norm(plain, weight, EPSILON)) < 1e-6


def test_steps_and_planes_of_a_product(isa):
    model = random_decoder(isa, 13, depth=2)
    call = random_call(model, 13, 2, 9, masked=False)
    weight, doubled = model.native[1].o, 2 * model.steps[1]["o"]
    weight.steps, weight.depth = doubled.ctypes.data, 2
    product = model.plain[1].o
    model.plain[1] = dataclasses.replace(model.plain[1], o=lambda x: 2 * product(x))
    assert error(run(model, call)[0], expected(model, call)[0]) < BOUND["float32"] * 2
    weight.depth = 3  # more than there are
    with pytest.raises(ValueError, match="does not fit"):
        run(model, call)


def test_blocks_that_do_not_fit_are_refused(isa):
    model = random_decoder(isa, 12)
    call = random_call(model, 12, 1, 4, masked=False)
    for field, value in (("head_dim", 48), ("hidden", 40), ("kv_heads", 3), ("dtype", 7)):
        other = random_decoder(isa, 12)
        setattr(other.native[0], field, value)
        with pytest.raises(ValueError, match="not a block"):
            decoder.scratch_size(other.native[0], 1, 1, 4)
        scratch = aligned_bytes(decoder.scratch_size(model.native[0], 1, 1, 4))
        with pytest.raises(ValueError, match="does not fit"):
            decoder.llama_step(1, other.native, decoder.Step(1, 1, 4), scratch.ctypes.data)
    model.native[1].o.prepared = model.native[1].down.prepared
    with pytest.raises(ValueError, match="does not fit"):
        run(model, call)
    model.native[1].o.prepared = None
    with pytest.raises(ValueError, match="does not fit"):
        run(model, call)
