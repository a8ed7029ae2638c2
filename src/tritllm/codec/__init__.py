"""The codec: matrices to balanced ternary digits and back. Knows nothing of files or torch."""

from tritllm.codec.reference import CODECS, DEPTHS, GROUP
from tritllm.codec.tensor import TritTensor, encode, encode_depths, packed_shapes, to_decibel

__all__ = [
    "CODECS",
    "DEPTHS",
    "GROUP",
    "TritTensor",
    "encode",
    "encode_depths",
    "packed_shapes",
    "to_decibel",
]
