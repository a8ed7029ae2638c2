"""v2, the published rule: the best of four order statistics, rounded to a log-spaced codebook."""

from tritllm.codec import native_encode, reference
from tritllm.codec.encoders.twins import Twins

V2 = Twins("v2", native_encode.encode_v2, reference.encode_v2, weighted=None)
