"""v3, the least error: the best of 27 entries for each group, the codebook fitted to the matrix."""

from tritllm.codec import native_encode, reference
from tritllm.codec.encoders.twins import Twins

V3 = Twins("v3", native_encode.encode_v3, reference.encode_v3, weighted=reference.encode_v3)
