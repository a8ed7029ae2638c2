"""What tests of layers of vLLM do with each: load, finish, compare."""

from __future__ import annotations

import torch

from tritllm.ops.numpy_arrays import torch_parts

SUFFIXES = ("weight", "weight_scale", "weight_codebook")
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
TOLERANCE = {"torch": 5e-6, "exact": 5e-6, "int8": 2e-2}  # of the largest result


def load(layer, matrix, *shard) -> None:
    """What vLLM does with the three tensors of a stored matrix."""
    for name, tensor in zip(SUFFIXES, torch_parts(matrix)):
        parameter = getattr(layer, name)
        parameter.weight_loader(parameter, tensor, *shard)


def finish(layer):
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def weight_of(matrix, planes=None) -> torch.Tensor:
    return torch.from_numpy(matrix.decode(planes=planes))


def some_input(columns: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))


def assert_close(found, expected, mode) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE[mode] * expected.abs().max()
