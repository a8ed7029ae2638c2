"""Encoding what is read of the source's shards: a large matrix by all threads, and of small ones
several at a time, each by one, which then never wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeGuard, TypeVar

import numpy as np

from tritllm.codec import TritTensor, encode_source
from tritllm.errors import OutputError, SourceError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.quantizer.configs import Config
from tritllm.quantizer.decisions import PlannedTensor
from tritllm.quantizer.encodings import Encodings
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.resources import TOGETHER_BYTES
from tritllm.quantizer.shard_reader import Item, Piece

_SMALL_BYTES = TOGETHER_BYTES // 4  # of a part of the source that one thread encodes

_Given = TypeVar("_Given")
Encoded = list[dict[str, TritTensor]]  # of each matrix of a part, by config name


class ShardEncoder:
    """Turns pieces of quantized tensors into digits; a context manager that ends its threads.

    encodings: asked first for the digits of a matrix, and for new values of what is kept; in the
        caller's thread alone.
    """

    def __init__(self, plan: Plan, out: Path, threads: int, encodings: Encodings | None) -> None:
        self._plan, self._out, self._threads = plan, out, threads
        self._encodings = encodings
        self._pool = ThreadPoolExecutor(threads)
        self._under_way: deque[tuple[Piece, Future[Encoded]]] = deque()

    @property
    def under_way(self) -> bool:
        """Whether there are results to come."""
        return bool(self._under_way)

    def takes(self, item: Item) -> TypeGuard[Piece]:
        """Whether an item is small, to be encoded by one thread, and there is room for it."""
        if not isinstance(item, Piece) or not item.part.matrices:
            return False
        held = sum(piece.part.nbytes for piece, _ in self._under_way) + item.part.nbytes
        return (
            item.part.nbytes <= _SMALL_BYTES
            and held <= TOGETHER_BYTES
            and len(self._under_way) < 2 * self._threads
        )

    def submit(self, shard: str, piece: Piece) -> None:
        """Have a piece encoded by one thread, beside others."""
        found = [self._calibrated(matrix) for matrix in piece.part.matrices]
        future = self._pool.submit(self._encode, shard, piece, found, 1)
        self._under_way.append((piece, future))

    def next_result(self) -> tuple[Piece, Encoded]:
        """The piece that was submitted first, and what became of it.

        Raises SourceError for a weight that is not finite.
        """
        piece, future = self._under_way.popleft()
        return piece, future.result()

    def encode(self, shard: str, piece: Piece) -> Encoded:
        """Encode a piece by all threads. Raises SourceError for a weight that is not finite."""
        found = [self._calibrated(matrix) for matrix in piece.part.matrices]
        return self._encode(shard, piece, found, self._threads)

    def replaced(self, tensor: PlannedTensor) -> dict[str, np.ndarray]:
        """New values of a kept tensor, by config name."""
        found: dict[str, np.ndarray] = {}
        entry = tensor.entry
        for config, values in self._given(lambda e, config: e.replaced(tensor, config)):
            dtype = NUMPY_OF_SAFETENSORS.get(entry.dtype)
            if (values.shape, values.dtype) != (entry.shape, dtype):
                raise self._damaged(entry.name, f"{values.dtype} {values.shape}")
            found[config.name] = np.ascontiguousarray(values)
        return found

    def _calibrated(self, matrix: SourceMatrix) -> dict[str, TritTensor]:
        found: dict[str, TritTensor] = {}
        for config, encoded in self._given(lambda e, config: e.encoded(matrix, config)):
            depth = config.depth_of(matrix.module)
            if (encoded.shape, encoded.depth) != (matrix.shape, depth):
                raise self._damaged(matrix.name, f"{encoded.shape} at depth {encoded.depth}")
            found[config.name] = encoded
        return found

    def _given(
        self, ask: Callable[[Encodings, Config], _Given | None]
    ) -> Iterator[tuple[Config, _Given]]:
        """What the encodings have, for the configs under which they have something."""
        if self._encodings is None:
            return
        for config in self._plan.configs:
            if (found := ask(self._encodings, config)) is not None:
                yield config, found

    def _damaged(self, name: str, what: str) -> OutputError:
        return OutputError(
            f"{self._out}: the result kept for {name} is {what}, which is not its "
            f"source's; delete {self._out} and start again"
        )

    def _encode(
        self,
        shard: str,
        piece: Piece,
        found: Sequence[Mapping[str, TritTensor]],
        threads: int,
    ) -> Encoded:
        """The digits of each matrix: those found, or those of the matrix alone."""
        encoded = []
        for matrix, given in zip(piece.part.matrices, found, strict=True):
            depths = {config.name: config.depth_of(matrix.module) for config in self._plan.configs}
            left = sorted({depth for name, depth in depths.items() if name not in given})
            alone = self._encode_alone(shard, matrix, piece.data, left, threads) if left else {}
            encoded.append({n: given[n] if n in given else alone[d] for n, d in depths.items()})
        return encoded

    def _encode_alone(
        self, shard: str, matrix: SourceMatrix, data: np.ndarray, depths: list[int], threads: int
    ) -> dict[int, TritTensor]:
        try:
            return encode_source(matrix.values(data), depths, self._plan.codec, threads)
        except ValueError as error:
            name = matrix.source.name
            which = f", {matrix.module}" if matrix.slice_of else ""
            raise SourceError(
                f"{shard}: tensor {name}{which}: {error}; fix the source, "
                f"or keep the tensor with --exclude '{name}'"
            ) from None

    def __enter__(self) -> ShardEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
