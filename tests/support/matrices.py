"""Matrices that reach every branch of the codec, and what equal encodings are."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tritllm.codec import reference
from tritllm.codec.encoded import Encoded
from tritllm.format import trits

DTYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))
KINDS = ("normal", "heavy", "ties", "sparse", "ternary", "spread", "subnormal", "huge", "zero")


def matrix(
    rng: np.random.Generator, shape: tuple[int, int], kind: str, dtype: np.dtype
) -> np.ndarray:
    """A finite matrix of one of KINDS."""
    normal = rng.standard_normal(shape)
    values = {
        "normal": lambda: 0.02 * normal,
        "heavy": lambda: rng.standard_t(1.5, shape),
        "ties": lambda: rng.integers(-6, 7, shape) * 0.25,
        "sparse": lambda: normal * (rng.random(shape) < 0.05),
        "ternary": lambda: rng.integers(-1, 2, shape) * 0.7,
        "spread": lambda: normal * np.exp(8 * rng.standard_normal(shape)),
        "subnormal": lambda: normal * float(ml_dtypes.finfo(dtype).smallest_normal) / 8,
        "huge": lambda: normal * float(ml_dtypes.finfo(dtype).max) / 3,
        "zero": lambda: -0.0 * normal,
    }[kind]()
    limit = float(ml_dtypes.finfo(dtype).max)
    return np.clip(values, -limit, limit).astype(np.float32).astype(dtype)


def difference(expected: dict[int, Encoded], found: dict[int, Encoded]) -> str:
    """The first field in which two results differ in any bit; empty where they are the same."""
    if list(expected) != list(found):
        return f"depths {list(expected)} and {list(found)}"
    for depth in expected:
        a, b = expected[depth], found[depth]
        for field in ("weight", "scale", "codebook"):
            x, y = getattr(a, field), getattr(b, field)
            if x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes():
                return f"{field} at depth {depth}"
        if (a.error, a.energy) != (b.error, b.energy):
            return f"sums at depth {depth}: {a.error, a.energy} and {b.error, b.energy}"
    return ""


def decoded(encoded: Encoded, columns: int, planes: int, dtype: np.dtype) -> np.ndarray:
    """What the reference decodes at `planes` planes, as `dtype`."""
    unpacked = trits.unpack_trits(encoded.weight[:planes], columns)
    index = trits.unpack_scale_index(encoded.scale, -(-columns // trits.GROUP))
    level = trits.trits_to_levels(unpacked)
    with np.errstate(over="ignore"):
        return reference.dequantize(level, index, encoded.codebook[planes - 1]).astype(dtype)
