"""Packed products: decode against merely reading the packed bytes, prefill against the chip's peak.

    python benchmarks/linear.py [--threads 1 2] [--depths 1 2 3 4] [--gb 1.0] [--repeat 5]

Decode is one batch row times each weight of a set that no cache holds, with the shapes of a 7B
model's layers. "share" is the time that reading as many bytes as the packed arrays have takes, in
the same loop, over ours: 100 % would be the packed file at the speed of memory. The reader is the C
library's memchr, looking for a byte that is not there. "4 rows" is the time of four batch rows over
that of one. The next table has memory of depth 4 with planes apart, of which fewer can be read,
over memory prepared from those alone, which has planes together where the instruction set has that.
Prefill is 512 rows, weights as in the layer, by groups and by superblocks (TRITLLM_PREFILL), as a
share of what the chip's int8 dot products reach on registers (int8_peak.cpp, built with the c++ on
PATH). Where torch can be imported, bfloat16 `F.linear` is measured in the same run.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritllm import native
from tritllm import products as kernels
from tritllm.codec.tensor import TritTensor
from tritllm.format.layout import packed_shapes
from tritllm.native.arrays import aligned_bytes
from tritllm.native.structures import Input, Product
from tritllm.native.threads import use_openmp

SHAPES = ((3584, 3584), (18944, 3584), (3584, 18944), (512, 3584))
PREFILL_ROWS = 512
ABSENT = 255  # no byte of trits


@dataclass(frozen=True)
class Layer:
    shape: tuple[int, int]
    packed: np.ndarray
    prepared: kernels.Prepared


def random_tensor(rng: np.random.Generator, shape: tuple[int, int], depth: int) -> TritTensor:
    """Any bytes below 243; a row's last bytes are five zeros, so that padding is right."""
    weight_shape, scale_shape, _ = packed_shapes(*shape, depth)
    weight = rng.integers(0, 243, weight_shape, np.uint8)
    scale = rng.integers(0, 243, scale_shape, np.uint8)
    weight[..., -1] = scale[..., -1] = 121
    steps = np.linspace(1e-3, 1e-2, 27, dtype=np.float32)
    return TritTensor(weight, scale, np.tile(steps, (depth, 1)), shape[1])


def layers(depth: int, nbytes: float, planes_apart: bool = False) -> tuple[list[Layer], float]:
    """Layers whose packed arrays have `nbytes` at least, each in memory of its own; and the rate
    of preparing in bytes a second, one thread."""
    rng = np.random.default_rng(depth)
    made, seconds, total = {}, 0.0, 0
    for shape in SHAPES:
        tensor = random_tensor(rng, shape, depth)
        kernels.prepare(tensor, planes_apart=planes_apart)  # memory that has been touched
        start = time.perf_counter()
        prepared = kernels.prepare(tensor, planes_apart=planes_apart)
        seconds += time.perf_counter() - start
        packed = np.concatenate([tensor.weight.ravel(), tensor.scale.ravel()])
        total += packed.nbytes
        made[shape] = Layer(shape, packed, prepared)
    rate = total / seconds
    found = list(made.values())
    while total < nbytes:
        layer = made[SHAPES[len(found) % len(SHAPES)]]
        out = aligned_bytes(layer.prepared.nbytes)
        out[:] = layer.prepared.memory
        prepared = dataclasses.replace(layer.prepared, memory=out)
        found.append(Layer(layer.shape, layer.packed.copy(), prepared))
        total += layer.packed.nbytes
    return found, rate


def reader(arrays: list[np.ndarray], threads: int) -> Callable[[], None]:
    """Reads the arrays, each cut between the threads."""
    memchr = ctypes.CDLL(None).memchr
    memchr.restype, memchr.argtypes = (
        ctypes.c_void_p,
        (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t),
    )
    pool = ThreadPoolExecutor(threads)

    def read(part: int) -> None:
        for array in arrays:
            size = array.nbytes // threads
            assert not memchr(array.ctypes.data + part * size, ABSENT, size)

    def run() -> None:
        list(pool.map(read, range(threads)))

    return run


def best(repeat: int, *functions: Callable[[], None]) -> list[float]:
    """Least seconds of each; they take turns."""
    least = [float("inf")] * len(functions)
    for _ in range(repeat):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            least[i] = min(least[i], time.perf_counter() - start)
    return least


def torch_module():
    try:
        import torch
    except ImportError:
        return None
    return torch


def multiplier(
    found: list[Layer], batch: int, threads: int, arithmetic: int = kernels.GROUPS, planes: int = 0
) -> Callable[[], None]:
    """One call of the library a layer, as a model makes it; planes: read so many, 0: all."""
    rng = np.random.default_rng(1)
    scratch = aligned_bytes(kernels.scratch_size(batch, max(k for _, k in SHAPES), arithmetic))
    calls = []
    for layer in found:
        n, k = layer.shape
        x = rng.standard_normal((batch, k), np.float32)
        y = np.empty((batch, n), np.float32)
        w, float32 = layer.prepared, 2
        product = Product(
            prepared=w.memory.ctypes.data,
            size=w.nbytes,
            rows=n,
            layout=w.layout,
            depth=planes or w.depth,
            steps=w.steps[(planes or w.depth) - 1].ctypes.data,
            y=y.ctypes.data,
            stride=n,
            dtype=float32,
        )
        held = (x, y, w)  # whose addresses the call has
        calls.append((Input(x.ctypes.data, k, batch, k, float32, arithmetic), product, held))
    multiply = kernels.run_function()

    def run() -> None:
        for call, product, _ in calls:
            assert multiply(threads, call, scratch.ctypes.data, product, 1) == 0

    return run


