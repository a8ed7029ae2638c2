"""Weights in the layout that an instruction set likes best, from the portable arrays and back."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial

import numpy as np

from tritllm.codec.tensor import TritTensor
from tritllm.format import trits
from tritllm.format.layout import groups_of, plane_row_bytes, scale_row_bytes
from tritllm.format.trits import ENTRIES
from tritllm.native import threads as pool
from tritllm.native.arrays import address, aligned_bytes, dtype_number
from tritllm.native.instruction_sets import isa_number
from tritllm.native.library import check, library
from tritllm.native.structures import (
    BAD_ARGUMENT,
    BAD_BYTE,
    BAD_PADDING,
    OK,
    TILE,
    UNSUPPORTED,
    Portable,
    PreparedHeader,
    Product,
)

_ALL_OR_NONE = (
    "cannot read {planes} of {depth} planes that were prepared together: prepare them apart"
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A matrix [out_features, in_features] = [N, K] ready to be multiplied with.

    Attributes:
        memory: uint8, aligned to 64 bytes, of `size(...)` bytes; it begins with a header that names
            the layout, so it can be handed around as a plain array.
        shape: (N, K).
        steps: float32 [d, 27]: row r - 1 holds the steps that apply where r planes are read.
        layout: what its codes are, as `layout(isa)`.
        planes_together: whether the planes of a weight are one code, all of which are then read.
    """

    memory: np.ndarray
    shape: tuple[int, int]
    steps: np.ndarray
    layout: int
    planes_together: bool

    @property
    def depth(self) -> int:
        """Planes that it holds, 1..4."""
        return len(self.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.memory.nbytes

    def product(self, y: np.ndarray, planes: int | None = None) -> Product:
        """What the library takes for results y [n, width] of the top `planes` planes.

        It holds addresses: y and this object must outlive it. Raises ValueError for planes outside
        1..depth, and fewer than depth where they lie together, TypeError for another dtype than
        float16, bfloat16 and float32.
        """
        planes = self.depth if planes is None else planes
        if not 1 <= planes <= self.depth:
            raise ValueError(f"planes is {planes}, expected 1..{self.depth}")
        if planes < self.depth and self.planes_together:
            raise ValueError(_ALL_OR_NONE.format(planes=planes, depth=self.depth))
        number = dtype_number(y.dtype)
        return Product(
            prepared=address(self.memory), size=self.nbytes, rows=self.shape[0],
            layout=self.layout, depth=planes, steps=address(self.steps[planes - 1]),
            y=address(y), stride=y.shape[1], bias_dtype=number, dtype=number,
        )  # fmt: skip


def size(
    out_features: int,
    in_features: int,
    depth: int,
    isa: str | None = None,
    row_scales: bool = False,
    planes_apart: bool = False,
) -> int:
    """Bytes of prepared memory; row_scales: of a matrix whose rows have one scale each, at depth 1;
    planes_apart: of memory of which fewer planes can be read.

    Raises ValueError for an invalid shape or depth.
    """
    together = not planes_apart and planes_together(depth, isa)
    return _size(isa, out_features, in_features, depth, row_scales, together)


def _size(
    isa: str | None, rows: int, columns: int, depth: int, row_scales: int, together: int
) -> int:
    number = isa_number(isa, "products")
    found = library().tritllm_linear_size(number, rows, columns, depth, row_scales, together)
    if found < 0:
        raise ValueError(f"no matrix [{rows}, {columns}] of depth {depth}")
    return found


def size_of_memory(memory: int, nbytes: int) -> int:
    """Bytes that prepared memory at an address takes, of the `nbytes` that are held there.

    Raises ValueError where it is not prepared memory, RuntimeError where its instruction set cannot
    run here.
    """
    found = PreparedHeader()
    status = library().tritllm_linear_describe(memory, nbytes, ctypes.byref(found))
    if status == BAD_ARGUMENT:
        raise ValueError(f"prepared memory of {nbytes} bytes has no header that fits")
    check(status)
    return found.size


def layout(isa: str | None = None) -> int:
    """What codes `prepare` writes, as the library's number: it depends on the instruction set."""
    return library().tritllm_linear_layout(isa_number(isa, "products"))


def planes_together(depth: int, isa: str | None = None) -> bool:
    """Whether `prepare` puts the planes of each weight together, unless it is to leave them apart.

    It does where that is smaller or faster to read, which depends on the instruction set.
    """
    return bool(library().tritllm_linear_planes_together(isa_number(isa, "products"), depth))


def prepare(
    tensor: TritTensor,
    planes: int | None = None,
    threads: int = 1,
    isa: str | None = None,
    planes_apart: bool = False,
) -> Prepared:
    """Prepare a matrix, or its top `planes` planes.

    tensor: anything with TritTensor's weight, scale, codebook and in_features. planes_apart: so
    that products can read fewer planes than are prepared; else all are read (`planes_together`).

    Raises ValueError for planes outside 1..d, a byte above 242, padding that is not zero or steps
    that are not finite; RuntimeError without the library.
    """
    depth, rows = tensor.weight.shape[:2]
    planes = depth if planes is None else planes
    if not 1 <= planes <= depth:
        raise ValueError(f"planes is {planes}, expected 1..{depth}")
    columns = tensor.in_features
    weight = np.ascontiguousarray(tensor.weight[:planes])
    scale = np.ascontiguousarray(tensor.scale)
    codebook = np.ascontiguousarray(tensor.codebook[:planes])
    for what, array, shape, dtype in (
        ("planes", weight, (planes, rows, plane_row_bytes(columns)), np.uint8),
        ("scale indices", scale, (rows, scale_row_bytes(columns)), np.uint8),
        ("steps", codebook, (planes, ENTRIES), np.float32),
    ):
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{what} are {array.dtype} {list(array.shape)}, "
                f"expected {np.dtype(dtype)} {list(shape)}"
            )
    if not np.isfinite(codebook).all():
        raise ValueError("a step is not a finite number")
    portable = Portable(
        address(weight), weight.strides[0], address(scale), address(codebook[-1]), rows, columns,
        planes,
    )  # fmt: skip
    nbytes = look(portable, isa, planes_apart)
    memory = aligned_bytes(nbytes)
    prepare_pointers(portable, address(memory), threads, isa)
    together = bool(portable.planes_together)
    return Prepared(memory, (rows, columns), codebook, layout(isa), together)


