"""GGUF types, by llama.cpp's own routine, with and without an importance matrix.

`ggml_quantize_chunk` of libggml-base is what llama-quantize calls for every tensor; the `gguf`
package dequantizes. Every matrix gets the one type, as `llama-quantize --pure` gives it. The
importance is what llama-imatrix collects: the mean square of each input of a layer.

A block of most types is 256 weights of a row. Where 256 does not divide a row, blocks run on over
the ends of rows, so that a small model of odd width is not charged for padding or for the larger
types that llama-quantize falls back to; where it does, this is what llama-quantize writes.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from quality_peers.recipe import Encoded, Job, MissingError, Recipe, linear_layers, matrices

PLAIN = (
    "TQ1_0", "TQ2_0", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K",
    "Q5_0", "Q5_K", "Q6_K", "Q8_0",
)  # fmt: skip
WITH_IMPORTANCE = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS",
    "IQ4_NL", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K",
)  # fmt: skip
FLOATS = ctypes.POINTER(ctypes.c_float)


def library(folder: Path | None) -> ctypes.CDLL:
    """libggml-base of a build of llama.cpp."""
    if folder is None:
        raise MissingError("needs a build of llama.cpp: --llama-cpp FOLDER")
    found = sorted(folder.rglob("libggml-base.*"))
    if not found:
        raise MissingError(f"no libggml-base under {folder}; build llama.cpp with shared libraries")
    loaded = ctypes.CDLL(str(found[0]))
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
        FLOATS,
    ]  # fmt: skip
    return loaded


def floats(values: np.ndarray) -> ctypes.Array:
    return values.ctypes.data_as(FLOATS)


def quantized(
    ggml: ctypes.CDLL, kind: int, size: tuple[int, int], rows: np.ndarray, importance: np.ndarray
) -> np.ndarray:
    """Bytes of float32 [rows, columns]; importance float32 [columns], or empty for none."""
    count, columns = rows.shape
    weights, nbytes = size
    out = np.empty((count, columns // weights * nbytes), np.uint8)
    rows = np.ascontiguousarray(rows, np.float32)
    importance = np.ascontiguousarray(importance, np.float32)
    used = floats(importance) if importance.size else None
    written = ggml.ggml_quantize_chunk(kind, floats(rows), out.ctypes.data, 0, count, columns, used)
    assert written == out.nbytes
    return out


@cache
def importance_of(job: Job) -> dict[str, np.ndarray]:
    """Mean square of each input of each linear layer over the calibration windows."""
    model = job.load()
    sums: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: sums.__setitem__(
                name,
                sums.get(name, 0) + inputs[0].detach().double().square().flatten(0, -2).sum(0),
            )
        )
        for name, layer in linear_layers(model).items()
    ]
    windows = job.token_windows()
    with torch.inference_mode():
        for batch in windows.split(8):
            model(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: (total / windows.numel()).float().numpy() for name, total in sums.items()}


def encode(job: Job, name: str, with_importance: bool) -> Encoded:
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    size = gguf.GGML_QUANT_SIZES[kind]
    block = size[0]
    ggml = library(job.llama_cpp)
    importance = importance_of(job) if with_importance else {}
    weights, stored = {}, 0
    for layer, weight in matrices(job).items():
        values = weight.numpy()
        given = importance.get(layer, np.empty(0, np.float32))
        columns = values.shape[1]
        if columns % block:
            packed = over_row_ends(ggml, kind, size, values, given)
        else:
            packed = quantized(ggml, kind, size, values, given)
        stored += packed.nbytes
        weights[layer] = torch.from_numpy(
            gguf.quants.dequantize(packed.reshape(1, -1), kind).reshape(values.shape).copy()
        )
    return Encoded(weights, stored)


def over_row_ends(
    ggml: ctypes.CDLL, kind: int, size: tuple[int, int], values: np.ndarray, given: np.ndarray
) -> np.ndarray:
    """Blocks of a matrix whose rows are not whole blocks.

    The blocks that begin at the same column are quantized together: they share their importance.
    """
    block = size[0]
    if values.size % block:
        raise MissingError(f"a matrix {values.shape[0]}x{values.shape[1]} is not whole blocks")
    blocks = values.reshape(-1, block)
    period = math.lcm(values.shape[1], block) // block
    importance = np.tile(given, period * block // values.shape[1]).reshape(-1, block)
    out = np.empty((len(blocks), size[1]), np.uint8)
    for phase in range(period):
        used = importance[phase] if given.size else given
        out[phase::period] = quantized(ggml, kind, size, blocks[phase::period], used)
    return out


def recipes(job: Job) -> list[Recipe]:
    return [
        *(Recipe(name, "", partial(encode, job, name, False)) for name in PLAIN),
        *(
            Recipe(f"{name} imatrix", "importance", partial(encode, job, name, True))
            for name in WITH_IMPORTANCE
        ),
    ]
