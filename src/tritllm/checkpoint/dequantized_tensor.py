"""Tensors of the dequantized model: decoded or cast piece by piece into a sink."""

from __future__ import annotations

import numpy as np

from tritllm.codec import TritTensor
from tritllm.errors import SourceError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS, cast_checked
from tritllm.format.safetensors_header import ITEM_BYTES, TensorEntry
from tritllm.storage.tensor_sink import TensorSink

_BLOCK_WEIGHTS = 1 << 21  # decoded at a time


def write_cast(
    sink: TensorSink, entry: TensorEntry, position: int, chunk: bytes | memoryview, dtype: str
) -> None:
    """Write a kept tensor's bytes from `position` of its source bytes, cast to `dtype`.

    Raises SourceError where a finite value does not fit.
    """
    if dtype == entry.dtype:
        sink.write(entry.name, position, chunk)
        return
    try:
        cast = cast_checked(np.frombuffer(chunk, NUMPY_OF_SAFETENSORS[entry.dtype]), dtype)
    except OverflowError as error:
        raise SourceError(
            f"{sink.where}: tensor {entry.name}: {error}; use --dtype bfloat16"
        ) from None
    offset = position // ITEM_BYTES[entry.dtype] * ITEM_BYTES[dtype]
    sink.write(entry.name, offset, memoryview(cast.view(np.uint8)))


def write_decoded(
    sink: TensorSink,
    name: str,
    packed: TritTensor,
    dtype: str,
    transposed: bool,
    threads: int,
) -> None:
    """Decode a matrix into tensor `name`, a block of rows at a time.

    transposed: the model stores [in_features, out_features]; then the matrix is decoded whole.

    Raises SourceError where a decoded weight does not fit the dtype.
    """
    out_features, in_features = packed.shape
    block = out_features if transposed else max(1, _BLOCK_WEIGHTS // in_features)
    position = 0
    for start in range(0, out_features, block):
        rows = packed.rows(start, min(start + block, out_features))
        values = rows.decode(None, NUMPY_OF_SAFETENSORS[dtype], threads)
        if not np.isfinite(values.astype(np.float32)).all():
            raise SourceError(
                f"{sink.where}: tensor {name}: a decoded weight does not fit {values.dtype}; "
                "use --dtype bfloat16"
            )
        data = np.ascontiguousarray(values.T if transposed else values).view(np.uint8)
        sink.write(name, position, memoryview(data).cast("B"))
        position += data.nbytes
