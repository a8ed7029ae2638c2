"""A packed model's matrices as a map: a row a block, a column a kind, a cell what stands there.

Its size is bounded whatever the model: the experts of a block are one cell, the rarest kinds share
a column and neighbouring blocks a row where there are too many.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tritllm.codec import to_decibel
from tritllm.format.blocks import place_of
from tritllm.format.safetensors_header import ITEM_BYTES
from tritllm.model_card.figures import Measures, measure

MOST_KINDS, MOST_ROWS, MOST_STACKS, MOST_OUTSIDE = 24, 128, 4, 30
OTHER = "other kinds"
_ORDER = (
    "q", "q_a", "q_b", "kv_a", "k", "kv_b", "v", "qkv", "in", "o", "out", "gate", "w1", "up", "w3",
    "gate_up", "fc1", "down", "w2", "fc2",
)  # fmt: skip


@dataclass(frozen=True)
class Matrix:
    """One matrix. shape: [N, K]. depth: trits a weight; None where it is kept as it was. nmse: of a
    quantized one, against the source. sensitivity: mean KL in nats a token that its group of
    matrices costs at this depth alone; None where nobody measured.
    """

    name: str
    shape: tuple[int, ...]
    depth: int | None
    nmse: float | None
    sensitivity: float | None = None

    @property
    def weights(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


@dataclass
class Cell:
    """The matrices in one place of the map."""

    matrices: list[Matrix] = field(default_factory=list)

    @property
    def depths(self) -> list[int]:
        """Those that occur, ascending; none where all is kept."""
        return sorted({m.depth for m in self.matrices if m.depth is not None})

    @property
    def nmse(self) -> float | None:
        """Mean over the quantized matrices, by their weights; None where there are none."""
        found = [(m.nmse, m.weights) for m in self.matrices if m.nmse is not None]
        weights = sum(count for _, count in found)
        return sum(nmse * count for nmse, count in found) / weights if found else None

    @property
    def sqnr(self) -> float | None:
        """In dB, of that mean; infinite where every matrix is exact."""
        return None if self.nmse is None else to_decibel(self.nmse)

    @property
    def sensitivity(self) -> float | None:
        """The largest of the matrices': those of a group share one figure."""
        return max(
            (m.sensitivity for m in self.matrices if m.sensitivity is not None), default=None
        )

    @property
    def worst(self) -> Matrix:
        """The matrix with the largest error."""
        return max(self.matrices, key=lambda m: -1.0 if m.nmse is None else m.nmse)


@dataclass(frozen=True)
class Stack:
    """A row of blocks, such as a decoder's or a tower's. rows: labels, from the first block on;
    cells: by row and kind.
    """

    name: str
    rows: tuple[str, ...]
    kinds: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]


@dataclass(frozen=True)
class ModelMap:
    """One packed folder. parts: bytes of the file by what they hold. outside: matrices in no block,
    the largest first; outside_left_out: how many more there are.
    """

    name: str
    manifest: Mapping[str, Any]
    measures: Measures
    parts: Mapping[str, int]
    stacks: tuple[Stack, ...]
    outside: tuple[Matrix, ...]
    outside_left_out: int

    def cells(self) -> Iterable[Cell]:
        """Every cell."""
        return (cell for stack in self.stacks for cell in stack.cells.values())


def map_of(
    name: str, manifest: dict[str, Any], sensitivities: Mapping[str, tuple[float, ...]]
) -> ModelMap:
    """The map of a packed folder.

    manifest: the content of its tritllm.json. sensitivities: of modules, at depths 1 to 4.
    """
    matrices = list(_matrices(manifest["tensors"], sensitivities))
    places = {m.name: place_of(m.name.removesuffix(".weight")) for m in matrices}
    inside: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        place = places[matrix.name]
        if place.block is not None:
            inside.setdefault(place.stack, []).append(matrix)
    largest = sorted(inside, key=lambda s: -sum(m.weights for m in inside[s]))
    stacks = []
    for stack in largest[:MOST_STACKS]:
        stacks.append(_stack(stack, inside[stack]))
    outside = [m for m in matrices if places[m.name].block is None]
    outside += [m for stack in largest[MOST_STACKS:] for m in inside[stack]]
    outside.sort(key=lambda m: -m.weights)
    return ModelMap(
        name, manifest, measure(manifest), _parts(manifest["tensors"]), tuple(stacks),
        tuple(outside[:MOST_OUTSIDE]), max(0, len(outside) - MOST_OUTSIDE),
    )  # fmt: skip