def torch_linear(torch, shapes: list[tuple[int, int]], batch: int) -> Callable[[], None]:
    pairs = [
        (torch.randn(batch, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16))
        for n, k in shapes
    ]

    def run() -> None:
        with torch.inference_mode():
            for x, w in pairs:
                torch.nn.functional.linear(x, w)

    return run


def decode_rows(arguments: argparse.Namespace, torch) -> None:
    names = ("depth", "threads", "G weights/s", "packed GB/s", "read GB/s", "share", "4 rows")
    print(f"\n| {' | '.join(names)} | prepare GB/s |")
    print("|---|---|---|---|---|---|---|---|")
    for depth in arguments.depths:
        found, rate = layers(depth, arguments.gb * 1e9)
        weights = sum(n * k for n, k in (layer.shape for layer in found))
        packed = [layer.packed for layer in found]
        nbytes = sum(array.nbytes for array in packed)
        for threads in arguments.threads:
            read, ours = reader(packed, threads), multiplier(found, 1, threads)
            t, t_read, t_four = best(arguments.repeat, ours, read, multiplier(found, 4, threads))
            print(
                f"| {depth} | {threads} | {weights / t / 1e9:.1f} | {nbytes / t / 1e9:.1f} "
                f"| {nbytes / t_read / 1e9:.1f} | {t_read / t:.0%} | {t_four / t:.2f} "
                f"| {rate / 1e9:.1f} |",
                flush=True,
            )
    if torch:
        shapes = [SHAPES[i % 3] for i in range(9)]
        run = torch_linear(torch, shapes, 1)
        weights = sum(n * k for n, k in shapes)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            (t,) = best(arguments.repeat, run)
            rate = weights / t / 1e9
            print(
                f"| torch bfloat16 | {threads} | {rate:.1f} | {2 * rate:.1f} | | | | |", flush=True
            )


def fewer_planes(arguments: argparse.Namespace) -> None:
    """One memory of depth 4 against memory prepared from the planes that are read alone."""
    print("\n| planes read of 4 | threads | time over memory of those alone |")
    print("|---|---|---|")
    deep, _ = layers(4, arguments.gb * 1e9, planes_apart=True)
    for planes in (1, 2, 3, 4):
        rng = np.random.default_rng(planes)
        made = {shape: kernels.prepare(random_tensor(rng, shape, planes)) for shape in SHAPES}
        alone = []
        for layer in deep:
            memory = aligned_bytes(made[layer.shape].nbytes)
            memory[:] = made[layer.shape].memory
            prepared = dataclasses.replace(made[layer.shape], memory=memory)
            alone.append(Layer(layer.shape, layer.packed, prepared))
        for threads in arguments.threads:
            t, t_alone = best(
                arguments.repeat,
                multiplier(deep, 1, threads, planes=planes),
                multiplier(alone, 1, threads),
            )
            print(f"| {planes} | {threads} | {t / t_alone:.2f} |", flush=True)


def int8_peak() -> tuple[str, Callable[[int], Callable[[], None]], int]:
    """The instruction's name, a function of a number of threads that makes one run, and the
    multiply-adds that a thread does in it."""
    rounds = 4_000_000
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "int8_peak.so"
        source = Path(__file__).with_name("int8_peak.cpp")
        command = ["c++", "-O2", "-march=native", "-shared", "-fPIC", str(source), "-o", str(built)]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(built))
    library.int8_peak_name.restype = ctypes.c_char_p
    run, run.argtypes, run.restype = library.int8_peak_run, (ctypes.c_int64,), ctypes.c_int64

    def on(threads: int) -> Callable[[], None]:
        pool = ThreadPoolExecutor(threads)
        return lambda: list(pool.map(run, [rounds] * threads)) and None

    return library.int8_peak_name().decode(), on, run(rounds)


def prefill_rows(arguments: argparse.Namespace, torch) -> None:
    instruction, peak, done = int8_peak()
    print(f"\n| prefill, {PREFILL_ROWS} rows | threads | G multiply-adds/s | of the peak |")
    print("|---|---|---|---|")
    macs = PREFILL_ROWS * sum(n * k for n, k in SHAPES)
    for threads in arguments.threads:
        runs, names = [peak(threads)], [f"int8 peak ({instruction})"]
        for depth in arguments.depths:
            found = layers(depth, 0)[0]
            for name, arithmetic in (
                ("groups", kernels.GROUPS),
                ("superblocks", kernels.SUPERBLOCKS),
            ):
                runs.append(multiplier(found, PREFILL_ROWS, threads, arithmetic))
                names.append(f"depth {depth}, {name}")
        if torch:
            torch.set_num_threads(threads)
            runs.append(torch_linear(torch, list(SHAPES), PREFILL_ROWS))
            names.append("torch bfloat16")
        t_peak, *times = best(max(3, arguments.repeat // 2), *runs)
        most = done * threads / t_peak
        print(f"| {names[0]} | {threads} | {most / 1e9:.0f} | |", flush=True)
        for name, t in zip(names[1:], times, strict=True):
            rate = macs / t
            print(f"| {name} | {threads} | {rate / 1e9:.0f} | {rate / most:.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--gb", type=float, default=1.0, help="packed bytes of the set, in GB")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    torch = torch_module()
    if torch:
        use_openmp()
    print(f"instruction set: {native.isa('products')}")
    decode_rows(arguments, torch)
    fewer_planes(arguments)
    prefill_rows(arguments, torch)


if __name__ == "__main__":
    main()
