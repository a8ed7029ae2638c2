"""The three tensors that a packed matrix becomes: their names, dtypes, shapes and sizes.

N = out_features rows and K = in_features columns; G = ceil(K/16) groups a row share a scale each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

from tritllm.errors import FormatError
from tritllm.format.trits import DEPTHS, ENTRIES, GROUP, bytes_of

SCALE = "_scale"
CODEBOOK = "_codebook"
SUFFIXES = ("", SCALE, CODEBOOK)  # of planes, scale indices and codebook, after X.weight
DTYPES = ("U8", "U8", "F32")

Shapes = tuple[tuple[int, int, int], tuple[int, int], tuple[int, int]]


class TensorSpec(NamedTuple):
    """A tensor of a safetensors file before it has a place there."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Stored(Protocol):
    """What is checked: a `TensorSpec`, or the entry of a header."""

    @property
    def name(self) -> str:
        """The tensor's name."""

    @property
    def dtype(self) -> str:
        """The dtype as safetensors names it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file."""


_S = TypeVar("_S", bound=Stored)


def part_names(name: str) -> tuple[str, str, str]:
    """Names of the planes, scale indices and codebook of the matrix X.weight = `name`."""
    return name, name + SCALE, name + CODEBOOK


def groups_of(in_features: int) -> int:
    """G: groups of 16 columns a row; the last may be shorter."""
    return -(-in_features // GROUP)


def plane_row_bytes(in_features: int) -> int:
    """Bytes of one row of one plane: ceil(K/5)."""
    return bytes_of(in_features)


def scale_row_bytes(in_features: int) -> int:
    """Bytes of one row's scale indices, three trits each: ceil(3G/5)."""
    return bytes_of(3 * groups_of(in_features))


def packed_shapes(out_features: int, in_features: int, depth: int) -> Shapes:
    """Shapes of planes, scale indices and codebook."""
    return (
        (depth, out_features, plane_row_bytes(in_features)),
        (out_features, scale_row_bytes(in_features)),
        (depth, ENTRIES),
    )


# A model has few shapes and asks for them with each matrix. Not `packed_shapes` itself: torch asks
# that for symbolic sizes, which have no hash.
_cached_shapes = lru_cache(maxsize=1024, typed=True)(packed_shapes)


def tensors_of(
    name: str, out_features: int, in_features: int, depth: int
) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """The three tensors that the matrix X.weight = `name` becomes at a depth."""
    planes, scale, codebook = map(
        TensorSpec,
        part_names(name),
        DTYPES,
        _cached_shapes(out_features, in_features, depth),
    )
    return planes, scale, codebook


def nbytes(out_features: int, in_features: int, depth: int) -> int:
    """Bytes of a matrix in the file: d N ceil(K/5) + N ceil(3G/5) + 108 d."""
    row = depth * plane_row_bytes(in_features) + scale_row_bytes(in_features)
    return out_features * row + 4 * ENTRIES * depth


def parts_of(entries: Mapping[str, _S], name: str, where: str) -> tuple[_S, _S, _S]:
    """The three stored tensors of the matrix X.weight = `name`.

    Raises FormatError where one is missing, or the first is not [d, N, ceil(K/5)] with d of 1..4.
    """
    try:
        planes, scale, codebook = map(entries.__getitem__, part_names(name))
    except KeyError as error:
        raise FormatError(f"{where}: tensor {error.args[0]} is missing") from None
    if len(planes.shape) != 3 or planes.shape[0] not in DEPTHS:
        raise FormatError(
            f"{where}: tensor {name} has shape {list(planes.shape)}, "
            f"expected [d, N, ceil(K/5)] with d of {DEPTHS[0]}..{DEPTHS[-1]}"
        )
    return planes, scale, codebook


def check(
    parts: Sequence[Stored], out_features: int, in_features: int, depth: int, where: str
) -> None:
    """Raise FormatError where a dtype or shape of the three tensors does not follow from N, K, d.

    parts: planes, scale indices and codebook. where: their file, for the message.
    """
    shapes = _cached_shapes(out_features, in_features, depth)
    for part, dtype, shape in zip(parts, DTYPES, shapes, strict=True):
        if part.dtype != dtype or part.shape != shape:
            raise FormatError(
                f"{where}: tensor {part.name} is {part.dtype} {list(part.shape)}, "
                f"expected {dtype} {list(shape)} from N, K and d"
            )
