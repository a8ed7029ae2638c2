"""The torch operators on packed weights: schemas, what they mean and refuse, and their fakes.

Notation: W is [N, K] = [out_features, in_features], G = ceil(K/16), r planes are read. The portable
layout is the file's (docs/format.md): planes uint8 [r, N, ceil(K/5)], scale uint8 [N, ceil(3G/5)],
steps float32 [27], the row of the codebook that applies at r planes. Matrices of one K may be put
together along their rows (q, k and v) and keep a codebook each: steps are then [parts, 27], and
part_rows gives the rows of each part, as `torch.split` takes them.

* `tritllm::dequantize(planes, scale, steps, in_features, dtype, part_rows) -> [N, K]`: w_hat,
  rounded once to float32 and once more to dtype, the very numbers of `TritTensor.decode`.
* `tritllm::dequantize_prepared(prepared, steps, layout, depth, in_features, out_features, dtype,
  begin, end) -> [end - begin, K]`: the same numbers of rows [begin, end), from memory that a device
  prepared for a matrix of one part. The CPU's alone can be decoded.
* `tritllm::linear(x, planes, scale, steps, bias, part_rows) -> [..., N]`: x [..., K] of any float
  dtype; w_hat is rounded to x's dtype and multiplied by torch in that dtype, a block of rows of W
  at a time. So it is what a dequantized layer of that dtype computes.
* `tritllm::linear_prepared(x, prepared, steps, layout, depth, in_features, out_features,
  arithmetic, bias, part_rows, planes, scale) -> [..., N]`: the same product by a device's own
  kernels, from `prepared` and its `layout` as `backends.prepare` gave them for these steps (a
  layout may hold the steps itself). arithmetic: one of mode.ARITHMETIC: EXACT keeps activations in
  float32, GROUPS lets a kernel round them to int8 in groups of 16, PER_TOKEN rounds them to int8
  with one scale for each token. planes and scale are read by the gradient alone, and not by
  it where `prepared` can be decoded.

Bytes are not checked here: whoever loads them does. A byte above 242 reads as 242. Shapes, dtypes
and sizes are, before memory is touched: ValueError, TypeError.

Gradients (gradients.py): for x and bias; packed weights are frozen. A device's kernels are
registered by its file in backends/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.library import Library, register_fake

from tritllm.format.layout import plane_row_bytes, scale_row_bytes
from tritllm.format.trits import DEPTHS, ENTRIES
from tritllm.ops.mode import ARITHMETIC

LIBRARY = Library("tritllm", "DEF")
_SCHEMAS = {
    "dequantize": (
        "(Tensor planes, Tensor scale, Tensor steps, SymInt in_features, ScalarType dtype,"
        " int[]? part_rows=None) -> Tensor"
    ),
    "dequantize_prepared": (
        "(Tensor prepared, Tensor steps, int layout, int depth, SymInt in_features,"
        " SymInt out_features, ScalarType dtype, SymInt begin, SymInt end) -> Tensor"
    ),
    "linear": (
        "(Tensor x, Tensor planes, Tensor scale, Tensor steps, Tensor? bias=None,"
        " int[]? part_rows=None) -> Tensor"
    ),
    "linear_prepared": (
        "(Tensor x, Tensor prepared, Tensor steps, int layout, int depth, SymInt in_features,"
        " SymInt out_features, int arithmetic, Tensor? bias=None, int[]? part_rows=None,"
        " Tensor? planes=None, Tensor? scale=None) -> Tensor"
    ),
}
for _name, _schema in _SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))

dequantize = torch.ops.tritllm.dequantize.default
dequantize_prepared = torch.ops.tritllm.dequantize_prepared.default
linear = torch.ops.tritllm.linear.default
linear_prepared = torch.ops.tritllm.linear_prepared.default


class Packed(NamedTuple):
    """W [N, K] in the portable layout."""

    planes: torch.Tensor
    scale: torch.Tensor
    steps: torch.Tensor
    in_features: int
    part_rows: Sequence[int] | None = None


class LinearArguments(NamedTuple):
    """Those of `tritllm::linear`."""

    x: torch.Tensor
    planes: torch.Tensor
    scale: torch.Tensor
    steps: torch.Tensor
    bias: torch.Tensor | None = None
    part_rows: Sequence[int] | None = None

    @property
    def packed(self) -> Packed:
        """W, as wide as x."""
        width = self.x.shape[-1] if self.x.ndim else 0
        return Packed(self.planes, self.scale, self.steps, width, self.part_rows)

    def check(self) -> None:
        """Raise ValueError or TypeError where they do not fit each other."""
        check_input(self.x, self.packed.in_features, self.bias, self.planes.shape[1])
        check_packed(self.packed)


class PreparedArguments(NamedTuple):
    """Those of `tritllm::linear_prepared`."""

    x: torch.Tensor
    prepared: torch.Tensor
    steps: torch.Tensor
    layout: int
    depth: int
    in_features: int
    out_features: int
    arithmetic: int
    bias: torch.Tensor | None = None
    part_rows: Sequence[int] | None = None
    planes: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def check(self) -> None:
        """Raise ValueError or TypeError where they do not fit each other, memory's size aside."""
        check_input(self.x, self.in_features, self.bias, self.out_features)
        check_steps(self.steps, self.part_rows, self.out_features)
        check_prepared(self.prepared, self.layout, self.depth)
        _refuse_unless(
            self.arithmetic in ARITHMETIC.values(), f"there is no arithmetic {self.arithmetic}"
        )


