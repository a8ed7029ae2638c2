"""Our own rows: what `tritllm quantize` writes, read back from its two folders."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from quality_peers.recipe import Encoded, Job, MissingError, linear_layers, load_model

UNIFORM = tuple(f"uniform-d{depth}" for depth in range(1, 5))


@cache
def quantize(job: Job, configs: tuple[str, ...], *options: str) -> dict[str, Encoded]:
    """Run the public command once; weights from each `model` folder, bytes from its report.

    The configs share the pass, so each is given its part of the seconds.
    """
    out = job.scratch / f"tritllm-{abs(hash((configs, options)))}"
    command = [sys.executable, "-m", "tritllm", "quantize", "--model", job.model, "--out", out]
    command += ["--configs", ",".join(configs), "--threads", job.threads, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise MissingError(" ".join((done.stderr or done.stdout).split())[-160:])
    return {path.parent.name: read_back(path, len(configs)) for path in out.glob("*/report.json")}


def read_back(report: Path, configs: int) -> Encoded:
    """What a run with so many configs wrote beside the report."""
    found = json.loads(report.read_text())
    layers = linear_layers(load_model(report.parent / "model"))
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    bits = found["bits_per_weight"]["quantized"]
    stored = round(bits * sum(weight.numel() for weight in weights.values()) / 8)
    return Encoded(weights, stored, found["seconds"] / configs)


def calibrate(job: Job) -> list[str]:
    """The options of a calibrated run on the job's text."""
    if job.calibration is None:
        raise MissingError("needs a calibration text: --calibration TEXT")
    sizes = ["--tokens", str(job.tokens), "--context", str(job.context)]
    return ["--calibrate", str(job.calibration), *sizes]
