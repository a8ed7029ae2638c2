"""The codec: matrices to balanced ternary digits and back. Knows nothing of files or torch."""

from tritllm.codec.encode_matrix import encode, encode_depths, encode_source
from tritllm.codec.encoders import ENCODERS, Encoder
from tritllm.codec.tensor import TritTensor, to_decibel
from tritllm.codec.ternary import encode_ternary

__all__ = [
    "ENCODERS",
    "Encoder",
    "TritTensor",
    "encode",
    "encode_depths",
    "encode_source",
    "encode_ternary",
    "to_decibel",
]
