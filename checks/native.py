"""Everything that is checked of the native core, apart from what the Python tests see of it.

    python checks/native.py [format] [plain] [sanitized] [fuzz] [neon] [--fuzz-seconds 10]

Its C++ tests run on the library that is installed beside this Python, and under AddressSanitizer
and UndefinedBehaviorSanitizer; each fuzz target runs for 10 s from its corpus in
native/tests/corpus; the tests run once more for NEON, compiled by a cross compiler and emulated by
qemu. What cannot be run on this machine is said in a line. Builds are kept in build/checks, so that
a second run compiles only what changed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from compiler import compiler_for_arm, emulator_of_arm
from parts import ROOT, CheckError, add_parts, run, run_parts

BUILDS = ROOT / "build" / "checks"
CORPUS = ROOT / "native" / "tests" / "corpus"
# Where a sanitizer finds something the program aborts, so that a fuzz target keeps its input.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1",
    "UBSAN_OPTIONS": "abort_on_error=1:print_stacktrace=1",
}


def tool(name: str) -> str:
    """The path of a tool: the one installed beside this Python, else the machine's."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise CheckError(f"{name} is missing: pip install {name}")
    return found


def build(name: str, *options: str) -> Path:
    """Configure and build the C++ tests; the folder of the build."""
    folder = BUILDS / name
    settings = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DTRITLLM_TESTS=ON"]
    if shutil.which("ccache"):
        settings.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    run([tool("cmake"), "-S", ROOT / "native", "-B", folder, *settings, *options])
    run([tool("cmake"), "--build", folder, "--target", "tests/all"])
    return folder


