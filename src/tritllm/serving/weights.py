"""What a model's tensors become on one GPU of several: bytes at each depth, and allowed degrees.

The default rule of `tritllm quantize` decides what is packed. Tensor parallelism is that of vLLM:
matrices are cut as `cuts.py` says, embeddings and lm_head by the vocabulary; everything else is on
every GPU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tritllm.format.layout import groups_of, nbytes
from tritllm.format.parallel import Parts, column_parts, head_parts, row_parts
from tritllm.format.safetensors_header import ITEM_BYTES, TensorEntry
from tritllm.format.trits import GROUP
from tritllm.quantizer.decisions import decide, reason_to_keep
from tritllm.quantizer.kept_weights import EMBEDDING, OUTPUT_LAYER
from tritllm.serving.cache import number
from tritllm.serving.cuts import COLUMNS, HEADS, WHOLE, cut_of

MatrixBytes = Callable[[int, int, int], int]  # of out_features, in_features, depth

_FLOAT_BYTES = 2
_FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix: its module's last name, N, K, and how it is cut.

    cut: as `cuts.cut_of`.
    depth: at which a file holds it; None for a model that is not packed.
    """

    leaf: str
    rows: int
    columns: int
    cut: str
    depth: int | None = None

    def parts(self, degree: int) -> Parts:
        """What becomes of its dimension that is cut."""
        if self.cut == COLUMNS:
            return column_parts(self.columns, degree)
        return row_parts(self.rows, degree)


@dataclass(frozen=True)
class WeightParts:
    """A model's tensors, by what becomes of them.

    matrices: how often there is each of those that are quantized. kept_bytes: of all others in
    their own dtype; vocabulary_bytes: of the embeddings and lm_head among them. kept_float_bytes
    and vocabulary_float_bytes: the same where all floats are of 16 bits.
    """

    matrices: Mapping[Matrix, int] = field(default_factory=dict)
    kept_bytes: int = 0
    vocabulary_bytes: int = 0
    kept_float_bytes: int = 0
    vocabulary_float_bytes: int = 0

    @property
    def quantized(self) -> int:
        """Weights in the matrices that are quantized."""
        return sum(count * m.rows * m.columns for m, count in self.matrices.items())

    @property
    def float_bytes(self) -> int:
        """Of the whole model, floats in 16 bits."""
        return _FLOAT_BYTES * self.quantized + self.kept_float_bytes

    def packed_bytes(self, depth: int | None, size: MatrixBytes = nbytes) -> int:
        """Of the whole model with its matrices packed at a depth; None: at their own.

        size: of one matrix; the file's by default.
        """
        return self.kept_bytes + sum(
            count * size(m.rows, m.columns, _depth(m, depth)) for m, count in self.matrices.items()
        )

    def gpu_bytes(
        self, depth: int | None, degree: int, key_value_heads: int, size: MatrixBytes | None
    ) -> int:
        """On each of `degree` GPUs. size: of one packed part; None: floats of 16 bits."""
        total = 0
        for matrix, count in self.matrices.items():
            rows, columns = matrix.rows, matrix.columns
            if matrix.cut == COLUMNS:
                columns = _widest_part(columns, degree)
            elif matrix.cut != WHOLE:
                each = min(degree, key_value_heads) if matrix.cut == HEADS else degree
                rows = math.ceil(rows / each)
            one = (
                _FLOAT_BYTES * rows * columns
                if size is None
                else size(rows, columns, _depth(matrix, depth))
            )
            total += count * one
        kept = self.kept_float_bytes if size is None else self.kept_bytes
        vocabulary = self.vocabulary_float_bytes if size is None else self.vocabulary_bytes
        return total + kept - vocabulary + math.ceil(vocabulary / degree)


def parts_of_source(
    entries: Iterable[TensorEntry],
    model_type: str,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> WeightParts:
    """What `tritllm quantize` would make of a source's tensors by default.

    config: of the text model.

    Raises SourceError for a tensor that is named as a linear weight and cannot be one.
    """
    matrices: Counter[Matrix] = Counter()
    kept = []
    for entry in entries:
        decision = decide(entry, model_type, config=config)
        for matrix in decision.matrices:
            matrices[_matrix(matrix.name, *matrix.shape, None)] += 1
        if not decision.quantize:
            kept.append(entry)
    return _collect(matrices, kept)


def parts_of_packed(manifest: Mapping[str, Any]) -> WeightParts:
    """What a packed folder holds, by its manifest."""
    matrices: Counter[Matrix] = Counter()
    kept = []
    for name, record in manifest["tensors"].items():
        shape = tuple(record["shape"])
        if "depth" in record:
            matrices[_matrix(name, shape[1], record["in_features"], record["depth"])] += 1
        elif "kept" in record:
            nbytes = math.prod(shape) * ITEM_BYTES[record["dtype"]]
            kept.append(TensorEntry(name, record["dtype"], shape, 0, nbytes))
    return _collect(matrices, kept)


def degree_parts(parts: WeightParts, config: Mapping[str, Any], degree: int) -> Parts:
    """Whether vLLM can cut the model for so many GPUs; the reason is what decides it.

    config: of the text model. The size is that of what the reason speaks of.
    """
    heads = number(config, "num_attention_heads", "n_head")
    key_value_heads = number(config, "num_key_value_heads") or heads
    found = [head_parts(heads, key_value_heads, degree)] if heads else []
    cut = [matrix for matrix in parts.matrices if matrix.cut not in (HEADS, WHOLE)]
    # Those cut by columns first, the widest of them at the head: it says most.
    for matrix in sorted(cut, key=lambda matrix: (matrix.cut == COLUMNS, matrix.columns)):
        made = matrix.parts(degree)
        found.insert(0, Parts(made.size, f"{matrix.leaf}: {made.reason}"))
    found.sort(key=lambda made: made.size is not None)  # what cannot be cut comes first
    return found[0] if found else Parts(None, "no matrix of the model is quantized")


def _widest_part(columns: int, degree: int) -> int:
    """Columns that a GPU may hold of K: its equal part, with the groups that it shares whole."""
    part = math.ceil(columns / degree)
    return part if part % GROUP == 0 else min(GROUP * (groups_of(part) + 1), columns)


def _depth(matrix: Matrix, depth: int | None) -> int:
    chosen = matrix.depth if depth is None else depth
    if chosen is None:
        raise ValueError(f"{matrix.leaf}: no depth given, and the model has none")
    return chosen


def _collect(matrices: Counter[Matrix], tensors: Iterable[TensorEntry]) -> WeightParts:
    """tensors: those that are kept."""
    kept = vocabulary = kept_float = vocabulary_float = 0
    for entry in tensors:
        floats = _FLOAT_BYTES * entry.size if entry.dtype in _FLOATS else entry.nbytes
        kept, kept_float = kept + entry.nbytes, kept_float + floats
        if len(entry.shape) == 2 and reason_to_keep(entry) in (EMBEDDING, OUTPUT_LAYER):
            vocabulary, vocabulary_float = vocabulary + entry.nbytes, vocabulary_float + floats
    return WeightParts(matrices, kept, vocabulary, kept_float, vocabulary_float)


def _matrix(name: str, rows: int, columns: int, depth: int | None) -> Matrix:
    module = name.removesuffix(".weight")
    return Matrix(module.rpartition(".")[2], rows, columns, cut_of(module), depth)
