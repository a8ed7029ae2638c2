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
from tritllm.products import EXACT, GROUPS, PER_TOKEN, reference
from tritllm.step import int8_cache
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


@dataclass(frozen=True)
class Parts:
    """What blocks of other families have more than those of the Llama family."""

    fused: bool = False
    gelu: bool = False
    relu_squared: bool = False
    sub_norms: bool = False
    sandwich: bool = False
    norm_offset: float = 0.0
    softcap: float = 0.0
    window: int = 0
    rotary_dim: int | None = None
    two_tables: bool = False
    experts: int = 0
    chosen: int = 0
    inner: int = 0
    normalized: bool = False
    shared: bool = False


MULTIPLY = {
    GROUPS: reference.quantized, EXACT: reference.exact, PER_TOKEN: reference.per_token
}  # fmt: skip
LLAMA = Parts()
FAMILIES = {
    "phi3": Parts(fused=True, window=9),
    "phi3, heads rotated in part": Parts(fused=True, rotary_dim=32),
    "gemma2": Parts(gelu=True, sandwich=True, norm_offset=1, softcap=2.0, window=33),
    "gemma3": Parts(gelu=True, sandwich=True, norm_offset=1, window=300, two_tables=True),
    "bitnet": Parts(relu_squared=True, sub_norms=True),
    "mixtral": Parts(experts=4, chosen=2, inner=112, normalized=True),
    "qwen2_moe": Parts(experts=20, chosen=3, inner=32, shared=True),
    "qwen3_moe": Parts(experts=33, chosen=8, inner=48, normalized=True),
}


def _attention_shapes(hidden: int, queries: int, keys: int, fused: bool):
    q = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden)}
    if fused:
        q = {"q": (queries + 2 * keys, hidden)}
    return {**q, "o": (hidden, queries)}


def _unit_shapes(hidden: int, wide: int, fused: bool):
    top = {"gate": (wide, hidden), "up": (wide, hidden)}
    if fused:
        top = {"gate": (2 * wide, hidden)}
    return {**top, "down": (hidden, wide)}


