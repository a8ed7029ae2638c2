"""The rules for readers (docs/format.md) on a packed layer that has been loaded."""

from __future__ import annotations

import torch

from tritllm.errors import FormatError
from tritllm.format.trits import GROUP, TRITS_PER_BYTE
from tritllm.ops.trit_linear import TritLinear

LARGEST_BYTE = 3**TRITS_PER_BYTE - 1


def check_and_prepare(layer: TritLinear, where: str) -> None:
    """Check a loaded layer, and prepare it for the native kernels where they can run.

    Each byte is read once: the kernels check those that they prepare.

    where: names the file and the tensor.

    Raises FormatError for shapes, bytes, padding or a codebook that break the format.
    """
    try:
        layer.tensor()
        prepared = layer.prepare()
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from None
    if not prepared:
        groups = -(-layer.in_features // GROUP)
        _check_trits(layer.weight, layer.in_features, where)
        _check_trits(layer.weight_scale, 3 * groups, f"{where}_scale")


def _check_trits(packed: torch.Tensor, trits: int, where: str) -> None:
    largest = int(packed.max()) if packed.numel() else 0
    if largest > LARGEST_BYTE:
        raise FormatError(f"{where}: byte {largest} is not five trits (0..{LARGEST_BYTE})")
    used = trits % TRITS_PER_BYTE
    if used and not bool((packed[..., -1] // 3**used == 3 ** (TRITS_PER_BYTE - used) // 2).all()):
        raise FormatError(f"{where}: padding after trit {trits} of a row is not zero")
