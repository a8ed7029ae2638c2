"""tritllm, llama.cpp, ik_llama.cpp and bfloat16 in transformers, in turn in one run.

    pip install gguf
    python benchmarks/llama_cpp.py --llama-bin LLAMA_BUILD/bin [--ik-bin IK_BUILD/bin] SCRATCH
    ... [--threads 2] [--passes 2] [--long-tokens 8192] [--only d2 Q4_0]

SCRATCH gets a random checkpoint of a Qwen2.5-1.5B's shape (32,000 tokens, an output matrix of its
own) and what each side makes of it: packed folders of depth 1 to 4, and GGUFs with llama-quantize's
own choices; what is there already is used again. ik_llama.cpp runs the same GGUFs, of its own types
those of its own llama-quantize, each with and without repacking at run time. A type made for
ternary models is measured on the same random weights: its speed does not depend on them.

Every measurement is a process of its own: `tritllm bench` with lm_head at depth 4, which
llama-quantize's 6-bit output matrix comes nearest to, and llama-bench. All decode after a prompt of
the same length, a warm-up first; the last passes decode after a prompt of `--long-tokens`, ours and
what is nearest to its bits, or those that `--only` names, which with `--passes 0` are all that is
measured: the long prompt takes most of the time. Figures are the best pass. A ratio is of ours to
the best of all types and settings of both engines whose layers have at least our bits a weight,
less 3 %: Q6_K is as near to depth 4 as their types come.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_bits import bits_a_weight

HERE = Path(__file__).parent
LLAMA_TYPES = ("TQ2_0", "TQ1_0", "Q4_0", "Q3_K_M", "Q5_K_M", "Q6_K")
IK_ONLY = ("IQ2_BN", "IQ4_KS")  # types that only ik_llama.cpp's llama-quantize makes
IK_TYPES = ("IQ2_BN", "Q4_0", "IQ4_KS", "Q5_K_M", "Q6_K")
DEPTHS = ("d1", "d2", "d3", "d4")
LONG = ("d1", "TQ2_0", "d2", "Q4_0", "d3", "Q5_K_M", "d4", "Q6_K")  # at a long context
FEWER_BITS = 0.97  # of ours, that a type may have and still be compared
# Against the best of the other engines at each depth; against bfloat16.
GOALS = {
    "decode": dict(zip(DEPTHS, (1.4, 1.3, 1.3, 1.2), strict=True)),
    "prefill": dict.fromkeys(DEPTHS, 2.0),
    "long": dict.fromkeys(DEPTHS, 1.2),
}
BFLOAT16_GOALS = {
    "decode": dict(zip(DEPTHS, (5.0, 3.5, 2.6, 2.0), strict=True)),
    "prefill": dict.fromkeys(DEPTHS, 2.0),
}


@dataclass(frozen=True)
class Settings:
    """What all measure. Lengths are in tokens; `long` is the longer prompt, 0 for none."""

    threads: int
    prompt: int
    new: int
    long: int


@dataclass(frozen=True)
class Programs:
    """Folders with llama-bench and llama-quantize."""

    llama: Path
    ik: Path | None


@dataclass(frozen=True)
class Contender:
    """What is measured: a depth of ours, bfloat16, or a GGUF's type under one of two engines.

    repacked: at run time, by ik_llama.cpp.
    """

    type: str
    ik: bool = False
    repacked: bool = False

    @property
    def name(self) -> str:
        return f"{'ik ' * self.ik}{self.type}{' repacked' * self.repacked}"

    @property
    def is_theirs(self) -> bool:
        return self.type not in (*DEPTHS, "bfloat16")

    @property
    def gguf(self) -> str:
        return f"{self.type}.gguf"


def contenders(with_ik: bool, only: Sequence[str]) -> list[Contender]:
    """In the order of a pass: those of about as many bits next to each other; of these types, or
    all where `only` is empty.
    """
    found = []
    for group in (
        ("IQ2_BN", "TQ2_0", "d1", "TQ1_0"),
        ("Q4_0", "IQ4_KS", "d2", "Q3_K_M"),
        ("d3", "Q5_K_M"),
        ("Q6_K", "d4"),
        ("bfloat16",),
    ):
        for type_ in group:
            if only and type_ not in only:
                continue
            if type_ not in IK_ONLY:
                found.append(Contender(type_))
            if with_ik and type_ in IK_TYPES:
                found += [Contender(type_, True), Contender(type_, True, True)]
    return found


def output(command: Sequence[str | Path]) -> str:
    """What a command prints; its messages are shown if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def make_files(folder: Path, programs: Programs, shape: list[str], threads: int) -> None:
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
    for name in LLAMA_TYPES:
        quantize = programs.llama / "llama-quantize"
        make(folder / f"{name}.gguf", quantize, f16, "OUT", name, str(threads))
    for name in IK_ONLY if programs.ik else ():
        quantize = programs.ik / "llama-quantize"
        make(folder / f"{name}.gguf", quantize, f16, "OUT", name, str(threads))
    configs = ",".join(f"uniform-{depth}" for depth in DEPTHS)
    make(
        folder / "tritllm", sys.executable, "-m", "tritllm", "quantize", "--model", source,
        "--configs", configs, "--write", "packed", "--out", "OUT",
    )  # fmt: skip


