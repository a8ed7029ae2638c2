"""Balanced-ternary quantization of language models: encode, pack, verify, run."""

__version__ = "0.1.0"

from tritllm.checkpoint.dequantize import dequantize
from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.checkpoint.quantize import quantize
from tritllm.checkpoint.verify import verify
from tritllm.codec import TritTensor, encode, encode_depths
from tritllm.errors import FormatError, OutputError, SourceError, TritError
from tritllm.integrations.registration import register_with_transformers

__all__ = [
    "FormatError",
    "OutputError",
    "PackedCheckpoint",
    "SourceError",
    "TritError",
    "TritTensor",
    "dequantize",
    "encode",
    "encode_depths",
    "quantize",
    "verify",
]

register_with_transformers()
