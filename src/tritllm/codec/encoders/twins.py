"""An encoder whose rule stands twice: in the NumPy reference, and with the same bits natively."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tritllm.codec import engine
from tritllm.codec.encoded import Encoded


@dataclass(frozen=True)
class Twins:
    """An `Encoder` that runs the native library where there is one.

    native: encodes (weight, depths, threads). reference: (weight, depths), the same bits.
    weighted: (weight, depths, column_weights), in NumPy on one thread, some two hundred times
    slower than native; None for a rule that has no place for column weights.
    """

    name: str
    native: Callable[[np.ndarray, Sequence[int], int], dict[int, Encoded]]
    reference: Callable[[np.ndarray, Sequence[int]], dict[int, Encoded]]
    weighted: Callable[[np.ndarray, Sequence[int], np.ndarray], dict[int, Encoded]] | None

    def encode(
        self,
        weight: np.ndarray,
        depths: Sequence[int],
        *,
        column_weights: np.ndarray | None = None,
        threads: int = 1,
    ) -> dict[int, Encoded]:
        """As `Encoder.encode`."""
        if column_weights is not None and self.weighted is None:
            raise ValueError(
                f"codec {self.name} takes no column weights: its published rule has none; "
                "use codec v3"
            )
        if column_weights is None and engine.is_native():
            return self.native(weight, depths, threads)
        if not engine.is_native():
            engine.warn_of_reference()
        if column_weights is None or self.weighted is None:
            return self.reference(weight, depths)
        return self.weighted(weight, depths, column_weights)
