"""Quantize a checkpoint and, in the same run, merely copy as many bytes; print the ratio.

    python benchmarks/make_random_checkpoint.py qwen2.5-7b big --dtype float16 --shard-gb 2
    python benchmarks/quantize.py big scratch [--configs uniform-d2] [--repeat 3]
    ... [--llama-quantize PATH_TO_BINARY --gguf F16.gguf --llama-type Q4_0]

The copy reads every byte of the source and writes as many bytes as the packed result has, in large
pieces, and syncs. Files are dropped from the page cache before each run, where the system allows.
Each measured command is a process of its own; its peak resident memory is the system's figure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHUNK = 16 << 20


def forget(folder: Path) -> None:
    """Drop the files below from the page cache."""
    os.sync()
    for path in folder.rglob("*") if folder.is_dir() else [folder]:
        if path.is_file() and hasattr(os, "posix_fadvise"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def copy(source: Path, target: Path, result_bytes: int) -> None:
    """Read all shards of source, and write result_bytes to target, evenly interleaved."""
    shards = sorted(source.glob("*.safetensors"))
    total = sum(shard.stat().st_size for shard in shards)
    buffer = bytearray(CHUNK)
    read = written = 0
    with open(target, "wb", buffering=0) as output:
        for shard in shards:
            with open(shard, "rb", buffering=0) as file:
                while length := file.readinto(buffer):
                    read += length
                    due = result_bytes * read // total - written
                    output.write(memoryview(buffer)[:due])
                    written += due
        os.fsync(output.fileno())


def run(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command; its output is shown if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)}:\n{output.decode()}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("scratch", type=Path, help="a folder to make and remove")
    parser.add_argument("--configs", default="uniform-d2")
    parser.add_argument("--write", default="packed")
    parser.add_argument("--codec", default="v3")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--llama-type", default="Q4_0")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True)
    tritllm = [sys.executable, "-m", "tritllm"]
    out = arguments.scratch / "out"
    quantize = [
        *tritllm, "quantize", "--model", str(arguments.source), "--configs", arguments.configs,
        "--write", arguments.write, "--codec", arguments.codec, "--out", str(out),
    ]  # fmt: skip
    source_bytes = sum(path.stat().st_size for path in arguments.source.glob("*.safetensors"))
    seconds: dict[str, list[float]] = {}
    peak = result_bytes = 0
    try:
        copy(arguments.source, arguments.scratch / "copy", source_bytes // 4)  # wakes the disk
        for _ in range(arguments.repeat):
            shutil.rmtree(out, ignore_errors=True)
            forget(arguments.source)
            taken, peak = run(quantize)
            seconds.setdefault("tritllm quantize", []).append(taken)
            result_bytes = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
            forget(arguments.source)
            target = arguments.scratch / "copy"
            start = time.perf_counter()
            copy(arguments.source, target, result_bytes)
            seconds.setdefault("plain copy", []).append(time.perf_counter() - start)
            target.unlink()
            for packed in sorted(out.glob("*/packed")):
                forget(packed)
                seconds.setdefault(f"verify {packed.parent.name}", []).append(
                    run([*tritllm, "verify", str(packed)])[0]
                )
            if arguments.llama_quantize and arguments.gguf:
                forget(arguments.gguf)
                gguf = str(arguments.scratch / "llama.gguf")
                command = [str(arguments.llama_quantize), str(arguments.gguf), gguf]
                taken, _ = run([*command, arguments.llama_type, str(os.cpu_count())])
                seconds.setdefault(f"llama-quantize {arguments.llama_type}", []).append(taken)
                os.unlink(gguf)
    finally:
        shutil.rmtree(arguments.scratch)
    base = statistics.median(seconds["plain copy"])
    print(
        f"source {source_bytes / 1e9:.2f} GB, result {result_bytes / 1e9:.2f} GB "
        f"({arguments.configs}, {arguments.write}, {arguments.codec}), "
        f"{os.cpu_count()} processors; medians of {arguments.repeat}; "
        f"tritllm's peak memory {peak / 1e6:.0f} MB"
    )
    print("| what | seconds | source GB/s | M weights/s | times the copy | share the copy takes |")
    print("|---|---|---|---|---|---|")
    for name, values in seconds.items():
        value = statistics.median(values)
        print(
            f"| {name} | {value:.2f} | {source_bytes / value / 1e9:.2f} | "
            f"{source_bytes / 2 / value / 1e6:.0f} | {value / base:.2f} | "
            f"{100 * base / value:.0f} % |"
        )


if __name__ == "__main__":
    main()
