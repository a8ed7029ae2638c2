"""Packed products on a CUDA GPU beside cuBLAS: python benchmarks/gpu_linear.py [--model 7B 72B]

For each shape of Qwen2.5-7B and 72B and each depth, in one run: microseconds of the packed product
and of torch's in float16 (or --dtype), their ratio, and the bytes a second of each beside what the
card was measured to read. Times are medians of --repeats launches within a CUDA graph, over as many
copies of the weights as do not fit the L2 cache. Each product is first held against a float32 one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch

from tritllm.format.layout import plane_row_bytes, scale_row_bytes
from tritllm.format.trits import DEPTHS
from tritllm.ops.backends import cuda
from tritllm.ops.definitions import Packed, dequantize
from tritllm.products import GROUPS

SHAPES = {  # [out_features, in_features]: q with k and v, o, gate with up, down
    "7B": ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944)),
    "72B": ((10240, 8192), (8192, 8192), (59136, 8192), (8192, 29568)),
}
BOUND = 2e-3  # of the largest result


def random_matrix(rows: int, columns: int, depth: int) -> Packed:
    """Random trits on the GPU, with steps such that weights are of the order of a model's."""

    def bytes_of(*shape: int) -> torch.Tensor:
        return torch.randint(0, 243, shape, dtype=torch.uint8, device="cuda")

    planes = bytes_of(depth, rows, plane_row_bytes(columns))
    scale = bytes_of(rows, scale_row_bytes(columns))
    steps = torch.logspace(-4, -2, 27, device="cuda") / (3**depth // 2)
    return Packed(planes, scale, steps.float(), columns)


def microseconds(calls: list[Callable[[], object]], repeats: int) -> float:
    """Median time of a call; they take turns, in one graph, so that none finds its data cached."""
    for call in calls:
        call()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def copies(nbytes: int) -> int:
    """How many matrices of so many bytes are more than twice the L2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, 2 * cache // nbytes + 1)


def read_bandwidth(repeats: int) -> float:
    """Bytes a second of a sum over 2 GiB."""
    values = torch.ones(1 << 29, device="cuda")
    return values.nbytes / microseconds([values.sum], repeats) * 1e6


def measure(shape: tuple[int, int], depth: int, batch: int, options: argparse.Namespace) -> None:
    """Print one row of the table."""
    rows, columns = shape
    dtype = getattr(torch, options.dtype)
    weight = random_matrix(rows, columns, depth)
    made = cuda.prepare(weight)
    assert made
    x = torch.randn(batch, columns, dtype=dtype, device="cuda")
    memories = [made.memory.clone() for _ in range(copies(made.memory.nbytes))]

    def packed(memory: torch.Tensor) -> torch.Tensor:
        return cuda.linear_prepared(
            x, memory, weight.steps, made.layout, depth, columns, rows, GROUPS
        )

    exact = dequantize(*weight[:4], torch.float32)
    wanted = torch.nn.functional.linear(x.float(), exact)
    error = float((packed(made.memory).float() - wanted).abs().max() / wanted.abs().max())
    rounding = torch.finfo(dtype).eps
    if not error < BOUND + rounding:
        sys.exit(
            f"{shape} at depth {depth}, {batch} rows: off by {error:.2g} of the largest result"
        )
    own = microseconds([lambda m=m: packed(m) for m in memories], options.repeats)
    floats = [exact.to(dtype) for _ in range(copies(2 * rows * columns))]
    dense = microseconds(
        [lambda w=w: torch.nn.functional.linear(x, w) for w in floats], options.repeats
    )
    peak = options.bandwidth / 1e6  # bytes a microsecond
    print(f"| {rows} x {columns} | {depth} | {batch} | {own:.1f} | {dense:.1f} | {dense / own:.2f} "
          f"| {made.memory.nbytes / own / peak:.0%} "
          f"| {2 * rows * columns / dense / peak:.0%} | {error:.1e} |", flush=True)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 4, 16, 2048))
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    if why := cuda.why_not():
        sys.exit(f"the kernels cannot run here: {why}")
    torch.manual_seed(0)
    options.bandwidth = read_bandwidth(options.repeats)
    print(f"{torch.cuda.get_device_name()}: reads {options.bandwidth / 1e9:.0f} GB/s; "
          f"{cuda.describe()}; torch {torch.__version__}\n")  # fmt: skip
    print(f"| shape | depth | rows | packed, us | {options.dtype}, us | ratio | of the bandwidth "
          f"| {options.dtype}, of the bandwidth | error |\n" + "|---" * 9 + "|")  # fmt: skip
    for model in options.model:
        for shape in SHAPES[model]:
            for batch in options.batch:
                for depth in options.depths:
                    measure(shape, depth, batch, options)
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
