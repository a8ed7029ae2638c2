"""TritQuantizer: what transformers calls while it loads, saves and dequantizes a packed model."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers.quantizers.base import HfQuantizer

from tritllm.errors import SourceError, TritError
from tritllm.integrations.transformers.compat import (
    attention_of,
    forget_conversions,
    forget_quantized,
    get_model_conversion_mapping,
    name_in_model,
)
from tritllm.integrations.transformers.config import TritConfig, tell_loaded
from tritllm.integrations.transformers.dtype_of_renamed import cast_renamed, float_dtypes
from tritllm.integrations.transformers.layers import float_layer, packed_layers
from tritllm.quantizer.decisions import reads_weights

_EXPERT = re.compile(r"\.experts\.\d+\.")


class TritQuantizer(HfQuantizer):  # type: ignore[misc]
    """Runs linear layers packed, in models loaded from packed or from float checkpoints.

    Loaded layers are checked by the format's rules for readers; what breaks one is refused with
    one line (FormatError, a TritError). For layers on the CPU the native kernels' memory is
    prepared where they can run.
    """

    requires_calibration = False
    quantization_config: TritConfig

    def __init__(self, quantization_config: TritConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._where: dict[str, str] = {}  # module: file and tensor, for error messages
        self._depths: dict[str, int] = {}  # module: depth, on the fly
        self._faults: list[str] = []
        self._attention_asked = False
        self._dtypes: dict[str, torch.dtype] = {}  # of float parameters, as the model has them
        self._unfused: list[list[str]] = []  # targets of the conversions that fuse experts
        self._splitting: set[str] = set()  # fused parameters that are split at load

    def validate_environment(self, device_map: Any = None, **_: Any) -> None:
        """Raise TritError for a device that holds no numbers: packed weights must be checked."""
        devices = device_map.values() if isinstance(device_map, dict) else (device_map,)
        if any(str(device) == "meta" for device in devices):
            raise TritError(
                "device_map: a packed model cannot be loaded onto meta, where there is nothing "
                "to check; use the CPU, a GPU, or AutoModel.from_config"
            )

    # --- Before loading: the model is on meta -----------------------------------------------------

    def update_attn_implementation(self, config: Any) -> Any:
        """Note whether the user chose an attention."""
        self._attention_asked = attention_of(config) is not None
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """As above, for transformers before 5.19, which does not call it."""
        return self.update_attn_implementation(config)

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> Any:
        from tritllm.integrations.transformers.float_layers import (
            check_on_the_fly,
            swap_float_layers,
        )
        from tritllm.integrations.transformers.split_at_load import split_experts

        _check_not_cut(model)
        conversions = get_model_conversion_mapping(model)
        self._dtypes = float_dtypes(model)
        files = [str(file) for file in checkpoint_files or ()]
        if self.pre_quantized:
            self._swap_stored(model, files, conversions)
        else:
            check_on_the_fly(self.quantization_config)
            fused = self._fused(model, files, conversions)
            self._unfuse(model, conversions, fused)
            self._splitting = split_experts(model, fused)
            self._depths = swap_float_layers(model, self.quantization_config, self._splitting)
        return model

    def _swap_stored(self, model: Any, files: Sequence[str], conversions: Sequence[Any]) -> None:
        """Swap the layers whose packed weights the files hold."""
        from tritllm.checkpoint.hashes import check_hashes
        from tritllm.checkpoint.packed_headers import stored_matrices
        from tritllm.integrations.transformers.hub_manifest import fetch_manifest
        from tritllm.integrations.transformers.stored_layers import (
            check_depths_stored,
            swap_stored_layers,
        )

        if not files or not all(file.endswith(".safetensors") for file in files):
            raise TritError("a packed model is loaded from safetensors files, and here are none")
        fetch_manifest(files)
        stored = stored_matrices(files)
        if self.quantization_config.verify:
            check_hashes(files)
        check_depths_stored(self.quantization_config, stored, files)
        if any(_EXPERT.search(name) for name in stored):
            self._unfuse(model, conversions, self._fused(model, files, conversions))
        self._where = swap_stored_layers(
            model, stored, conversions, self.quantization_config.input_norm_eps
        )

    def _fused(
        self, model: Any, files: Sequence[str], conversions: Sequence[Any]
    ) -> dict[str, str]:
        """By the model's name of a parameter of fused experts, the files' name of it."""
        from tritllm.checkpoint.packed_headers import fused_floats

        if not all(file.endswith(".safetensors") for file in files):
            return {}
        state = model.state_dict()
        return {name_in_model(n, conversions, model, state): n for n in fused_floats(files)}

    def _unfuse(self, model: Any, conversions: Sequence[Any], fused: Collection[str]) -> None:
        from tritllm.integrations.transformers.experts import unfuse_experts

        used = unfuse_experts(model, conversions, fused)
        self._unfused = [conversion.target_patterns for conversion in used]

    # --- While loading ----------------------------------------------------------------------------

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> Any:
        """Without those that would fuse the experts. transformers before 5.20 gives no model."""
        return [
            conversion
            for conversion in weight_conversions
            if conversion.target_patterns not in self._unfused
        ]

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether a float tensor of a file is to be encoded."""
        if self.pre_quantized:
            return False
        return param_name.removesuffix(".weight") in self._depths or param_name in self._splitting

    def get_quantize_ops(self) -> Any:
        """The operation that encodes."""
        from tritllm.integrations.transformers.encode_at_load import Encode

        return Encode(self._depths, self.quantization_config.codec, self._faults, self._splitting)

    # --- After loading ----------------------------------------------------------------------------

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        from tritllm.integrations.transformers.attention import use_attention
        from tritllm.integrations.transformers.check_and_prepare import check_and_prepare
        from tritllm.integrations.transformers.description import describe_loaded
        from tritllm.integrations.transformers.dtype_of_weight import tell_dtypes
        from tritllm.integrations.transformers.native_step import use_native_step
        from tritllm.integrations.transformers.output_layer import pack_output_layer
        from tritllm.integrations.transformers.packed_model import use_packed_model
        from tritllm.integrations.transformers.widened_linear import widen_linears

        if self._faults:
            raise SourceError(f"{model.config.name_or_path}: {self._faults[0]}; fix the source")
        if self.pre_quantized:
            cast_renamed(model, self._dtypes)
        config = self.quantization_config
        own = config.lm_head_depth  # of the output layer
        head = None if own is None else pack_output_layer(model, own)
        layers = packed_layers(model)
        for name, layer in layers.items():
            if config.planes is not None and layer is not head:
                layer.keep_planes(config.planes)
            if config.activations is not None and layer is not head:
                layer.mode = config.activations
            layer.requires_grad_(False)
            check_and_prepare(layer, self._where.get(name, name))
        tell_dtypes(model, self._dtypes)
        if reads_weights(model.config.model_type):
            forget_quantized(model)
        describe_loaded(config, layers)
        if not self._attention_asked:
            use_attention(model)
        widen_linears(model)
        use_native_step(model)
        use_packed_model(model)
        tell_loaded(model)
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        """Ordinary layers with the numbers the packed ones stand for, rounded to dtype."""
        from tritllm.integrations.transformers.experts import TritExperts

        dtype = dtype or model.dtype
        if isinstance(dtype, str):  # as config.dtype is once the model has been saved
            dtype = getattr(torch, dtype)
        assert isinstance(dtype, torch.dtype)
        for name, module in list(model.named_modules()):
            if isinstance(module, TritExperts):
                model.set_submodule(name, module.to_fused(dtype))
        for name, layer in packed_layers(model).items():
            model.set_submodule(name, float_layer(layer, dtype))
        if self._unfused:
            forget_conversions(model)
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """save_pretrained writes the portable tensors, bit for bit."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained, Trainer asks; packed weights are frozen themselves."""
        return True

    @property
    def is_compileable(self) -> bool:
        """The operators have fakes; generate may compile with a static cache."""
        return True


def _check_not_cut(model: Any) -> None:
    """Raise TritError where transformers is about to give each process a part of every weight.

    It cuts tensors as floats are laid out: packed ones would break, or silently be another model's.
    """
    asked = getattr(model.config, "distributed_config", None), getattr(model, "_tp_size", None)
    if any(value is not None for value in asked):
        raise TritError(
            "tp_plan and distributed_config: transformers cannot cut packed weights; load the "
            "model whole, or serve it with vLLM, which can (--tensor-parallel-size)"
        )
