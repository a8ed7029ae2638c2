"""The encoders by name. To add one: a file beside this one, and its line in the table."""

from tritllm.codec.encoders.protocol import Encoder
from tritllm.codec.encoders.v2 import V2
from tritllm.codec.encoders.v3 import V3

ENCODERS: dict[str, Encoder] = {encoder.name: encoder for encoder in (V2, V3)}

__all__ = ["ENCODERS", "Encoder"]
