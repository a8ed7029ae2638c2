"""Quantize a mixture of small experts and a dense model of as many weights, in turn; print ratios.

    python benchmarks/quantize_experts.py SCRATCH [--layers 20] [--experts 64] [--repeat 2]
    ... [--configs uniform-d2] [--intermediate 256] [--layout gpt_oss] [--threads 2]

Both are made by make_random_checkpoint.py of Qwen2.5-0.5B's shape with a small vocabulary: one has
in each block as many experts as asked for, fused, the other one unit as wide as all of them. Their
files are in the page cache when a command begins; what it writes is synced within its time. Each
command is a process of its own, whose seconds, processor seconds and peak memory are the system's
figures; of several runs the least counts. SCRATCH is made and removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from quantize import Taken, remember, run

MAKER = Path(__file__).with_name("make_random_checkpoint.py")


def make(out: Path, layers: int, *options: str) -> None:
    """Write a checkpoint of random weights."""
    run(
        [
            sys.executable, str(MAKER), "qwen2.5-0.5b", str(out), "--layers", str(layers),
            "--vocabulary", "8000", *options,
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path, help="a folder to make and remove")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--intermediate", type=int, default=256, help="of an expert")
    parser.add_argument("--layout", default="gpt_oss")
    parser.add_argument("--configs", default="uniform-d2")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    scratch, experts, width = arguments.scratch, arguments.experts, arguments.intermediate
    scratch.mkdir(parents=True)
    kinds = {
        "mixture": ("--experts", str(experts), "--layout", arguments.layout),
        "dense": (),
    }
    found: dict[str, list[Taken]] = {kind: [] for kind in kinds}
    try:
        for kind, options in kinds.items():
            wide = width if kind == "mixture" else width * experts
            make(scratch / kind, arguments.layers, "--intermediate", str(wide), *options)
        for _ in range(arguments.repeat):
            for kind in kinds:
                out = scratch / "out"
                remember(scratch / kind)
                command = [
                    sys.executable, "-m", "tritllm", "quantize", "--model", str(scratch / kind),
                    "--out", str(out), "--configs", arguments.configs, "--write", "packed",
                    "--threads", str(arguments.threads),
                ]  # fmt: skip
                found[kind].append(run(command, out))
                shutil.rmtree(out)
    finally:
        shutil.rmtree(scratch)
    print(
        f"{arguments.layers} layers of {experts} experts of {width}, {arguments.configs}, "
        f"{arguments.threads} threads; least of {arguments.repeat}"
    )
    print("| what | seconds | of processors | peak MB |")
    print("|---|---|---|---|")
    best = {}
    for kind, runs in found.items():
        seconds = min(taken.seconds for taken in runs)
        processor = min(taken.processor for taken in runs)
        peak = max(taken.peak for taken in runs)
        best[kind] = seconds, processor
        print(f"| {kind} | {seconds:.2f} | {processor:.2f} | {peak / 1e6:.0f} |")
    ratios = [mine / theirs for mine, theirs in zip(best["mixture"], best["dense"], strict=True)]
    print(f"| mixture / dense | {ratios[0]:.2f} | {ratios[1]:.2f} | |")


if __name__ == "__main__":
    main()
