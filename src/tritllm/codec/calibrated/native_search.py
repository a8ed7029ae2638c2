"""The native twin of `search.py` and of `steps.step_products`: the same bits."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np

from tritllm.codec.calibrated.search import Columns, inverse_steps
from tritllm.format.trits import ENTRIES
from tritllm.native import threads
from tritllm.native.arrays import address
from tritllm.native.instruction_sets import isa_number
from tritllm.native.library import check, library
from tritllm.native.structures import TILE
from tritllm.native.structures import Columns as Arguments


def feed_back(block: Columns, isa: str | None = None) -> None:
    """As `search.feed_back`. Raises ValueError for an isa that cannot run here."""
    _run("tritllm_feed_back", block, isa)


def descend(block: Columns, isa: str | None = None) -> None:
    """As `search.descend`. Raises ValueError for an isa that cannot run here."""
    _run("tritllm_descend", block, isa)


def step_products(
    level: np.ndarray,
    index: np.ndarray,
    hessian: np.ndarray,
    n_threads: int = 1,
    isa: str | None = None,
) -> np.ndarray:
    """As `steps.step_products`."""
    groups, n = index.shape
    missing = -n % TILE
    level, hessian = np.pad(level, ((0, 0), (0, missing))), np.ascontiguousarray(hessian)
    index = np.pad(index, ((0, 0), (0, missing)))
    products = np.empty((groups, 2, ENTRIES, ENTRIES))
    number, function = isa_number(isa, "codec"), library().tritllm_step_products

    def part(begin: int, end: int) -> None:
        arrays = address(level), address(index), address(hessian)
        check(function(number, *arrays, n + missing, groups, begin, end, address(products)))

    threads.run(
        [partial(part, *range_) for range_ in threads.parts(groups, 1, n_threads)], n_threads
    )
    return products


def _run(name: str, block: Columns, isa: str | None) -> None:
    columns, rows = block.level.shape
    limits, steps = block.limits, np.ascontiguousarray(block.steps, np.float32)
    inverse = inverse_steps(steps)
    optional = {"centre": limits.centre, "solve": block.solve}
    arrays = {
        "steps": steps,
        "inverse": inverse,
        "target": block.target,
        "given": block.given,
        "coupling": block.coupling,
        "feedback": block.feedback,
        "importance": block.importance,
        "level": block.level,
        "value": block.value,
        **{name: array for name, array in optional.items() if array is not None},
    }
    for what, array in arrays.items():
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(f"{what} is not a contiguous array of float32")
    if block.index.dtype != np.int32 or not block.index.flags.c_contiguous:
        raise ValueError("index is not a contiguous array of int32")
    arguments = Arguments(
        rows=rows,
        columns=columns,
        reach=limits.reach,
        index=address(block.index),
        fixed=limits.index is not None,
        **{what: address(array) for what, array in arrays.items()},
    )
    function = getattr(library(), name)
    check(function(isa_number(isa, "codec"), ctypes.byref(arguments), 0, rows))
