"""Whether a run quantizes enough of a model to be called a quantized model."""

from __future__ import annotations

from tritllm.errors import SourceError
from tritllm.quantizer.decisions import EXCLUDED, PlannedTensor, reason_to_keep
from tritllm.quantizer.families import FAMILIES
from tritllm.quantizer.kept_weights import EMBEDDING, OUTPUT_LAYER, TOWER
from tritllm.quantizer.plan import Plan

LEAST = 0.5
_NOT_COUNTED = (EMBEDDING, OUTPUT_LAYER)


def body_coverage(plan: Plan) -> float:
    """Share of the parameters that are quantized, 0..1, of those that one expects to be.

    Embeddings and output layer are kept by design, and are most of a small model with a large
    vocabulary; what the user excluded he knows of. Neither counts.
    """
    counted = sum(
        tensor.size
        for tensor in plan.all_tensors
        if tensor.decision.quantize or _ought_to_be(tensor)
    )
    return sum(matrix.size for matrix in plan.quantized) / counted


def _ought_to_be(tensor: PlannedTensor) -> bool:
    """Whether a tensor that is kept counts against the coverage."""
    return (
        not tensor.tied_to
        and tensor.decision.reason not in (EXCLUDED, TOWER)
        and reason_to_keep(tensor.entry) not in _NOT_COUNTED
    )


def judgement(plan: Plan) -> str:
    """One line that says why a plan's coverage is doubtful; empty where it is not."""
    share = body_coverage(plan)
    known = plan.source.model_type in FAMILIES
    if known and share >= LEAST:
        return ""
    family = "" if known else f"the family {plan.source.model_type} is not known; "
    return (
        f"{family}{100 * share:.1f} % of the parameters besides embeddings, output layer and what "
        f"is excluded are quantized ({100 * LEAST:.0f} % at least are expected)"
    )


def check_coverage(plan: Plan) -> None:
    """Raise SourceError for a plan whose coverage is doubtful."""
    if fault := judgement(plan):
        raise SourceError(
            f"{plan.source.files.name}: {fault}; name more with --include 'GLOB', "
            "or accept it with --allow-low-coverage"
        )
