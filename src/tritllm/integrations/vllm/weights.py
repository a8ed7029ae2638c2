"""A rank's packed matrix once it is loaded: checked, put into the device's own layout, multiplied.

Nothing here needs vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tritllm.errors import FormatError, TritError
from tritllm.format.layout import SCALE
from tritllm.ops import backends, mode
from tritllm.ops.check_packed_bytes import check_packed_bytes
from tritllm.ops.definitions import Packed, linear, linear_prepared


@dataclass(frozen=True)
class Call:
    """What a product needs beside its tensors.

    layout: of the prepared memory; 0 where there is none and the planes are decoded at each call.
    nbytes: of that memory. arithmetic: the operator's, for prepared memory. part_rows: rows of the
    parts, where they have a codebook each.
    """

    layout: int
    nbytes: int
    depth: int
    in_features: int
    out_features: int
    arithmetic: int
    part_rows: list[int] | None

    def numbers(self) -> list[int]:
        """As an operator takes it."""
        first = (self.layout, self.nbytes, self.depth, self.in_features, self.out_features)
        return [*first, self.arithmetic, *(self.part_rows or ())]

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> Call:
        """The call again."""
        layout, nbytes, depth, in_features, out_features, arithmetic, *parts = numbers
        return cls(layout, nbytes, depth, in_features, out_features, arithmetic, parts or None)

    def run(
        self,
        x: torch.Tensor,
        memory: torch.Tensor,
        scale: torch.Tensor | None,
        steps: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """X [..., K] -> [..., N].

        memory: prepared, uint8 [nbytes], and scale is None; or the planes.
        """
        if self.layout:
            return linear_prepared(
                x, memory, steps, self.layout, self.depth, self.in_features, self.out_features,
                self.arithmetic, bias, self.part_rows,
            )  # fmt: skip
        return linear(x, memory, scale, steps, bias, self.part_rows)


def prepare(
    packed: Packed, stored: Callable[[int], str]
) -> tuple[Call, torch.Tensor, torch.Tensor | None]:
    """The call, the memory and the scale of a matrix that has been loaded.

    Where the device has a layout of its own, the planes are not needed afterwards.
    stored: file and tensor of a part, for messages.

    Raises FormatError for bytes that are no trits, TritError for a mode that vLLM has not.
    """
    asked = mode.requested()
    if asked == mode.PER_TOKEN:
        raise TritError(f"TRITLLM_LINEAR={mode.PER_TOKEN} is not read by vLLM")
    planes = packed.planes
    made = None
    try:
        if asked != "torch":
            made = backends.prepare(packed)
    except ValueError as error:
        _check_bytes(packed, stored)
        raise FormatError(f"{stored(0)}: {error}") from None
    if made is None:
        _check_bytes(packed, stored)
    parts = None if packed.part_rows is None else list(packed.part_rows)
    call = Call(
        0 if made is None else made.layout,
        0 if made is None else made.memory.numel(),
        planes.shape[0],
        packed.in_features,
        planes.shape[1],
        mode.ARITHMETIC.get(asked, 0),
        parts,
    )
    return (call, planes, packed.scale) if made is None else (call, made.memory, None)


def _check_bytes(packed: Packed, stored: Callable[[int], str]) -> None:
    """Raise FormatError, naming the part, for bytes that are no trits."""
    parts: Sequence[int] = packed.part_rows or (packed.planes.shape[1],)
    first = 0
    for part, rows in enumerate(parts):
        own = slice(first, first + rows)
        for name, tensor in (("", packed.planes[:, own]), (SCALE, packed.scale[own])):
            try:
                check_packed_bytes(f"weight{name}", tensor, packed.in_features)
            except ValueError as error:
                raise FormatError(f"{stored(part)}{name}: {error}") from None
        first += rows
