"""Our own rows: what `tritllm quantize` writes, read back from its two folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from quality_peers.recipe import Encoded, Job, MissingError, linear_layers, load_model


def quantize(job: Job, config: str, *options: str) -> Encoded:
    """Run the public command with one config; weights from `model`, bytes from the report."""
    out = job.scratch / "tritllm"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "tritllm", "quantize", "--model", job.model, "--out", out]
    command += ["--configs", config, "--threads", job.threads, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise MissingError(" ".join((done.stderr or done.stdout).split())[-160:])
    (report,) = out.glob("*/report.json")
    bits = json.loads(report.read_text())["bits_per_weight"]["quantized"]
    layers = linear_layers(load_model(report.parent / "model"))
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    return Encoded(weights, round(bits * sum(w.numel() for w in weights.values()) / 8))


def calibrate(job: Job) -> list[str]:
    """The options of a calibrated run on the job's text."""
    if job.calibration is None:
        raise MissingError("needs a calibration text: --calibration TEXT")
    return ["--calibrate", str(job.calibration), "--tokens", str(job.tokens)]
