"""What tests of layers of vLLM share. vLLM is imported by fixtures alone: it takes seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from support.packed_matrices import store_matrices
from support.vllm_layers import FUSED

SHARING = (  # modules of vLLM that have taken the two functions by name
    "vllm.distributed",
    "vllm.distributed.parallel_state",
    "vllm.model_executor.parameter",
    "vllm.model_executor.layers.linear",
    "vllm.model_executor.layers.vocab_parallel_embedding",
    "vllm.model_executor.layers.fused_moe.layer",
    "vllm.model_executor.layers.fused_moe.config",
)


@pytest.fixture(scope="session")
def _vllm_world():
    """vLLM's process groups, of this process alone, and a configuration in force."""
    if find_spec("vllm") is None:
        pytest.skip("needs vllm")
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    with warnings.catch_warnings():  # of vLLM's own imports
        warnings.simplefilter("ignore")
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.distributed import parallel_state
        from vllm.utils.network_utils import get_open_port

        from tritllm.integrations.vllm.plugin import register

        register()
        config = VllmConfig()
        with set_current_vllm_config(config):
            parallel_state.init_distributed_environment(
                1, 0, f"tcp://127.0.0.1:{get_open_port()}", 0, "gloo"
            )
            parallel_state.initialize_model_parallel(1, 1)
            yield config
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()
    patch.undo()


@pytest.fixture
def as_rank(_vllm_world, monkeypatch) -> Callable[[int, int], None]:
    """as_rank(rank, degree): layers built from now on are those of a tensor-parallel rank."""
    import importlib

    def become(rank: int, degree: int) -> None:
        for name in SHARING:
            module = importlib.import_module(name)
            for function, value in (("rank", rank), ("world_size", degree)):
                own = f"get_tensor_model_parallel_{function}"
                if hasattr(module, own):
                    monkeypatch.setattr(module, own, lambda value=value: value)

    torch.set_num_threads(1)
    become(0, 1)
    return become


@pytest.fixture(params=["torch", "exact", "int8"])
def mode(request, monkeypatch) -> str:
    """What computes packed layers."""
    monkeypatch.setenv("TRITLLM_LINEAR", request.param)
    return request.param


@pytest.fixture
def config_of(tmp_path, as_rank):
    """config_of(matrices, planes): vLLM's config of a folder that holds the matrices."""

    def make(matrices, planes=None):
        from tritllm.integrations.transformers.config import TritConfig
        from tritllm.integrations.vllm.config import TritVllmConfig

        config = TritVllmConfig(TritConfig(planes=planes))
        config.stored = store_matrices(tmp_path / "packed", matrices, planes)
        config.packed_modules_mapping = FUSED
        return config

    return make
