"""The quantization config that vLLM makes of a packed model's config.json."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from tritllm.errors import TritError
from tritllm.format.quantization_config import METHOD
from tritllm.integrations.transformers.config import TritConfig
from tritllm.integrations.vllm.linear_method import TritLinearMethod
from tritllm.integrations.vllm.stored import (
    StoredMatrices,
    check_tensor_parallel,
    modules_in_file,
    read_stored,
    tp_plan_of,
)
from tritllm.ops.backends.cpu import describe

LEAST_CAPABILITY = 80  # compute capability of a GPU, times ten


class TritVllmConfig(QuantizationConfig):  # type: ignore[misc]
    """Which layers run packed, and how many planes are read.

    What is packed, and how deep, is read from the headers of the model's files and held against
    their manifest before any process loads a weight.

    fields: config.json's quantization_config, or what `--hf-overrides` puts in its place; of it
    only what concerns this load counts: `planes`, and `verify` for a local folder.
    """

    def __init__(self, fields: TritConfig) -> None:
        super().__init__()
        self.fields = fields
        self.stored = StoredMatrices({}, fields.planes)
        self._tp_plan: Any = None
        self._checked_degree: int | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TritVllmConfig:
        """Raises TritError for a field that does not exist or has a wrong value, or a GPU that is
        too old.
        """
        fields = TritConfig(**config)
        if fields.lm_head_depth is not None:
            raise TritError(
                "quantization_config: lm_head_depth is not read by vLLM; quantize the model with "
                "--include lm_head.weight"
            )
        _check_gpu(current_platform.get_device_capability())
        return cls(fields)

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read what the model's files hold. Called once, before any other process is started."""
        self.stored = read_stored(
            model_name, revision, planes=self.fields.planes, verify=self.fields.verify
        )
        self._tp_plan = tp_plan_of(hf_config)
        stored = getattr(hf_config, "quantization_config", None)
        if isinstance(stored, dict):  # part of the key under which vLLM keeps compiled graphs
            stored["_computed_by"] = describe()

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Take on the names that vLLM's model gives its modules."""
        self.stored = self.stored.renamed(hf_to_vllm_mapper._map_name)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """What computes a layer; None for one that is not packed, but for linear layers."""
        self._check_degree()
        if isinstance(layer, LinearBase | ParallelLMHead):
            modules = modules_in_file(prefix, self.packed_modules_mapping, self.stored)
            matrices = self.stored.of_modules(modules)
            if matrices:
                return TritLinearMethod(matrices, self.stored.depth_read(matrices[0]))
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None
        if isinstance(layer, RoutedExperts):
            return None
        return None

    def _check_degree(self) -> None:
        """Once a process: the tensor-parallel degree is known when the first layer is built."""
        config = get_current_vllm_config_or_none()
        if config is None:
            return
        degree = config.parallel_config.tensor_parallel_size
        if degree != self._checked_degree:
            check_tensor_parallel(self.stored.matrices, self._tp_plan, degree)
            self._checked_degree = degree

    def get_name(self) -> str:
        """As config.json calls it."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Those that the operators take."""
        return [torch.float16, torch.bfloat16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """As `from_config` checks it."""
        return LEAST_CAPABILITY

    @staticmethod
    def get_config_filenames() -> list[str]:
        """All is in config.json."""
        return []


def _check_gpu(capability: Any) -> None:
    """Raise TritError for a GPU that is too old. capability: major and minor, None without one."""
    if capability is not None and 10 * capability[0] + capability[1] < LEAST_CAPABILITY:
        raise TritError(
            f"this GPU has compute capability {capability[0]}.{capability[1]}, and packed models "
            f"need {LEAST_CAPABILITY / 10:.1f} or newer (NVIDIA Ampere); serve them on another, "
            "or on the CPU"
        )
