"""Both implementations of the two data-free rules, by the codec's name."""

from tritllm.codec import native_encode, reference

REFERENCE = {"v2": reference.encode_v2, "v3": reference.encode_v3}
NATIVE = {"v2": native_encode.encode_v2, "v3": native_encode.encode_v3}
