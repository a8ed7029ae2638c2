"""The records of a manifest's tensors: which fields they have, and which values those may take."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import chain, islice
from typing import Any

from tritllm.format.json_object import shortened
from tritllm.format.quantization_config import is_depth
from tritllm.format.trits import DEPTHS

is_sha256 = re.compile("[0-9a-f]{64}").fullmatch
is_shard_name = re.compile(r"[^/\\]+\.safetensors").fullmatch
TRAINED = ", trained"  # ends what `kept` says of a tensor whose values are not the source's
_MOST = (1 << 63) - 1
_WITHOUT_DIGITS = dict.fromkeys(map(ord, "0123456789abcdef"))

_Rule = tuple[Callable[[list[Any]], bool], str]  # whether all values are right, and if not: what


def fault_of_records(records: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first fault of the tensors' records: its place as a path from $, and what is wrong there.

    None where all are right.

    A thousand records at a time (which fit the processor's cache), those of the same fields
    together, each field in all of them at once: a folder may hold more than a hundred thousand, and
    a call for each value would take a second.
    """
    rest = iter(records.items())
    while some := list(islice(rest, 1000)):
        alike: dict[tuple[str, ...], list[tuple[str, Any]]] = {}
        for name, record in some:
            fields = tuple(record) if type(record) is dict else ()
            alike.setdefault(fields, []).append((name, record))
        for fields, group in alike.items():
            fault = _fault_of_alike(fields, group)
            if fault:
                return fault
    return None


def _fault_of_alike(
    fields: tuple[str, ...], group: list[tuple[str, Any]]
) -> tuple[str, str] | None:
    """The first fault of (name, record) pairs whose records have these fields."""
    rules = _RULES.get(frozenset(fields))
    if rules is None:
        what = f"fields {quoted(sorted(fields))} are not those of a tensor's record"
        return _place(group[0][0]), what if fields else "not an object with fields"
    for field, (are_right, what) in rules.items():
        values = [record[field] for _, record in group]
        if not are_right(values):
            name, wrong = next((n, r[field]) for n, r in group if not are_right([r[field]]))
            return f"{_place(name)}.{field}", f"{quoted(wrong)} {what}"
    return None


def _place(name: str) -> str:
    return f"$.tensors[{shortened(repr(name), 150)}]"


def _are(kind: type, values: list[Any]) -> bool:
    return set(map(type, values)) == {kind}


def _are_among(*known: str) -> _Rule:
    what = f"is not {' or '.join(map(repr, known))}"
    return lambda values: _are(str, values) and set(values) <= {*known}, what


def _are_texts(values: list[Any]) -> bool:
    return _are(str, values)


def _are_shard_names(values: list[Any]) -> bool:
    return _are(str, values) and all(map(is_shard_name, set(values)))


def _are_sha256s(values: list[Any]) -> bool:
    """64 digits each, and in all of them together nothing but digits."""
    if not _are(str, values) or set(map(len, values)) != {64}:
        return False
    return not "".join(values).translate(_WITHOUT_DIGITS)


def _are_depths(values: list[Any]) -> bool:
    return all(map(is_depth, values))


def _are_sizes(values: list[Any], least: int = 1) -> bool:
    return _are(int, values) and least <= min(values) and max(values) <= _MOST


def _are_shapes(values: list[Any], least: int = 0) -> bool:
    sizes = list(chain.from_iterable(values)) if _are(list, values) else [None]
    return not sizes or _are_sizes(sizes, least)


def _are_plane_shapes(values: list[Any]) -> bool:
    return _are_shapes(values, 1) and set(map(len, values)) == {3}


def _are_truths(values: list[Any]) -> bool:
    return _are(bool, values)


def _are_errors(values: list[Any]) -> bool:
    numbers = set(map(type, values)) <= {int, float}
    return numbers and min(values) >= 0 and max(values) <= float(_MOST)


def _are_slices(values: list[Any]) -> bool:
    """Objects with the fields of `MatrixSlice`, whose rows are one or more of a piece."""
    if not _are(dict, values) or any(set(value) != {*_SLICE_FIELDS} for value in values):
        return False
    tensors, shapes, indices, rows = ([v[field] for v in values] for field in _SLICE_FIELDS)
    return (
        _are(str, tensors)
        and _are_shapes(shapes, 1)
        and _are_sizes(indices, 0)
        and _are_shapes(rows)
        and all(len(each) == 3 and each[0] < each[1] and each[2] > 0 for each in rows)
    )


_SLICE_FIELDS = ("tensor", "shape", "index", "rows")
_ALL: dict[str, _Rule] = {
    "file": (_are_shard_names, "is not a shard's name"),
    "dtype": (_are_texts, "is not text"),
    "shape": (_are_shapes, "is not a shape"),
    "sha256": (_are_sha256s, "is not a SHA-256"),
}
_PLANES = _ALL | {
    "dtype": _are_among("U8"),
    "shape": (_are_plane_shapes, "is not three sizes"),
    "depth": (_are_depths, f"is not {DEPTHS[0]}..{DEPTHS[-1]}"),
    "in_features": (_are_sizes, "is not a size"),
    "transposed": (_are_truths, "is not true or false"),
    "nmse": (_are_errors, "is not a number of 0 or more"),
}
_SLICED = _PLANES | {"slice_of": (_are_slices, "is not a slice of a tensor")}
_PART = _ALL | {"dtype": _are_among("U8", "F32"), "part_of": (_are_texts, "is not text")}
_KEPT = _ALL | {
    "dtype": _are_among(
        *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64")
    ),
    "kept": (_are_texts, "is not text"),
}
_RULES = {frozenset(rules): rules for rules in (_PLANES, _SLICED, _PART, _KEPT)}


def quoted(value: Any) -> str:
    """The value as it is shown in a message: short, whatever it is."""
    try:
        return shortened(repr(value))
    except RecursionError:
        return "a deeply nested value"
