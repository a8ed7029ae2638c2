"""tritllm inside transformers, llama.cpp and bfloat16 transformers, in turn in one run.

    pip install gguf
    python benchmarks/llama_cpp.py --llama-bin LLAMA_BUILD/bin SCRATCH [--threads 2] [--passes 2]

SCRATCH gets a random checkpoint of a Qwen2.5-1.5B's shape (32,000 tokens, an output matrix of its
own) and what each side makes of it: packed folders of depth 1 to 4, and GGUFs with llama-quantize's
own choices; what is there already is used again. Every measurement is a process of its own, rivals
next to each other: `tritllm bench` with lm_head at depth 4, which llama-quantize's 6-bit output
matrix comes nearest to, and llama-bench. Both decode after a prompt of the same length, a warm-up
first. Figures are the best pass, ratios those of the best; the last column shows how far apart the
passes were.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TYPES = ("TQ2_0", "TQ1_0", "Q4_0", "Q3_K_M", "Q5_K_M", "Q6_K")
ORDER = ("TQ2_0", "d1", "TQ1_0", "Q4_0", "d2", "Q3_K_M", "d3", "Q5_K_M", "Q6_K", "d4", "bfloat16")
GOALS = (
    ("decode", "d1", "TQ2_0", 1.7),
    ("decode", "d2", "Q4_0", 1.0),
    ("decode", "d2", "Q3_K_M", 1.8),
    ("decode", "d3", "Q5_K_M", 1.6),
    ("decode", "d4", "Q6_K", 1.4),
    *(("decode", f"d{d}", "bfloat16", goal) for d, goal in enumerate((5.0, 3.5, 2.6, 2.0), 1)),
    *(("prefill", f"d{d}", "bfloat16", 1.0) for d in range(1, 5)),
    *(("prefill", f"d{d}", "Q4_0", 3.0) for d in range(1, 5)),
)


@dataclass(frozen=True)
class Settings:
    """What both sides measure."""

    threads: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Speed:
    """Tokens a second at batch 1."""

    prefill: float
    decode: float


def output(command: list[str | Path]) -> str:
    """What a command prints; its messages are shown if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def make_files(folder: Path, llama_bin: Path, shape: list[str], threads: int) -> None:
    """All models; each file or folder gets its name when it is whole."""
    source, f16 = folder / "source", folder / "F16.gguf"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path, *command: str | Path) -> None:
        """Run the command with the name of a part, then give it the target's."""
        if target.exists():
            return
        print(f"making {target.name}", file=sys.stderr, flush=True)
        part = target.with_name(f"part-{target.name}")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        output([part if word == "OUT" else word for word in command])
        os.replace(part, target)

    make(source, sys.executable, HERE / "make_random_checkpoint.py", shape[0], "OUT", *shape[1:])
    make(f16, sys.executable, HERE / "make_gguf.py", source, "OUT")
    for name in TYPES:
        quantize = llama_bin / "llama-quantize"
        make(folder / f"{name}.gguf", quantize, f16, "OUT", name, str(threads))
    configs = ",".join(f"uniform-d{d}" for d in range(1, 5))
    make(
        folder / "tritllm", sys.executable, "-m", "tritllm", "quantize", "--model", source,
        "--configs", configs, "--write", "packed", "--out", "OUT",
    )  # fmt: skip


def llama_bench(program: Path, model: Path, settings: Settings) -> Speed:
    """Two runs, so that the prompt before decoding is not before the prefill as well."""

    def speed(prompt: int, new: int, depth: int) -> float:
        numbers = {"-t": settings.threads, "-p": prompt, "-n": new, "-d": depth, "-r": 1}
        options = [str(word) for pair in numbers.items() for word in pair]
        (result,) = json.loads(output([program, "-m", model, "-o", "json", *options]))
        return result["avg_ts"]

    return Speed(speed(settings.prompt, 0, 0), speed(0, settings.new, settings.prompt))


def tritllm_bench(packed: Path, which: str, settings: Settings) -> Speed:
    """The packed model, or the same dequantized to bfloat16, which is measured after it."""
    compare = "--compare" if which == "dequantized" else "--no-compare"
    numbers = {
        "--threads": settings.threads, "--prompt-tokens": settings.prompt,
        "--new-tokens": settings.new, "--lm-head-depth": 4,
    }  # fmt: skip
    options = [str(word) for pair in numbers.items() for word in pair]
    command = [sys.executable, "-m", "tritllm", "bench", packed, "--json", compare, *options]
    figures = json.loads(output(command))[which]
    return Speed(figures["prefill"], figures["decode"])


def measure(name: str, folder: Path, llama_bin: Path, settings: Settings) -> Speed:
    if name in TYPES:
        return llama_bench(llama_bin / "llama-bench", folder / f"{name}.gguf", settings)
    depth = "d1" if name == "bfloat16" else name
    packed = folder / "tritllm" / f"uniform-{depth}" / "packed"
    return tritllm_bench(packed, "dequantized" if name == "bfloat16" else "packed", settings)


def print_speeds(found: dict[str, list[Speed]], settings: Settings) -> None:
    print(f"\n| tokens a second | decode {settings.new} | prefill {settings.prompt} | each pass |")
    print("|---|---|---|---|")
    for name, speeds in found.items():
        each = ", ".join(f"{speed.decode:.1f} / {speed.prefill:.0f}" for speed in speeds)
        decode, prefill = best(speeds, "decode"), best(speeds, "prefill")
        print(f"| {name} | {decode:.1f} | {prefill:.0f} | {each} |")


def print_ratios(found: dict[str, list[Speed]]) -> None:
    print("\n| | ratio | goal | each pass |")
    print("|---|---|---|---|")
    for what, ours, theirs, goal in GOALS:
        ratio = best(found[ours], what) / best(found[theirs], what)
        pairs = zip(found[ours], found[theirs], strict=True)
        each = ", ".join(f"{getattr(a, what) / getattr(b, what):.2f}" for a, b in pairs)
        print(f"| {what}, {ours} / {theirs} | {ratio:.2f} | {goal:.1f} | {each} |")


def best(speeds: list[Speed], what: str) -> float:
    return max(getattr(speed, what) for speed in speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path, help="a folder for the models, 13 GB; kept")
    parser.add_argument("--llama-bin", type=Path, required=True, help="llama-bench, llama-quantize")
    parser.add_argument("--shape", default="qwen2.5-1.5b", help="of make_random_checkpoint.py")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--layers", type=int, help="fewer of them, to try this program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()

    shape = [arguments.shape, "--untied", "--vocabulary", str(arguments.vocabulary)]
    folder = arguments.scratch / f"{arguments.shape}-{arguments.vocabulary}"
    if arguments.layers:
        shape += ["--layers", str(arguments.layers)]
        folder = folder.with_name(f"{folder.name}-{arguments.layers}-layers")
    make_files(folder, arguments.llama_bin, shape, arguments.threads)
    settings = Settings(arguments.threads, arguments.prompt_tokens, arguments.new_tokens)
    found: dict[str, list[Speed]] = {name: [] for name in ORDER}
    for number in range(arguments.passes):
        for name, speeds in found.items():
            print(f"pass {number + 1}: {name}", file=sys.stderr, flush=True)
            speeds.append(measure(name, folder, arguments.llama_bin, settings))
    print(f"{folder.name}, {settings.threads} threads, batch 1, {arguments.passes} passes")
    print_speeds(found, settings)
    print_ratios(found)


if __name__ == "__main__":
    main()
