"""The rules for readers (docs/format.md) on a packed layer that has been loaded."""

from __future__ import annotations

from tritllm.errors import FormatError, TritError
from tritllm.format.layout import SCALE
from tritllm.ops.check_packed_bytes import check_packed_bytes
from tritllm.ops.trit_linear import TritLinear


def check_and_prepare(layer: TritLinear, where: str) -> None:
    """Check a loaded layer, and prepare it for its device's kernels where they can run.

    Each byte is read once: the kernels check those that they prepare.

    where: names the file and the tensor.

    Raises FormatError for shapes, bytes, padding or a codebook that break the format,
    TritError for a layer without bytes, as accelerate leaves one that it offloads.
    """
    if layer.weight.is_meta:
        raise TritError(f"{where}: is on meta, not checked; load without offload_buffers=True")
    at = where
    try:
        layer.tensor()
        if not layer.prepare():
            check_packed_bytes("weight", layer.weight, layer.in_features)
            at = where + SCALE
            check_packed_bytes("weight" + SCALE, layer.weight_scale, layer.in_features)
    except ValueError as error:
        raise FormatError(f"{at}: {error}") from None
