"""What vLLM calls in every process: makes it know `quant_method: tritllm`."""

from __future__ import annotations

from tritllm.format.quantization_config import METHOD

OLDEST = (0, 32)  # the first vLLM whose interfaces this package is written for and tested with


def register() -> None:
    """Register with vLLM's table of quantization methods; a second call changes nothing.

    Never raises for the vLLM that is here: it may be about to run a model that is none of ours.
    Where it is too old, what is registered refuses packed models in one line.
    """
    import vllm
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        register_quantization_config,
    )

    if METHOD in QUANTIZATION_METHODS:
        return
    if is_too_old(vllm.__version__):
        from tritllm.integrations.vllm.too_old import TooOldConfig as Config
    else:
        from tritllm.integrations.vllm.config import TritVllmConfig as Config
    register_quantization_config(METHOD)(Config)


def is_too_old(version: str) -> bool:
    """Whether a version of vLLM comes before the oldest that is supported.

    One without two leading numbers, as a build from sources may have, is taken to be new.
    """
    numbers = version.split(".")[:2]
    if len(numbers) < 2 or not all(number.isdecimal() for number in numbers):
        return False
    found = int(numbers[0]), int(numbers[1])
    return (0, 0) < found < OLDEST
