"""Random matrices, native against reference, for as long as asked: compare_long.py [seconds].

Outside the test suite: up to 1500 rows and columns, every kind, dtype, depth, codec, instruction
set and thread count. Prints the seed of what differs and exits with 1.
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.codecs import NATIVE, REFERENCE
from support.matrices import DTYPES, KINDS, decoded, difference, matrix

from tritllm import native
from tritllm.codec import native_dequantize


def compare(seed: int) -> str:
    """What differs for one seed; empty where nothing does."""
    rng = np.random.default_rng(seed)
    largest = rng.choice([20, 100, 400, 1500], p=[0.4, 0.3, 0.2, 0.1])
    shape = int(rng.integers(1, largest)), int(rng.integers(1, largest))
    kind, dtype = rng.choice(KINDS), DTYPES[rng.integers(3)]
    codec = str(rng.choice(["v2", "v3"], p=[0.3, 0.7]))
    weight = matrix(rng, shape, kind, dtype)
    if rng.random() < 0.3:  # rows and columns of their own size, as real weights have them
        scaled = weight.astype(np.float32) * np.exp2(rng.integers(-4, 1, (shape[0], 1)))
        weight = (scaled * np.exp2(rng.integers(-4, 1, shape[1]))).astype(dtype)
    depths = [int(d) for d in rng.permutation([1, 2, 3, 4])[: rng.integers(1, 5)]]
    expected = REFERENCE[codec](weight, depths)
    what = f"seed {seed}: {kind} {dtype} {shape} {codec} {depths}"
    for isa in native.isas():
        threads = int(rng.integers(1, 4))
        found = NATIVE[codec](weight, depths, threads, isa=isa)
        if different := difference(expected, found):
            return f"{what} {isa}: {different}"
        depth, out_dtype = depths[0], DTYPES[rng.integers(3)]
        planes = int(rng.integers(1, depth + 1))
        file, out = expected[depth], np.empty(shape, out_dtype)
        steps = file.codebook[planes - 1]
        native_dequantize.dequantize_rows(
            file.weight, file.scale, steps, shape[1], planes, out, threads, isa=isa
        )
        if out.tobytes() != decoded(file, shape[1], planes, out_dtype).tobytes():
            return f"{what} {isa}: decoded at {planes} planes to {out_dtype}"
    return ""


def main() -> int:
    """Compares until the time is over."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    start, n = time.monotonic(), 0
    first = time.time_ns() // 1000
    while time.monotonic() - start < seconds:
        if different := compare(first + n):
            print(different)
            return 1
        n += 1
    print(f"{n} matrices from seed {first}, instruction sets {', '.join(native.isas())}: all equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
