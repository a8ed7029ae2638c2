"""What becomes of each tensor of the source: quantized, kept, or stored once with another."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any

from tritllm.errors import SourceError, TritError
from tritllm.format.modules import matches, unmatched
from tritllm.format.safetensors_header import TensorEntry
from tritllm.quantizer.families import FAMILIES, UNKNOWN_FAMILY
from tritllm.quantizer.fused_experts import check_blocks, expert_matrices, expert_modules
from tritllm.quantizer.kept_weights import (
    DTYPE_READ_BY_MODEL,
    KEPT_NAMES,
    NOT_LINEAR_REASONS,
    READ_BY_MODEL,
    RUN_AS_LINEAR,
    TOWER,
    WEIGHT_READ_BY_MODEL,
)
from tritllm.quantizer.matrices import SourceMatrix, whole_matrix
from tritllm.quantizer.source import Source
from tritllm.quantizer.tensor_checks import check_dtype, check_float, check_free_names
from tritllm.quantizer.ternary_source import TernarySource
from tritllm.quantizer.tied import tied_duplicates

EXCLUDED = "excluded on request"


@dataclass(frozen=True)
class Decision:
    """What happens to a tensor: quantized as these matrices, or kept as it is; and why."""

    reason: str
    matrices: tuple[SourceMatrix, ...] = ()

    @property
    def quantize(self) -> bool:
        """Whether it is quantized."""
        return bool(self.matrices)


@dataclass(frozen=True)
class PlannedTensor:
    """A source tensor and what becomes of it.

    tied_to: the tensor that is stored instead, which is equal or holds it: a ternary matrix its
    scale.
    """

    entry: TensorEntry
    decision: Decision
    tied_to: str | None = None

    @property
    def module(self) -> str:
        """The tensor's name without `.weight`."""
        return self.entry.name.removesuffix(".weight")

    @property
    def matrices(self) -> tuple[SourceMatrix, ...]:
        """What is packed of it, by piece; empty where it is kept."""
        return self.decision.matrices

    @property
    def model_entry(self) -> tuple[str, tuple[int, ...]]:
        """Dtype (safetensors') and shape of its float values: its own, but of two-bit weights."""
        if self.entry.dtype == "U8" and self.matrices:
            return "F32", self.matrices[0].shape
        return self.entry.dtype, self.entry.shape

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.model_entry[1])

    @property
    def parts(self) -> list[SourcePart]:
        """What is read and worked on at a time, in the order of the bytes: the pieces of a tensor
        that is quantized, else all of it.
        """
        pieces = 1 + max((matrix.piece for matrix in self.matrices), default=0)
        nbytes = self.entry.nbytes // pieces
        found: list[list[SourceMatrix]] = [[] for _ in range(pieces)]
        for matrix in self.matrices:
            found[matrix.piece].append(matrix)
        return [
            SourcePart(self, self.entry.begin + nbytes * number, nbytes, tuple(matrices))
            for number, matrices in enumerate(found)
        ]


@dataclass(frozen=True)
class SourcePart:
    """Consecutive bytes of a source tensor: from `begin` of its file, and what they hold."""

    tensor: PlannedTensor
    begin: int
    nbytes: int
    matrices: tuple[SourceMatrix, ...]

    @property
    def name(self) -> str:
        """For people: of the matrix that it holds, of the first of several, or of the tensor."""
        return self.matrices[0].name if self.matrices else self.tensor.entry.name


def decide_all(
    source: Source,
    kinds: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
    ternary: TernarySource | None = None,
) -> dict[str, list[PlannedTensor]]:
    """Decide on every tensor, by shard, in stored order.

    kinds: the folders to write, "packed", "model" or both. include, exclude: module globs.
    ternary: what the source's own method makes of its tensors.

    Raises SourceError where a tensor cannot become what its name says, TritError for a glob that
    matches nothing.
    """
    modules, text_config = modules_of(source), source.text_config
    check_globs("--include", include, modules, source.files.name)
    check_globs("--exclude", exclude, modules, source.files.name)
    tied = tied_duplicates(source)
    names = {entry.name for entry in source.tensors}
    if ternary is not None:
        names -= ternary.scales.keys()
    decided: dict[str, list[PlannedTensor]] = {}
    for shard in source.shards:
        decided[shard.name] = []
        for entry in shard.header.entries.values():
            if entry.name in tied:
                check_dtype(shard.name, entry, kinds)
                kept = Decision(f"tied to {tied[entry.name]}, stored once")
                decided[shard.name].append(PlannedTensor(entry, kept, tied[entry.name]))
                continue
            if ternary is not None and entry.name in ternary.scales:
                scaled = ternary.scales[entry.name]
                kept = Decision(f"the scale of {scaled}, stored in its codebook")
                decided[shard.name].append(PlannedTensor(entry, kept, scaled))
                continue
            try:
                if ternary is not None and entry.name in ternary.matrices:
                    decision = Decision("ternary weight", (ternary.matrices[entry.name],))
                else:
                    decision = decide(entry, source.model_type, include, exclude, text_config)
                    if ternary and decision.quantize and not matches(_module(entry), include):
                        decision = Decision("not ternary in the source")
                if decision.quantize:
                    check_free_names(entry, decision.matrices, names)
                    if "packed" in kinds:
                        _check_runs(entry, source.model_type)
            except SourceError as error:
                raise SourceError(f"{shard.name}: {error}") from None
            check_dtype(shard.name, entry, kinds)
            decided[shard.name].append(PlannedTensor(entry, decision))
    fused = [tensor for tensor in source.tensors if not matches(_module(tensor), exclude)]
    check_blocks(fused, source.model_type, text_config)
    return decided


