"""TritQuantizer: what transformers calls while it loads, saves and dequantizes a packed model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer

from tritllm.codec import encode
from tritllm.errors import FormatError, SourceError, TritError
from tritllm.integrations.transformers.config import TritConfig
from tritllm.integrations.transformers.dtype_of_renamed import cast_renamed, float_dtypes
from tritllm.ops.numpy_arrays import numpy_matrix
from tritllm.ops.trit_linear import TritLinear

_LAYER_NUMBER = re.compile(r"\.\d+\.")


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

    # --- Before loading: the model is on meta -----------------------------------------------------

    def update_attn_implementation(self, config: Any) -> Any:
        """Note whether the user chose an attention."""
        self._attention_asked = config._attn_implementation is not None
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """As above, for transformers before 5.19, which does not call it."""
        return self.update_attn_implementation(config)

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> Any:
        from transformers.conversion_mapping import get_model_conversion_mapping

        conversions = get_model_conversion_mapping(model)
        self._dtypes = float_dtypes(model)
        if self.pre_quantized:
            self._swap_stored(model, checkpoint_files, conversions)
        else:
            self._swap_linears(model, conversions)
        return model

    def _swap_stored(
        self, model: Any, files: Sequence[str] | None, conversions: Sequence[Any]
    ) -> None:
        """Swap the layers whose packed weights the files hold."""
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        from tritllm.checkpoint.packed_headers import stored_matrices

        if not files or not all(str(file).endswith(".safetensors") for file in files):
            raise TritError("a packed model is loaded from safetensors files, and here are none")
        stored = stored_matrices([str(file) for file in files])
        if any(re.search(r"\.experts\.\d+\.", name) for name in stored):
            self._unfuse(model, conversions)
        renamings = [item for item in conversions if isinstance(item, WeightRenaming)]
        names = model.state_dict()
        for name, matrix in stored.items():
            key, _ = rename_source_key(name, renamings, [], model.base_model_prefix, names)
            if key not in names:  # a head that this class of model has not
                continue
            module = key.removesuffix(".weight")
            self._where[module] = f"{matrix.file}: tensor {name}"
            layer = _packed_like(model.get_submodule(module), matrix.depth, self._where[module])
            matrix.check(layer.out_features, layer.in_features)
            model.set_submodule(module, layer)
        depth = self.quantization_config.depth
        for name in depth if isinstance(depth, dict) else ():
            if f"{name}.weight" not in stored:
                raise FormatError(
                    f"{files[0]}: tensor {name}.weight_codebook is missing; "
                    "config.json has a depth for it"
                )

    def _swap_linears(self, model: Any, conversions: Sequence[Any]) -> None:
        """Swap the layers that are to be quantized; their weights come as floats."""
        from tritllm.integrations.transformers.encode_at_load import is_linear_weight

        config = self.quantization_config
        if config.depth is None:
            raise TritError("to quantize while loading, give TritConfig a depth of 1..4")
        self._unfuse(model, conversions)
        kept = []
        for name, module in list(model.named_modules()):
            if not isinstance(module, (nn.Linear, Conv1D)):
                if isinstance(module, nn.Embedding):
                    kept.append(name)
                continue
            in_expert = re.search(r"\.experts\.\d+\.", f".{name}.") is not None
            shape = tuple(module.weight.shape)
            depth = config.depth.get(name) if isinstance(config.depth, dict) else config.depth
            wanted = in_expert or is_linear_weight(name, shape, model.config.model_type)
            if depth is None or not wanted or self._is_kept(name):
                kept.append(name)
                continue
            layer = _packed_like(module, depth, name)
            layer.weight = torch.empty(shape, dtype=torch.float32, device="meta")  # as it comes
            model.set_submodule(name, layer)
            self._depths[name] = depth
        if not self._depths:
            raise TritError(
                f"no linear weight recognised in model type {model.config.model_type}; "
                "quantize it with tritllm quantize --include"
            )
        config.modules_to_not_convert = kept
        # The encoder wants what the file holds, not what the model's dtype makes of it.
        names = {f"{name}.weight" for name in self._depths}
        model._keep_in_fp32_modules_strict = {
            *(model._keep_in_fp32_modules_strict or ()),
            *_patterns(names, {f"{name}.weight" for name in kept}),
        }

    def _is_kept(self, name: str) -> bool:
        wanted = self.quantization_config.modules_to_not_convert or ()
        return any(name == other or name.startswith(f"{other}.") for other in wanted)

    def _unfuse(self, model: Any, conversions: Sequence[Any]) -> None:
        from tritllm.integrations.transformers.experts import unfuse_experts

        used = unfuse_experts(model, conversions)
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
        return not self.pre_quantized and param_name.removesuffix(".weight") in self._depths

    def get_quantize_ops(self) -> Any:
        """The operation that encodes."""
        from tritllm.integrations.transformers.encode_at_load import Encode

        return Encode(self._depths, self.quantization_config.codec, self._faults)

    # --- After loading ----------------------------------------------------------------------------

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        from tritllm.integrations.transformers.attention import use_attention
        from tritllm.integrations.transformers.check_and_prepare import check_and_prepare
        from tritllm.integrations.transformers.native_step import use_native_step

        if self._faults:
            raise SourceError(f"{model.config.name_or_path}: {self._faults[0]}; mend the source")
        if self.pre_quantized:
            cast_renamed(model, self._dtypes)
        config = self.quantization_config
        own = config.lm_head_depth  # of the output layer
        head = None if own is None else pack_output_layer(model, own)
        layers = packed_layers(model)
        for name, layer in layers.items():
            if config.planes is not None and layer is not head:
                layer.keep_planes(config.planes)
            layer.requires_grad_(False)
            check_and_prepare(layer, self._where.get(name, name))
        self._describe(layers)
        if not self._attention_asked:
            use_attention(model)
        use_native_step(model)
        return model

    def _describe(self, layers: dict[str, TritLinear]) -> None:
        """Let config.json, if the model is saved, say what the model holds now."""
        config = self.quantization_config
        if config.planes is not None:
            if isinstance(config.depth, dict):
                config.depth = {n: min(d, config.planes) for n, d in config.depth.items()}
            elif config.depth is not None:
                config.depth = min(config.depth, config.planes)
            config.planes = None
        if config.modules_to_not_convert is not None:
            config.modules_to_not_convert = [
                name for name in config.modules_to_not_convert if name not in layers
            ]
        weights = sum(layer.out_features * layer.in_features for layer in layers.values())
        if weights:
            nbytes = sum(layer.tensor().nbytes for layer in layers.values())
            config.bits_per_weight = round(8 * nbytes / weights, 4)

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        """Ordinary layers with the numbers the packed ones stand for, rounded to dtype."""
        from tritllm.integrations.transformers.experts import TritExperts

        dtype = dtype or model.dtype
        if isinstance(dtype, str):  # as config.dtype is once the model has been saved
            dtype = getattr(torch, dtype)
        assert isinstance(dtype, torch.dtype)
        for name, module in list(model.named_modules()):
            if isinstance(module, TritExperts):
                model.set_submodule(name, module.refused(dtype))
        for name, layer in packed_layers(model).items():
            model.set_submodule(name, _float_layer(layer, dtype))
        if self._unfused and hasattr(model, "_weight_conversions"):
            del model._weight_conversions  # those of the fused model again
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """save_pretrained writes the portable tensors, bit for bit."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Trits have no gradient."""
        return False

    @property
    def is_compileable(self) -> bool:
        """The operators have fakes; generate may compile with a static cache."""
        return True


