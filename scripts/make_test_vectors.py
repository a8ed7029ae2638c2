"""Write docs/test_vectors.json: what every implementation of the codec and the format must give.

    python scripts/make_test_vectors.py [OUT]

Only `tritllm.codec.reference` computes; inputs come from a generator of integers that is written
out below and in the file, so that the output is the same wherever this runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tritllm.codec import reference
from tritllm.codec.encoded import Encoded
from tritllm.format import trits
from tritllm.format.trits import DEPTHS, GROUP

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
WIDTHS = (1, 5, 15, 16, 17, 79, 80, 81)
RULES = {"v2": reference.encode_v2, "v3": reference.encode_v3}
CODECS = tuple(RULES)
OUT = Path(__file__).parents[1] / "docs" / "test_vectors.json"

ABOUT = {
    "format_version": 1,
    "written_by": "scripts/make_test_vectors.py, from src/tritllm/codec/reference.py",
    "numbers": "A bit pattern is written in hex, most significant digit first: 8 digits a float32,"
    " 4 a float16 or bfloat16, 2 a byte. Patterns of a row are joined without separators.",
    "bytes": "bytes.valid[b] is the five trits of byte b, first trit first; '-', '0', '+' are"
    " -1, 0, +1. Every byte of bytes.invalid must be refused.",
    "cases": {
        "input": "[N] rows of bit patterns of input_dtype",
        "trits": "[d][N] rows of K trits, most significant plane first",
        "planes": "[d][N] rows of ceil(K/5) bytes: the tensor X.weight",
        "scale_index": "[N][G] indices 0..26",
        "scale": "[N] rows of ceil(3G/5) bytes: the tensor X.weight_scale",
        "codebook": "[d] rows of 27 float32: the tensor X.weight_codebook",
        "dequantized": "by output dtype, [r-1][N] rows of K bit patterns when r planes are read",
    },
    "large": "Matrices big enough for percentile, sample and tail; arrays as SHA-256 of their"
    " little-endian bytes in row-major order. Their input is float16: for each weight in row-major"
    " order four draws u1..u4, and w = (u1 + u2 + u3 + u4 - 131070) * 2**(row % 7 - 20), then"
    " 32 * w where u1 < 64. A draw: x = (x * 1664525 + 1013904223) mod 2**32, u = x >> 16, the"
    " first x being the seed. w is exact in float32 and rounded once to float16, half to even."
    " dequantized_float32 is by r - 1.",
}


# --- Inputs -------------------------------------------------------------------------------------


def draws(seed: int) -> Iterator[int]:
    """Integers 0..65535 of a linear congruential generator."""
    x = seed
    while True:
        x = (x * 1664525 + 1013904223) % 2**32
        yield x >> 16


def bell(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Roughly Gaussian float32: sums of four draws, between -1/8 and 1/8."""
    u = np.array(list(itertools.islice(draws(seed), 4 * shape[0] * shape[1])), np.int64)
    return ((u.reshape(*shape, 4).sum(axis=2) - 131070) * 2.0**-20).astype(np.float32)


def large_input(shape: tuple[int, int], seed: int) -> np.ndarray:
    """As the header of the file says."""
    u = np.array(list(itertools.islice(draws(seed), 4 * shape[0] * shape[1])), np.int64)
    u = u.reshape(*shape, 4)
    w = (u.sum(axis=2) - 131070) * 2.0 ** (np.arange(shape[0])[:, None] % 7 - 20)
    return np.where(u[:, :, 0] < 64, 32 * w, w).astype(np.float16)


def zero_groups() -> np.ndarray:
    """Groups of zeros among others."""
    w = bell((2, 48), 101)
    w[0, 16:32] = 0
    w[1, 0:16] = w[1, 32:48] = 0
    return w


def all_zero() -> np.ndarray:
    """A matrix of zeros, one of them negative."""
    w = np.zeros((2, 17), np.float32)
    w[1, 3] = -0.0
    return w


def negative_zero() -> np.ndarray:
    """Negative zeros have level 0 and come back as +0.0."""
    w = bell((2, 20), 102)
    w[:, ::3] = -0.0
    w[1, 16:] = -0.0
    return w


def ties_of_rint() -> np.ndarray:
    """Six weights of 4 in a group: v2's scale is 4, at depth 2 its step 1, all others are ties."""
    half = np.array([0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.5, -3.5, 0.5, 2.5], np.float32)
    four = np.array([4, -4, 4, 4, -4, 4], np.float32)
    return np.stack([np.concatenate([half, four]), np.concatenate([-half, four])])


