"""Bits a weight of the matrices of a GGUF, of any type, also of those that only a fork knows.

Sizes follow from where the next tensor begins; so a type's number has not to be known.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes, by type
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32  # unless general.alignment says otherwise, which llama-quantize does not write


def bits_a_weight(path: Path, prefix: str) -> float:
    """Of all tensors of two dimensions or more whose name begins with `prefix`, together."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SystemExit(f"{path}: not a GGUF")
        _, n_tensors, n_values = _read(file, "<IQQ")
        for _ in range(n_values):
            _string(file)
            (kind,) = _read(file, "<I")
            _skip_value(file, kind)
        tensors = [_tensor(file) for _ in range(n_tensors)]
        begin = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
    end = path.stat().st_size - begin
    starts = sorted(offset for _, _, offset in tensors)
    after = dict(zip(starts, [*starts[1:], end], strict=True))
    chosen = [t for t in tensors if t[0].startswith(prefix) and len(t[1]) > 1]
    weights = sum(prod(shape) for _, shape, _ in chosen)
    return 8 * sum(after[offset] - offset for _, _, offset in chosen) / weights


def _read(file: BinaryIO, form: str) -> tuple:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO) -> str:
    (length,) = _read(file, "<Q")
    return file.read(length).decode()


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _string(file)
    elif kind == _ARRAY:
        kind, count = _read(file, "<IQ")
        for _ in range(count):
            _skip_value(file, kind)
    else:
        file.seek(_SCALARS[kind], 1)


def _tensor(file: BinaryIO) -> tuple[str, tuple[int, ...], int]:
    """Name, shape and offset from the first tensor."""
    name = _string(file)
    (dimensions,) = _read(file, "<I")
    shape = _read(file, f"<{dimensions}Q")
    _, offset = _read(file, "<IQ")
    return name, shape, offset
