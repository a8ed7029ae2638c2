"""The codec: matrices to balanced ternary digits and back. Knows nothing of files or torch."""

from tritllm.codec.reference import CODECS
from tritllm.codec.tensor import TritTensor, encode, encode_depths, to_decibel

__all__ = [
    "CODECS",
    "TritTensor",
    "encode",
    "encode_depths",
    "to_decibel",
]
