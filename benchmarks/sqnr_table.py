"""Signal to quantization noise of v2 and v3 at depth 1..4, as a markdown table.

    python benchmarks/sqnr_table.py [MODEL.safetensors [TENSOR ...]]

Rows: a Gaussian matrix, then the named tensors; without names, the first 2-D tensors of the file.
The last table is of files encoded at depth 4 by v3 and read at fewer planes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tritllm
from tritllm.codec import ENCODERS, to_decibel
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.format.safetensors_header import TensorEntry, read_header
from tritllm.format.trits import DEPTHS

FIRST = 6  # tensors taken where none is named


def gaussian() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)


def tensors(path: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of the named matrices, or of the first ones of the file."""
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        entries = read_header(read, path.stat().st_size, str(path)).entries
        absent = [name for name in names if name not in entries]
        if absent:
            raise SystemExit(f"{path}: no tensor {absent[0]}")
        for name in names or [n for n, entry in entries.items() if is_matrix(entry)][:FIRST]:
            entry = entries[name]
            if not is_matrix(entry):
                raise SystemExit(f"{path}: tensor {name} is {entry.dtype} {list(entry.shape)}")
            raw = np.frombuffer(read(entry.begin, entry.nbytes), NUMPY_OF_SAFETENSORS[entry.dtype])
            yield name, raw.reshape(entry.shape)


def is_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2 and 0 not in entry.shape and entry.dtype in NUMPY_OF_SAFETENSORS


def row_of_codecs(weight: np.ndarray, threads: int) -> list[str]:
    by_codec = [tritllm.encode_depths(weight, DEPTHS, codec, threads) for codec in ENCODERS]
    return [" / ".join(f"{q[depth].sqnr_db:.2f}" for q in by_codec) for depth in DEPTHS]


def row_of_planes(weight: np.ndarray, threads: int) -> list[str]:
    encoded = tritllm.encode(weight, max(DEPTHS), threads=threads)
    wide = weight.astype(np.float64)
    energy = np.square(wide).sum()
    return [
        f"{to_decibel(np.square(wide - encoded.decode(planes)).sum() / energy):.2f}"
        for planes in DEPTHS
    ]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="a safetensors file")
    parser.add_argument("tensor", nargs="*", help="names of matrices in it")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    codecs, planes = [], []
    matrices = [("Gaussian", gaussian())]
    if arguments.model:
        matrices += tensors(arguments.model, arguments.tensor)
    for name, weight in matrices:
        title = f"{name} {weight.shape[0]}x{weight.shape[1]}"
        codecs.append([title, *row_of_codecs(weight, arguments.threads)])
        planes.append([title, *row_of_planes(weight, arguments.threads)])
    print_table(["SQNR, dB: v2 / v3", *(f"d={depth}" for depth in DEPTHS)], codecs)
    print_table(["v3 at d=4, planes read", *map(str, DEPTHS)], planes)


if __name__ == "__main__":
    main()