def random_decoder(
    isa, seed, n_blocks=2, hidden=48, wide=112, heads=4, kv_heads=2, head_dim=32, depth=2,
    dtype="float32", arithmetic=EXACT, bias=True, head_norms=False, parts=LLAMA,
) -> Decoder:  # fmt: skip
    rng = np.random.default_rng(seed)
    kind = np.dtype(DTYPES[dtype])
    held: list[object] = []
    native, plain, in_use = [], [], []
    queries, keys = heads * head_dim, kv_heads * head_dim
    own = not parts.experts or parts.shared
    native_activation, activation = decoder.SILU, None
    if parts.gelu:
        native_activation, activation = decoder.GELU_TANH, decoder_reference.gelu_tanh
    if parts.relu_squared:
        native_activation, activation = decoder.RELU_SQUARED, decoder_reference.relu_squared
    shapes = _attention_shapes(hidden, queries, keys, parts.fused)
    shapes |= _unit_shapes(hidden, wide, parts.fused) if own else {}

    def norm(n: int) -> np.ndarray:
        return rng.uniform(0.5, 1.5, n).astype(kind)

    def product(levels, offset):
        multiply = MULTIPLY[arithmetic]
        return lambda x: multiply(*levels, x.astype(np.float32)) + offset

    def make(name: str, shape: tuple[int, int], number: int):
        """A native weight, and the product for the reference."""
        w = random_weights(number, *shape, depth)
        steps = (w.tensor.codebook / np.sqrt(shape[1])).astype(np.float32)
        w = type(w)(type(w.tensor)(w.tensor.weight, w.tensor.scale, steps, shape[1]), w.index)
        prepared = kernels.prepare(w.tensor, isa=isa)
        held.append(prepared)
        in_use[-1][name] = steps[depth - 1]
        offset = rng.normal(size=shape[0]).astype(kind) if bias and name in "qkv" else None
        weight = decoder.Weight(address(prepared.memory), prepared.nbytes, vector(offset, held))
        return weight, product(w.at(depth), 0 if offset is None else offset.astype(np.float32))

    def make_all(shapes: dict[str, tuple[int, int]], number: int):
        made = {
            name: make(name, shape, number + n) for n, (name, shape) in enumerate(shapes.items())
        }
        return [{name: both[i] for name, both in made.items()} for i in range(2)]

    def make_experts(number: int):
        units = [
            make_all(_unit_shapes(hidden, parts.inner, False), number + 3 * e)
            for e in range(parts.experts)
        ]
        router = rng.normal(size=(parts.experts, hidden)).astype(kind)
        gate = (rng.normal(size=hidden) / 4).astype(kind) if parts.shared else None
        array = (decoder.Expert * parts.experts)(*(decoder.Expert(**one) for one, _ in units))
        experts = ctypes.pointer(
            decoder.Experts(parts.experts, parts.chosen, parts.normalized, parts.inner,
                            vector(router, held), vector(gate, held), array)
        )  # fmt: skip
        held.extend([array, experts])
        return experts, decoder_reference.Experts(
            [decoder_reference.GatedUnit(**plain) for _, plain in units],
            router.astype(np.float32), parts.chosen, parts.normalized,
            None if gate is None else gate.astype(np.float32),
        )  # fmt: skip

    for i in range(n_blocks):
        in_use.append({})
        weights, products = make_all(shapes, 100 * seed + 10 * i)
        experts, plain_experts = (
            make_experts(100 * seed + 10 * i + 7) if parts.experts else (None,) * 2
        )
        norms = {
            "input_norm": norm(hidden), "post_norm": norm(hidden),
            **{name: norm(head_dim) if head_norms else None for name in ("q_norm", "k_norm")},
            **{name: norm(hidden) if parts.sandwich else None
               for name in ("attention_norm", "feedforward_norm")},
            "attention_sub_norm": norm(queries) if parts.sub_norms else None,
            "unit_sub_norm": norm(wide) if parts.sub_norms else None,
        }  # fmt: skip
        # Blocks take turns in a model of two kinds.
        window, table = (0 if i % 2 else parts.window), int(parts.two_tables and i % 2)
        native.append(
            decoder.Block(
                hidden=hidden, intermediate=wide if own else 0, heads=heads, kv_heads=kv_heads,
                head_dim=head_dim, rotary_dim=parts.rotary_dim or head_dim, dtype=NUMBERS[dtype],
                arithmetic=arithmetic, epsilon=EPSILON,
                norm_offset=parts.norm_offset,
                scaling=head_dim**-0.5, softcap=parts.softcap, window=window, rotary=table,
                activation=native_activation,
                **{name: vector(n, held) for name, n in norms.items()}, **weights, experts=experts,
            )
        )  # fmt: skip
        if parts.fused:
            products |= split(products["q"], ("q", "k", "v"), (queries, keys, keys))
            products |= split(products["gate"], ("gate", "up"), (wide, wide))
        unit = [products[name] for name in ("gate", "up", "down")] if own else []
        plain.append(
            decoder_reference.Block(
                **{name: products[name] for name in "qkvo"},
                unit=decoder_reference.GatedUnit(*unit) if own else None,
                **{name: None if n is None else n.astype(np.float32) for name, n in norms.items()},
                head_dim=head_dim, epsilon=EPSILON, scaling=head_dim**-0.5, dtype=kind,
                norm_offset=parts.norm_offset, softcap=parts.softcap, window=window, rotary=table,
                activation=activation,
                experts=plain_experts,
            )
        )  # fmt: skip
    blocks = (decoder.Block * n_blocks)(*native)
    return Decoder(blocks, plain, held, hidden, heads, kv_heads, head_dim, kind, in_use)