def ties_of_candidates() -> np.ndarray:
    """At depth 1 the scales 1 and 2 err alike: five twos or five ones are missed. 1 comes first."""
    row = np.array([0, 2, 1, 0, -1, 0, -2, 2, 0, 1, -1, 2, 0, -2, 0, 1], np.float32)
    return np.stack([row, -row[::-1]])


def two_scales() -> np.ndarray:
    """Scales that are far apart, and nothing between them."""
    w = np.full((2, 32), 0.25, np.float32)
    w[:, ::2] = -0.25
    w[1, 16:] *= 2.0**-12
    return w


def ties_of_entries() -> np.ndarray:
    """All groups have one scale, so v2's 27 entries are equal: the index is 0."""
    w = np.full((2, 33), 0.75, np.float32)
    w[1] = -0.75
    return w


def outlier() -> np.ndarray:
    """One weight a thousand times the others."""
    w = bell((2, 80), 103)
    w[1, 37] *= 1000
    return w


def negative_rows() -> np.ndarray:
    """A row without a positive weight."""
    w = bell((2, 32), 104)
    w[0] = -np.abs(w[0])
    return w


def wide_range() -> np.ndarray:
    """Magnitudes over 2**-70 of the largest: below 2**-64 of it they count as zero."""
    w = bell((2, 80), 105)
    return np.ldexp(w, -np.arange(160).reshape(2, 80) // 2).astype(np.float32)


def flush() -> np.ndarray:
    """The largest is 1.5: 2**-64 is still a magnitude, what is below it counts as zero."""
    w = np.zeros((2, 48), np.float32)
    w[:, :16] = np.where(bell((2, 16), 109) < 0, -1.5, 1)
    w[:, 16:32] = 2.0**-64
    w[0, 32:] = 2.0**-64 * (1 - 2.0**-24)
    w[1, 32:] = 2.0**-65
    return w


def huge() -> np.ndarray:
    """Up to the largest float32: sums of squares would overflow without the exponent."""
    w = bell((2, 32), 106) * np.float32(8)
    w = (w / np.abs(w).max()).astype(np.float32) * np.float32(3e38)
    w[1, 5] = np.finfo(np.float32).max
    return w


def subnormal() -> np.ndarray:
    """Float32, all below 2**-126: some steps round to few bits."""
    return np.ldexp(bell((2, 40), 107), -126).astype(np.float32)


def tiniest() -> np.ndarray:
    """A few multiples of 2**-149: at depth 2 and more every step rounds to zero or to 2**-149."""
    w = np.zeros((2, 17), np.float32)
    w[0, :5] = np.ldexp(np.array([1, -1, 2, -2, 1], np.float32), -149)
    w[1, 16] = np.ldexp(np.float32(3), -149)
    return w


def subnormal_half() -> np.ndarray:
    """Float16, all below 2**-14."""
    return np.ldexp(bell((2, 40), 108), -12).astype(np.float32)


@dataclass(frozen=True)
class Special:
    """An input with a name, in a dtype that holds what matters about it, at some depths."""

    make: Callable[[], np.ndarray]
    dtype: str
    depths: tuple[int, ...]
    codecs: tuple[str, ...] = CODECS

    @property
    def name(self) -> str:
        """What the file calls it."""
        return self.make.__name__


SPECIAL = (
    Special(zero_groups, "bfloat16", DEPTHS, ("v3",)),
    Special(zero_groups, "float16", (2,), ("v2",)),
    Special(all_zero, "float32", (1, 4)),
    Special(negative_zero, "float16", (1, 3)),
    Special(ties_of_rint, "float32", (2,)),
    Special(ties_of_candidates, "float32", (1,)),
    Special(two_scales, "float16", (1, 3)),
    Special(ties_of_entries, "bfloat16", DEPTHS),
    Special(outlier, "float32", DEPTHS, ("v3",)),
    Special(outlier, "bfloat16", (2, 4), ("v2",)),
    Special(negative_rows, "float16", (2,)),
    Special(wide_range, "float32", (1, 4), ("v3",)),
    Special(flush, "float32", (1, 2)),
    Special(huge, "float32", DEPTHS, ("v3",)),
    Special(huge, "float32", (4,), ("v2",)),
    Special(subnormal, "float32", DEPTHS, ("v3",)),
    Special(subnormal, "float32", (3,), ("v2",)),
    Special(tiniest, "float32", (1, 2, 4)),
    Special(subnormal_half, "float16", (1, 2, 4)),
)
LARGE = (((50, 1280), 1), ((50, 1280), 2), ((61, 1033), 3))  # shape and seed


# --- Cases --------------------------------------------------------------------------------------


def hex_rows(array: np.ndarray) -> Any:
    """Bit patterns along the last axis joined in hex; other axes as lists."""
    if array.ndim > 1:
        return [hex_rows(row) for row in array]
    digits = 2 * array.itemsize
    bits = array.view(f"u{array.itemsize}")
    return "".join(f"{int(value):0{digits}x}" for value in bits)


def trit_rows(trits: np.ndarray) -> Any:
    """Trits along the last axis as '-', '0', '+'."""
    if trits.ndim > 1:
        return [trit_rows(row) for row in trits]
    return "".join("-0+"[int(t) + 1] for t in trits)


def dequantize(encoded: Encoded, columns: int, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 [N, K] and scale indices [N, G] from the file's arrays alone."""
    groups = -(-columns // GROUP)
    level = trits.trits_to_levels(trits.unpack_trits(encoded.weight[:planes], columns))
    index = trits.unpack_scale_index(encoded.scale, groups)
    return reference.dequantize(level, index, encoded.codebook[planes - 1]), index


def cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round once, half to even; beyond the range it is infinite."""
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def case(name: str, weight: np.ndarray, dtype: str, depth: int, codec: str) -> dict[str, Any]:
    """One case of the file; weight float32, rounded to `dtype` first."""
    weight = weight.astype(DTYPES[dtype])
    columns = weight.shape[1]
    encoded = RULES[codec](weight, (depth,))[depth]
    decoded = [dequantize(encoded, columns, r) for r in range(1, depth + 1)]
    return {
        "name": name,
        "codec": codec,
        "depth": depth,
        "input_dtype": dtype,
        "shape": list(weight.shape),
        "input": hex_rows(weight),
        "trits": trit_rows(trits.unpack_trits(encoded.weight, columns)),
        "planes": hex_rows(encoded.weight),
        "scale_index": decoded[0][1].tolist(),
        "scale": hex_rows(encoded.scale),
        "codebook": hex_rows(encoded.codebook),
        "dequantized": {
            output: hex_rows(np.stack([cast(w, kind) for w, _ in decoded]))
            for output, kind in DTYPES.items()
        },
    }


def digest(array: np.ndarray) -> str:
    """SHA-256 of the little-endian bytes in row-major order."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()


def large_case(
    weight: np.ndarray, seed: int, encoded: Encoded, depth: int, codec: str
) -> dict[str, Any]:
    """One matrix by its hashes."""
    columns = weight.shape[1]
    return {
        "name": f"large{seed}-d{depth}-{codec}",
        "codec": codec,
        "depth": depth,
        "shape": list(weight.shape),
        "seed": seed,
        "input": digest(weight),
        "planes": digest(encoded.weight),
        "scale": digest(encoded.scale),
        "codebook": digest(encoded.codebook),
        "dequantized_float32": [
            digest(dequantize(encoded, columns, r)[0]) for r in range(1, depth + 1)
        ],
    }


def test_vectors() -> dict[str, Any]:
    """The whole file."""
    every = trits.unpack_trits(np.arange(243, dtype=np.uint8)[:, None], 5)
    cases = []
    dtypes = itertools.cycle(DTYPES)  # each width meets all three
    for width, depth, codec in itertools.product(WIDTHS, DEPTHS, CODECS):
        weight = bell((2, width), 1000 * width + depth)
        cases.append(case(f"width{width}-d{depth}-{codec}", weight, next(dtypes), depth, codec))
    for special in SPECIAL:
        for depth, codec in itertools.product(special.depths, special.codecs):
            name = f"{special.name}-d{depth}-{codec}"
            cases.append(case(name, special.make(), special.dtype, depth, codec))
    large = []
    for (shape, seed), codec in itertools.product(LARGE, CODECS):
        weight = large_input(shape, seed)
        encoded = RULES[codec](weight, DEPTHS)
        large += [large_case(weight, seed, encoded[depth], depth, codec) for depth in DEPTHS]
    return {
        "about": ABOUT,
        "bytes": {"valid": trit_rows(every), "invalid": list(range(243, 256))},
        "cases": cases,
        "large": large,
    }


def main() -> None:
    """Write the file named on the command line, docs/test_vectors.json without one."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    vectors = test_vectors()
    parts = [f'"about": {json.dumps(vectors["about"], indent=1)}']
    parts.append(f'"bytes": {json.dumps(vectors["bytes"])}')
    for key in ("cases", "large"):
        lines = ",\n".join(one_a_line(item) for item in vectors[key])
        parts.append(f'"{key}": [\n{lines}\n]')
    out.write_bytes(("{\n" + ",\n".join(parts) + "\n}\n").encode())


def one_a_line(item: dict[str, Any]) -> str:
    """An object with one field a line, each as short as JSON allows."""
    fields = (f'"{key}":{json.dumps(value, separators=(",", ":"))}' for key, value in item.items())
    return "{\n" + ",\n".join(fields) + "\n}"


if __name__ == "__main__":
    main()
