"""Encoding by the native library: the rules of `reference.py`, all depths in each pass."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tritllm.codec.codebooks import lower_steps, stored_steps
from tritllm.codec.encoded import Encoded, rescaled
from tritllm.codec.groups import ordered_sum
from tritllm.format.layout import packed_shapes
from tritllm.format.trits import DEPTHS, ENTRIES, GROUP
from tritllm.native import threads
from tritllm.native.arrays import address, aligned_bytes, dtype_number, with_dense_rows
from tritllm.native.instruction_sets import isa_number
from tritllm.native.library import check, library
from tritllm.native.structures import GRID, SAMPLE, TILE, Matrix, SampleSet, Target

LARGEST_FINITE = 0x7F7FFFFF  # the bits of float32's largest number


def encode_v2(
    weight: np.ndarray, depths: Sequence[int], threads: int = 1, *, isa: str | None = None
) -> dict[int, Encoded]:
    """Encode weight [N, K] at each of `depths`: the bits of `reference.encode_v2`.

    weight: float16, bfloat16 (ml_dtypes) or float32; rows may lie apart, other layouts are copied.
    threads, isa: how it is computed; neither changes the result. isa: see `native.isas()`.

    Raises ValueError naming the first NaN or infinity, and for an invalid shape, depth or isa;
    TypeError for another dtype; RuntimeError without the library.
    """
    return _Call(weight, depths, threads, isa).encode_v2()


def encode_v3(
    weight: np.ndarray, depths: Sequence[int], threads: int = 1, *, isa: str | None = None
) -> dict[int, Encoded]:
    """The bits of `reference.encode_v3` without column weights; otherwise as `encode_v2`."""
    return _Call(weight, depths, threads, isa).encode_v3()


@dataclass
class _Output:
    """What the last pass writes at one depth."""

    depth: int
    codebook: np.ndarray
    weight: np.ndarray
    scale: np.ndarray
    row_error: np.ndarray
    row_limit: np.ndarray
    row_dot: np.ndarray
    row_norm: np.ndarray


class _Call:
    """One matrix on its way through the library."""

    def __init__(
        self, weight: np.ndarray, depths: Sequence[int], n_threads: int, isa: str | None
    ) -> None:
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(f"a weight of shape {weight.shape} is not a matrix")
        unknown = [depth for depth in depths if depth not in DEPTHS]
        if unknown:
            raise ValueError(f"depth {unknown[0]} is not one of 1, 2, 3, 4")
        weight = with_dense_rows(weight)
        self.weight, self.depths, self.threads = weight, list(dict.fromkeys(depths)), n_threads
        self.isa = isa_number(isa, "codec")
        self.rows, self.columns = weight.shape
        self.library = library()
        stride = weight.strides[0] // weight.itemsize if self.rows > 1 else self.columns
        self.matrix = Matrix(
            address(weight), dtype_number(weight.dtype), 0, self.rows, self.columns, stride
        )
        self.matrix.exponent = self.exponent = self._exponent()
        tiled = self.library.tritllm_tiled(self.rows, self.columns)
        self.largest = np.empty(tiled, np.float32)
        self.scales = {depth: np.empty(tiled, np.float32) for depth in self.depths}
        self.energy = self._measure()
        self.published = {depth: np.empty(ENTRIES, np.float32) for depth in self.depths}

    def encode_v2(self) -> dict[int, Encoded]:
        threads.run(self._v2_codebooks(), self.threads)
        outputs = [self._output(depth, self.published[depth]) for depth in self.depths]
        self._write([self._target(o, False, self.scales[o.depth], o.codebook) for o in outputs])
        return self._encoded(outputs)

    def encode_v3(self) -> dict[int, Encoded]:
        sample = SampleSet()
        threads.run([*self._v2_codebooks(), partial(self._sample, sample)], self.threads)
        fitted = self._fit(sample)
        outputs = [self._output(depth, fitted[depth]) for depth in self.depths]
        targets = [
            self._target(o, True, self.scales[o.depth], self.published[o.depth]) for o in outputs
        ]
        self._write(targets)
        self._fall_back([o for o in outputs if not self._is_better(o)])
        return self._encoded(outputs)

    def _by_rows(self, function: Callable[..., int], *arguments: object) -> None:
        """Calls function(isa, matrix, begin, end, *arguments) on parts of the rows."""

        def part(begin: int, end: int) -> None:
            check(function(self.isa, ctypes.byref(self.matrix), begin, end, *arguments))

        ranges = threads.parts(self.rows, TILE, self.threads)
        threads.run([partial(part, *rows) for rows in ranges], self.threads)

    def _exponent(self) -> int:
        bits: list[int] = []

        def peak(isa: int, matrix: object, begin: int, end: int) -> int:
            found = ctypes.c_uint32()
            status = self.library.tritllm_peak(isa, matrix, begin, end, ctypes.byref(found))
            bits.append(found.value)
            return status

        self._by_rows(peak)
        largest = max(bits)  # of a float32; taken apart as an integer, whatever the thread's mode
        if largest > LARGEST_FINITE:
            first = self.library.tritllm_first_nonfinite(ctypes.byref(self.matrix))
            row, column = divmod(first, self.columns)
            value = self.weight[row, column]
            raise ValueError(f"weight[{row}, {column}] is {value}, not a finite number")
        if largest < 1 << 23:  # zero or subnormal: a multiple of 2**-149
            return largest.bit_length() - 150 if largest else 0
        return (largest >> 23) - 127

    def _measure(self) -> float:
        row_energy = np.empty(self.rows, np.float64)
        n = len(self.depths)
        self._by_rows(
            self.library.tritllm_measure,
            n,
            (ctypes.c_int32 * n)(*self.depths),
            address(self.largest),
            (ctypes.c_void_p * n)(*map(address, self.scales.values())),
            address(row_energy),
        )
        return ordered_sum(row_energy)

    def _v2_codebooks(self) -> list[Callable[[], None]]:
        return [partial(self._v2_codebook, depth) for depth in self.depths]

    def _v2_codebook(self, depth: int) -> None:
        scales = self.scales[depth]
        scratch = np.empty_like(scales)  # memory that is touched only where it is needed
        check(
            self.library.tritllm_v2_codebook(
                address(scales), scales.size, address(scratch), address(self.published[depth])
            )
        )

    def _sample(self, sample: SampleSet) -> None:
        check(
            self.library.tritllm_sample(
                address(self.largest), self.rows, self.columns, ctypes.byref(sample)
            )
        )

    def _fit(self, sample: SampleSet) -> dict[int, np.ndarray]:
        """The fitted codebooks; of a matrix of zeros, the published one."""
        published = self.published
        if not sample.largest:
            return published
        native, shared = self.library, ctypes.byref(sample)
        magnitudes = aligned_bytes(4 * (GROUP + 1) * SAMPLE)
        check(
            native.tritllm_gather(self.isa, ctypes.byref(self.matrix), shared, address(magnitudes))
        )
        fitted = {depth: np.empty(ENTRIES, np.float32) for depth in published}

        def fit(depth: int) -> None:
            arrays = published[depth], aligned_bytes(4 * GRID * SAMPLE), fitted[depth]
            initial, scratch, codebook = map(address, arrays)
            check(
                native.tritllm_fit(
                    self.isa, address(magnitudes), shared, initial, depth, scratch, codebook
                )
            )

        threads.run([partial(fit, depth) for depth in published], self.threads)
        return fitted

    def _output(self, depth: int, codebook: np.ndarray) -> _Output:
        rows = self.rows
        weight, scale, _ = packed_shapes(rows, self.columns, depth)
        return _Output(
            depth,
            codebook,
            np.empty(weight, np.uint8),
            np.empty(scale, np.uint8),
            np.empty(rows),
            np.empty(rows),
            np.empty((depth, rows)),
            np.empty((depth, rows)),
        )

    def _target(
        self, o: _Output, search: bool, scales: np.ndarray | None, published: np.ndarray | None
    ) -> Target:
        return Target(
            o.depth,
            search,
            address(o.codebook),
            None if published is None else address(published),
            None if scales is None else address(scales),
            address(o.weight),
            address(o.scale),
            address(o.row_error),
            address(o.row_limit),
            address(o.row_dot),
            address(o.row_norm),
        )

    def _write(self, targets: list[Target]) -> None:
        array = (Target * len(targets))(*targets)
        self._by_rows(self.library.tritllm_write, len(targets), ctypes.byref(array))

    def _is_better(self, o: _Output) -> bool:
        limit = ordered_sum(o.row_limit)
        return limit != 0.0 and ordered_sum(o.row_error) <= limit

    def _fall_back(self, outputs: list[_Output]) -> None:
        """v3's search over the published codebook, where the fitted one was not better."""
        for o in outputs:
            o.codebook = self.published[o.depth]
        if outputs:
            self._write([self._target(o, True, None, None) for o in outputs])

    def _encoded(self, outputs: list[_Output]) -> dict[int, Encoded]:
        return {o.depth: self._encoded_depth(o) for o in outputs}

    def _encoded_depth(self, o: _Output) -> Encoded:
        table = np.empty((o.depth, ENTRIES), np.float32)
        table[-1] = stored_steps(o.codebook, self.exponent, o.depth)
        for r in range(1, o.depth):
            norm = ordered_sum(o.row_norm[r])
            gain = ordered_sum(o.row_dot[r]) / norm if norm else 1.0
            table[r - 1] = lower_steps(table[-1], gain, o.depth, r)
        squares = ordered_sum(o.row_error), self.energy
        return Encoded(o.weight, o.scale, table, *(rescaled(s, self.exponent) for s in squares))