def split(product, names, widths):
    """The products of a matrix's parts, which lie one above the other."""
    ends = np.cumsum(widths)
    return {
        name: lambda x, a=end - width, b=end: product(x)[:, a:b]
        for name, width, end in zip(names, widths, ends)
    }


@dataclass
class Call:
    hidden: np.ndarray
    cos: list[np.ndarray]
    sin: list[np.ndarray]
    keys: list[np.ndarray]
    values: list[np.ndarray]
    mask: np.ndarray | None


def random_call(
    model: Decoder, seed: int, batch: int, tokens: int, masked: bool, new: int = 1
) -> Call:
    """tokens: of a sequence, the `new` last ones included."""
    rng = np.random.default_rng(seed)
    cache = (batch, model.kv_heads, tokens, model.head_dim)
    half = model.native[0].rotary_dim // 2
    angles = [np.tile(rng.uniform(0, 6, (batch, new, half)), 2) for _ in range(2)]
    mask = None
    if masked:
        mask = rng.random((batch, tokens)) < 0.6
        mask[:, -new] = True
    made = [[rng.normal(size=cache).astype(model.dtype) for _ in model.plain] for _ in ("k", "v")]
    return Call(
        rng.normal(size=(batch, new, model.hidden)).astype(model.dtype),
        [np.cos(a).astype(model.dtype) for a in angles],
        [np.sin(a).astype(model.dtype) for a in angles], *made, mask,
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
        batch, new, tokens, hidden.ctypes.data,
        *(tuple(x.ctypes.data for x in tables) for tables in (call.cos, call.sin)),
        new * call.cos[0].shape[2],
        ctypes.addressof(pointers[0]), ctypes.addressof(pointers[1]), tuple(strides),
        None if mask is None else mask.ctypes.data, tokens, norm, EPSILON,
    )  # fmt: skip
    scratch = aligned_bytes(decoder.scratch_size(model.native, batch, new, tokens))
    decoder.llama_step(threads, model.native, step, scratch.ctypes.data)
    for part in caches:
        assert all(np.isnan(x[:, :, tokens:].astype(np.float32)).all() for x in part)
    return hidden, *([x[:, :, :tokens] for x in part] for part in caches)


def run_int8(model: Decoder, call: Call, threads: int = 1):
    """The native step on an int8 cache; (hidden, keys, values), these as float32."""
    batch, _, tokens, _ = call.keys[0].shape
    new = call.hidden.shape[1]
    held = []
    for part in (call.keys, call.values):
        pairs = [int8_cache.quantized(x) for x in part]
        for q, scale in pairs:
            q[:, :, tokens - new :], scale[:, :, tokens - new :] = 99, np.nan  # to be written
        held += list(zip(*pairs))
    pointers = [(ctypes.c_void_p * len(part))(*(x.ctypes.data for x in part)) for part in held]
    keys, key_scales, values, value_scales = (ctypes.addressof(part) for part in pointers)
    hidden = call.hidden.copy()
    mask = None if call.mask is None else np.ascontiguousarray(call.mask, np.uint8)
    step = decoder.Step(
        batch, new, tokens, hidden.ctypes.data,
        *(tuple(x.ctypes.data for x in tables) for tables in (call.cos, call.sin)),
        new * call.cos[0].shape[2], keys, values, held[0][0].strides[:3],
        None if mask is None else mask.ctypes.data, tokens, decoder.Vector(None, 0), 0,
        key_scales, value_scales,
    )  # fmt: skip
    scratch = aligned_bytes(decoder.scratch_size(model.native, batch, new, tokens))
    decoder.llama_step(threads, model.native, step, scratch.ctypes.data)
    return hidden, *(
        [int8_cache.dequantized(*pair) for pair in zip(*held[i : i + 2])] for i in (0, 2)
    )


