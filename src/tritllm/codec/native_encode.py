"""Encoding by the library: the passes of `reference.encode`, all depths in each of them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tritllm.codec import reference
from tritllm.codec.reference import CODECS, Encoded
from tritllm.format.trits import DEPTHS, ENTRIES, GROUP
from tritllm.native import library, threads
from tritllm.native.arrays import address, dtype_number, with_dense_rows

LARGEST_FINITE = 0x7F7FFFFF  # the bits of float32's largest number


def encode(
    weight: np.ndarray,
    depths: Sequence[int],
    codec: str = "v3",
    threads: int = 1,
    *,
    isa: str | None = None,
) -> dict[int, Encoded]:
    """Encode weight [N, K] at each of `depths`: the bits of `reference.encode`.

    weight: float16, bfloat16 (ml_dtypes) or float32; rows may lie apart, other layouts are copied.
    threads, isa: how it is computed; neither changes the result. isa: see `isas()`.

    Raises ValueError naming the first NaN or infinity, for a shape, depth, codec or isa that is not
    one; TypeError for another dtype; RuntimeError without the library.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"a weight of shape {weight.shape} is not a matrix")
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r} is not one of {', '.join(CODECS)}")
    unknown = [depth for depth in depths if depth not in DEPTHS]
    if unknown:
        raise ValueError(f"depth {unknown[0]} is not one of 1, 2, 3, 4")
    call = _Call(with_dense_rows(weight), threads, library.isa_number(isa))
    return call.encode(list(dict.fromkeys(depths)), codec)


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

    def __init__(self, weight: np.ndarray, n_threads: int, isa: int) -> None:
        self.weight, self.threads, self.isa = weight, n_threads, isa
        self.rows, self.columns = weight.shape
        self.groups = -(-self.columns // GROUP)
        self.library = library.library()
        stride = weight.strides[0] // weight.itemsize if self.rows > 1 else self.columns
        self.matrix = library.Matrix(
            address(weight), dtype_number(weight.dtype), 0, self.rows, self.columns, stride
        )

    def encode(self, depths: list[int], codec: str) -> dict[int, Encoded]:
        self.matrix.exponent = exponent = self._exponent()
        tiled = self.library.tritllm_tiled(self.rows, self.columns)
        largest = np.empty(tiled, np.float32)
        scales = {depth: np.empty(tiled, np.float32) for depth in depths}
        energy = self._measure(largest, scales)

        published = {depth: np.empty(ENTRIES, np.float32) for depth in depths}
        sample = library.SampleSet()
        tasks = [partial(self._v2_codebook, scales[d], published[d]) for d in depths]
        if codec == "v3":
            tasks.append(partial(self._sample, largest, sample))
        threads.run(tasks, self.threads)

        if codec == "v2":
            outputs = [self._output(d, published[d]) for d in depths]
            self._write([self._target(o, False, scales[o.depth], o.codebook) for o in outputs])
        else:
            fitted = self._fit(published, sample)
            outputs = [self._output(d, fitted[d]) for d in depths]
            self._write(
                [self._target(o, True, scales[o.depth], published[o.depth]) for o in outputs]
            )
            self._fall_back([o for o in outputs if not self._is_better(o)], published)
        return {o.depth: self._encoded(o, exponent, energy) for o in outputs}

    def _by_rows(self, function: Callable[..., int], *arguments: object) -> None:
        """Calls function(isa, matrix, begin, end, *arguments) on parts of the rows."""

        def part(begin: int, end: int) -> None:
            library.check(function(self.isa, ctypes.byref(self.matrix), begin, end, *arguments))

        ranges = threads.parts(self.rows, library.TILE, self.threads)
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

    def _measure(self, largest: np.ndarray, scales: dict[int, np.ndarray]) -> float:
        row_energy = np.empty(self.rows, np.float64)
        self._by_rows(
            self.library.tritllm_measure,
            len(scales),
            (ctypes.c_int32 * len(scales))(*scales),
            address(largest),
            (ctypes.c_void_p * len(scales))(*map(address, scales.values())),
            address(row_energy),
        )
        return _ordered_sum(row_energy)

    def _v2_codebook(self, scales: np.ndarray, codebook: np.ndarray) -> None:
        scratch = np.empty_like(scales)  # memory that is touched only where it is needed
        library.check(
            self.library.tritllm_v2_codebook(
                address(scales), scales.size, address(scratch), address(codebook)
            )
        )

    def _sample(self, largest: np.ndarray, sample: library.SampleSet) -> None:
        library.check(
            self.library.tritllm_sample(
                address(largest), self.rows, self.columns, ctypes.byref(sample)
            )
        )

    def _fit(
        self, published: dict[int, np.ndarray], sample: library.SampleSet
    ) -> dict[int, np.ndarray]:
        """The fitted codebooks; of a matrix of zeros, the published one."""
        if not sample.largest:
            return published
        native, shared = self.library, ctypes.byref(sample)
        magnitudes = np.empty((GROUP, library.SAMPLE), np.float32)
        library.check(native.tritllm_gather(ctypes.byref(self.matrix), shared, address(magnitudes)))
        grids = {depth: np.empty(library.GRID, np.float32) for depth in published}
        tables = {d: np.empty((library.GRID, library.SAMPLE), np.float32) for d in published}
        fitted = {depth: np.empty(ENTRIES, np.float32) for depth in published}

        def tabulate(depth: int, begin: int, end: int) -> None:
            library.check(
                native.tritllm_tabulate(
                    self.isa,
                    address(magnitudes),
                    shared,
                    address(grids[depth]),
                    depth,
                    begin,
                    end,
                    address(tables[depth]),
                )
            )

        def fit(depth: int) -> None:
            arrays = published[depth], grids[depth], tables[depth], fitted[depth]
            initial, grid, table, codebook = map(address, arrays)
            library.check(native.tritllm_fit(initial, shared, grid, table, codebook))

        for depth, grid in grids.items():
            library.check(native.tritllm_grid(address(published[depth]), shared, address(grid)))
        rows = list(threads.parts(library.GRID, 1, self.threads))
        threads.run([partial(tabulate, d, *part) for d in grids for part in rows], self.threads)
        threads.run([partial(fit, depth) for depth in grids], self.threads)
        return fitted

    def _output(self, depth: int, codebook: np.ndarray) -> _Output:
        rows = self.rows
        return _Output(
            depth,
            codebook,
            np.empty((depth, rows, -(-self.columns // 5)), np.uint8),
            np.empty((rows, -(-3 * self.groups // 5)), np.uint8),
            np.empty(rows),
            np.empty(rows),
            np.empty((depth, rows)),
            np.empty((depth, rows)),
        )

    def _target(
        self, o: _Output, search: bool, scales: np.ndarray | None, published: np.ndarray | None
    ) -> library.Target:
        return library.Target(
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

    def _write(self, targets: list[library.Target]) -> None:
        array = (library.Target * len(targets))(*targets)
        self._by_rows(self.library.tritllm_write, len(targets), ctypes.byref(array))

    def _is_better(self, o: _Output) -> bool:
        limit = _ordered_sum(o.row_limit)
        return limit != 0.0 and _ordered_sum(o.row_error) <= limit

    def _fall_back(self, outputs: list[_Output], published: dict[int, np.ndarray]) -> None:
        """v3's search over the published codebook, where the fitted one was not better."""
        for o in outputs:
            o.codebook = published[o.depth]
        if outputs:
            self._write([self._target(o, True, None, None) for o in outputs])

    def _encoded(self, o: _Output, exponent: int, energy: float) -> Encoded:
        table = np.empty((o.depth, ENTRIES), np.float32)
        table[-1] = reference.stored_steps(o.codebook, exponent, o.depth)
        for r in range(1, o.depth):
            norm = _ordered_sum(o.row_norm[r])
            gain = _ordered_sum(o.row_dot[r]) / norm if norm else 1.0
            table[r - 1] = reference.lower_steps(table[-1], gain, o.depth, r)
        squares = _ordered_sum(o.row_error), energy
        return Encoded(o.weight, o.scale, table, *(_rescaled(s, exponent) for s in squares))


def _ordered_sum(values: np.ndarray) -> float:
    """In index order, as the reference adds."""
    return float(np.cumsum(values)[-1])


def _rescaled(squares: float, exponent: int) -> float:
    return float(np.ldexp(squares, 2 * exponent))
