"""Layers of vLLM on packed weights, a rank after the other, beside the dequantized float layers."""

from __future__ import annotations

import pytest
import torch
from support.packed_matrices import random_matrix
from support.vllm_layers import assert_close, finish, load, some_input, weight_of

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


@pytest.mark.parametrize("degree", [1, 2, 8])
def test_query_key_and_value_keep_a_codebook_each(config_of, as_rank, mode, degree):
    from vllm.model_executor.layers.linear import QKVParallelLinear

    hidden, head, heads, kv_heads = 90, 16, 16, 2  # at degree 8, four ranks share a kv head
    sizes = {"q_proj": heads * head, "k_proj": kv_heads * head, "v_proj": kv_heads * head}
    matrices = {
        f"a.{name}": random_matrix((rows, hidden), 2, seed)
        for seed, (name, rows) in enumerate(sizes.items())
    }
    config = config_of(matrices)
    x = some_input(hidden)
    for rank in range(degree):
        as_rank(rank, degree)
        layer = QKVParallelLinear(
            hidden, head, heads, kv_heads, bias=False, quant_config=config, prefix="a.qkv_proj"
        )
        for shard, name in zip("qkv", sizes):
            load(layer, matrices[f"a.{name}"], shard)
        found, _ = finish(layer)(x)
        q, k, v = (weight_of(matrix) for matrix in matrices.values())
        own = max(kv_heads // degree, 1) * head
        kv = slice((rank * kv_heads // degree) * head, (rank * kv_heads // degree) * head + own)
        rows = torch.cat([q.chunk(degree)[rank], k[kv], v[kv]])
        assert_close(found, x @ rows.T, mode)


@pytest.mark.parametrize("degree", [1, 2, 8])
def test_gate_and_up_and_the_bias(config_of, as_rank, mode, degree):
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    hidden, inner = 48, 144
    gate, up = (random_matrix((inner, hidden), 3, seed) for seed in (1, 2))
    config = config_of({"mlp.gate_proj": gate, "mlp.up_proj": up})
    x, bias = some_input(hidden), torch.randn(2 * inner)
    for rank in range(degree):
        as_rank(rank, degree)
        layer = MergedColumnParallelLinear(
            hidden, [inner, inner], bias=True, quant_config=config, prefix="mlp.gate_up_proj"
        )
        for shard, matrix in enumerate((gate, up)):
            load(layer, matrix, shard)
            layer.weight_loader(layer.bias, bias[shard * inner :][:inner], shard)
        found, _ = finish(layer)(x)
        rows = torch.cat([weight_of(m).chunk(degree)[rank] for m in (gate, up)])
        own = torch.cat([part.chunk(degree)[rank] for part in bias.chunk(2)])
        assert_close(found, x @ rows.T + own, mode)


@pytest.mark.parametrize(
    ("columns", "degree"),
    [
        (29568, 8),  # Qwen2.5-72B: 231 groups a rank, cut between bytes
        (720, 2),  # the demo model: 22.5 groups a rank
        (640, 8),  # 80 columns a rank: a slice
        (90, 1),
        (90, 2),
        (72, 8),  # nine columns a rank
    ],
)
def test_the_sum_of_the_ranks_is_the_whole_product(config_of, as_rank, mode, columns, degree):
    from vllm.model_executor.layers.linear import RowParallelLinear

    matrix = random_matrix((16, columns), 2)
    config = config_of({"mlp.down_proj": matrix})
    x, total = some_input(columns), torch.zeros(3, 16)
    for rank in range(degree):
        as_rank(rank, degree)
        layer = RowParallelLinear(
            columns, 16, bias=False, reduce_results=False, quant_config=config,
            prefix="mlp.down_proj",
        )  # fmt: skip
        load(layer, matrix)
        total += finish(layer)(x.chunk(degree, -1)[rank].contiguous())[0]
    assert_close(total, x @ weight_of(matrix).T, mode)


@pytest.mark.parametrize("degree", [1, 2, 8])
def test_the_output_layer_and_its_padding(config_of, as_rank, mode, degree):
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    vocabulary, hidden = 1000, 90  # padded to 1024
    matrix = random_matrix((vocabulary, hidden), 4)
    config = config_of({"lm_head": matrix})
    x, parts = some_input(hidden), []
    for rank in range(degree):
        as_rank(rank, degree)
        layer = ParallelLMHead(vocabulary, hidden, quant_config=config, prefix="lm_head")
        load(layer, matrix)
        parts.append(finish(layer).quant_method.apply(layer, x))
    found = torch.cat(parts, -1)
    assert found.shape == (3, 1024)
    assert not found[:, vocabulary:].any()
    assert_close(found[:, :vocabulary], x @ weight_of(matrix).T, mode)


def test_fewer_planes(config_of, mode):
    from vllm.model_executor.layers.linear import ReplicatedLinear

    matrix = random_matrix((32, 90), 3)
    config = config_of({"x.gate": matrix}, planes=1)
    layer = ReplicatedLinear(90, 32, bias=False, quant_config=config, prefix="x.gate")
    load(layer, matrix)
    x = some_input(90)
    assert_close(finish(layer)(x)[0], x @ weight_of(matrix, 1).T, mode)


@pytest.mark.parametrize("degree", [1, 2])
def test_a_matrix_that_the_file_holds_fused(config_of, as_rank, mode, degree):
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear

    up, qkv = random_matrix((64, 48), 2), random_matrix((96, 48), 2, 1)
    config = config_of({"m.gate_up_proj": up, "m.qkv_proj": qkv})
    x = some_input(48)
    for rank in range(degree):
        as_rank(rank, degree)
        layer = MergedColumnParallelLinear(
            48, [32, 32], bias=False, quant_config=config, prefix="m.gate_up_proj"
        )
        load(layer, up)
        rows = [part.chunk(degree)[rank] for part in weight_of(up).chunk(2)]
        assert_close(finish(layer)(x)[0], x @ torch.cat(rows).T, mode)
        layer = QKVParallelLinear(
            48, 16, 2, 2, bias=False, quant_config=config, prefix="m.qkv_proj"
        )
        load(layer, qkv)
        rows = [part.chunk(degree)[rank] for part in weight_of(qkv).chunk(3)]
        assert_close(finish(layer)(x)[0], x @ torch.cat(rows).T, mode)


def test_a_layer_is_in_memory_once(config_of, mode):
    from vllm.model_executor.layers.linear import RowParallelLinear

    matrix = random_matrix((256, 640), 2)
    config = config_of({"mlp.down_proj": matrix})
    layer = RowParallelLinear(640, 256, bias=False, quant_config=config, prefix="mlp.down_proj")
    load(layer, matrix)
    finish(layer)
    held = sum(p.nbytes for p in layer.parameters()) + sum(b.nbytes for b in layer.buffers())
    assert held < 1.5 * matrix.nbytes  # of prepared memory; twice would be above 2


def test_what_is_not_packed_is_left_to_vllm(config_of):
    from vllm.model_executor.layers.linear import ReplicatedLinear, UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    config = config_of({"up": random_matrix((16, 48), 1)})
    layer = ReplicatedLinear(48, 16, quant_config=config, prefix="mlp.gate")
    assert isinstance(layer.quant_method, UnquantizedLinearMethod)
    for kind, name in ((ParallelLMHead, "lm_head"), (VocabParallelEmbedding, "embed_tokens")):
        layer = kind(64, 48, quant_config=config, prefix=name)
        assert isinstance(layer.quant_method, UnquantizedEmbeddingMethod)
