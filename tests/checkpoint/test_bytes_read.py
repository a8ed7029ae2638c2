"""How often each byte of a packed folder is read."""

from __future__ import annotations

from collections import Counter

import pytest
from support.model_folders import write_family

from tritllm import PackedCheckpoint, dequantize, quantize, verify
from tritllm.storage.model_files import LocalFiles


@pytest.fixture
def packed(tmp_path):
    quantize(str(write_family(tmp_path / "source", shards=2)), ["uniform-d2"], tmp_path / "out")
    return tmp_path / "out/uniform-d2/packed"


@pytest.fixture
def reads(monkeypatch):
    """How often each byte of each file was read."""
    counts: Counter[tuple[str, int]] = Counter()
    read = LocalFiles.read

    def count(self, name, offset, length):
        counts.update((name, offset + i) for i in range(length))
        return read(self, name, offset, length)

    monkeypatch.setattr(LocalFiles, "read", count)
    return counts


@pytest.mark.parametrize("planes", [None, 1])
def test_every_byte_of_a_tensor_is_read_once(packed, reads, tmp_path, planes):
    checkpoint = PackedCheckpoint(packed)
    for action in (
        lambda: verify(packed),
        lambda: dequantize(packed, tmp_path / "model", planes=planes),
    ):
        reads.clear()
        action()
        for name, record in checkpoint.manifest["tensors"].items():
            entry = checkpoint.entry(name)
            found = [reads[record["file"], at] for at in range(entry.begin, entry.end)]
            assert set(found) == {1}, name