def llama_bench(which: Contender, programs: Programs, folder: Path, *numbers: str | int) -> float:
    """Tokens a second of llama-bench's one measurement, the last that it prints."""
    program = (programs.ik if which.ik else programs.llama) / "llama-bench"
    options = [*map(str, numbers), "-r", "1", *(["-rtr", "1"] if which.repacked else [])]
    printed = output([program, "-m", folder / which.gguf, "-o", "json", *options])
    return json.loads(printed[printed.index("[\n") :])[-1]["avg_ts"]


def theirs(
    which: Contender, programs: Programs, folder: Path, settings: Settings, what: str
) -> float:
    threads = ("-t", settings.threads)
    if what == "prefill":
        return llama_bench(which, programs, folder, *threads, "-p", settings.prompt, "-n", 0)
    prompt, new = settings.long if what == "long" else settings.prompt, settings.new
    if which.ik:  # has no -d; -p 0 -n 0 leave out what it measures besides
        return llama_bench(
            which, programs, folder, *threads, "-p", 0, "-n", 0, "-gp", f"{prompt},{new}"
        )
    return llama_bench(which, programs, folder, *threads, "-p", 0, "-n", new, "-d", prompt)


def ours(which: Contender, folder: Path, settings: Settings, prompt: int) -> dict[str, float]:
    """The packed model, or the same dequantized to bfloat16, which is measured after it."""
    dequantized = which.type == "bfloat16"
    depth = "d1" if dequantized else which.type
    numbers = {
        "--threads": settings.threads, "--prompt-tokens": prompt,
        "--new-tokens": settings.new, "--lm-head-depth": 4,
    }  # fmt: skip
    options = [str(word) for pair in numbers.items() for word in pair]
    packed = folder / "tritllm" / f"uniform-{depth}" / "packed"
    compare = "--compare" if dequantized else "--no-compare"
    command = [sys.executable, "-m", "tritllm", "bench", packed, "--json", compare, *options]
    return json.loads(output(command))["dequantized" if dequantized else "packed"]


def measure(
    which: Contender, programs: Programs, folder: Path, settings: Settings, long: bool
) -> dict[str, float]:
    """Tokens a second at batch 1 by what was done: "prefill" and "decode", or "long"."""
    if which.is_theirs:
        whats = ("long",) if long else ("prefill", "decode")
        return {what: theirs(which, programs, folder, settings, what) for what in whats}
    found = ours(which, folder, settings, settings.long if long else settings.prompt)
    return (
        {"long": found["decode"]}
        if long
        else {what: found[what] for what in GOALS if what in found}
    )


def bits_of(which: Contender, folder: Path) -> float:
    """Bits a weight of the matrices within the layers, in the file."""
    if which.is_theirs:
        return bits_a_weight(folder / which.gguf, "blk.")
    if which.type == "bfloat16":
        return 16.0
    report = folder / "tritllm" / f"uniform-{which.type}" / "report.json"
    return json.loads(report.read_text())["bits_per_weight"]["quantized"]


Found = dict[Contender, dict[str, list[float]]]


