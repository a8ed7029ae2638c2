"""Speed of the codec in memory: native against the NumPy reference, side by side in one run.

    python benchmarks/encode.py [--rows 4096] [--columns 4096] [--dtype float16] [--isa avx512]

Every figure is the best of several runs, those of a line measured in turn, so that what else the
machine does weighs on all of them. Quote the ratios; the absolute figures are those of the hour.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import ml_dtypes
import numpy as np

from tritllm import native
from tritllm.codec import native_dequantize, native_encode, reference

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
REFERENCE = {"v2": reference.encode_v2, "v3": reference.encode_v3}
NATIVE = {"v2": native_encode.encode_v2, "v3": native_encode.encode_v3}
DEPTHS = ([1], [2], [3], [4], [1, 2, 3, 4])


def best_seconds(runs: int, *tasks: Callable[[], object]) -> list[float]:
    """The shortest time of each task; they take turns."""
    best = [float("inf")] * len(tasks)
    for _ in range(runs):
        for i, task in enumerate(tasks):
            start = time.perf_counter()
            task()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def copy_rows(out: np.ndarray, source: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> None:
    """A plain copy, the rows shared by the threads."""
    bounds = np.linspace(0, len(out), threads + 1).astype(int)
    parts = [slice(*pair) for pair in pairwise(bounds)]
    list(pool.map(lambda rows: np.copyto(out[rows], source[rows]), parts))


def encode_table(weight: np.ndarray, isa: str, runs: int, reference_rows: int) -> None:
    """Encoding: weights a second, the ratio to the reference, and the share of the time on two
    threads that memory alone would take, for copying the weights once.
    """
    part = weight[:reference_rows]
    out = np.empty_like(weight)
    with ThreadPoolExecutor(2) as pool:
        (copy,) = best_seconds(4 * runs, lambda: copy_rows(out, weight, pool, 2))
    print(f"encode, million weights a second (reference: the first {len(part)} rows, one thread)")
    print(
        f"{'':14}{'reference':>10}{'1 thread':>10}{'ratio':>8}{'2 threads':>11}{'ratio':>8}"
        f"{'memory':>8}"
    )
    for codec in ("v2", "v3"):
        slowest = {1: 0.0, 2: 0.0}
        for depths in DEPTHS:
            slow, one, two = best_seconds(
                1, lambda d=depths, c=codec: REFERENCE[c](part, d)
            ) + best_seconds(
                runs,
                lambda d=depths, c=codec: NATIVE[c](weight, d, 1, isa=isa),
                lambda d=depths, c=codec: NATIVE[c](weight, d, 2, isa=isa),
            )
            rates = [part.size / slow, weight.size / one, weight.size / two]
            name = f"{codec} d={depths[0]}" if len(depths) == 1 else f"{codec} all four"
            line = f"{name:14}{rates[0] / 1e6:10.1f}{rates[1] / 1e6:10.0f}"
            line += f"{rates[1] / rates[0]:8.1f}{rates[2] / 1e6:11.0f}{rates[2] / rates[0]:8.1f}"
            line += f"{100 * copy / two:6.1f} %"
            if len(depths) == 1:
                slowest = {1: max(slowest[1], one), 2: max(slowest[2], two)}
            else:
                line += f"   {one / slowest[1]:.2f} / {two / slowest[2]:.2f} of the slowest depth"
            print(line, flush=True)


def decode_table(weight: np.ndarray, isa: str, runs: int) -> None:
    """Decoding: weights a second and the share of a plain copy of the output."""
    file = native_encode.encode_v3(weight, [4], threads=2)[4]
    out, source = np.empty_like(weight), weight.copy()
    print(f"\ndecode to {weight.dtype}, million weights a second, and the share of a plain copy")
    print(
        f"{'':10}{'copy':>8}" + "".join(f"{f'{p} plane' + 's' * (p > 1):>16}" for p in range(1, 5))
    )
    with ThreadPoolExecutor(2) as pool:
        for threads in (1, 2):
            tasks = [lambda t=threads: copy_rows(out, source, pool, t)]
            for planes in range(1, 5):
                arguments = file.weight, file.scale, file.codebook[planes - 1]
                tasks.append(
                    lambda a=arguments, p=planes, t=threads: native_dequantize.dequantize_rows(
                        *a, weight.shape[1], p, out, t, isa=isa
                    )
                )
            copy, *decode = best_seconds(4 * runs, *tasks)
            line = f"{threads} thread{'s' if threads > 1 else ' '} {weight.size / copy / 1e6:8.0f}"
            for seconds in decode:
                line += f"{weight.size / seconds / 1e6:10.0f} {100 * copy / seconds:4.0f}%"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--isa", choices=native.isas(), default=None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--reference-rows", type=int, default=512)
    options = parser.parse_args()
    isa = options.isa or native.isa()
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((options.rows, options.columns), np.float32)
    weight = (0.02 * normal).astype(DTYPES[options.dtype])
    print(f"{platform.machine()}, {isa}, [{options.rows}, {options.columns}] {weight.dtype}\n")
    encode_table(weight, isa, options.runs, options.reference_rows)
    decode_table(weight, isa, options.runs)


if __name__ == "__main__":
    main()
