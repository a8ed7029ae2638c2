"""v2, the published rule: the best of four order statistics, rounded to a log-spaced codebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tritllm.codec import engine, native_encode, reference
from tritllm.codec.encoded import Encoded


class V2:
    """`reference.encode_v2`, by the native library where there is one."""

    name = "v2"

    def encode(
        self,
        weight: np.ndarray,
        depths: Sequence[int],
        *,
        column_weights: np.ndarray | None = None,
        threads: int = 1,
    ) -> dict[int, Encoded]:
        """As `Encoder.encode`. Raises ValueError for column weights: what is published has none."""
        if column_weights is not None:
            raise ValueError(
                "codec v2 takes no column weights: its published rule has none; use codec v3"
            )
        if engine.is_native():
            return native_encode.encode_v2(weight, depths, threads)
        engine.warn_of_reference()
        return reference.encode_v2(weight, depths)
