"""Small parts of a source are encoded several at a time: same files, same order."""

from __future__ import annotations

import pytest
from support.fused_experts import write_fused
from support.model_folders import result_hashes

from tritllm import quantize
from tritllm.quantizer import shard_encoder


@pytest.mark.parametrize("room", [1 << 13, 1 << 30])
@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_depends_on_what_is_encoded_together(tmp_path, monkeypatch, room, threads):
    source = write_fused(tmp_path / "source", "gpt_oss", shards=2)
    found = []
    for number, size in enumerate((0, room)):  # first each part by itself
        monkeypatch.setattr(shard_encoder, "TOGETHER_BYTES", size)
        monkeypatch.setattr(shard_encoder, "_SMALL_BYTES", size)
        out, steps = tmp_path / str(number), []
        quantize(
            str(source), ["uniform-d1", "uniform-d3"], out, allow_low_coverage=True,
            threads=threads, on_progress=steps.append,
        )  # fmt: skip
        found.append((result_hashes(out), [(step.part.name, step.done_bytes) for step in steps]))
    assert found[0] == found[1]
