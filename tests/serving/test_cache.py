"""The cache's rule against sums written out by hand."""

from __future__ import annotations

import pytest

from tritllm.serving.cache import CacheRule, cache_rule

LLAMA = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
}


def nbytes(config, tokens: int, parts: int = 1) -> int:
    rule = cache_rule(config)
    assert isinstance(rule, CacheRule)
    return rule.nbytes(tokens, parts)


def test_full_attention():
    """Llama-3.1-8B: 128 KiB a token, 1 GiB at 8,192 tokens."""
    assert nbytes(LLAMA, 1) == 128 << 10
    assert nbytes(LLAMA, 8192) == 1 << 30
    assert nbytes(LLAMA | {"head_dim": 64}, 8192) == 1 << 29
    assert nbytes(LLAMA | {"num_key_value_heads": None}, 8192) == 4 << 30


def test_shared_by_gpus():
    assert nbytes(LLAMA, 8192, 8) == 1 << 27
    assert nbytes(LLAMA, 8192, 32) == 1 << 27  # 8 heads, held by four GPUs each


def test_a_window_bounds_what_is_kept():
    mistral = LLAMA | {"sliding_window": 4096}
    assert nbytes(mistral, 32768) == nbytes(LLAMA, 4096)
    assert nbytes(mistral, 100) == nbytes(LLAMA, 100)
    assert nbytes(mistral | {"use_sliding_window": False}, 32768) == nbytes(LLAMA, 32768)
    kinds = ["sliding_attention", "full_attention"] * 16
    alternating = nbytes(mistral | {"layer_types": kinds}, 32768)
    assert alternating == (nbytes(LLAMA, 4096) + nbytes(LLAMA, 32768)) // 2
    chunked = {"layer_types": ["chunked_attention"] * 32, "attention_chunk_size": 512}
    assert nbytes(LLAMA | chunked, 32768) == nbytes(LLAMA, 512)


def test_layers_that_read_anothers_cache():
    assert nbytes(LLAMA | {"num_kv_shared_layers": 24}, 8192) == (1 << 30) // 4


def test_one_head_for_all_queries():
    falcon = {"num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544}
    assert nbytes(falcon | {"multi_query": True}, 1) == 2 * 32 * 64 * 2


def test_a_latent_vector_is_on_every_gpu():
    deepseek = LLAMA | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert nbytes(deepseek, 1) == nbytes(deepseek, 1, 8) == 32 * (512 + 64) * 2


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"layer_types": ["linear_attention"] * 32}, "layers of type linear_attention"),
        ({"mamba_d_state": 128}, "(mamba_d_state)"),
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"global_head_dim": 512}, "heads of different widths"),
        ({"hidden_size": "wide"}, "does not tell layers, heads and width"),
    ],
)
def test_what_is_not_known_is_said(fields, why):
    rule = cache_rule(LLAMA | fields)
    assert isinstance(rule, str)
    assert why in rule
