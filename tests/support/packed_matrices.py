"""Folders that hold nothing but packed random matrices, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tritllm.codec import TritTensor, encode
from tritllm.format.layout import part_names


def random_matrix(shape: tuple[int, int], depth: int, seed: int = 0) -> TritTensor:
    """A packed matrix of standard normal weights."""
    rng = np.random.default_rng([seed, *shape])
    return encode(rng.standard_normal(shape, np.float32), depth, threads=1)


def write_matrices(folder: Path, matrices: Mapping[str, TritTensor]) -> Path:
    """model.safetensors with the three tensors of each matrix, by the name of its module."""
    tensors = {}
    for module, matrix in matrices.items():
        parts = (matrix.weight, matrix.scale, matrix.codebook)
        tensors |= dict(zip(part_names(f"{module}.weight"), parts))
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder
