"""What a source tensor must be to become part of an output, whatever its name."""

from __future__ import annotations

from collections.abc import Sequence

from tritllm.errors import SourceError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.format.layout import part_names
from tritllm.format.safetensors_header import TensorEntry
from tritllm.quantizer.matrices import SourceMatrix


def check_float(tensor: TensorEntry) -> None:
    """Raise SourceError for a tensor to be quantized that holds no floats of 16 or 32 bits."""
    if tensor.dtype not in NUMPY_OF_SAFETENSORS:
        raise SourceError(
            f"tensor {tensor.name}: dtype {tensor.dtype} cannot be quantized (F16, BF16 or F32 "
            "can); quantize from the unquantized source, or leave it out with "
            f"--exclude '{tensor.name}'"
        )


def check_dtype(file: str, entry: TensorEntry, kinds: Sequence[str]) -> None:
    """Raise SourceError for a dtype that the folders to write, `kinds`, cannot hold."""
    if entry.dtype.startswith("F8") or (entry.dtype == "F64" and "model" in kinds):
        raise SourceError(
            f"{file}: tensor {entry.name}: dtype {entry.dtype} is not supported; "
            "convert the source to float16, bfloat16 or float32 first"
        )


def check_free_names(
    tensor: TensorEntry, matrices: Sequence[SourceMatrix], names: set[str]
) -> None:
    """Raise SourceError where a tensor already has a name that the packed file needs beside
    X.weight; such a source is quantized already.
    """
    name = tensor.name
    for part in (part for matrix in matrices for part in part_names(matrix.name)):
        if part in names and part != name:
            raise SourceError(
                f"tensor {part} stands beside {name}: the source is already quantized, or uses a "
                f"name that the packed file needs; quantize from the original weights, or keep "
                f"the tensor with --exclude '{name}'"
            )
