"""`prepare_model_for_kbit_training` on packed models."""

from __future__ import annotations

from typing import Any

from tritllm.ops.trit_linear import TritLinear

_KNOWN = "is_loaded_in_4bit"  # what peft asks a model for


def told_of_packed_weights(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Call it so that it does for a packed model what it does for one in 4 bits.

    It freezes the model, casts 16-bit parameters to float32 and turns gradient checkpointing on,
    the last only for methods that it knows. The model says that it is one of them for as long as
    the call takes: transformers and accelerate would otherwise take it for bitsandbytes'.
    """
    if not any(isinstance(module, TritLinear) for module in model.modules()):
        return original(model, *args, **kwargs)
    model.__dict__[_KNOWN] = True
    try:
        return original(model, *args, **kwargs)
    finally:
        del model.__dict__[_KNOWN]
