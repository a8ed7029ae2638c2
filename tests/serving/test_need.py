"""GPUs and degrees: counted again by hand, from the bytes of parts that are really cut."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tritllm.format.cut import cut_columns, cut_rows
from tritllm.format.layout import nbytes, packed_shapes
from tritllm.format.safetensors_header import TensorEntry
from tritllm.serving.need import GPUS, UTILIZATION, serving_need
from tritllm.serving.weights import degree_parts, parts_of_source

CONFIG = {
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 128,
    "intermediate_size": 320,
    "vocab_size": 100,
}
LINEAR = {"q": (128, 128), "k": (32, 128), "v": (32, 128), "o": (128, 128)}
MLP = {"gate": (320, 128), "up": (320, 128), "down": (128, 320)}


def entry(name: str, *shape: int) -> TensorEntry:
    return TensorEntry(name, "BF16", shape, 0, 2 * int(np.prod(shape)))


def model(mlp=MLP, layers: int = 2) -> list[TensorEntry]:
    entries = [entry("model.embed_tokens.weight", 100, 128), entry("lm_head.weight", 100, 128)]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        entries.append(entry(f"{at}.input_layernorm.weight", 128))
        entries += [entry(f"{at}.self_attn.{n}_proj.weight", *s) for n, s in LINEAR.items()]
        entries += [entry(f"{at}.mlp.{n}_proj.weight", *s) for n, s in mlp.items()]
    return entries


PARTS = parts_of_source(model(), "llama")


def test_one_gpus_share_is_what_cutting_gives():
    """Four GPUs of two key and value heads: each head is on two of them."""
    total = 2 * 2 * 128 + 2 * 2 * 100 * 128 // 4  # norms whole, embeddings and lm_head in part
    for name, (rows, columns) in (LINEAR | MLP).items():
        weight, scale, codebook = (
            np.full(shape, 121, dtype)
            for shape, dtype in zip(packed_shapes(rows, columns, 3), (np.uint8, np.uint8, "f4"))
        )
        if name in ("o", "down"):
            weight, scale = cut_columns(weight, scale, columns, 0, columns // 4)
        else:
            weight, scale = cut_rows(weight, scale, 0, rows // (2 if name in "kv" else 4))
        total += 2 * (weight.nbytes + scale.nbytes + codebook.nbytes)
    assert PARTS.gpu_bytes(3, 4, 2, nbytes) == total


def test_all_of_it_is_on_one_gpu():
    for depth in (1, 2, 3, 4):
        assert PARTS.gpu_bytes(depth, 1, 2, nbytes) == PARTS.packed_bytes(depth)
    assert PARTS.gpu_bytes(None, 1, 2, None) == PARTS.float_bytes
    assert PARTS.float_bytes == sum(tensor.nbytes for tensor in model())


@pytest.mark.parametrize(
    ("degree", "size", "reason"),
    [
        (1, 320, "down_proj: 320 columns stay whole"),
        (2, 160, "down_proj: 320 columns / 16 = 20 groups: divisible by 2"),
        (4, 80, "down_proj: 320 columns / 16 = 20 groups: divisible by 4"),
        (8, 40, "down_proj: 320 columns / 8 = 40, part of a group of 16"),
        (3, None, "down_proj: 320 columns: not divisible by 3"),
    ],
)
def test_degrees(degree, size, reason):
    assert degree_parts(PARTS, CONFIG, degree) == (size, reason)


def test_a_degree_is_refused_for_rows_and_heads_too():
    narrow = parts_of_source(model(MLP | {"gate": (321, 128)}), "llama")
    assert (
        degree_parts(narrow, CONFIG, 2).reason
        == "gate_proj: 321 rows cannot be cut into 2 equal parts"
    )
    heads = degree_parts(PARTS, CONFIG | {"num_attention_heads": 7}, 2)
    assert heads == (None, "7 attention heads: not divisible by 2")


def test_gpus_are_the_fewest_that_hold_weights_cache_and_reserve():
    """Qwen2.5-72B's shapes, with the sum of each allowed degree done here once more."""
    config = CONFIG | {
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "hidden_size": 8192, "intermediate_size": 29568, "vocab_size": 152064,
    }  # fmt: skip
    shapes = {"q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192),
              "gate": (29568, 8192), "up": (29568, 8192), "down": (8192, 29568)}  # fmt: skip
    entries = [
        entry("model.embed_tokens.weight", 152064, 8192),
        entry("lm_head.weight", 152064, 8192),
    ]
    for layer, (name, shape) in product(range(80), shapes.items()):
        place = "self_attn" if name in "qkvo" else "mlp"
        entries.append(entry(f"model.layers.{layer}.{place}.{name}_proj.weight", *shape))
    parts = parts_of_source(entries, "qwen2")
    need = serving_need(parts, config, [32768], 4, nbytes)
    assert need.cache is not None
    assert need.cache[0].nbytes == 4 * 32768 * 80 * 8 * 128 * 2 * 2
    for row in need.rows:
        assert [fit.gpu_gigabytes for fit in row.fits] == list(GPUS)
        depth = None if row.name == "16 bits" else int(row.name[2:])
        for fit in row.fits:
            tokens, sequences = (8192, 1024) if fit.gpu_gigabytes >= 70 else (2048, 256)
            expected = None
            for degree in (8, 4, 2, 1):
                weights = parts.gpu_bytes(depth, degree, 8, nbytes if depth else None)
                steps = tokens * 2 * (4 * 8192 + 2 * 29568 // degree)
                reserve = 1e9 + steps + sequences * 152064 * 8
                if (
                    weights + need.cache[0].nbytes // degree + reserve
                    <= UTILIZATION * 1e9 * fit.gpu_gigabytes
                ):
                    expected = degree
            if expected:
                assert (fit.tensor_parallel, fit.pipeline_parallel) == (expected, 1), (row, fit)
            else:
                assert fit.pipeline_parallel == 2
    assert "1.7 GB (cards of 24 and 48 GB) or 3.8 GB (80 and 141 GB)" in need.assumption
    floats = [(fit.tensor_parallel, fit.pipeline_parallel) for fit in need.rows[0].fits]
    assert floats == [(8, 2), (8, 1), (4, 1), (2, 1)]


def test_two_stages_where_one_is_not_enough_and_none_where_two_are_not():
    """256 bytes a token, on at most two GPUs each: 25.6 GB and 256 GB."""
    row = serving_need(PARTS, CONFIG, [10**8, 10**9], 1, nbytes).rows[1]
    fits = [(fit.tensor_parallel, fit.pipeline_parallel) for fit in row.fits]
    assert fits[:4] == [(2, 1), (1, 1), (1, 1), (1, 1)]
    assert fits[4:] == [(None, None), (None, None), (2, 2), (2, 2)]


def test_an_unknown_cache_leaves_the_weights():
    need = serving_need(PARTS, CONFIG | {"mamba_d_state": 16}, [8192], 1, nbytes)
    assert need.cache is None
    assert "mamba_d_state" in str(need.cache_unknown)
    assert [row.fits for row in need.rows] == [()] * 5
    assert need.rows[1].file_bytes == PARTS.packed_bytes(1)
