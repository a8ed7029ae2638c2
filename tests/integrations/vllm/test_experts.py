"""Mixtures of experts of vLLM on packed weights, a rank after the other, beside float experts."""

from __future__ import annotations

import itertools

import pytest
import torch
from support import fused_experts
from support.packed_matrices import random_matrix
from support.vllm_layers import SUFFIXES, assert_close, finish, some_input, weight_of
from torch.nn.functional import silu

from tritllm import PackedCheckpoint, quantize
from tritllm.errors import FormatError, TritError
from tritllm.integrations.vllm.stored import read_stored
from tritllm.ops.numpy_arrays import torch_parts

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
EXPERTS, HIDDEN = 4, 48
LEAVES = ("gate_proj", "up_proj", "down_proj")
_names = itertools.count()


def experts_of(inner: int, depths=(2, 2, 3), prefix: str = "mlp.experts"):
    """Matrices of all experts by the names of the file."""
    found = {}
    for expert in range(EXPERTS):
        for number, (leaf, depth) in enumerate(zip(LEAVES, depths)):
            shape = (HIDDEN, inner) if leaf == "down_proj" else (inner, HIDDEN)
            found[f"{prefix}.{expert}.{leaf}"] = random_matrix(shape, depth, 3 * expert + number)
    return found


def build(config, inner: int, hidden: int = HIDDEN, experts: int = EXPERTS, **options):
    from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory

    prefix = f"layers.{next(_names)}.mlp.experts"  # vLLM wants every name once
    config.stored = config.stored.renamed(lambda name: name.replace("mlp.experts", prefix))
    return FusedMoEFactory(
        num_experts=experts, top_k=2, hidden_size=hidden, intermediate_size=inner,
        params_dtype=torch.float32, quant_config=config, prefix=prefix, **options,
    ).routed_experts  # fmt: skip


def load(layer, matrices) -> None:
    """What vLLM does with the stored tensors, by their names in the file."""
    tensors = []
    for name, matrix in matrices.items():
        leaf = name.removeprefix("mlp.experts.")
        tensors += [(f"{leaf}.{s}", t) for s, t in zip(SUFFIXES, torch_parts(matrix))]
    assert len(list(layer.load_weights(tensors))) == len(tensors)


def float_experts(matrices, x, weights, ids) -> torch.Tensor:
    total = torch.zeros_like(x)
    for token, (row, shares, chosen) in enumerate(zip(x, weights, ids.tolist())):
        for share, expert in zip(shares, chosen):
            gate, up, down = (weight_of(matrices[f"mlp.experts.{expert}.{n}"]) for n in LEAVES)
            total[token] += share * ((silu(row @ gate.T) * (row @ up.T)) @ down.T)
    return total


@pytest.fixture
def tokens():
    """x, and for each of its rows two experts; none chooses expert 2."""
    ids = torch.tensor([[0, 1], [3, 0], [1, 3]], dtype=torch.int32)
    return some_input(HIDDEN), torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.9, 0.1]]), ids


@pytest.mark.parametrize(("inner", "degree"), [(80, 1), (96, 2), (72, 2), (64, 8)])
def test_experts_sum_to_the_float_experts(config_of, as_rank, tokens, mode, inner, degree):
    matrices = experts_of(inner)
    total = torch.zeros(3, HIDDEN)
    for rank in range(degree):
        as_rank(rank, degree)
        config = config_of(matrices)
        layer = build(config, inner)
        load(layer, matrices)
        x, weights, ids = tokens
        total += finish(layer).forward_modular(x, weights, ids)
    assert_close(total, float_experts(matrices, *tokens), mode)


def test_an_expert_without_tokens_is_not_computed(config_of, tokens, monkeypatch):
    from tritllm.integrations.vllm.weights import Call

    matrices = experts_of(64)
    layer = build(config_of(matrices), 64)
    load(layer, matrices)
    finish(layer)
    rows = []
    run = Call.run
    monkeypatch.setattr(Call, "run", lambda *args: rows.append(len(args[1])) or run(*args))
    x, weights, ids = tokens
    layer.forward_modular(x, weights, ids)
    assert rows == [2, 2, 2, 2, 2, 2]  # gate and up, then down, of the experts 0, 1 and 3


def test_experts_of_another_rank_are_left_out(config_of, tokens, mode):
    from tritllm.integrations.vllm.experts_operator import experts

    matrices = experts_of(64)
    layer = build(config_of(matrices), 64)
    load(layer, matrices)
    finish(layer)
    x, weights, ids = tokens
    here = torch.tensor([0, -1, -1, 3], dtype=torch.int32)
    found = experts(
        x, weights, ids, here, "silu", layer.w13_weight, layer.w13_weight_scale,
        layer.w13_weight_codebook, layer.w13_call, layer.w2_weight, layer.w2_weight_scale,
        layer.w2_weight_codebook, layer.w2_call, [0, 0],
    )  # fmt: skip
    kept = weights * torch.isin(ids, torch.tensor([0, 3]))
    assert_close(found, float_experts(matrices, x, kept, ids), mode)


