"""Cosines and sines of the positions that come next, made many at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

_APART = 64  # positions between the first rows of two tables
_ROWS = 80  # of a table, so that a few tokens at once find their rows in one
_MOST_TABLES = 16  # of sequences that take turns
# Frequencies of these depend on how long the sequence is, and the module changes when it is asked.
_CHANGING = ("dynamic", "longrope")


class _Table(NamedTuple):
    """Rows [1, 80, D] of the positions from a multiple of 64 on, what they were made with, and the
    rows one by one, [1, 1, D].
    """

    frequencies: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    each: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class RotaryTables:
    """What a model's rotary module says of the positions to come, asked for many of them at once.

    A call of the module costs more than a hundred microseconds a token. Rows of a table are used
    only where they are, bit for bit, what the module says of a position by itself, and as long as
    the module's frequencies are the same. Its attributes are watched (`watch`): whoever holds
    tables makes new ones when they change.

    kind: of the layers whose positions these are, for modules that tell them apart.
    """

    def __init__(self, module: Any, kind: str | None = None) -> None:
        self._module = module
        self._arguments = () if kind is None else (kind,)
        self._name = "inv_freq" if kind is None else f"{kind}_inv_freq"
        rope = module.rope_type if kind is None else module.rope_type[kind]
        self._usable = not any(name in rope for name in _CHANGING)
        self._tables: dict[int, _Table] = {}

    def at(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions int [B, T], of hidden's dtype: [B, T, D], or [1, T, D]
        where the positions of all rows are equal.
        """
        if self._usable and positions.ndim == 2:
            first, *others = positions.tolist()
            begin, count = first[0], len(first)
            number, at = divmod(begin, _APART)
            together = count == 1 or first == list(range(begin, begin + count))
            if together and at + count <= _ROWS and all(row == first for row in others):
                table = self._tables.get(number)
                if table is None or not self._is_current(table, hidden):
                    table = self._make(hidden, positions, number, at)
                if table is not None and count == 1:
                    return table.each[at]
                if table is not None:
                    return table.cos.narrow(1, at, count), table.sin.narrow(1, at, count)
        return self._ask(hidden, positions)

    @property
    def frequencies(self) -> torch.Tensor:
        """The module's, one for each pair of elements that is rotated."""
        found: torch.Tensor = getattr(self._module, self._name)
        return found

    def _ask(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._module(hidden, positions, *self._arguments)
        return cos, sin

    def _is_current(self, table: _Table, hidden: torch.Tensor) -> bool:
        same = torch.equal(table.frequencies, self.frequencies)
        return same and table.cos.dtype is hidden.dtype

    def _make(
        self, hidden: torch.Tensor, positions: torch.Tensor, number: int, at: int
    ) -> _Table | None:
        """The table of a number; None, from now on, where it is not what the module says."""
        first = number * _APART
        cos, sin = self._ask(hidden, torch.arange(first, first + _ROWS)[None])
        cos, sin = cos.contiguous(), sin.contiguous()
        each = tuple(zip(cos.split(1, dim=1), sin.split(1, dim=1), strict=True))
        table = _Table(self.frequencies.clone(), cos, sin, each)
        for ours, theirs in zip((cos, sin), self._ask(hidden, positions[:1]), strict=True):
            if not torch.equal(ours[:, at : at + positions.shape[1]], theirs):
                self._usable = False
                return None
        if len(self._tables) >= _MOST_TABLES:
            self._tables = {}
        self._tables[number] = table
        return table