class DecodeArguments(NamedTuple):
    """Those of `tritllm::dequantize_prepared`."""

    prepared: torch.Tensor
    steps: torch.Tensor
    layout: int
    depth: int
    in_features: int
    out_features: int
    dtype: torch.dtype
    begin: int
    end: int

    def check(self) -> None:
        """Raise ValueError or TypeError where they do not fit each other, memory's size aside."""
        check_prepared(self.prepared, self.layout, self.depth)
        check_steps(self.steps, None, self.out_features)
        _refuse_unless(
            0 <= self.begin <= self.end <= self.out_features,
            f"rows {self.begin} to {self.end} are not among {self.out_features}",
        )


# --- What is refused ------------------------------------------------------------------------------


def _refuse_unless(condition: bool, message: str) -> None:
    torch._check_value(condition, lambda: message)


def check_packed(packed: Packed) -> None:
    """Raise ValueError or TypeError where the portable tensors do not fit each other and K."""
    planes, scale, steps, in_features, part_rows = packed
    for name, tensor, dtype in (
        ("planes", planes, torch.uint8), ("scale", scale, torch.uint8),
        ("steps", steps, torch.float32),
    ):  # fmt: skip
        if tensor.dtype != dtype:
            raise TypeError(f"{name} are {tensor.dtype}, not {dtype}")
        if tensor.device != planes.device:
            raise ValueError(f"{name} are on {tensor.device}, planes on {planes.device}")
    _refuse_unless(
        planes.ndim == 3 and planes.shape[0] in DEPTHS and in_features > 0,
        f"planes have shape {list(planes.shape)}, expected [1..4, N, ceil(K/5)]",
    )
    rows = planes.shape[1]
    _refuse_unless(
        planes.shape[2] == plane_row_bytes(in_features),
        f"x has {in_features} features, which a packed row of {planes.shape[2]} bytes has not",
    )
    expected = [rows, scale_row_bytes(in_features)]
    _refuse_unless(
        list(scale.shape) == expected,
        f"scale has shape {list(scale.shape)}, expected {expected}",
    )
    check_steps(steps, part_rows, rows)


def check_steps(steps: torch.Tensor, part_rows: Sequence[int] | None, rows: int) -> None:
    """Raise ValueError where steps are not [27], or [parts, 27] for parts that make up N rows."""
    if steps.dtype != torch.float32:
        raise TypeError(f"steps are {steps.dtype}, not torch.float32")
    if part_rows is None:
        _refuse_unless(tuple(steps.shape) == (ENTRIES,), f"steps have shape {list(steps.shape)}")
        return
    _refuse_unless(
        len(part_rows) > 0 and min(part_rows) > 0 and sum(part_rows) == rows,
        f"part_rows {list(part_rows)} are not the parts of {rows} rows",
    )
    _refuse_unless(
        tuple(steps.shape) == (len(part_rows), ENTRIES),
        f"steps have shape {list(steps.shape)}, expected [{len(part_rows)}, {ENTRIES}]",
    )


def check_prepared(prepared: torch.Tensor, layout: int, depth: int) -> None:
    """Raise ValueError or TypeError for what cannot be prepared memory, whatever its size."""
    if prepared.dtype is not torch.uint8:
        raise TypeError(f"prepared memory is {prepared.dtype}, not torch.uint8")
    shape = list(prepared.shape)
    _refuse_unless(len(shape) == 1, f"prepared memory has shape {shape}")
    _refuse_unless(
        depth in DEPTHS and 0 < layout < 1 << 31,
        f"no memory is prepared at depth {depth} in layout {layout}",
    )


def check_input(x: torch.Tensor, in_features: int, bias: torch.Tensor | None, rows: int) -> None:
    """Raise ValueError or TypeError where x is not [..., K] or bias not [N], of a float dtype."""
    _refuse_unless(x.ndim > 0, "x is a number, expected [..., K]")
    _refuse_unless(
        x.shape[-1] == in_features, f"x has {x.shape[-1]} features, the layer {in_features}"
    )
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is None:
            continue
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
            raise TypeError(f"{name} is {tensor.dtype}, not float32, bfloat16 or float16")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if bias is not None:
        _refuse_unless(
            tuple(bias.shape) == (rows,), f"bias has shape {list(bias.shape)}, expected [{rows}]"
        )


# --- Fakes ----------------------------------------------------------------------------------------


def _dequantize_fake(
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
    part_rows: Sequence[int] | None = None,
) -> torch.Tensor:
    check_packed(Packed(planes, scale, steps, in_features, part_rows))
    return planes.new_empty((planes.shape[1], in_features), dtype=dtype)


def _dequantize_prepared_fake(*arguments: Any) -> torch.Tensor:
    call = DecodeArguments(*arguments)
    call.check()
    return call.prepared.new_empty((call.end - call.begin, call.in_features), dtype=call.dtype)


def _linear_fake(*arguments: Any) -> torch.Tensor:
    call = LinearArguments(*arguments)
    call.check()
    return call.x.new_empty((*call.x.shape[:-1], call.planes.shape[1]))


def _linear_prepared_fake(*arguments: Any) -> torch.Tensor:
    call = PreparedArguments(*arguments)
    call.check()
    return call.x.new_empty((*call.x.shape[:-1], call.out_features))


register_fake("tritllm::dequantize", _dequantize_fake, lib=LIBRARY)
register_fake("tritllm::dequantize_prepared", _dequantize_prepared_fake, lib=LIBRARY)
register_fake("tritllm::linear", _linear_fake, lib=LIBRARY)
register_fake("tritllm::linear_prepared", _linear_prepared_fake, lib=LIBRARY)
