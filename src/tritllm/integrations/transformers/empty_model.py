"""A model of transformers from its config alone, and the tensors that its checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from tritllm.format.safetensors_header import TensorEntry
from tritllm.integrations.transformers.compat import checkpoint_state, config_of_json

TORCH_OF_SAFETENSORS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_SAFETENSORS_OF = {dtype: name for name, dtype in TORCH_OF_SAFETENSORS.items()}


def filled_config(content: Mapping[str, Any]) -> Any:
    """transformers' config of a config.json, with the family's defaults for what it leaves out.

    Raises whatever transformers raises for a family that it does not know.
    """
    kind = type(transformers.AutoConfig.for_model(content.get("model_type")))
    return config_of_json(kind, content)


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """The model of a config, with weights on the device of the context.

    Raises whatever the model's own code raises.
    """
    architecture = (config.architectures or [""])[0]
    if hasattr(transformers, architecture):
        return getattr(transformers, architecture)._from_config(config, dtype=dtype)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def checkpoint_tensors(content: Mapping[str, Any], dtype: str) -> list[TensorEntry]:
    """The tensors that `save_pretrained` would write of a config.json's model; none is made.

    dtype: "float16", "bfloat16" or "float32". Every entry begins at 0: there is no file.

    Raises whatever transformers or the model's own code raises.
    """
    with torch.device("meta"):
        model = empty_model(filled_config(content), getattr(torch, dtype))
    return [
        TensorEntry(name, _SAFETENSORS_OF[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in checkpoint_state(model).items()
    ]
