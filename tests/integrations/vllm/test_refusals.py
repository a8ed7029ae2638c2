"""What bad input gets inside vLLM: one line that names file and tensor."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from support.packed_matrices import random_matrix
from support.vllm_layers import finish, load

from tritllm.errors import FormatError, TritError

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


def refusal(call, kind=TritError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def layer_of(config_of):
    """layer_of(change): gate and up, the latter's tensors changed before they are loaded."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    def make(change=lambda matrix: matrix, leave_out=()):
        gate, up = random_matrix((32, 48), 2), random_matrix((32, 48), 2, 1)
        layer = MergedColumnParallelLinear(
            48, [32, 32], bias=False, quant_config=config_of({"gate_proj": gate, "up_proj": up}),
            prefix="gate_up_proj",
        )  # fmt: skip
        change(up)
        for shard, matrix in enumerate((gate, up)):
            if shard not in leave_out:
                load(layer, matrix, shard)
        return finish(layer)

    return make


def test_bytes_that_are_no_trits(layer_of, mode):
    message = refusal(lambda: layer_of(lambda m: m.weight.__setitem__((1, 3, 2), 243)), FormatError)
    assert "model.safetensors: tensor up_proj.weight: byte 243" in message


def test_scale_indices_that_are_no_trits(layer_of, mode):
    message = refusal(lambda: layer_of(lambda m: m.scale.__setitem__((3, 0), 255)), FormatError)
    assert "tensor up_proj.weight_scale: byte 255" in message


def test_padding_that_is_not_zero(layer_of, mode):
    message = refusal(lambda: layer_of(lambda m: m.weight.__setitem__((0, 0, -1), 0)), FormatError)
    assert "tensor up_proj.weight: padding after trit 48" in message


@pytest.mark.parametrize("value", [-1.0, float("nan"), 0.0])
def test_a_codebook_that_is_not_ascending(layer_of, value):
    change = lambda matrix: matrix.codebook.__setitem__((1, 20), value)  # noqa: E731
    message = refusal(lambda: layer_of(change), FormatError)
    assert "model.safetensors: tensor up_proj.weight_codebook: codebook" in message


def test_a_matrix_that_was_not_loaded(layer_of):
    message = refusal(lambda: layer_of(leave_out=(1,)), FormatError)
    assert "model.safetensors: tensor up_proj.weight" in message


def test_depths_that_differ_within_a_fused_layer(config_of):
    from vllm.model_executor.layers.linear import QKVParallelLinear

    config = config_of({f"{n}_proj": random_matrix((32, 48), d) for n, d in zip("qkv", (2, 2, 3))})
    message = refusal(
        lambda: QKVParallelLinear(48, 16, 2, quant_config=config, prefix="qkv_proj"), FormatError
    )
    assert "tensor q_proj.weight has depth 2 and v_proj.weight has 3" in message


def test_a_model_with_other_rows_or_columns(config_of):
    from vllm.model_executor.layers.linear import ReplicatedLinear

    matrix = random_matrix((32, 48), 1)
    config = config_of({"x": matrix})
    message = refusal(lambda: ReplicatedLinear(96, 32, quant_config=config, prefix="x"))
    assert "tensor x.weight is U8 [1, 32, 10]" in message
    layer = ReplicatedLinear(48, 64, bias=False, quant_config=config, prefix="x")
    assert "tensor x.weight has 32 rows" in refusal(lambda: load(layer, matrix), FormatError)


def test_a_float_tensor_where_the_header_said_packed(config_of):
    from vllm.model_executor.layers.linear import ReplicatedLinear

    config = config_of({"x": random_matrix((32, 48), 1)})
    layer = ReplicatedLinear(48, 32, bias=False, quant_config=config, prefix="x")
    message = refusal(lambda: layer.weight.weight_loader(layer.weight, torch.zeros(32, 48)))
    assert "tensor x.weight is torch.float32 [32, 48], not packed" in message


@pytest.fixture
def config_class(as_rank):
    from tritllm.integrations.vllm import config

    return config.TritVllmConfig


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"plane": 2}, "did you mean planes?"),
        ({"planes": 5}, "planes 5 is not 1..4"),
        ({"format_version": 2}, "upgrade tritllm"),
        ({"lm_head_depth": 4}, "--include lm_head.weight"),
    ],
)
def test_fields_of_quantization_config(config_class, fields, expected):
    assert expected in refusal(lambda: config_class.from_config(fields))


