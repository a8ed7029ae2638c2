"""How large a model is, counted from its files' headers in one way for every kind of folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from tritllm.errors import TritError
from tritllm.extras import require
from tritllm.format.names import CONFIG, MANIFEST
from tritllm.format.safetensors_header import TensorEntry, read_header
from tritllm.quantizer.decisions import decide
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.source import text_config_of
from tritllm.storage.model_files import WEIGHT_SUFFIXES, LocalFiles
from tritllm.storage.model_json import read_json, read_manifest

GGUF = ".gguf"
_CODEBOOK = ".weight_codebook"


@dataclass(frozen=True)
class Weights:
    """What the reference has to quantize: the unit in which all models are counted.

    parameters: of the whole model. linear: weights of each linear layer of the blocks, by module.
    """

    parameters: int
    linear: Mapping[str, int]


@dataclass(frozen=True)
class Size:
    """Of one model's files, or of what is read of them where fewer planes are read.

    file_bytes: of all files with weights, headers included.
    parameter_bits: 8 * file_bytes / the reference's parameters.
    weight_bits: 8 * the bytes stored for the linear layers of the blocks (scales, codebooks, zero
        points and orders included, biases not) / their weights in the reference: what "bits a
        weight" means where methods are compared, as embeddings are quantized by few of them. None
        where the files do not tell which bytes are whose.
    """

    file_bytes: int
    parameter_bits: float | None
    weight_bits: float | None


def weights_of(folder: Path) -> Weights | None:
    """Count the weights of a folder in safetensors, packed or not; None for any other.

    Raises TritError for broken files.
    """
    files = LocalFiles(folder)
    sizes = files.sizes()
    if MANIFEST in sizes:
        records = read_manifest(files, sizes)["tensors"]
        parts = (".weight_scale", _CODEBOOK)
        counts = {
            name: record["shape"][1] * record["in_features"]
            if "depth" in record
            else prod(record["shape"])
            for name, record in records.items()
            if "kept" in record or not name.endswith(parts)
        }
        linear = {name for name, record in records.items() if "depth" in record}
    else:
        entries = _entries(files, sizes)
        if not entries:
            return None
        config = read_json(files, sizes, CONFIG)
        counts = {}
        linear = set()
        for entry in entries:
            matrices = _matrices(entry, config)
            counts |= {m.name: m.size for m in matrices} or {entry.name: entry.size}
            linear |= {matrix.name for matrix in matrices}
    return Weights(
        sum(counts.values()), {name.removesuffix(".weight"): counts[name] for name in linear}
    )


def size_of(path: Path, weights: Weights | None, planes: int | None = None) -> Size:
    """Measure a model folder or a GGUF file.

    Args:
        path: the folder or file.
        weights: of the reference.
        planes: read only so many of a packed folder's trit planes: only those count.

    Raises TritError for broken files.
    """
    if path.suffix == GGUF:
        return _size_of_gguf(path, weights)
    files = LocalFiles(path)
    sizes = files.sizes()
    entries = _entries(files, sizes)
    shards = {name for name in sizes if _is_weights(name)}
    unread = sum(_unread(entry, planes) for entry in entries)
    file_bytes = sum(sizes[name] for name in shards) - unread
    if weights is None:
        return Size(file_bytes, None, None)
    stored: dict[str, int] = {}
    for entry in entries:
        module = _module(entry.name, weights.linear)
        if module is not None and not entry.name.endswith(".bias"):
            stored[module] = stored.get(module, 0) + entry.nbytes - _unread(entry, planes)
    return Size(
        file_bytes,
        8 * file_bytes / weights.parameters,
        8 * sum(stored.values()) / sum(weights.linear.values())
        if stored and stored.keys() == weights.linear.keys()
        else None,
    )


def memory_of(path: Path, item_bytes: int) -> int:
    """About how many bytes a loaded model takes: floats in the asked dtype, the rest as stored."""
    if path.suffix == GGUF:
        reader = _gguf_tensors(path)
        return sum(int(tensor.n_elements) for tensor in reader) * item_bytes
    files = LocalFiles(path)
    sizes = files.sizes()
    entries = _entries(files, sizes)
    if not entries:
        return sum(size for name, size in sizes.items() if _is_weights(name)) * item_bytes // 2
    return sum(
        entry.size * item_bytes if entry.dtype in ("F16", "BF16", "F32") else entry.nbytes
        for entry in entries
    )


def _size_of_gguf(path: Path, weights: Weights | None) -> Size:
    """Matrices of `blk.*` are those of the blocks, in llama.cpp's names."""
    tensors = _gguf_tensors(path)
    matrices = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    count = sum(int(t.n_elements) for t in matrices)
    file_bytes = path.stat().st_size
    parameters = weights.parameters if weights else sum(int(t.n_elements) for t in tensors)
    return Size(
        file_bytes,
        8 * file_bytes / parameters,
        8 * sum(int(t.n_bytes) for t in matrices) / count if count else None,
    )


def _gguf_tensors(path: Path) -> list[Any]:
    require("a GGUF file", "gguf", "gguf")
    from gguf import GGUFReader

    try:
        return list(GGUFReader(path).tensors)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise TritError(f"{path}: not a GGUF file that can be read: {error}") from None


def _entries(files: LocalFiles, sizes: Mapping[str, int]) -> list[TensorEntry]:
    return [
        entry
        for name in sizes
        if name.endswith(".safetensors") and "/" not in name
        for entry in read_header(
            partial(files.read, name), sizes[name], f"{files.folder / name}"
        ).entries.values()
    ]


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", *WEIGHT_SUFFIXES)) and "/" not in name


def _matrices(entry: TensorEntry, config: Mapping[str, Any]) -> Sequence[SourceMatrix]:
    """The linear layers whose weights a tensor holds."""
    model_type = str(config.get("model_type", "unknown"))
    try:
        return decide(entry, model_type, config=text_config_of(config)).matrices
    except TritError:  # named as a linear layer, but no matrix
        return ()


def _module(name: str, modules: Mapping[str, int]) -> str | None:
    """The linear layer that a stored tensor belongs to: any scheme writes below the module."""
    while name:
        name = name.rpartition(".")[0]
        if name in modules:
            return name
    return None


def _unread(entry: TensorEntry, planes: int | None) -> int:
    """Bytes of the planes, and of the codebook's rows, below those that are read."""
    shape = entry.shape
    packed = entry.dtype == "U8" and len(shape) == 3 and entry.name.endswith(".weight")
    if planes is None or not (packed or entry.name.endswith(_CODEBOOK)):
        return 0
    return entry.nbytes * max(shape[0] - planes, 0) // shape[0]
