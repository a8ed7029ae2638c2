"""Quantize a checkpoint and, in the same run, merely copy as many bytes; print the ratio.

    python benchmarks/make_random_checkpoint.py qwen2.5-7b big --dtype float16 --shard-gb 2
    python benchmarks/quantize.py big scratch [--configs uniform-d2 [MORE ...]] [--repeat 3]
    ... [--warm] [--threads 2] [--llama-quantize PATH_TO_BINARY [--gguf F16.gguf]]

The copy reads every byte of the source and writes as many bytes as the packed result has, in large
pieces, and syncs; what a command writes is synced within its time. Several `--configs`, such as
`uniform-d2 uniform-d1,uniform-d2,uniform-d3,uniform-d4`, are a command each; copy and verify are of
the first. Before each run its files are
dropped from the page cache, where the system allows; with `--warm` they are read into it. Each
command is a process of its own; its peak resident memory is the system's figure. llama-quantize
gets the same weights as an F16 GGUF, which make_gguf.py makes unless it is given. M weights/s are
the 2-D weights a program quantizes, embeddings with llama-quantize only; of copy and verify,
tritllm's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

CHUNK = 16 << 20
LLAMA_TYPES = ("Q4_0", "Q2_K", "TQ2_0")


def files(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


def forget(folder: Path) -> None:
    """Drop the files below from the page cache."""
    os.sync()
    for path in files(folder):
        if hasattr(os, "posix_fadvise"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def remember(folder: Path) -> None:
    """Read the files below into the page cache."""
    os.sync()
    buffer = bytearray(CHUNK)
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def sync(path: Path) -> None:
    """Wait until what is written below is on the disk."""
    for file in files(path):
        descriptor = os.open(file, os.O_RDWR)
        os.fsync(descriptor)
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


@dataclass(frozen=True)
class Taken:
    """What a command took: seconds, with syncing its result, and of processors, all together."""

    seconds: float
    processor: float = 0.0
    peak: int = 0  # resident bytes


def run(command: list[str], result: Path | None = None) -> Taken:
    """Run a command; its output is shown if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if not status and result:
        sync(result)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)}:\n{output.decode()}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Taken(seconds, usage.ru_utime + usage.ru_stime, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("scratch", type=Path, help="a folder to make and remove")
    parser.add_argument("--configs", nargs="+", default=["uniform-d2"])
    parser.add_argument("--write", default="packed")
    parser.add_argument("--codec", default="v3")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="sources in the page cache")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--gguf", type=Path, help="the source in F16; needs gguf if not given")
    parser.add_argument("--llama-types", nargs="+", default=LLAMA_TYPES)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True)
    prepare = remember if arguments.warm else forget
    threads = str(arguments.threads)
    tritllm = [sys.executable, "-m", "tritllm"]
    out = arguments.scratch / "out"
    quantize = [
        *tritllm, "quantize", "--model", str(arguments.source), "--write", arguments.write,
        "--codec", arguments.codec, "--out", str(out), "--threads", threads, "--configs",
    ]  # fmt: skip
    first, *others = arguments.configs
    source_bytes = sum(path.stat().st_size for path in arguments.source.glob("*.safetensors"))
    gguf = arguments.gguf
    found: dict[str, list[Taken]] = {}
    result_bytes = 0
    try:
        if arguments.llama_quantize and not gguf:
            gguf = arguments.scratch / "F16.gguf"
            maker = Path(__file__).with_name("make_gguf.py")
            run([sys.executable, str(maker), str(arguments.source), str(gguf)])
        copy(arguments.source, arguments.scratch / "copy", source_bytes // 4)  # wakes the disk
        for _ in range(arguments.repeat):
            shutil.rmtree(out, ignore_errors=True)
            prepare(arguments.source)
            found.setdefault(f"quantize {first}", []).append(run([*quantize, first], out))
            result_bytes = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
            prepare(arguments.source)
            target = arguments.scratch / "copy"
            start, processor = time.perf_counter(), time.process_time()
            copy(arguments.source, target, result_bytes)
            found.setdefault("plain copy", []).append(
                Taken(time.perf_counter() - start, time.process_time() - processor)
            )
            target.unlink()
            for packed in sorted(out.glob("*/packed")):
                prepare(packed)
                found.setdefault(f"verify {packed.parent.name}", []).append(
                    run([*tritllm, "verify", str(packed)])
                )
            report = json.loads(next(out.glob("*/report.json")).read_text())
            for configs in others:
                shutil.rmtree(out)
                prepare(arguments.source)
                found.setdefault(f"quantize {configs}", []).append(run([*quantize, configs], out))
            for name in arguments.llama_types if arguments.llama_quantize else ():
                prepare(gguf)
                target = arguments.scratch / f"{name}.gguf"
                command = [str(arguments.llama_quantize), str(gguf), str(target), name, threads]
                found.setdefault(f"llama-quantize {name}", []).append(run(command, target))
                target.unlink()
    finally:
        shutil.rmtree(arguments.scratch)
    base = statistics.median(taken.seconds for taken in found["plain copy"])
    print(
        f"source {source_bytes / 1e9:.2f} GB, result {result_bytes / 1e9:.2f} GB "
        f"({first}, {arguments.write}, {arguments.codec}), "
        f"{threads} threads, {'warm' if arguments.warm else 'cold'}; "
        f"medians of {arguments.repeat}"
    )
    print(
        "| what | seconds | of processors | peak MB | source GB/s | M weights/s | times the copy |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, values in found.items():
        value = statistics.median(taken.seconds for taken in values)
        processor = statistics.median(taken.processor for taken in values)
        theirs = name.startswith("llama")
        weights = source_bytes / 2 if theirs else report["quantized_parameters"]
        peak = f"{values[-1].peak / 1e6:.0f}" if values[-1].peak else ""
        print(
            f"| {name} | {value:.2f} | {processor:.2f} | {peak} | "
            f"{source_bytes / value / 1e9:.2f} | {weights / value / 1e6:.0f} | {value / base:.2f} |"
        )


if __name__ == "__main__":
    main()
