"""A model larger than the memory it takes: one tensor at a time, kept ones in pieces."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from support.model_folders import BF16, write_model

from tritllm import quantize

RUN = """
import re, sys
from tritllm import quantize
quantize(sys.argv[1], sys.argv[3:], sys.argv[2])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
ALL = ("uniform-d1", "uniform-d2", "uniform-d3", "uniform-d4")


def peak_of(source, out, configs) -> int:
    """Peak resident bytes of a process that quantizes; ru_maxrss may be its parent's."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, source, out, *configs],
        capture_output=True,
        text=True,
        check=True,
    )
    peak = int(done.stdout) * 1024
    report = json.loads((out / configs[-1] / "report.json").read_text())
    assert report["peak_memory_bytes"] == pytest.approx(peak, rel=0.02)
    return peak


def weights(millions: int) -> np.ndarray:
    block = np.random.default_rng(0).standard_normal(1 << 20) * 0.02
    return np.tile(block.astype(np.float32).astype(BF16), millions).reshape(-1, 1024)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kept_tensors_pass_through_in_pieces(tmp_path):
    embedding, linear = weights(75), weights(2)
    source = write_model(
        tmp_path / "source",
        {"model_type": "llama"},
        [{"model.embed_tokens.weight": embedding}, {"model.layers.0.mlp.up_proj.weight": linear}],
    )
    assert embedding.nbytes > 150e6
    peak = peak_of(source, tmp_path / "out", ["uniform-d2"])
    assert peak < 300e6 + 3 * embedding.nbytes  # what is asked
    assert peak < 250e6 + 3 * linear.nbytes  # what is so


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_matrix_with_its_results_at_a_time(tmp_path):
    names = [f"model.layers.{index}.mlp.up_proj.weight" for index in range(4)]
    linear = weights(12)
    source = write_model(
        tmp_path / "source", {"model_type": "llama"}, [dict.fromkeys(names, linear)]
    )
    plans = []
    quantize(str(source), ALL, tmp_path / "out", dry_run=True, on_plan=plans.append)
    peak = peak_of(source, tmp_path / "out", ALL)
    assert peak < 300e6 + 3 * linear.nbytes
    assert peak < 1.15 * plans[0].memory.peak