def test_a_cuda_graph_computes_every_expert(config_of, tokens, monkeypatch):
    from tritllm.integrations.vllm import experts_operator

    monkeypatch.setenv("TRITLLM_LINEAR", "exact")
    matrices = experts_of(64)
    layer = build(config_of(matrices), 64)
    load(layer, matrices)
    finish(layer)
    x, weights, ids = tokens
    monkeypatch.setattr(experts_operator, "is_captured", lambda _: True)
    found = layer.forward_modular(x, weights, ids)
    assert_close(found, float_experts(matrices, x, weights, ids), "exact")


def test_the_operator_is_one_node_of_a_compiled_graph(config_of, tokens, monkeypatch):
    monkeypatch.setenv("TRITLLM_LINEAR", "exact")
    matrices = experts_of(64)
    layer = build(config_of(matrices), 64)
    load(layer, matrices)
    finish(layer)
    compiled = torch.compile(layer.forward_modular, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tokens), layer.forward_modular(*tokens))


@pytest.mark.parametrize("kind", ["qwen3_moe", "granitemoe"])
def test_experts_of_a_fused_source(tmp_path, as_rank, tokens, mode, kind):
    """A folder that `quantize` made, loaded by the names of its files."""
    from tritllm.integrations.transformers.config import TritConfig
    from tritllm.integrations.vllm.config import TritVllmConfig

    source = fused_experts.write_fused(tmp_path / "source", kind)
    quantize(
        str(source), ["uniform-d2"], tmp_path / "out", write=("packed",), allow_low_coverage=True
    )
    folder = tmp_path / "out" / "uniform-d2" / "packed"
    config = TritVllmConfig(TritConfig())
    config.stored = read_stored(str(folder), None)
    before = f"model.layers.0.{fused_experts.LAYOUTS[kind].prefix}"
    config.stored = config.stored.renamed(lambda name: name.replace(before, "mlp.experts"))
    packed = PackedCheckpoint(folder)
    found = {
        name.removesuffix(".weight").replace(before, "mlp.experts"): packed.tensor(name)
        for name in packed.quantized
        if name.startswith(before)
    }
    hidden, inner, count = fused_experts.HIDDEN, fused_experts.INNER, fused_experts.EXPERTS
    layer = build(config, inner, hidden=hidden, experts=count)
    load(layer, found)
    _, weights, ids = tokens
    x, ids = some_input(hidden), ids % count
    result = finish(layer).forward_modular(x, weights, ids)
    assert_close(result, float_experts(found, x, weights, ids), mode)


def refusal(call, kind) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_depths_that_differ_among_experts(config_of):
    matrices = experts_of(64)
    matrices["mlp.experts.2.up_proj"] = random_matrix((64, HIDDEN), 1)
    message = refusal(lambda: build(config_of(matrices), 64), FormatError)
    assert "experts.0.gate_proj.weight has depth 2" in message
    assert "experts.2.up_proj.weight has 1" in message


def test_only_some_experts_are_packed(config_of):
    matrices = {n: m for n, m in experts_of(64).items() if not n.endswith("down_proj")}
    message = refusal(lambda: build(config_of(matrices), 64), FormatError)
    assert "experts.0.gate_proj.weight is packed" in message


def test_experts_that_are_not_plainly_gated(config_of):
    message = refusal(lambda: build(config_of(experts_of(64)), 64, has_bias=True), TritError)
    assert "experts.0.gate_proj.weight" in message
    assert "biases" in message


def test_an_expert_that_no_file_has(config_of):
    matrices = experts_of(64)
    layer = build(config_of(matrices), 64)
    load(layer, {n: m for n, m in matrices.items() if "experts.1." not in n})
    message = refusal(lambda: finish(layer), FormatError)
    assert "experts.1.gate_proj.weight was not loaded" in message


def test_bytes_of_an_expert_that_are_no_trits(config_of, mode):
    matrices = experts_of(64)
    layer = build(config_of(matrices), 64)
    name = "mlp.experts.3.up_proj"
    matrices[name].weight[1, 5, 3] = 250
    load(layer, matrices)
    assert "experts.3.up_proj.weight: byte 250" in refusal(lambda: finish(layer), FormatError)


def test_unpacked_experts_are_left_to_vllm(config_of):
    config = config_of(experts_of(64))
    layer = build(config, 64)
    assert config.get_quant_method(layer, "another.block.experts") is None
