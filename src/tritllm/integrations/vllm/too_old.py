"""What stands for the quantization method in a vLLM that is too old: it refuses packed models."""

from __future__ import annotations

from typing import Any

import vllm
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from tritllm.errors import TritError
from tritllm.format.quantization_config import METHOD
from tritllm.integrations.vllm.plugin import OLDEST


class TooOldConfig(QuantizationConfig):  # type: ignore[misc]
    """Raises TritError as soon as vLLM reads a packed model's quantization_config."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Refuse."""
        raise TritError(
            f"vllm {vllm.__version__} is too old for packed models: install vllm "
            f"{'.'.join(map(str, OLDEST))} or newer"
        )

    def get_name(self) -> str:
        """As config.json calls it."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[Any]:
        """None: nothing runs."""
        return []

    @classmethod
    def get_min_capability(cls) -> int:
        """No GPU is asked about."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """All is in config.json."""
        return []

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """Not reached."""
        return None
