"""Which tensor-parallel degrees the format allows, and why: equal parts of rows, columns, heads.

Frameworks give each rank an equal part of a matrix. Rows can be cut anywhere. Columns are cut
between groups of 16 (`cut.py`): where equal parts end within a group, two ranks hold that group,
and each multiplies the other's columns of it with zeros.
"""

from __future__ import annotations

from typing import NamedTuple

from tritllm.format.trits import GROUP


class Parts(NamedTuple):
    """What becomes of a dimension that is cut into equal parts.

    size: of each part; None where it cannot be cut so. reason: why it can or cannot, in words.
    """

    size: int | None
    reason: str


def row_parts(out_features: int, parts: int) -> Parts:
    """Cut N rows into equal parts. Raises ValueError unless parts >= 1."""
    _check(parts)
    if out_features % parts:
        return Parts(None, f"{out_features:,} rows cannot be cut into {parts} equal parts")
    size = out_features // parts
    return Parts(size, f"{out_features:,} rows / {parts} = {size:,}")


def column_parts(in_features: int, parts: int) -> Parts:
    """Cut K columns into equal parts, best of whole groups of 16.

    Raises ValueError unless parts >= 1.
    """
    _check(parts)
    if parts == 1:
        return Parts(in_features, f"{in_features:,} columns stay whole")
    size, rest = divmod(in_features, parts)
    if rest:
        return Parts(None, f"{in_features:,} columns: not divisible by {parts}")
    if size % GROUP:
        return Parts(size, f"{in_features:,} columns / {parts} = {size:,}, part of a group of 16")
    groups = in_features // GROUP
    return Parts(
        size, f"{in_features:,} columns / {GROUP} = {groups:,} groups: divisible by {parts}"
    )


def head_parts(heads: int, key_value_heads: int, parts: int) -> Parts:
    """Cut attention heads into equal parts; key and value heads too, or each is held several times.

    The size is that of the query heads. Frameworks repeat a key and value head on several ranks
    where there are more ranks than such heads, if the ranks are a multiple of them.

    Raises ValueError unless parts >= 1.
    """
    _check(parts)
    if heads % parts:
        return Parts(None, f"{heads} attention heads: not divisible by {parts}")
    fewer, more = sorted((key_value_heads, parts))
    if more % fewer:
        return Parts(None, f"{key_value_heads} key and value heads cannot be shared by {parts}")
    return Parts(heads // parts, f"{heads} attention heads: divisible by {parts}")


def _check(parts: int) -> None:
    if parts < 1:
        raise ValueError(f"{parts} parts, expected 1 or more")
