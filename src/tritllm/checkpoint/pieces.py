"""Source tensors that hold several matrices, put together from what the manifest says of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tritllm.errors import FormatError


def pieces_of(records: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """By source tensor, its pieces in order, each the names of its matrices in stored order.

    records: of the manifest's tensors, that `check_slices` has found right.
    """
    found: dict[str, dict[int, list[str]]] = {}
    for name, record in records.items():
        if part := record.get("slice_of"):
            found.setdefault(part["tensor"], {}).setdefault(part["index"], []).append(name)
    return {tensor: [pieces[i] for i in sorted(pieces)] for tensor, pieces in found.items()}


def check_slices(records: Mapping[str, Any], folder: str) -> None:
    """Raise FormatError unless every source tensor that matrices are slices of is made of them
    alone, each of its weights once, in one file.
    """
    sliced = pieces_of(records)
    for tensor in sliced.keys() & records.keys():
        of = sliced[tensor][0][0]
        raise FormatError(
            f"{folder}/{records[of]['file']}: tensor {tensor}: is stored, and {of} is a slice of it"
        )
    for tensor, pieces in sliced.items():
        names = [name for piece in pieces for name in piece]
        first = records[names[0]]
        where = f"{folder}/{first['file']}: tensor {tensor}"
        for name in names:
            record = records[name]
            part = record["slice_of"]
            if (
                any(record[key] != first[key] for key in ("file", "transposed", "in_features"))
                or part["shape"] != first["slice_of"]["shape"]
            ):
                raise FormatError(
                    f"{where}: {names[0]} and {name} are slices of it and differ in file, shape "
                    "or order"
                )
            if len(range(*part["rows"])) != record["shape"][1]:
                raise FormatError(f"{where}: rows {part['rows']} are not those of {name}")
        indices = sorted({records[name]["slice_of"]["index"] for name in names})
        rows = {tuple(tuple(records[n]["slice_of"]["rows"]) for n in piece) for piece in pieces}
        weights = sum(records[name]["shape"][1] * first["in_features"] for name in names)
        if (
            indices != list(range(len(pieces)))
            or not all(map(_are_all_rows, rows))
            or len({sum(len(range(*each)) for each in piece) for piece in rows}) != 1
            or weights != math.prod(first["slice_of"]["shape"])
        ):
            raise FormatError(f"{where}: its slices leave a hole or overlap")


@lru_cache(maxsize=64)
def _are_all_rows(rows: tuple[tuple[int, int, int], ...]) -> bool:
    """Whether (start, stop, step) are the rows from 0 on, each once."""
    found = sorted(row for each in rows for row in range(*each))
    return found == list(range(len(found)))