def short_kind(kind: str) -> str:
    """A kind as a column's head: `self_attn.q_proj` is q, `mlp.experts.up_proj` experts up."""
    parts = [part.removesuffix("_proj") for part in kind.split(".")]
    kept = [part for part in parts[:-1] if "expert" in part or "vis" in part or "cross" in part]
    return " ".join([*kept, parts[-1]])


def _matrices(
    records: Mapping[str, Any], sensitivities: Mapping[str, tuple[float, ...]]
) -> Iterable[Matrix]:
    for name, record in records.items():
        if "depth" in record:
            depth = record["depth"]
            costs = sensitivities.get(name.removesuffix(".weight"))
            yield Matrix(
                name, (record["shape"][1], record["in_features"]), depth, float(record["nmse"]),
                None if costs is None else costs[depth - 1],
            )  # fmt: skip
        elif "kept" in record and len(record["shape"]) > 1:
            yield Matrix(name, tuple(record["shape"]), None, None)


def _stack(name: str, matrices: list[Matrix]) -> Stack:
    places = [place_of(m.name.removesuffix(".weight")) for m in matrices]
    counts = Counter({p.kind: 0 for p in places})
    for place, matrix in zip(places, matrices, strict=True):
        counts[place.kind] += matrix.weights
    shown = {kind for kind, _ in counts.most_common(MOST_KINDS)}
    blocks = sorted({p.block for p in places if p.block is not None})
    step = -(-len(blocks) // MOST_ROWS)
    row_of: dict[int, str] = {}
    for start in range(0, len(blocks), step):
        some = blocks[start : start + step]
        label = str(some[0]) if len(some) == 1 else f"{some[0]}-{some[-1]}"
        row_of |= dict.fromkeys(some, label)
    cells: dict[tuple[str, str], Cell] = {}
    for place, matrix in zip(places, matrices, strict=True):
        assert place.block is not None
        kind = place.kind if place.kind in shown else OTHER
        cells.setdefault((row_of[place.block], kind), Cell()).matrices.append(matrix)
    kinds = sorted({kind for _, kind in cells}, key=_rank)
    return Stack(name, tuple(dict.fromkeys(row_of.values())), tuple(kinds), cells)


def _rank(kind: str) -> tuple[int, int, str]:
    """Attention first, then the feed-forward network, then experts; within them as data flows."""
    part = (
        5 if kind == OTHER
        else 3 if "experts." in kind
        else 2 if "expert" in kind
        else 0 if "att" in kind.lower() or "mixer" in kind
        else 1
    )  # fmt: skip
    last = kind.rpartition(".")[2].removesuffix("_proj")
    return part, _ORDER.index(last) if last in _ORDER else len(_ORDER), kind


def _parts(records: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the file's tensors by what they hold; nothing that takes none."""
    parts = dict.fromkeys(
        ("trits", "scales and codebooks", "embeddings", "output layer", "all else that is kept"), 0
    )
    for record in records.values():
        nbytes = math.prod(record["shape"]) * ITEM_BYTES[record["dtype"]]
        reason = record.get("kept")
        if reason is None:
            parts["trits" if "depth" in record else "scales and codebooks"] += nbytes
        elif reason.startswith("embedding"):
            parts["embeddings"] += nbytes
        elif reason.startswith("lm_head"):
            parts["output layer"] += nbytes
        else:
            parts["all else that is kept"] += nbytes
    return {part: nbytes for part, nbytes in parts.items() if nbytes}