def expected(model: Decoder, call: Call):
    keys, values = ([x.copy() for x in part] for part in (call.keys, call.values))
    hidden = decoder_reference.step(
        model.plain, call.hidden, call.cos, call.sin, keys, values, call.mask
    )
    return hidden, keys, values


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@settings(max_examples=25)
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
    batch=st.integers(1, 3),
    new=st.integers(1, 4),
    before=st.integers(0, 70),
    masked=st.booleans(),
    threads=st.integers(1, 3),
)
@example(1, 2, 48, 112, 2, 17, 32, 2, "float32", True, True, 2, 3, 597, True, 2)
@example(2, 1, 96, 208, 1, 1, 64, 3, "bfloat16", False, False, 1, 9, 250, False, 1)
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(isa, name, dtype):
    model = random_decoder(isa, 21, 2, 96, 112, 4, 2, 64, 2, dtype, True, False,
                           name in ("gemma3", "qwen3_moe"), FAMILIES[name])  # fmt: skip
    for batch, tokens, new, masked, threads in ((1, 40, 1, False, 2), (2, 300, 4, True, 3)):
        call = random_call(model, 22 + new, batch, tokens, masked, new)
        ours, keys, values = run(model, call, threads)
        theirs, their_keys, their_values = expected(model, call)
        assert error(ours, theirs) < 2 * BOUND[dtype]
        for mine, reference_ in zip((*keys, *values), (*their_keys, *their_values)):
            assert error(mine, reference_) < 2 * BOUND[dtype]


