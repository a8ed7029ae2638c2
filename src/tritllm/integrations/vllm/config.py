"""The quantization config that vLLM makes of a packed model's config.json.

What only a packed model needs is imported when there is one: vLLM loads the plugin for every model.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.platforms import current_platform

from tritllm.errors import FormatError, TritError
from tritllm.format.quantization_config import METHOD
from tritllm.integrations.vllm.stored import (
    StoredMatrices,
    check_tensor_parallel,
    modules_in_file,
    read_stored,
    where,
)


class TritVllmConfig(QuantizationConfig):  # type: ignore[misc]
    """Which layers run packed, and how many planes are read.

    What is packed, and how deep, is read from the headers of the model's files and held against
    their manifest before any process loads a weight.

    fields: a TritConfig of config.json's quantization_config, or of what `--hf-overrides` puts in
    its place; of it only what concerns this load counts: `planes`, and `verify` for a local folder.
    """

    def __init__(self, fields: Any) -> None:
        super().__init__()
        self.fields = fields
        self.stored = StoredMatrices({}, fields.planes)
        self._checked_degree: int | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TritVllmConfig:
        """Raises TritError for a field that does not exist or has a wrong value, or a GPU that is
        too old.
        """
        from tritllm.integrations.transformers.config import TritConfig

        fields = TritConfig(**config)
        if fields.lm_head_depth is not None:
            raise TritError(
                "quantization_config: lm_head_depth is not read by vLLM; quantize the model with "
                "--include lm_head.weight"
            )
        for name in ("input_norm_eps", "activations"):
            if getattr(fields, name) is not None:
                raise TritError(
                    f"quantization_config: {name} is not read by vLLM; run the model in "
                    "transformers"
                )
        _check_gpu(current_platform.get_device_capability())
        return cls(fields)

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read what the model's files hold. Called once, before any other process is started.

        Raises TritError and FormatError as `read_stored`, and FormatError where the config has a
        depth for a module that no file has packed.
        """
        from tritllm.integrations.transformers.stored_layers import check_depths_stored

        self.stored = read_stored(
            model_name, revision, planes=self.fields.planes, verify=self.fields.verify
        )
        weights = {matrix.name: matrix for matrix in self.stored.matrices.values()}
        check_depths_stored(self.fields, weights, [model_name])
        _mark(hf_config)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Take on the names that vLLM's model gives its modules."""
        self.stored = self.stored.renamed(hf_to_vllm_mapper._map_name)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """What computes a layer; None for one that is not packed, but for linear layers."""
        from vllm.model_executor.layers.fused_moe import RoutedExperts
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        from tritllm.integrations.vllm.linear_method import TritLinearMethod

        self._check_degree()
        if isinstance(layer, LinearBase | ParallelLMHead):
            modules = modules_in_file(prefix, self.packed_modules_mapping, self.stored)
            matrices = self.stored.of_modules(modules)
            if matrices:
                return TritLinearMethod(matrices, self.stored.depth_read(matrices[0]))
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None
        if isinstance(layer, RoutedExperts):
            return self._experts_method(layer, prefix)
        return None

    def _experts_method(self, layer: Any, prefix: str) -> Any:
        """The method of a block's experts, whose matrices have names of their own in the file."""
        from tritllm.integrations.vllm.experts_method import TritExpertsMethod, check_supported

        names = layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name
        experts = range(layer.moe_config.num_logical_experts)
        gate_up = [f"{prefix}.{e}.{name}" for e in experts for name in names[:2]]
        first = self.stored.of_modules(gate_up)
        second = self.stored.of_modules([f"{prefix}.{e}.{names[2]}" for e in experts])
        if first or second:
            check_supported(layer, (first or second)[0])
        if bool(first) != bool(second):
            raise FormatError(
                f"{where((first or second)[0])} is packed and other matrices of {prefix} are not, "
                "but vLLM runs them as one; quantize all, or none (--include, --exclude)"
            )
        return TritExpertsMethod(layer.moe_config, first, second, self.stored) if first else None

    def _check_degree(self) -> None:
        """Once a process: the tensor-parallel degree is known when the first layer is built."""
        from vllm.config import get_current_vllm_config_or_none

        config = get_current_vllm_config_or_none()
        if config is None:
            return
        parallel = config.parallel_config
        degree = parallel.tensor_parallel_size
        if degree != self._checked_degree:
            check_tensor_parallel(
                self.stored.matrices,
                degree,
                experts_are_cut=not parallel.enable_expert_parallel,
            )
            self._checked_degree = degree

    def get_name(self) -> str:
        """As config.json calls it."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Those that the operators take."""
        return [torch.float16, torch.bfloat16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """As `from_config` checks it, times ten."""
        from tritllm.ops.backends.cuda import MIN_CAPABILITY

        return 10 * MIN_CAPABILITY[0] + MIN_CAPABILITY[1]

    @staticmethod
    def get_config_filenames() -> list[str]:
        """All is in config.json."""
        return []


def _mark(hf_config: Any) -> None:
    """Say in a model's config what computes it, so that vLLM keeps graphs that it has compiled for
    one way of computing from those for another: the config is part of their key.
    """
    from tritllm.ops.backends.cpu import describe
    from tritllm.ops.triton_kernels.layout import LAYOUT
    from tritllm.version import __version__

    how = f"tritllm {__version__}: {describe()}; CUDA layout {LAYOUT}"

    texts = getattr(hf_config, "text_config", None)
    for config in (hf_config, texts):
        stored = getattr(config, "quantization_config", None)
        if isinstance(stored, dict):
            stored["_computed_by"] = how


def _check_gpu(capability: Any) -> None:
    """Raise TritError for a GPU that is too old. capability: major and minor, None without one."""
    from tritllm.ops.backends.cuda import MIN_CAPABILITY

    if capability is not None and tuple(capability) < MIN_CAPABILITY:
        own, least = (".".join(map(str, version)) for version in (capability, MIN_CAPABILITY))
        raise TritError(
            f"this GPU has compute capability {own}, and packed models need {least} or newer "
            "(NVIDIA Ampere); serve them on another, or on the CPU"
        )
