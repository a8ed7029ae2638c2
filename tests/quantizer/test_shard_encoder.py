"""Small parts of a source are encoded several at a time: the same files, whatever is small."""

from __future__ import annotations

import pytest
from support.fused_experts import write_fused
from support.model_folders import result_hashes

from tritllm import quantize
from tritllm.quantizer import shard_encoder


@pytest.mark.parametrize("room", [0, 1 << 13, 1 << 30])
@pytest.mark.parametrize("threads", [1, 3])
def test_files_do_not_depend_on_what_is_encoded_together(tmp_path, monkeypatch, room, threads):
    source = write_fused(tmp_path / "source", "gpt_oss", shards=2)
    configs = ["uniform-d1", "uniform-d3"]
    quantize(str(source), configs, tmp_path / "expected", allow_low_coverage=True)
    monkeypatch.setattr(shard_encoder, "TOGETHER_BYTES", room)
    monkeypatch.setattr(shard_encoder, "_SMALL_BYTES", room)
    steps = []
    quantize(
        str(source), configs, tmp_path / "out", allow_low_coverage=True, threads=threads,
        on_progress=steps.append,
    )  # fmt: skip
    assert result_hashes(tmp_path / "out") == result_hashes(tmp_path / "expected")
    done = [step.done_bytes for step in steps]
    assert done == sorted(done)
    assert done[-1] == steps[-1].total_bytes