def look(portable: Portable, isa: str | None = None, planes_apart: bool = False) -> int:
    """Decide on how its memory will be: the bytes that it takes.

    Sets `row_scales`: whether every row has one scale, as matrices trained ternary do, and
    `planes_together`, as the function of that name says, but not where they are to be apart.

    Raises ValueError for an invalid shape or depth.
    """
    portable.row_scales = library().tritllm_linear_row_scales(ctypes.byref(portable))
    portable.planes_together = not planes_apart and planes_together(portable.depth, isa)
    return _size(
        isa, portable.rows, portable.columns, portable.depth, portable.row_scales,
        portable.planes_together,
    )  # fmt: skip


def prepare_pointers(
    portable: Portable, memory: int, threads: int = 1, isa: str | None = None
) -> None:
    """`prepare` on addresses, after `look`, into as many bytes as it said. Raises as `prepare`."""
    native, number = library(), isa_number(isa, "products")
    statuses: list[int] = []

    def part(begin: int, end: int) -> None:
        statuses.append(
            native.tritllm_linear_prepare(number, ctypes.byref(portable), begin, end, memory)
        )

    ranges = pool.parts(portable.rows, TILE, threads)
    pool.run([partial(part, *rows) for rows in ranges], threads)
    if BAD_BYTE in statuses or BAD_PADDING in statuses:
        _refuse(portable)
    for status in statuses:
        check(status)


def decode(
    prepared: Prepared,
    rows: slice = slice(None),
    planes: int | None = None,
    dtype: np.typing.DTypeLike = np.float32,
    threads: int = 1,
) -> np.ndarray:
    """Rows of a prepared matrix as weights [n, K] of dtype: `TritTensor.decode`'s, bit for bit.

    dtype: float16, bfloat16 (ml_dtypes) or float32, to which weights are rounded once from float32,
    half to even. planes: read only so many of the top planes. Any number of threads gives the same.

    Raises ValueError for planes outside 1..depth, rows with a step and memory that is not prepared,
    TypeError for another dtype, RuntimeError without the library.
    """
    n, columns = prepared.shape
    begin, end, step = rows.indices(n)
    if step != 1:
        raise ValueError(f"rows have a step of {step}, expected 1")
    out = np.empty((max(0, end - begin), columns), dtype)
    decode_pointers(prepared.product(out, planes), columns, begin, begin + len(out), threads)
    return out


def decode_pointers(product: Product, columns: int, begin: int, end: int, threads: int = 1) -> None:
    """`decode` rows [begin, end) to the address product.y, `product.stride` elements a row.

    Raises ValueError where product's memory is not what its fields and columns say, RuntimeError
    where it was prepared for an instruction set that cannot run here or without the library.
    """
    status = library().tritllm_linear_decode(threads, ctypes.byref(product), columns, begin, end)
    check_memory(status, product, columns)


def check_memory(status: int, product: Product, columns: int) -> None:
    """Raise for a call's status that is not OK, by what was said of the memory of [rows, columns].

    ValueError where the memory is not what the product's fields say or fewer planes are asked for
    than lie together, RuntimeError where it was prepared for an instruction set that cannot run
    here.
    """
    if status == UNSUPPORTED:
        raise RuntimeError("the memory was prepared for another machine's instruction set")
    if status == BAD_ARGUMENT:
        found = PreparedHeader()
        status = library().tritllm_linear_describe(
            product.prepared, product.size, ctypes.byref(found)
        )
        if status == OK and found.planes_together and 0 < product.depth < found.depth:
            raise ValueError(_ALL_OR_NONE.format(planes=product.depth, depth=found.depth))
        raise ValueError(
            f"prepared memory of {product.size} bytes is not that of a matrix "
            f"[{product.rows}, {columns}] of depth {product.depth} in layout {product.layout}"
        )
    check(status)


def _refuse(portable: Portable) -> None:
    """Raise the reference's ValueError, which names the first bad byte."""
    rows, columns = portable.rows, portable.columns

    def view(at: int, width: int) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * (rows * width)).from_address(at)).reshape(
            rows, width
        )

    for plane in range(portable.depth):
        at = portable.weight + plane * portable.plane_stride
        trits.unpack_trits(view(at, plane_row_bytes(columns)), columns)
    trits.unpack_scale_index(view(portable.scale, scale_row_bytes(columns)), groups_of(columns))