def packed_layers(model: nn.Module) -> dict[str, TritLinear]:
    """Every packed layer by its name."""
    return {n: module for n, module in model.named_modules() if isinstance(module, TritLinear)}


def pack_output_layer(model: Any, depth: int) -> TritLinear | None:
    """Quantize lm_head and return it; None for a model that has none.

    One that is packed already stays; one tied to the embeddings is untied, for they stay as they
    are. Raises TritError for an output layer that is not linear.
    """
    head = model.get_output_embeddings()
    if head is None or isinstance(head, TritLinear):
        return head
    if not isinstance(head, nn.Linear):
        raise TritError(f"lm_head_depth: {type(head).__name__} is not a linear layer")
    tensor = encode(numpy_matrix(head.weight), depth, "v3", torch.get_num_threads())
    layer = TritLinear.from_tensor(tensor, head.bias).to(head.weight.device)
    name = next(name for name, module in model.named_modules() if module is head)
    model.set_submodule(name, layer)
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", {})
    for key in [key for key in tied if key.startswith(f"{name}.")]:
        del tied[key]
    return layer


def _patterns(names: set[str], others: set[str]) -> set[str]:
    """Few globs that match `names` and none of `others`; the names themselves if there are none."""
    globs = {_LAYER_NUMBER.sub(".*.", name) for name in names}
    return names if globs & {_LAYER_NUMBER.sub(".*.", name) for name in others} else globs


def _packed_like(module: nn.Module, depth: int, where: str) -> TritLinear:
    """An empty packed layer in place of a linear one on meta."""
    if isinstance(module, nn.Linear):
        out_features, in_features, transposed = module.out_features, module.in_features, False
    elif isinstance(module, Conv1D):
        out_features, in_features, transposed = module.nf, module.nx, True
    else:
        raise FormatError(f"{where}: {type(module).__name__} is not a linear layer")
    return TritLinear(
        in_features, out_features, depth, module.bias, transposed=transposed, device="meta"
    )


def _float_layer(layer: TritLinear, dtype: torch.dtype) -> nn.Module:
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype))
    with torch.device("meta"):
        if layer.transposed:
            plain: Any = Conv1D(layer.out_features, layer.in_features)
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None)
    plain.weight = nn.Parameter(layer.dequantized(dtype))
    plain.bias = bias
    return plain
