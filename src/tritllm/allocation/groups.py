"""Which matrices share a depth, and what a depth of them takes in the file.

Matrices that a runtime fuses into one product must have one depth: query, key and value; gate and
up; the experts of a block, whose gates and ups are one group and whose downs are another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from tritllm.format.blocks import place_of
from tritllm.format.layout import nbytes
from tritllm.quantizer.matrices import SourceMatrix

# A pattern of a module's last names, and what a group of them is called. A name that no row means
# (o_proj, down_proj, GPT-2's c_attn, Phi-3's qkv_proj) is a group of its own.
_TIED = (
    (r"experts\.\d+\.(gate_proj|up_proj|w1|w3)", "experts.gate_up"),
    (r"experts\.\d+\.(down_proj|w2)", "experts.down"),
    (r"(q|k|v)_proj", "qkv"),
    (r"(query|key|value)", "qkv"),
    (r"(gate|up)_proj", "gate_up"),
)


@dataclass(frozen=True)
class Group:
    """Matrices that get one depth together.

    name: the modules' common name, such as model.layers.3.self_attn.qkv.
    """

    name: str
    matrices: tuple[SourceMatrix, ...]

    @property
    def modules(self) -> list[str]:
        """The modules, in stored order."""
        return [matrix.module for matrix in self.matrices]

    @cached_property
    def weights(self) -> int:
        """Weights of all matrices together."""
        return sum(matrix.size for matrix in self.matrices)

    def nbytes(self, depth: int) -> int:
        """Bytes of the matrices in the file at a depth: planes, scale indices and codebooks."""
        return sum(nbytes(*matrix.shape, depth) for matrix in self.matrices)

    @property
    def block(self) -> int | None:
        """The number of the block that it belongs to; None for the embeddings and the output."""
        return place_of(self.name).block


def find_groups(matrices: Iterable[SourceMatrix]) -> list[Group]:
    """The groups of matrices, each where its first is stored."""
    found: dict[str, list[SourceMatrix]] = {}
    for matrix in matrices:
        found.setdefault(_group_name(matrix.module), []).append(matrix)
    return [Group(name, tuple(members)) for name, members in found.items()]


def _group_name(module: str) -> str:
    for pattern, name in _TIED:
        tied, count = re.subn(rf"(^|(?<=\.)){pattern}$", name, module)
        if count:
            return tied
    return module


def bits_per_weight(groups: Iterable[Group], depths: Mapping[str, int]) -> float:
    """File bits a weight of groups at their depths."""
    groups = list(groups)
    total = sum(group.nbytes(depths[group.name]) for group in groups)
    return 8 * total / sum(group.weights for group in groups)
