"""What an encoder is: it chooses codebook, scale indices and levels. Readers need not know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tritllm.codec.encoded import Encoded


class Encoder(Protocol):
    """A rule that turns a matrix into the arrays of the file.

    An object may hold what its rule needs beside the matrix (an encoder with error feedback: the
    matrix's Hessian); it then stands for one matrix, and is made for it by its caller. What stands
    in `ENCODERS` needs nothing beside the arguments and may run in several threads at once.
    """

    @property
    def name(self) -> str:
        """What manifests and `--codec` call it."""

    def encode(
        self,
        weight: np.ndarray,
        depths: Sequence[int],
        *,
        column_weights: np.ndarray | None = None,
        threads: int = 1,
    ) -> dict[int, Encoded]:
        """Encode a matrix at each of `depths`.

        An encoder may rely on what `encode_depths` has checked:

        weight: a NumPy array [N, K] = [out_features, in_features], N and K at least 1, of float16,
            bfloat16 or float32 in the machine's byte order, whole rows (every group of 16 and every
            column is there), not to be written to; strides are any. NaN and infinity are not
            checked: the encoder raises ValueError that names the first of them.
        depths: different integers of 1..4, at least one.
        column_weights: float64 [K], finite and not negative, or None. The squared error to make
            small is sum of column_weights[c] * (w - w_hat)**2; None is a weight of 1 for each
            column and gives the same bits as that. An encoder whose rule has no place for them
            raises ValueError.
        threads: at least 1; changes no bit of the result.

        The result has the keys `depths`. Its arrays are the encoder's own, not views of `weight`.
        """
