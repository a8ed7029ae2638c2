"""What the Triton kernels are compiled to, without a GPU: python benchmarks/gpu_code.py [--json]

For each kernel, depth and target: registers and stack of a thread (a stack means that registers
were spilled), shared memory of a program, instructions a weight in the main loop, and the layout's
bytes a weight. Instructions are those of the machine code, read back with the disassembler that
comes with triton, in the loop that has most of them, by the weights that a thread decodes a turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tritllm.format.trits import DEPTHS, GROUP
from tritllm.ops.triton_kernels import launch
from tritllm.ops.triton_kernels.layout import GROUP_BYTES, ROWS

TARGETS = (80, 90, 100)  # compute capabilities, times ten: A100, H100, B200
WARP = 32
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTCHMMA)\b")
_POINTERS = ("x", "memory", "steps", "bias", "y")


@dataclasses.dataclass
class Code:
    """Of one kernel, compiled."""

    kernel: str
    depth: int
    batch: int  # rows of activations that it serves, at most
    dtype: str
    target: int
    registers: int
    stack: int  # bytes
    shared: int  # bytes
    instructions: float  # a weight
    tensor_core: bool
    bytes: float  # a weight


def kernels() -> Iterator[tuple[str, Any, int, str, dict[str, int], int, int, float]]:
    """Each that `launch` can choose: name, function, rows, dtype, tile, warps, stages, weights."""
    for batch, tile in launch.VECTOR_TILES.items():
        weights = tile.block_groups * GROUP * ROWS / (tile.num_warps * WARP)
        constants = {"batch": batch, "block_groups": tile.block_groups}
        yield "vector", launch.vector_kernel, batch, "bf16", constants, tile.num_warps, 3, weights
    tiles = [(tile, "bf16") for tile in launch.MATRIX_TILES] + [(launch.FLOAT32_TILE, "fp32")]
    for matrix, dtype in tiles:
        constants = matrix._asdict()
        warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
        weights = matrix.block_rows * matrix.block_groups * GROUP / (warps * WARP)
        batch = matrix.block_batch
        yield "matrix", launch.matrix_kernel, batch, dtype, constants, warps, stages, weights


def compiled(depth: int, target: int, row: tuple[Any, ...]) -> Code:
    """One row of the table."""
    name, kernel, batch, dtype, tile, warps, stages, weights = row
    constants = {"depth": depth, "has_bias": True, **tile}
    types = dict.fromkeys(_POINTERS, f"*{dtype}") | {"memory": "*u8", "steps": "*fp32"}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in names
               if n in (*_POINTERS, "in_features", "out_features")}  # fmt: skip
    source = ASTSource(
        kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", target, WARP),
        options={"num_warps": warps, "num_stages": stages},
    )  # fmt: skip
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        loop = longest_loop(_run("nvdisasm", "-c", file.name))
        usage = _run("cuobjdump", "-res-usage", file.name)
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return Code(
        name, depth, batch, dtype, target, registers, stack, made.metadata.shared,
        round(len(loop) / weights, 2), any(_TENSOR_CORE.search(line) for line in loop),
        GROUP_BYTES[depth] / GROUP,
    )  # fmt: skip


def longest_loop(assembly: str) -> list[str]:
    """Its instructions: from the target of a backward branch to the branch."""
    places: dict[str, int] = {}
    instructions: list[str] = []
    longest: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            places[label[1]] = len(instructions)
        elif found := re.match(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line.strip()):
            instructions.append(found[1])
            back = re.search(r"\bBRA\b.*?(\.L_x_\d+)", found[1])
            if back and len(instructions) - places.get(back[1], 1 << 30) > len(longest):
                longest = instructions[places[back[1]] :]
    return longest


def _run(tool: str, *arguments: str) -> str:
    """The output of one of triton's tools."""
    done = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS, help="such as 80 90")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--batches", type=int, nargs="+", help="only kernels for so many rows")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    if not options.json:
        print("| kernel | rows | dtype | depth | target | registers | stack | shared, bytes "
              "| tensor cores | instructions a weight | bytes a weight |")  # fmt: skip
        print("|---" * 11 + "|")
    for row in kernels():
        if options.batches and row[2] not in options.batches:
            continue
        for depth in options.depths:
            for target in options.targets:
                code = compiled(depth, target, row)
                if options.json:
                    print(json.dumps(dataclasses.asdict(code)), flush=True)
                    continue
                print(f"| {code.kernel} | {code.batch} | {code.dtype} | {depth} | sm_{target} "
                      f"| {code.registers} | {code.stack} | {code.shared} "
                      f"| {'yes' if code.tensor_core else 'no'} | {code.instructions} "
                      f"| {code.bytes} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
