"""v3, the least error: the best of 27 entries for each group, the codebook fitted to the matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tritllm.codec import engine, native_encode, reference
from tritllm.codec.encoded import Encoded


class V3:
    """`reference.encode_v3`, by the native library where there is one."""

    name = "v3"

    def encode(
        self,
        weight: np.ndarray,
        depths: Sequence[int],
        *,
        column_weights: np.ndarray | None = None,
        threads: int = 1,
    ) -> dict[int, Encoded]:
        """As `Encoder.encode`.

        With column weights the NumPy reference runs, on one thread: the native library does not
        know them yet. That is about a hundred times slower than without: some
        two million weights a second at one depth.
        """
        if column_weights is None and engine.is_native():
            return native_encode.encode_v3(weight, depths, threads)
        if not engine.is_native():
            engine.warn_of_reference()
        return reference.encode_v3(weight, depths, column_weights)