def decide(
    tensor: TensorEntry,
    model_type: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Decision:
    """Decide on one tensor.

    include, exclude: module globs; include adds what names do not recognise (and overrides `kept`),
    exclude wins over both. config: of the text model, for tensors of experts.

    Raises SourceError for a tensor named as a linear weight, or as experts, that cannot be that.
    """
    module, _, leaf = tensor.name.rpartition(".")
    family = FAMILIES.get(model_type, UNKNOWN_FAMILY)
    linear = leaf == "weight" and re.fullmatch(family.linear, module) is not None
    if matches(_module(tensor), exclude):
        return Decision(EXCLUDED)
    if experts := expert_matrices(tensor, model_type, config):
        return _decide_experts(tensor, experts, exclude)
    asked = matches(_module(tensor), include)
    if tower := family.tower_of(module):
        known = leaf == "weight" and re.fullmatch(tower.linear, module) is not None
        if not (known and asked):  # a glob that means the tower means its linear weights
            return Decision(TOWER if known else reason_to_keep(tensor))
    if not linear and not asked:
        read = leaf == "weight" and is_read_by_model(module, model_type)
        return Decision(READ_BY_MODEL if read else reason_to_keep(tensor))
    remedy = f"leave it out with --exclude '{tensor.name}'"
    if leaf != "weight":
        raise SourceError(f"tensor {tensor.name}: only X.weight can be quantized; {remedy}")
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise SourceError(
            f"tensor {tensor.name}: shape {list(tensor.shape)} is not a 2-D linear weight; {remedy}"
        )
    check_float(tensor)
    if linear:
        return Decision("linear weight", (whole_matrix(tensor, family.transposed),))
    return Decision("included on request", (whole_matrix(tensor),))


def _decide_experts(
    tensor: TensorEntry, experts: tuple[SourceMatrix, ...], exclude: Sequence[str]
) -> Decision:
    excluded = [matrix.module for matrix in experts if matches(matrix.module, exclude)]
    if len(excluded) == len(experts):
        return Decision(EXCLUDED)
    if excluded:
        raise SourceError(
            f"tensor {tensor.name}: holds all experts of its block, and --exclude means some of "
            f"them ({excluded[0]}); leave out all or none"
        )
    check_float(tensor)
    return Decision("experts", experts)


def check_globs(flag: str, globs: Iterable[str], modules: Iterable[str], where: str) -> None:
    """Raise TritError for a glob that means no module, which is probably a typo."""
    if unused := unmatched(globs, modules):
        raise TritError(f"{flag} {unused[0]!r} matches nothing in {where}")


def modules_of(source: Source) -> list[str]:
    """The modules of every tensor, and of the experts that some hold."""
    experts = (expert_modules(tensor, source.model_type) for tensor in source.tensors)
    return [*map(_module, source.tensors), *chain.from_iterable(experts)]


def _module(tensor: TensorEntry) -> str:
    return tensor.name.removesuffix(".weight")


def reason_to_keep(tensor: TensorEntry) -> str:
    """Why a tensor that is not a linear weight is kept, told by its name."""
    module, _, leaf = tensor.name.rpartition(".")
    if leaf.endswith("bias"):
        return "bias"
    for pattern, reason in KEPT_NAMES:
        if re.fullmatch(pattern, module):
            return reason
    if len(tensor.shape) != 2:
        return f"{len(tensor.shape)}-D, not recognised"
    return "name not recognised"


def is_read_by_model(module: str, model_type: str) -> bool:
    """Whether a model's own code reads the weight of this module, which then cannot be packed."""
    return re.fullmatch(WEIGHT_READ_BY_MODEL.get(model_type, r"(?!)"), module) is not None


def reads_weights(model_type: str) -> bool:
    """Whether models of a type read weights of linear layers themselves, which are then kept."""
    return model_type in WEIGHT_READ_BY_MODEL


def is_asked_for_dtype(module: str, model_type: str) -> bool:
    """Whether a model's own code asks the weight of this module for its dtype, and no more."""
    return re.fullmatch(DTYPE_READ_BY_MODEL.get(model_type, r"(?!)"), module) is not None


def _check_runs(tensor: TensorEntry, model_type: str) -> None:
    """Raise SourceError for a weight that a packed model could not run; dequantized it could."""
    module = _module(tensor)
    what = NOT_LINEAR_REASONS.get(reason_to_keep(tensor))
    if re.fullmatch(RUN_AS_LINEAR, module):
        what = None
    elif is_read_by_model(module, model_type):
        what = f"a weight that {model_type} models do not use as a linear layer alone"
    if what:
        raise SourceError(
            f"tensor {tensor.name}: {what}, which cannot run packed; keep it with "
            f"--exclude '{tensor.name}', or write the dequantized model only (--write model)"
        )
