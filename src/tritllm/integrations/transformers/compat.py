"""Every name of transformers used here that its documentation does not promise, in one place.

Tried with transformers 5.16.1, 5.19.0 and 5.23.0. A version that renames one of them fails here, by
name. What the versions do differently stands beside it: `update_tp_plan` instead of
`update_attn_implementation` before 5.19, weight conversions without a model before 5.20, renamed
tensors in the file's dtype before 5.21 (`dtype_of_renamed`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import auto

__all__ = [
    "AttentionMaskInterface", "Conv1D", "ConversionOps", "WeightConverter", "WeightRenaming",
    "allow_loading_attributes", "attention_of", "checkpoint_state", "commit_of",
    "compile_on_any_device", "config_of_json",
    "experts_gate", "forget_conversions", "forget_quantized", "get_model_conversion_mapping",
    "keep_in_float32", "kept_dtype", "kept_in_float32", "name_in_model", "output_of",
    "sdpa_attention_forward", "sdpa_mask", "server_class", "untie",
]  # fmt: skip


def allow_loading_attributes(config_type: type) -> None:
    """Let a config given to from_pretrained override the checkpoint's, in what concerns loading.

    transformers does so for listed classes; of others the given config is dropped with a warning.
    """
    known = getattr(auto, "LOADING_ATTRIBUTES_CONFIG_TYPES", ())
    if config_type not in known:
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*known, config_type)


def attention_of(config: Any) -> str | None:
    """The name of the attention that a model uses, or that its user asked for; None if neither."""
    name: str | None = config._attn_implementation
    return name


def checkpoint_state(model: Any) -> dict[str, Any]:
    """The tensors that a new model's `save_pretrained` writes, under their names in the file."""
    state = model.state_dict()
    for name in (*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())):
        state.pop(name, None)
    reverted: dict[str, Any] = revert_weight_conversion(model, state)
    return reverted


def commit_of(config: Any) -> str | None:
    """The Hub's commit that a config comes from; None for a local folder."""
    commit: str | None = getattr(config, "_commit_hash", None)
    return commit


def name_in_model(name: str, conversions: Iterable[Any], model: Any, names: Any) -> str:
    """What a model calls a checkpoint's tensor, or what is made of it. names: those of the model's
    state.
    """
    renamings: list[Any] = []
    converters: list[Any] = []
    for item in conversions:
        (renamings if isinstance(item, WeightRenaming) else converters).append(item)
    renamed = rename_source_key(name, renamings, converters, model.base_model_prefix, names)
    return str(renamed[0])


def keep_in_float32(model: Any, patterns: Iterable[str]) -> None:
    """Have the tensors of these patterns loaded as float32, whatever the model's dtype is."""
    known = model._keep_in_fp32_modules_strict or ()
    model._keep_in_fp32_modules_strict = {*known, *patterns}


def kept_in_float32(model: Any) -> list[str]:
    """Parts of the names of parameters that a model keeps in float32."""
    fields = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return [name for field in fields for name in getattr(model, field, None) or ()]


def kept_dtype(model: Any, name: str, dtype: Any) -> Any:
    """The dtype that a model of a dtype is loaded with has for one of its parameters."""
    plan = model._get_dtype_plan(dtype)
    return next((kept for part, kept in plan.items() if re.search(part, name)), dtype)


def forget_conversions(model: Any) -> None:
    """Save the model by its class's own weight conversions, not by those it was loaded with."""
    if hasattr(model, "_weight_conversions"):
        del model._weight_conversions


def forget_quantized(model: Any) -> None:
    """Have a model read its own float weights as if nothing were quantized.

    Jamba and Falcon-Mamba otherwise take dt_proj's bias off again after a quantized layer added it.
    """
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_is_quantized"):
            del config._is_quantized


def untie(model: Any, module: str) -> None:
    """Have the weights of a module saved as its own, not as another's."""
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", {})
    for key in [key for key in tied if key.startswith(f"{module}.")]:
        del tied[key]


def experts_gate(experts: Any) -> str | None:
    """The module that defines how experts gate, where they say so."""
    gate = getattr(type(experts), "_apply_gate", None)
    return None if gate is None else str(gate.__module__)


def config_of_json(kind: Any, content: Mapping[str, Any]) -> Any:
    """A config of a class from its config.json, in which an infinity is an object of a tag."""
    return kind.from_dict(kind._decode_special_floats(dict(content)))


def compile_on_any_device(config: Any) -> None:
    """Have `generate` compile a step on the CPU, too; by itself it does so on accelerators alone.

    config: a CompileConfig.
    """
    config._compile_all_devices = True


def output_of(kind: type, **values: Any) -> Any:
    """A `ModelOutput` of a class as its constructor makes it, of values that are not None and in
    the order of its fields; in a tenth of the time, for its dataclass is not looked through.
    """
    output: Any = OrderedDict.__new__(kind)
    own = vars(output)
    own.update(dict.fromkeys(kind.__dataclass_fields__))  # type: ignore[attr-defined]
    own.update(values)
    for name, value in values.items():
        OrderedDict.__setitem__(output, name, value)
    return output


def server_class() -> Any:
    """What `transformers serve` makes, and which runs its server within the constructor."""
    from transformers.cli.serve import Serve

    return Serve
