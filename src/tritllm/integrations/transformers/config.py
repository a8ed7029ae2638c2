"""TritConfig: the quantization_config of config.json, and what a user may ask for at load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from tritllm.codec import ENCODERS
from tritllm.errors import FormatError, TritError
from tritllm.format.quantization_config import FORMAT_VERSION, METHOD
from tritllm.format.trits import DEPTHS, GROUP

_READING: ContextVar[Mapping[str, int]] = ContextVar("reading", default=MappingProxyType({}))


class TritConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How a model's linear weights are stored, and how they are to be read.

    Stored (docs/format.md):
        depth: trits a weight, 1..4, for every linear weight, or a map from module to depth.
            Required to quantize a float checkpoint on the fly; a packed one brings its own.
        codec: "v3" or "v2", the encoder's rule.
        modules_to_not_convert: modules kept as they are; on the fly, in addition to embeddings,
            `lm_head`, norms and routers. A name stands for the modules below it too.
        bits_per_weight: file bits of a quantized weight, for people to read.
        format_version, group_size: of the file.

    At load:
        planes: read only so many of the trit planes of deeper matrices.
        lm_head_depth: quantize `lm_head` too, at this depth, whether the file keeps it in 16 bits
            or ties it to the embeddings (then it is untied; the embeddings stay).

    Raises TritError for a value that is none of these, FormatError for a newer format version.
    """

    def __init__(
        self,
        depth: int | Mapping[str, int] | None = None,
        *,
        codec: str = "v3",
        planes: int | None = None,
        lm_head_depth: int | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
        bits_per_weight: float | None = None,
        format_version: int = FORMAT_VERSION,
        group_size: int = GROUP,
        **ignored: Any,
    ) -> None:
        if not isinstance(format_version, int) or format_version > FORMAT_VERSION:
            raise FormatError(
                f"quantization_config: format version {format_version} is newer than "
                f"{FORMAT_VERSION}; upgrade tritllm"
            )
        if group_size != GROUP:
            raise FormatError(f"quantization_config: group_size {group_size} is not {GROUP}")
        if codec not in ENCODERS:
            raise TritError(f"codec {codec!r} is not one of {', '.join(ENCODERS)}")
        depths = depth.values() if isinstance(depth, Mapping) else (depth,)
        for name, values in (("depth", depths), ("planes", (planes,)),
                             ("lm_head_depth", (lm_head_depth,))):  # fmt: skip
            for value in values:
                if value is not None and value not in DEPTHS:
                    raise TritError(f"TritConfig: {name} {value!r} is not 1..{DEPTHS[-1]}")
        self.quant_method = METHOD
        self.format_version = format_version
        self.codec = codec
        self.depth = dict(depth) if isinstance(depth, Mapping) else depth
        self.group_size = group_size
        self.bits_per_weight = bits_per_weight
        self.modules_to_not_convert = (
            None if modules_to_not_convert is None else list(modules_to_not_convert)
        )
        self.planes = planes
        self.lm_head_depth = lm_head_depth

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """From config.json, and what `reading` asks for."""
        return super().from_dict({**config_dict, **_READING.get()}, *args, **kwargs)

    def get_loading_attributes(self) -> dict[str, Any]:
        """What overrides the checkpoint's own config when both are given."""
        asked = {"planes": self.planes, "lm_head_depth": self.lm_head_depth}
        return {name: value for name, value in asked.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it: nothing that is not set."""
        return {name: value for name, value in super().to_dict().items() if value is not None}


@contextmanager
def reading(*, planes: int | None = None, lm_head_depth: int | None = None) -> Iterator[None]:
    """Within it every packed checkpoint is read so, whoever calls from_pretrained.

    For code between us and from_pretrained that has no arguments of ours, such as a server's.
    """
    asked = {"planes": planes, "lm_head_depth": lm_head_depth}
    token = _READING.set({name: value for name, value in asked.items() if value is not None})
    try:
        yield
    finally:
        _READING.reset(token)