def print_speeds(found: Found, bits: dict[Contender, float], settings: Settings) -> None:
    titles = {
        "decode": f"decode {settings.new} after {settings.prompt}",
        "prefill": f"prefill {settings.prompt}",
        "long": f"decode after {settings.long}",
    }
    shown = [what for what in titles if any(what in speeds for speeds in found.values())]
    print(f"\n| tokens a second | bits a weight | {' | '.join(titles[w] for w in shown)} |")
    print("|---" * (2 + len(shown)) + "|")
    for which, speeds in found.items():
        cells = [
            f"{max(speeds[w]):.1f} ({', '.join(f'{x:.1f}' for x in speeds[w])})"
            if w in speeds
            else ""
            for w in shown
        ]
        print(f"| {which.name} | {bits[which]:.2f} | {' | '.join(cells)} |")


def print_ratios(found: Found, bits: dict[Contender, float]) -> None:
    print("\n| | rival | ratio | goal | each pass |")
    print("|---|---|---|---|---|")
    for what, goals in GOALS.items():
        for depth, goal in goals.items():
            us = Contender(depth)
            if what not in found.get(us, ()):
                continue
            rivals = [
                which
                for which, speeds in found.items()
                if which.is_theirs and what in speeds and bits[which] >= FEWER_BITS * bits[us]
            ]
            if rivals:
                best = max(rivals, key=lambda which: max(found[which][what]))
                print_ratio(what, us, best, found, goal)
    for what, goals in BFLOAT16_GOALS.items():
        for depth, goal in goals.items():
            us, them = Contender(depth), Contender("bfloat16")
            if what in found.get(us, ()) and what in found.get(them, ()):
                print_ratio(what, us, them, found, goal)


def print_ratio(what: str, us: Contender, them: Contender, found: Found, goal: float) -> None:
    mine, other = found[us][what], found[them][what]
    each = ", ".join(f"{a / b:.2f}" for a, b in zip(mine, other, strict=True))
    ratio = max(mine) / max(other)
    print(f"| {what}, {us.name} | {them.name} | {ratio:.2f} | {goal:.1f} | {each} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path, help="a folder for the models, 14 GB; kept")
    parser.add_argument("--llama-bin", type=Path, required=True, help="llama-bench, llama-quantize")
    parser.add_argument("--ik-bin", type=Path, help="the same of ik_llama.cpp")
    parser.add_argument("--shape", default="qwen2.5-1.5b", help="of make_random_checkpoint.py")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--layers", type=int, help="fewer of them, to try this program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--long-tokens", type=int, default=8192, help="0 for no long context")
    parser.add_argument("--long-passes", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="depths and types to measure")
    parser.add_argument("--only-make", action="store_true", help="make the models and stop")
    arguments = parser.parse_args()

    shape = [arguments.shape, "--untied", "--vocabulary", str(arguments.vocabulary)]
    folder = arguments.scratch / f"{arguments.shape}-{arguments.vocabulary}"
    if arguments.layers:
        shape += ["--layers", str(arguments.layers)]
        folder = folder.with_name(f"{folder.name}-{arguments.layers}-layers")
    programs = Programs(arguments.llama_bin, arguments.ik_bin)
    make_files(folder, programs, shape, arguments.threads)
    if arguments.only_make:
        return
    settings = Settings(
        arguments.threads, arguments.prompt_tokens, arguments.new_tokens, arguments.long_tokens
    )
    found: Found = {which: {} for which in contenders(programs.ik is not None, arguments.only)}
    bits = {which: bits_of(which, folder) for which in found}
    long_passes = arguments.long_passes if settings.long else 0
    for number in range(arguments.passes + long_passes):
        long = number >= arguments.passes
        for which, speeds in found.items():
            if long and (which.ik or which.type not in (arguments.only or LONG)):
                continue
            print(f"pass {number + 1}: {which.name}", file=sys.stderr, flush=True)
            for what, speed in measure(which, programs, folder, settings, long).items():
                speeds.setdefault(what, []).append(speed)
    print(
        f"{folder.name}, {settings.threads} threads, batch 1, {arguments.passes} passes "
        f"and {long_passes} of the long context"
    )
    print_speeds(found, bits, settings)
    print_ratios(found, bits)


if __name__ == "__main__":
    main()
