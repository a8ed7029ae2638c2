"""torch may have set the calling thread to flush subnormals to zero; the encoder's bits stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.matrices import DTYPES, matrix
from support.native_library import needs_library

from tritllm.codec import native_encode

pytestmark = needs_library

DEPTHS = [1, 2, 3, 4]


def test_flushed_subnormals_of_the_caller_change_nothing() -> None:
    weight = matrix(np.random.default_rng(5), (32, 64), "subnormal", DTYPES[2])
    expected = native_encode.encode_v3(weight, DEPTHS)
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    try:
        found = native_encode.encode_v3(weight, DEPTHS)
    finally:
        torch.set_flush_denormal(False)
    for depth in DEPTHS:
        assert found[depth].weight.tobytes() == expected[depth].weight.tobytes()
        assert found[depth].scale.tobytes() == expected[depth].scale.tobytes()
