"""Packed random matrices, and a file that holds nothing but some, without a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tritllm.checkpoint.packed_headers import stored_matrices
from tritllm.codec import TritTensor, encode
from tritllm.format.layout import part_names
from tritllm.integrations.vllm.stored import StoredMatrices


def random_matrix(shape: tuple[int, int], depth: int, seed: int = 0) -> TritTensor:
    """A packed matrix of standard normal weights."""
    rng = np.random.default_rng([seed, *shape])
    return encode(rng.standard_normal(shape, np.float32), depth, threads=1)


def store_matrices(
    folder: Path, matrices: Mapping[str, TritTensor], planes: int | None = None
) -> StoredMatrices:
    """Write model.safetensors with the tensors of each matrix, by the name of its module."""
    tensors = {}
    for module, matrix in matrices.items():
        parts = (matrix.weight, matrix.scale, matrix.codebook)
        tensors |= dict(zip(part_names(f"{module}.weight"), parts))
    folder.mkdir(exist_ok=True)
    file = folder / "model.safetensors"
    save_file(tensors, file)
    stored = stored_matrices([str(file)])
    return StoredMatrices({n.removesuffix(".weight"): m for n, m in stored.items()}, planes)