def test_a_gpu_that_is_too_old(config_class, monkeypatch):
    from tritllm.integrations.vllm import config

    platform = SimpleNamespace(get_device_capability=lambda: (7, 5))
    monkeypatch.setattr(config, "current_platform", platform)
    message = refusal(lambda: config_class.from_config({}))
    assert "compute capability 7.5" in message
    assert "8.0 or newer" in message
    platform.get_device_capability = lambda: (8, 0)
    config_class.from_config({})


def test_a_vllm_that_is_too_old(as_rank, monkeypatch):
    import vllm
    from vllm.model_executor.layers import quantization

    from tritllm.integrations.vllm.plugin import register

    own = quantization.get_quantization_config("tritllm")
    monkeypatch.setattr(vllm, "__version__", "0.31.0")
    monkeypatch.setattr(quantization, "QUANTIZATION_METHODS", ["awq"])
    table = {}
    monkeypatch.setattr(quantization, "_CUSTOMIZED_METHOD_TO_QUANT_CONFIG", table)
    register()
    assert table["tritllm"] is not own
    message = refusal(lambda: table["tritllm"].from_config({}))
    assert "vllm 0.31.0 is too old" in message
    assert "0.32 or newer" in message


def test_registering_twice_changes_nothing(as_rank):
    from vllm.model_executor.layers.quantization import get_quantization_config

    from tritllm.integrations.vllm.plugin import register

    before = get_quantization_config("tritllm")
    register()
    assert get_quantization_config("tritllm") is before


def test_the_files_are_read_when_vllm_makes_its_config(config_class, tiny, tmp_path):
    folder = tmp_path / "packed"
    shutil.copytree(tiny("llama", 2) / "packed", folder)
    hf_config = SimpleNamespace(quantization_config={"quant_method": "tritllm"})
    config = config_class.from_config({"planes": 1})
    config.maybe_update_config(str(folder), hf_config=hf_config, revision=None)
    assert config.stored.planes == 1
    assert "model.layers.0.self_attn.q_proj" in config.stored.matrices
    again = config_class.from_config(hf_config.quantization_config)  # with what was added to it
    assert again.fields.planes is None
    config.fields.depth = {"model.layers.9.mlp.up_proj": 2}
    message = refusal(lambda: config.maybe_update_config(str(folder)), FormatError)
    assert "model.layers.9.mlp.up_proj.weight_codebook is missing" in message
    (folder / "model.safetensors").unlink()
    assert str(folder) in refusal(lambda: config.maybe_update_config(str(folder)), FormatError)


def test_what_computes_is_part_of_the_key_of_compiled_graphs(config_class, tiny, monkeypatch):
    found = []
    for mode in ("int8", "exact", "torch"):
        monkeypatch.setenv("TRITLLM_LINEAR", mode)
        hf_config = SimpleNamespace(quantization_config={})
        folder = str(tiny("llama", 2) / "packed")
        config_class.from_config({}).maybe_update_config(folder, hf_config=hf_config)
        found.append(str(hf_config.quantization_config))
    assert len(set(found)) == 3


def test_a_tensor_parallel_size_that_does_not_divide(config_class, tiny, monkeypatch):
    import vllm.config

    parallel = SimpleNamespace(tensor_parallel_size=5, enable_expert_parallel=False)
    current = SimpleNamespace(parallel_config=parallel)
    monkeypatch.setattr(vllm.config, "get_current_vllm_config_or_none", lambda: current)
    config = config_class.from_config({})
    config.maybe_update_config(str(tiny("llama", 2) / "packed"))
    message = refusal(lambda: config.get_quant_method(torch.nn.Identity(), "model.embed_tokens"))
    assert "down_proj.weight: 72 columns cannot be shared by 5 ranks" in message
    parallel.tensor_parallel_size = 2
    assert config.get_quant_method(torch.nn.Identity(), "model.embed_tokens") is None


def test_a_model_of_vllm_renames_modules(config_of):
    from vllm.model_executor.models.utils import WeightsMapper

    config = config_of({"model.x": random_matrix((32, 48), 1)})
    config.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"model.": "language_model.model."}))
    assert list(config.stored.matrices) == ["language_model.model.x"]