# Of a prompt: queries beyond one widening of keys, rows that no product takes whole, keys before.
PROMPTS = {
    "one head of keys": (LLAMA, 6, 1, 128, 1, 140, 70, False),
    "padded": (LLAMA, 3, 3, 32, 3, 17, 0, True),
    "wide heads": (LLAMA, 2, 1, 256, 1, 65, 0, False),
    "a head of keys a query": (LLAMA, 2, 2, 96, 2, 33, 300, True),
    "gemma2": (FAMILIES["gemma2"], 4, 2, 64, 2, 90, 50, True),
    "qwen3_moe": (FAMILIES["qwen3_moe"], 4, 2, 64, 2, 30, 9, False),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(isa, name):
    parts, heads, kv_heads, head_dim, batch, new, before, masked = PROMPTS[name]
    dtype = "bfloat16" if before == 9 else "float32"
    model = random_decoder(isa, 31, 2, 48, 112, heads, kv_heads, head_dim, dtype=dtype, parts=parts)
    call = random_call(model, 31, batch, before + new, masked, new)
    theirs, their_keys, their_values = expected(model, call)
    for part in (call.keys, call.values) if masked else ():
        for x in part:  # what is hidden may be anything
            x[:, :, :before][~np.repeat(call.mask[:, None, :before], kv_heads, 1)] = np.nan
    ours, keys, values = run(model, call, threads=2, room=3)
    assert run(model, call)[0].tobytes() == ours.tobytes()
    visible = np.ones((batch, new), bool) if not masked else call.mask[:, before:]
    assert error(ours[visible], theirs[visible]) < 2 * BOUND[dtype]
    for mine, reference_ in zip((*keys, *values), (*their_keys, *their_values)):
        seen = np.s_[:, :, before:]
        assert error(mine[seen], reference_[seen]) < 2 * BOUND[dtype]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_of_another_family_gets_the_bits_that_it_gets_alone(isa, name):
    model = random_decoder(isa, 23, dtype="bfloat16", head_dim=64, parts=FAMILIES[name])
    call = random_call(model, 23, 1, 60, masked=False, new=3)
    together, alone = run(model, call, threads=3)[0], run(model, call)[0]
    assert together.tobytes() == alone.tobytes()
    cut = [[x[:, :, :58] for x in part] for part in (call.keys, call.values)]
    tables = [[x[:, :1].copy() for x in part] for part in (call.cos, call.sin)]
    first = run(model, Call(call.hidden[:, :1].copy(), *tables, *cut, None))[0]
    assert first.tobytes() == together[:, :1].tobytes()


@pytest.mark.parametrize(("tokens", "window"), [(40, 9), (600, 90), (600, 300)])
def test_what_is_before_every_window_may_be_anything(isa, tokens, window):
    model = random_decoder(isa, 25, n_blocks=1, parts=Parts(window=window))
    call = random_call(model, 25, 2, tokens, masked=False, new=3)
    clean = run(model, call, threads=2)[0]
    assert error(clean, expected(model, call)[0]) < BOUND["float32"]
    for part in (call.keys, call.values):
        part[0][:, :, : tokens - 3 + 1 - window] = np.nan
    assert run(model, call)[0].tobytes() == clean.tobytes()


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("arithmetic", [EXACT, GROUPS, PER_TOKEN])
def test_tokens_that_share_experts_get_the_bits_that_they_get_alone(isa, name, arithmetic):
    model = random_decoder(isa, 26, dtype="bfloat16", arithmetic=arithmetic, parts=FAMILIES[name])
    batch, new = 4, 3
    call = random_call(model, 26, batch, 40, masked=False, new=new)
    together = [run(model, call, threads)[0] for threads in (1, 2, 4)]
    assert len({x.tobytes() for x in together}) == 1
    for b in range(batch):
        one = slice(b, b + 1)
        alone = dataclasses.replace(
            call,
            hidden=call.hidden[one].copy(),
            cos=[x[one].copy() for x in call.cos],
            sin=[x[one].copy() for x in call.sin],
            keys=[x[one] for x in call.keys],
            values=[x[one] for x in call.values],
        )
        assert run(model, alone)[0].tobytes() == together[0][one].tobytes()


@pytest.mark.parametrize("batch", [1, 3])
def test_experts_that_no_token_chose_are_not_read(isa, batch):
    model = random_decoder(isa, 24, parts=FAMILIES["qwen3_moe"])
    call = random_call(model, 24, batch, 5, masked=False)
    before = run(model, call)[0]
    chosen: list[set[int]] = []
    for i, block in enumerate(model.plain):
        units: list[decoder_reference.GatedUnit] = []
        chosen.append(set())
        for number, unit in enumerate(block.experts.units):

            def down(x, number=number, of_block=chosen[i], product=unit.down):
                of_block.add(number)
                return product(x)

            units.append(dataclasses.replace(unit, down=down))
        model.plain[i] = dataclasses.replace(
            block, experts=dataclasses.replace(block.experts, units=units)
        )
    expected(model, call)
    for i, block in enumerate(model.native):
        refused = set()
        for number in range(FAMILIES["qwen3_moe"].experts):
            expert = block.experts.contents.expert[number]
            memory, expert.down.prepared = expert.down.prepared, None
            try:
                assert run(model, call)[0].tobytes() == before.tobytes()
            except ValueError:
                refused.add(number)
            expert.down.prepared = memory
        assert refused == chosen[i]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [1, 3, 7])
def test_int8_cache(isa, share, dtype):
    """Over a split's end, with outliers of other sizes in each group, and groups of zeros."""
    model = random_decoder(isa, 15, heads=2 * share, head_dim=96, dtype=dtype)
    call = random_call(model, 15, 2, 270, masked=True, new=3)
    for x in call.keys + call.values:
        x *= np.repeat([1, 50, 1e-3], 32).astype(model.dtype)
        x[:, 1, 5:9, :32] = 0
    ours, keys, values = run_int8(model, call, threads=2)
    rounded = [[int8_cache.dequantized(*int8_cache.quantized(x)) for x in part]
               for part in (call.keys, call.values)]  # fmt: skip
    theirs = decoder_reference.step(
        model.plain, call.hidden, call.cos, call.sin, *rounded, call.mask, int8=True
    )
    assert error(ours, theirs) < (4e-2 if dtype == "bfloat16" else 1e-2)  # a quantum may flip
    assert np.linalg.norm((ours - theirs).astype(np.float32)) < (
        (1e-2 if dtype == "bfloat16" else 2e-3) * np.linalg.norm(theirs.astype(np.float32))
    )
    for mine, reference_ in zip(keys + values, rounded[0] + rounded[1]):
        assert np.array_equal(mine[:, :, :-3], reference_[:, :, :-3])
        assert error(mine, reference_) < 1.5 / 127


