"""Bits a weight from where a GGUF's tensors lie, whatever their types are called."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from benchmarks.gguf_bits import bits_a_weight


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def write_gguf(path: Path) -> None:
    """Two matrices of 2 and 6 bits in the layers, a norm there, and a wide output matrix."""
    values = [
        string("general.name") + struct.pack("<I", 8) + string("tiny"),
        string("layers") + struct.pack("<II", 4, 2),
        string("tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc"),
        string("flags") + struct.pack("<IIQ", 9, 7, 3) + b"\1\0\1",
    ]
    sizes = {
        "output.weight": ((64, 32), 4096),
        "blk.0.ffn_up.weight": ((64, 32), 512),
        "blk.0.attn_norm.weight": ((64,), 256),
        "blk.1.ffn_up.weight": ((64, 32), 1536),
    }
    tensors, offset = [], 0
    for name, (shape, size) in sizes.items():
        numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 199, offset)
        tensors.append(string(name) + numbers)
        offset += size
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    header += b"".join(values + tensors)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(offset))


def test_the_bits_of_what_has_the_prefix(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    assert bits_a_weight(tmp_path / "tiny.gguf", "blk.") == 8 * (512 + 1536) / (2 * 64 * 32)
    assert bits_a_weight(tmp_path / "tiny.gguf", "blk.1.") == 6
    assert bits_a_weight(tmp_path / "tiny.gguf", "output") == 16


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other").write_bytes(bytes(100))
    with pytest.raises(SystemExit, match="not a GGUF"):
        bits_a_weight(tmp_path / "other", "blk.")
