"""Tensors that hold a matrix, or two, of every expert of a block: which layouts are known.

A row says what no tensor tells of itself: which of its dimensions is which, and whose rows come
where. Each row was compared with the model's code in transformers 5.23; a tensor that none means is
kept. Experts are packed one by one, under the names that a checkpoint of single experts has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tritllm.errors import SourceError
from tritllm.format.safetensors_header import TensorEntry
from tritllm.format.slices import MatrixSlice
from tritllm.quantizer.matrices import SourceMatrix

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class FusedExperts:
    """A tensor [experts, out, in].

    tensor: regular expression of its whole name; group 1 is what the experts' names begin with.
    leaves: what each expert's matrices are called, {group 1}.{expert}.{leaf}.weight; of two, the
        rows of the first come first.
    transposed: whether it is [experts, in, out]; None where that differs between checkpoints, and
        `hidden_size` of the config tells.
    interleaved: whether the rows of two matrices alternate instead.
    below: what stands between group 1 and the number of the expert.
    last: whether they give the experts' outputs, which are as wide as the inputs of the others.
    width: the config's name of that width.
    """

    tensor: str
    leaves: tuple[str, ...]
    transposed: bool | None = False
    interleaved: bool = False
    below: str = ""
    last: bool = False
    width: str = "hidden_size"


def _rows(
    gate_up: tuple[str, str] = ("gate_proj", "up_proj"),
    down: str = "down_proj",
    *,
    names: tuple[str, str] = (r"(.*\.experts)\.gate_up_proj", r"(.*\.experts)\.down_proj"),
    transposed: bool | None = False,
    interleaved: bool = False,
    below: str = "",
    width: str = "hidden_size",
) -> tuple[FusedExperts, ...]:
    return (
        FusedExperts(names[0], gate_up, transposed, interleaved, below, width=width),
        FusedExperts(names[1], (down,), transposed, below=below, last=True, width=width),
    )


_GRANITE = _rows(
    names=(
        r"(.*\.block_sparse_moe)\.input_linear\.weight",
        r"(.*\.block_sparse_moe)\.output_linear\.weight",
    ),
    below=".experts",
)
_ARIA = _rows(names=(r"(.*\.experts)\.fc1\.weight", r"(.*\.experts)\.fc2\.weight"), transposed=True)
_STEP = tuple(
    FusedExperts(
        rf"(.*)\.moe\.{leaf}\.weight", (leaf,), below=".mlp.experts", last=leaf == "down_proj"
    )
    for leaf in ("gate_proj", "up_proj", "down_proj")
)
FUSED_EXPERTS: Mapping[str, tuple[FusedExperts, ...]] = {
    "gpt_oss": _rows(transposed=True, interleaved=True),
    **dict.fromkeys(("llama4", "llama4_text"), _rows(transposed=True)),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), _GRANITE),
    **dict.fromkeys(("aria", "aria_text"), _ARIA),
    **dict.fromkeys(("qwen3_vl_moe", "qwen3_vl_moe_text"), _rows(transposed=None)),
    "step3p7": _STEP,
    "muse_spark": _rows(width="moe_hidden_size"),
    **dict.fromkeys(("mixtral", "phimoe", "minimax_m2"), _rows(("w1", "w3"), "w2")),
    **dict.fromkeys(
        (
            "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text", "olmoe",
            "deepseek_v2", "deepseek_v3", "glm4_moe", "glm4v_moe_text", "ernie4_5_moe", "dots1",
            "granitemoe_swa", "mistral4", "hy_v4", "gemma4", "gemma4_text", "zaya",
        ),
        _rows(),
    ),
}  # fmt: skip


def experts_in(config: Mapping[str, Any]) -> int | None:
    """How many experts a block has, by the text model's config; None where that does not say."""
    counts = (config.get(name) for name in EXPERT_COUNTS)
    return next((count for count in counts if type(count) is int), None)


def expert_matrices(
    tensor: TensorEntry, model_type: str, config: Mapping[str, Any]
) -> tuple[SourceMatrix, ...]:
    """The matrices of a tensor that a row of the family means, by expert; else none.

    config: of the text model.

    Raises SourceError for a shape that is not the row's, or another number of experts than the
    config's.
    """
    found = _row_of(tensor, model_type)
    return _matrices(tensor, *found, config) if found else ()