def has(flag: str) -> bool:
    """Whether the processor has a feature, by the name that Linux has for it."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and flag in cpuinfo.read_text(encoding="utf-8").split()


def has_avx512() -> bool:
    """Whether the program that emulates AMX, which is compiled for AVX-512 VNNI, can run here."""
    return has("avx512_vnni")


def idle_sets() -> str:
    """The instruction sets that cannot run here, which would take minutes to compile."""
    needs = {
        "avxvnni": "avx_vnni",
        "avx512vnni": "avx512_vnni",
        "avx512": "avx512vbmi",
        "amx": "amx_int8",
    }
    return ";".join(isa for isa, flag in needs.items() if not has(flag))


def run_tests(folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """Run the tests of a build; what ran, and what did not with the reason."""
    command: list[str | Path] = [
        tool("ctest"),
        "--test-dir",
        folder,
        "--output-on-failure",
        "--no-tests=error",
    ]
    if not has_avx512():
        command += ["--exclude-regex", "linear_amx_test"]
    said = run([*command, "--timeout", "600"], environment)
    ran = re.findall(r"Test +#\d+: (\w+) \.+ +Passed", said)
    if not ran or "Skipped" in said:
        raise CheckError(f"no test ran, or one was skipped:\n{said}")
    amx = "" if "linear_amx_test" in ran else "; AMX emulation NOT run: needs AVX-512"
    return f"{', '.join(ran)}{amx}"


def has_sanitizers() -> str:
    """The sanitizers that the compiler can link: a build of the tests is told of them."""
    source = BUILDS / "sanitizers.cpp"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("int main() { return 0; }\n", encoding="utf-8")
    compiler = os.environ.get("CXX", "c++").split()
    for sanitizers in ("address,undefined", "undefined"):
        command: list[str | Path] = [
            *compiler,
            f"-fsanitize={sanitizers}",
            source,
            "-o",
            source.with_suffix(""),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and not ("zig" in _version(compiler) and "address" in sanitizers):
            return sanitizers
    raise CheckError(f"{' '.join(compiler)} has no sanitizers")


def _version(compiler: list[str]) -> str:
    path = shutil.which(compiler[0]) or ""
    script = Path(path).read_bytes()[:200] if path else b""
    return "zig" if b"ziglang" in script or "zig" in " ".join(compiler) else ""


def check_format() -> str:
    """clang-format changes nothing."""
    files = [p for e in ("*.h", "*.cpp") for p in (ROOT / "native").rglob(e)]
    run([tool("clang-format"), "--dry-run", "-Werror", *sorted(files)])
    return f"{len(files)} files"


def installed_library() -> Path:
    """The native library of the package that this Python imports."""
    package = importlib.util.find_spec("tritllm")
    folder = Path(package.origin if package and package.origin else "").parent / "native"
    found = [path for path in folder.glob("*tritllm.*") if path.suffix in (".so", ".dylib", ".dll")]
    if not found:
        raise CheckError("tritllm is not installed beside this Python with its native library")
    return found[0]


def check_plain() -> str:
    """The tests on the library as users compile it."""
    # What emulates AMX compiles the core once more: only where it can run.
    library = installed_library()
    folder = build("plain", f"-DTRITLLM_INSTALLED={library}", f"-DTRITLLM_LEAVE_OUT={idle_sets()}")
    return run_tests(folder)


def _sanitized() -> tuple[Path, str]:
    sanitizers = has_sanitizers()
    options = (f"-DTRITLLM_SANITIZE={sanitizers}", f"-DTRITLLM_LEAVE_OUT={idle_sets()}")
    # With -O1 gcc takes six times as long for the arrays of products_scalar.cpp.
    folder = build("sanitized", *options, "-DCMAKE_CXX_FLAGS_RELEASE=-Og -DNDEBUG")
    missing = "" if "address" in sanitizers else "; AddressSanitizer NOT run: zig has none"
    return folder, missing


def check_sanitized() -> str:
    """The tests under the sanitizers."""
    folder, missing = _sanitized()
    return run_tests(folder, SANITIZER_OPTIONS) + missing


def check_fuzz(seconds: float) -> str:
    """Every fuzz target, two at a time."""
    folder, missing = _sanitized()
    targets = sorted(path.name for path in CORPUS.iterdir())
    sources = sorted(path.stem for path in (ROOT / "native/tests").glob("fuzz_*.cpp"))
    if targets != sources:
        raise CheckError(f"targets {sources}, but corpora {targets}")

    def fuzz(name: str) -> str:
        said = run([folder / "tests" / name, CORPUS / name, str(seconds)], SANITIZER_OPTIONS)
        return f"{name} {said.strip()}"

    with ThreadPoolExecutor(2) as pool:
        return "; ".join(pool.map(fuzz, targets)) + missing


def check_neon() -> str:
    """The tests for ARM, emulated; on an ARM machine the plain ones are those."""
    if os.uname().machine in ("aarch64", "arm64"):
        return "part of the plain tests on this machine"
    qemu = emulator_of_arm()
    if not qemu:
        return "NOT run: no qemu-aarch64 on PATH (apt-get install qemu-user)"
    compiler = compiler_for_arm()
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    # zig compiles alike at -O1 to -O3; what it makes with -Os runs longer under the emulator.
    options.append("-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG")
    options += [f"-DCMAKE_CXX_COMPILER={';'.join(compiler)}", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    if "ziglang" in compiler:
        options.append("-DTRITLLM_DOTPROD=-mcpu=generic+v8_2a+dotprod")
    folder = build("neon", *options, f"-DCMAKE_CROSSCOMPILING_EMULATOR={qemu}")
    return run_tests(folder) + f", under {Path(qemu).name}"


def main() -> int:
    """Runs the parts that were named, by default all; 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts: dict[str, Callable[[], str]] = {
        "format": check_format,
        "plain": check_plain,
        "sanitized": check_sanitized,
        "fuzz": lambda: check_fuzz(options.fuzz_seconds),
        "neon": check_neon,
    }
    add_parts(parser, parts)
    parser.add_argument("--fuzz-seconds", type=float, default=10, help="for each fuzz target")
    options = parser.parse_args()
    return run_parts("native", parts, options.part)


if __name__ == "__main__":
    sys.exit(main())