def test_what_is_not_finite_is_seen_in_an_int8_cache():
    x = np.ones((2, 64), np.float32)
    x[0, 5] = np.inf
    x[1, 40] = np.nan
    again = int8_cache.dequantized(*int8_cache.quantized(x))
    assert np.array_equal(np.isnan(again), np.repeat([[True, False], [False, True]], 32, axis=1))
    assert np.array_equal(again[0, 32:], x[0, 32:])


def test_int8_activations_are_near(isa):
    model = random_decoder(isa, 5, hidden=160, wide=208, depth=3, arithmetic=GROUPS)
    call = random_call(model, 5, 2, 40, masked=False)
    ours, theirs = run(model, call)[0], expected(model, call)[0]
    assert error(ours, theirs) < 2e-2  # a rounding to int8 may fall the other way
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)


def test_activations_rounded_by_token_are_near(isa):
    parts = Parts(relu_squared=True, sub_norms=True)
    model = random_decoder(isa, 5, hidden=160, wide=208, depth=1, arithmetic=PER_TOKEN, parts=parts)
    call = random_call(model, 5, 2, 40, masked=False)
    ours, theirs = run(model, call)[0], expected(model, call)[0]
    assert error(ours, theirs) < 2e-2  # a rounding to int8 may fall the other way
    assert np.linalg.norm(ours - theirs) < 2e-3 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("dtype", "window"), [("float32", 0), ("float16", 0), ("bfloat16", 0), ("float32", 70)]
)
def test_a_token_gets_the_bits_that_it_gets_alone(isa, dtype, window):
    """Several new tokens as one by one, and a sequence of several as alone; over a split's end."""
    model = random_decoder(isa, 14, wide=208, dtype=dtype, arithmetic=GROUPS, head_norms=True,
                           parts=Parts(window=window))  # fmt: skip
    batch, tokens, new = 2, 259, 5
    call = random_call(model, 14, batch, tokens, masked=True, new=new)
    together = run(model, call, threads=2)
    call.keys, call.values = ([x.copy() for x in part] for part in (call.keys, call.values))
    for b in range(batch):
        for i in range(new):
            end, one = tokens - new + i + 1, slice(i, i + 1)
            alone = Call(
                call.hidden[b : b + 1, one].copy(),
                [x[b : b + 1, one].copy() for x in call.cos],
                [x[b : b + 1, one].copy() for x in call.sin],
                [x[b : b + 1, :, :end] for x in call.keys],
                [x[b : b + 1, :, :end] for x in call.values],
                call.mask[b : b + 1, :end],
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
    model = random_decoder(isa, 7, wide=416, dtype=dtype, arithmetic=GROUPS)
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
    model = random_decoder(isa, 9, dtype="bfloat16", arithmetic=GROUPS)
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
        with pytest.raises(ValueError, match="not blocks"):
            decoder.scratch_size(other.native, 1, 1, 4)
        scratch = aligned_bytes(decoder.scratch_size(model.native, 1, 1, 4))
        with pytest.raises(ValueError, match="does not fit"):
            decoder.llama_step(1, other.native, decoder.Step(1, 1, 4), scratch.ctypes.data)
    model.native[1].o.prepared = model.native[1].down.prepared
    with pytest.raises(ValueError, match="does not fit"):
        run(model, call)
    model.native[1].o.prepared = None
    with pytest.raises(ValueError, match="does not fit"):
        run(model, call)