def expert_modules(tensor: TensorEntry, model_type: str) -> list[str]:
    """The modules of these matrices, whatever the tensor's shape."""
    if not (found := _row_of(tensor, model_type)):
        return []
    row, prefix = found
    count = tensor.shape[0] if tensor.shape else 0
    return [f"{prefix}.{expert}.{leaf}" for expert in range(count) for leaf in row.leaves]


def check_blocks(
    tensors: Iterable[TensorEntry], model_type: str, config: Mapping[str, Any]
) -> None:
    """Raise SourceError where the tensors of a block do not hold the same experts.

    tensors: those of the whole source. The others of what `expert_matrices` raises.
    """
    blocks: dict[str, dict[tuple[str, ...], TensorEntry]] = {}
    for tensor in tensors:
        if found := _row_of(tensor, model_type):
            row, prefix = found
            blocks.setdefault(prefix, {})[row.leaves] = tensor
    for prefix, held in blocks.items():
        shapes = {}
        for row in FUSED_EXPERTS[model_type]:
            if row.leaves not in held:
                other = next(iter(held.values()))
                raise SourceError(
                    f"tensor {other.name}: there is no {' and '.join(row.leaves)} of these "
                    "experts; fetch the source again, or leave out both (--exclude)"
                )
            tensor = held[row.leaves]
            first = _matrices(tensor, row, prefix, config)[0]
            # of [inner, hidden] and [hidden, inner]
            shapes[tensor.name] = (
                tensor.shape[0],
                first.shape[::-1] if row.last else first.shape,
            )
        if len(set(shapes.values())) > 1:
            told = ", ".join(
                f"{name.rpartition('.experts.')[2]} {list(tensor.shape)}"
                for name, tensor in sorted((t.name, t) for t in held.values())
            )
            raise SourceError(
                f"the experts {prefix} do not fit together: {told}; the source is damaged, fetch "
                "it again"
            )


def _row_of(tensor: TensorEntry, model_type: str) -> tuple[FusedExperts, str] | None:
    """The row that means a tensor, and what the names of its experts begin with."""
    for row in FUSED_EXPERTS.get(model_type, ()):
        if match := re.fullmatch(row.tensor, tensor.name):
            return row, match[1] + row.below
    return None


def _is_transposed(tensor: TensorEntry, row: FusedExperts, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is [experts, in, out].

    Raises SourceError where that cannot be told, or the config's width contradicts the row.
    """
    hidden, shape = config.get(row.width), list(tensor.shape)
    places = (1, 2) if row.last else (2, 1)  # of the width as [out, in] and [in, out]
    if row.transposed is not None:
        if hidden not in (None, shape[places[row.transposed]]):
            place = ("second", "third")[places[row.transposed] - 1]
            raise SourceError(
                f"tensor {tensor.name}: shape {shape}, and models of this type have "
                f"{row.width} {hidden} in {place} place; is it transposed?"
            )
        return row.transposed
    if hidden not in shape[1:]:
        raise SourceError(
            f"tensor {tensor.name}: shape {shape} has no {row.width} {hidden}, which would "
            "tell rows from columns"
        )
    return shape[places[0]] != hidden


def _matrices(
    tensor: TensorEntry, row: FusedExperts, prefix: str, config: Mapping[str, Any]
) -> tuple[SourceMatrix, ...]:
    shape = list(tensor.shape)
    if len(shape) != 3 or 0 in shape:
        raise SourceError(
            f"tensor {tensor.name}: shape {shape} is not that of experts, 3-D and without a 0"
        )
    expected = experts_in(config)
    if expected not in (None, shape[0]):
        raise SourceError(
            f"tensor {tensor.name}: {shape[0]} experts, and config.json says {expected}; "
            "the source is damaged or cut, fetch it again"
        )
    transposed = _is_transposed(tensor, row, config)
    rows, columns = shape[:0:-1] if transposed else shape[1:]
    count = len(row.leaves)
    if rows % count:
        raise SourceError(f"tensor {tensor.name}: {rows} rows are not those of {count} matrices")
    each = rows // count
    found = []
    for expert in range(shape[0]):
        for number, leaf in enumerate(row.leaves):
            part = (
                (number, rows, count)
                if row.interleaved
                else (each * number, each * (number + 1), 1)
            )
            found.append(
                SourceMatrix(
                    f"{prefix}.{expert}.{leaf}.weight",
                    (each, columns),
                    tensor,
                    transposed,
                    MatrixSlice(tensor.name, tensor.shape, expert, part),
                )
            )
    return tuple(found)
