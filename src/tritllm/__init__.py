"""Balanced-ternary quantization of language models: encode, pack, verify, run."""

from tritllm.checkpoint.dequantize import dequantize
from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.checkpoint.verify import verify
from tritllm.codec import TritTensor, encode, encode_depths
from tritllm.errors import FormatError, OutputError, SourceError, TritError
from tritllm.integrations.registration import register_with_transformers
from tritllm.quantizer.quantize import quantize
from tritllm.version import __version__ as __version__

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
