"""The Triton kernels compiled for GPUs that are not here: no spills, tensor cores in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Instructions a weight of the product with one row, on sm_80, which has most: above them the
# instructions, and no more the memory, would limit a GPU (docs/gpu.md).
MOST_INSTRUCTIONS = {1: 5.0, 2: 6.0, 3: 7.0, 4: 7.5}
SHARED_MEMORY = 99 << 10  # bytes a program has on every GPU of compute capability 8.0 and above


def codes(*options: str) -> list[dict]:
    """Rows of benchmarks/gpu_code.py, in a process without triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_code.py", "--json", *options],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("target", "depths", "batches"),
    [("80", "4", "1 4 16"), ("80", "1", "1"), ("90", "1 2 3 4", "1"), ("90", "4", "128"),
     ("100", "4", "1 128")],
)  # fmt: skip
def test_compiled_kernels(target: str, depths: str, batches: str) -> None:
    pytest.importorskip("triton", reason="needs triton")
    rows = codes(
        "--targets", target, "--depths", *depths.split(), "--batches", *batches.split()
    )  # fmt: skip
    kernels = len(batches.split()) + ("16" in batches)  # one more for float32
    assert len(rows) == kernels * len(depths.split())
    for row in rows:
        assert row["stack"] == 0, row
        assert row["shared"] <= SHARED_MEMORY, row
        assert row["tensor_core"] == (row["kernel"] == "matrix" and row["dtype"] == "bf16"), row
        if row["batch"] == 1:
            assert row["registers"] <= 80, row  # so that six programs share a processor
            assert 1 < row["instructions"] <= MOST_INSTRUCTIONS[row["depth"]], row
