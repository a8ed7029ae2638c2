"""vLLM's parameters for the three tensors of packed matrices, filled by vLLM's own loaders.

Each rank's matrix W [N, K] is made of the rows of one or several stored matrices. vLLM's linear
layers say which rows of a stored tensor go where (q, k and v heads, replicated heads, gate and up),
and these parameters cut the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.model_executor.parameter import BasevLLMParameter, PerTensorScaleParameter

from tritllm.checkpoint.packed_headers import StoredMatrix
from tritllm.errors import FormatError
from tritllm.format.layout import CODEBOOK, SCALE
from tritllm.format.trits import ENTRIES
from tritllm.integrations.vllm.cut import Columns
from tritllm.integrations.vllm.stored import where
from tritllm.ops.check_packed_bytes import check_packed_bytes

ZERO_BYTE = 121  # five trits 0: what rows hold that no file fills


class _Loaded:
    """What the three have in common: which stored matrix a piece belongs to, for messages."""

    matrices: Sequence[StoredMatrix]
    suffix: str

    def stored(self, part: int) -> str:
        """File and tensor that fill a part of the layer."""
        matrix = self.matrices[min(part, len(self.matrices) - 1)]
        return where(matrix) + self.suffix


class RowsParameter(_Loaded, BasevLLMParameter):  # type: ignore[misc]
    """Planes uint8 [r, N, B] (rows in dimension 1) or scale indices uint8 [N, S] (in 0) of a rank.

    filled: how many of the rows have been loaded. loaded: the parts of which some have.
    """

    def __new__(cls, shape: tuple[int, ...], **_: Any) -> RowsParameter:
        """All weights are zero until they are loaded."""
        return super().__new__(cls, torch.full(shape, ZERO_BYTE, dtype=torch.uint8))

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        matrices: Sequence[StoredMatrix],
        columns: Columns,
        weight_loader: Callable[..., Any],
    ) -> None:
        super().__init__(data=self.data, weight_loader=weight_loader)
        self.matrices, self.columns = matrices, columns
        self.output_dim = len(shape) - 2
        self.suffix = SCALE if len(shape) == 2 else ""
        self.filled = 0
        self.loaded: set[int] = set()

    def load_rows(self, loaded: torch.Tensor, first: int, at: int, rows: int, part: int) -> None:
        """Copy rows first.. of a stored tensor to the rows at.. of this one.

        Raises FormatError for a tensor of another dtype or shape, and for bytes that are no trits
        where columns are cut.
        """
        own = self.data
        if loaded.dtype != torch.uint8 or loaded.ndim != own.ndim:
            raise FormatError(
                f"{self.stored(part)} is {loaded.dtype} {list(loaded.shape)}, not packed"
            )
        if loaded.ndim == 3:
            loaded = loaded[: own.shape[0]]
        if first + rows > loaded.shape[self.output_dim]:
            raise FormatError(
                f"{self.stored(part)} has {loaded.shape[self.output_dim]} rows, but the model "
                f"needs {first + rows}; config.json is another model's"
            )
        loaded = loaded.narrow(self.output_dim, first, rows)
        try:
            of = self.columns.of_planes if loaded.ndim == 3 else self.columns.of_scale
            cut = of(loaded)
        except ValueError as error:
            raise FormatError(f"{self.stored(part)}: {error}") from None
        own.narrow(self.output_dim, at, rows).copy_(cut)
        self.filled += rows
        self.loaded.add(part)

    def load_all_rows(self, loaded_weight: torch.Tensor) -> None:
        """Rows are not cut: row-parallel and replicated layers."""
        self.load_rows(loaded_weight, 0, 0, self.data.shape[self.output_dim], 0)

    load_row_parallel_weight = load_all_rows

    def load_column_parallel_weight(self, loaded_weight: torch.Tensor) -> None:
        """The rank's share of the rows."""
        rows = self.data.shape[self.output_dim]
        self.load_rows(loaded_weight, self.tp_rank * rows, 0, rows, 0)

    def load_merged_column_weight(
        self, loaded_weight: torch.Tensor, *, shard_id: int, shard_offset: int, shard_size: int
    ) -> None:
        """The rank's share of one of several matrices."""
        first = self.tp_rank * shard_size
        self.load_rows(loaded_weight, first, shard_offset, shard_size, shard_id)

    def load_qkv_weight(
        self,
        loaded_weight: torch.Tensor,
        *,
        shard_id: str,
        shard_offset: int,
        shard_size: int,
        num_heads: int,
    ) -> None:
        """The rank's heads of q, k or v; num_heads: ranks that share a key and value head."""
        rank = self.tp_rank if shard_id == "q" else self.tp_rank // num_heads
        part = self._shard_id_as_int(shard_id)
        self.load_rows(loaded_weight, rank * shard_size, shard_offset, shard_size, part)


class StepsParameter(_Loaded, PerTensorScaleParameter):  # type: ignore[misc]
    """float32 [parts, 27]: of each part's codebook the row for the planes that are read.

    loaded: the parts that have been.
    """

    suffix = CODEBOOK

    def __new__(cls, parts: int, **_: Any) -> StepsParameter:
        """Not a number until it is loaded."""
        return super().__new__(cls, torch.full((parts, ENTRIES), torch.nan, dtype=torch.float32))

    def __init__(
        self,
        parts: int,
        *,
        depth: int,
        matrices: Sequence[StoredMatrix],
        weight_loader: Callable[..., Any],
    ) -> None:
        super().__init__(data=self.data, weight_loader=weight_loader)
        self.depth, self.matrices = depth, matrices
        self.loaded: set[int] = set()

    def _load_into_shard_id(
        self, loaded_weight: torch.Tensor, shard_id: str | int, **_: Any
    ) -> None:
        self.load_part(loaded_weight, self._shard_id_as_int(shard_id))

    def load_part(self, loaded_weight: torch.Tensor, part: int) -> None:
        """Take the codebook of a part. Raises FormatError as `steps_of`."""
        self.data[part] = steps_of(loaded_weight, self.depth, self.stored(part))
        self.loaded.add(part)

    def load_all_rows(self, loaded_weight: torch.Tensor) -> None:
        """Every part is of one stored matrix."""
        for part in range(self.data.shape[0]):
            self.load_part(loaded_weight, part)

    load_row_parallel_weight = load_all_rows
    load_column_parallel_weight = load_all_rows


def steps_of(codebook: torch.Tensor, depth: int, stored: str) -> torch.Tensor:
    """The 27 steps that apply when `depth` planes are read.

    codebook: float32 [d, 27]. stored: file and tensor.

    Raises FormatError for one that is not finite and ascending, or of another shape.
    """
    if (
        codebook.dtype != torch.float32
        or codebook.shape[1:] != (ENTRIES,)
        or codebook.shape[0] < depth
    ):
        raise FormatError(f"{stored} is {codebook.dtype} {list(codebook.shape)}, not a codebook")
    try:
        check_packed_bytes(CODEBOOK, codebook, 0)
    except ValueError as error:
        raise FormatError(f"{stored}: {error}") from None
    return codebook[depth - 1]
